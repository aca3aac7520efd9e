"""Time in which a process did not run is not counted against others: all were stopped, or their group was frozen."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nodes import SHARD, Nodes

from memcluster.node.nbd.wire import Command, Error
from memcluster.node.spec import Bounds
from memcluster.node.transport.system import Kernel

PATIENCE = 5.0
FROZEN = 60.0
"""Seconds."""


class Later(Kernel):
    """Its clocks can be put on, as they are for a process that goes on after a while."""

    def __init__(self) -> None:
        passed = 0.0

        def pass_time(seconds: float) -> None:
            nonlocal passed
            passed += seconds

        self.pass_time = pass_time
        self.monotonic = lambda: time.monotonic() + passed
        self.monotonic_ns = lambda: time.monotonic_ns() + int(passed * 1e9)


@pytest.fixture
def system() -> Later:
    return Later()


@pytest.fixture
def pass_time(system: Later) -> Callable[[float], None]:
    return system.pass_time


@pytest.fixture
def make_nodes(tmp_path: Path, system: Later) -> Iterator[Callable[[str], Nodes]]:
    made: list[Nodes] = []
    bounds = Bounds(retry_timeout=PATIENCE, stall_timeout=PATIENCE, handshake_timeout=PATIENCE)

    def make(kind: str) -> Nodes:
        nodes = Nodes(tmp_path, kind, bounds=bounds, system=system)
        made.append(nodes)

        def beat() -> None:
            nodes.loop.after(0.5, beat)

        beat()
        return nodes

    yield make
    for nodes in made:
        nodes.close()


@pytest.mark.parametrize("kind", ["chain", "dispatcher", "primary-secondary"])
def test_retry_timeout_does_not_count_time_in_which_all_were_frozen(make_nodes, pass_time, kind: str) -> None:
    """And counts the rest, before and after."""
    nodes = make_nodes(kind)
    away = f"server{nodes.owner(SHARD)[0].spec.index}"
    client = nodes.client()
    nodes.servers[0].cut(away, True)
    client.ask(Command.READ, 1, SHARD, 1)
    nodes.turn(20)
    pass_time(FROZEN)
    nodes.turn(20)
    nodes.servers[0].cut(away, False)
    assert not client.reply().error
    nodes.turn(20)
    nodes.servers[0].cut(away, True)
    client.ask(Command.READ, 2, SHARD, 1)
    nodes.turn(20)
    pass_time(FROZEN)
    for _ in range(2 * int(PATIENCE / 0.05)):
        nodes.turn(2)
        pass_time(0.05)
    assert client.reply().error == Error.EIO


def test_clients_are_not_cut_off_for_time_in_which_all_were_frozen(make_nodes, pass_time, topology: str) -> None:
    """One in the middle of its handshake, and one in the middle of a payload."""
    nodes = make_nodes(topology)
    client = nodes.client()
    client.session.submit(Command.WRITE, 1, 0, SHARD // 2, 0, (b"A" * (SHARD // 2),))
    whole = b"".join(client.session.outgoing)
    client.session.outgoing.clear()
    client.sock.send(whole[:1000])
    with socket.create_connection(client.sock.getpeername()) as beginner:
        nodes.turn(20)
        beginner.recv(100)
        for _ in range(3):
            pass_time(FROZEN)
            nodes.turn(20)
        beginner.setblocking(False)
        with pytest.raises(BlockingIOError):
            beginner.recv(1)
        client.unsent = whole[1000:]
        assert not client.reply().error


@pytest.mark.parametrize("kind", ["chain", "dispatcher", "primary-secondary"])
def test_a_server_that_was_stopped_itself_gives_others_their_time(make_cluster, kind: str) -> None:
    """One that is away for 4 s is waited for, with a retry_timeout of 3 s: for 2.5 s nobody was there to wait."""
    cluster = make_cluster(topology=kind, retry_timeout="3s", restart={"deaths": 100})
    there = [node for node in cluster.status()["nodes"] if node["range"]][1]
    with cluster.connect(reconnect=False) as memory:
        cluster.command("fault", "kill", there["name"], "--for", "4s")
        cluster.wait_for(lambda status: any(node["state"] == "restarting" for node in status["nodes"]))
        read = memory.start_pread(1, there["range"][0])
        cluster.status()  # server0 answers in a turn of its loop in which it has taken the request
        cluster.command("fault", "pause", "server0", "--for", "2500ms")
        assert read.result() == b"\0"
