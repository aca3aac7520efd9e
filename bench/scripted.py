"""The servers of a cluster and a scripted client on one loop of one process: requests that are the same each time.

Run by bench.instructions in the checkout that is measured, whose tests/nodes.py makes the servers. `mark` is called
before the requests and behind them: a profiler sees what lies between.
"""

from __future__ import annotations

import os
import select
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import memcluster
from memcluster.node.nbd import wire
from memcluster.node.nbd.wire import Command

sys.path.append(str(Path(memcluster.__file__).parents[1] / "tests"))
import nodes
from nodes import Nodes

BLOCK = 4096
SHARD = 8 << 20
WARM = 8
"""Rounds before those that are measured."""
STRIDE = 7919 * BLOCK
"""From one request's place to the next one's: all servers have their turn."""


def run(kind: str, links: str, command: int, depth: int, rounds: int, mark: Callable[[], object]) -> None:
    """Ask `rounds` times for `depth` blocks at once."""
    nodes.SHARD = SHARD
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        made = Nodes(Path(folder), kind, links=links)
        made.fill(b"x")
        for server in made.servers:
            server.log.change(1 << 30, "requests", 1, 0.0)
        size = SHARD if made.shape.every_server_is_a_door else 3 * SHARD
        client = made.client()
        places = [index * STRIDE % size for index in range(depth * rounds)]
        _ask(made, client, command, places[:depth] * WARM, depth, lambda: None)
        _ask(made, client, command, places, depth, mark)
        client.sock.close()
        made.close()


def _ask(made: Nodes, client: Any, command: int, places: list[int], depth: int, mark: Callable[[], object]) -> None:
    reads = command == Command.READ
    body, answer = (b"", wire.CHUNK_DATA.size + BLOCK) if reads else (bytes(BLOCK), wire.SIMPLE_REPLY.size)
    batches = [
        b"".join(
            wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, command, cookie, place, BLOCK) + body
            for cookie, place in enumerate(places[start : start + depth])
        )
        for start in range(0, len(places), depth)
    ]
    room = memoryview(bytearray(answer * depth))
    come = select.poll()
    come.register(client.sock, select.POLLIN)
    mark()
    for asked in batches:
        rest, missing = asked, answer * depth
        while missing:
            if rest:
                rest = rest[client.sock.send(rest) :]
            made.loop.turn(0)
            if come.poll(0):
                missing -= client.sock.recv_into(room[:missing])
    mark()


if __name__ == "__main__":
    for case in sys.argv[1:]:
        topology, kind_of_links, operation, in_flight, times = case.split(",")
        run(topology, kind_of_links, Command[operation], int(in_flight), int(times), os.getppid)
