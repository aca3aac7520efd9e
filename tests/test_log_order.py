"""The order and the names of what real clusters log: no effect before its cause, no identifier twice."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from harness import SECRET, Cluster
from test_secondary import Peer

from memcluster.client.handshake import offering
from memcluster.client.identifiers import BLOCK
from memcluster.client.system import KERNEL, finish
from memcluster.client.uri import parse_uri
from memcluster.node.cluster_map import ClusterMap, ServerEntry
from memcluster.node.log.filter import Filter
from memcluster.node.log.history import History
from memcluster.node.log.record import MAX_COUNTER, Kind, format_identifier, make_identifier
from memcluster.node.nbd import wire
from memcluster.node.nbd.wire import Command, Option
from memcluster.node.spec import NodeSpec
from memcluster.node.topologies.client_routed import Part
from memcluster.node.transport.loop import Loop

pytestmark = pytest.mark.timeout(180)
Make = Callable[..., Cluster]


def lines(cluster: Cluster, *words: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in cluster.command("logs", "--json", *words).stdout.splitlines()]


@pytest.mark.parametrize("logs", [{"retain": "1MiB"}, {"retain_age": "16s"}], ids=str)
def test_requests_that_wait_for_a_paused_server_stand_before_their_pieces(make_cluster: Make, logs: dict) -> None:
    """They end after everything else, later than a whole segment of it, and their pieces before them."""
    cluster = make_cluster(logs={"directory": "logs", **logs})
    with cluster.connect() as waiting, cluster.connect() as quick:
        border = cluster.status()["nodes"][2]["range"][0]
        cluster.command("fault", "pause", "server2")
        reads = [waiting.start_pread(2, border - 1) for _ in range(3000)]
        quick.pread(1, border - 1)  # on the same link: all that was sent before it has left
        for done in [quick.start_pread(1, number) for number in range(4200)]:
            done.result()
        cluster.command("fault", "resume", "server2")
        for read in reads:
            assert read.result() == b"\0\0"
    found = lines(cluster)
    given = set()
    requests = {line["request"] for line in found if line["kind"] == "request"}
    for line in found:
        if line["kind"] == "request":
            given.add(line["request"])
        elif line["kind"] == "piece" and line["request"] in requests:
            assert line["request"] in given, line
    assert len(given) > 3000


class Door:
    """A server of client-routed on a loop of the test's, with its log."""

    def __init__(self, folder: Path) -> None:
        (folder / "shard").write_bytes(bytes(4096))
        self.log = folder / "log"
        self.address = str(folder / "s")
        entries = (ServerEntry("unix:/a", "unix:/b", 4096, "primary"),)
        cluster = ClusterMap("demo", "client-routed", "parallel", 0, entries)
        shard, log = str(folder / "shard"), str(self.log)
        spec = NodeSpec("server0", "primary", 0, cluster, shard, False, log, 1 << 20, "", SECRET)
        self.loop = Loop()
        self.listener = socket.socket(socket.AF_UNIX)
        with suppress(FileNotFoundError):
            os.unlink(self.address)
        self.listener.bind(self.address)
        self.listener.listen()
        self.listener.setblocking(False)
        self.server = Part(self.loop, spec, [self.listener], lambda _: None)
        self.server.start()
        self.somebody: socket.socket | None = None

    def lent(self) -> int:
        """The first identifier of a block."""
        if not self.server.connections:  # to each client another block, whoever it is
            self.somebody = socket.socket(socket.AF_UNIX)
            self.somebody.connect(self.address)
            self.loop.turn(1)
        [connection] = self.server.connections.values()
        [context] = self.server.contexts(connection, self.server.exports()[0])
        return int(context.rpartition("/")[2], 16)

    def close(self) -> None:
        if self.somebody is not None:
            self.somebody.close()
        self.server.close()
        self.listener.close()
        self.loop.close()


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Callable[[], Door]]:
    made: list[Door] = []

    def start() -> Door:
        """The server's next life."""
        if made:
            made.pop().close()
        made.append(Door(tmp_path))
        return made[-1]

    yield start
    made[-1].close()


def test_however_many_identifiers_are_lent_none_is_lent_twice(door: Callable[[], Door]) -> None:
    """More than an incarnation has, which the log knows before they are used: a next life has others."""
    first = door()
    count = (MAX_COUNTER + 1) // BLOCK + 100
    lent = [first.lent() for _ in range(count)]
    assert all(after - before >= BLOCK for before, after in pairwise(lent))
    assert door().lent() >= lent[-1] + BLOCK


def test_a_request_after_the_last_of_an_incarnation_is_of_the_next(door: Callable[[], Door]) -> None:
    """In the log, too; and the next life does not take these up again."""
    life = door()
    peer = Peer(life.loop, life.address, "")
    peer.done(Command.READ, 1, 0, 1)
    life.server._identifier = make_identifier(0, 1, MAX_COUNTER - 1000)
    for cookie in (2, 3):
        peer.done(Command.READ, cookie, 0, 1)
    peer.sock.close()
    after = door()
    peer = Peer(after.loop, after.address, "")
    peer.done(Command.READ, 4, 0, 1)
    peer.sock.close()
    found = [entry[2] for batch in History(after.log, 0).read(Filter()) for entry in batch if entry[1] == Kind.REQUEST]
    assert list(map(format_identifier, found)) == ["0.1.1", "0.2.1", "0.2.2", "0.3.1"]


def test_who_asks_again_and_again_is_lent_one_block(make_cluster: Make) -> None:
    """Before it has a slot, a connection can ask as often as it likes."""
    cluster = make_cluster(topology="client-routed")
    target = parse_uri(cluster.uri)

    def lent() -> int:
        [context] = finish(KERNEL, offering(KERNEL, target, 10))
        return int(context.rpartition("/")[2], 16)

    before = lent()
    query = struct.pack(">II", 0, 1) + struct.pack(">I", 13) + b"x-memcluster:"
    with socket.create_connection((target.host, target.port)) as sock:
        stream = sock.makefile("rwb")
        stream.read(wire.GREETING.size)
        stream.write(wire.CLIENT_FLAGS.pack(3) + wire.OPTION.pack(wire.IHAVEOPT, Option.STRUCTURED_REPLY, 0))
        asked = wire.OPTION.pack(wire.IHAVEOPT, Option.LIST_META_CONTEXT, len(query)) + query
        stream.write(asked * 20 + wire.OPTION.pack(wire.IHAVEOPT, Option.ABORT, 0))
        stream.flush()
        names = re.findall(rb"x-memcluster:part/[0-9a-f]+", stream.read())
    assert len(names) == 20
    assert len(set(names)) == 1
    assert lent() == before + 2 * BLOCK
