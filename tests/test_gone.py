"""A client that is gone, and a server that gave orders and is gone: what had not begun for them is not begun, so that
nothing of theirs comes after what somebody else was told is done."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nodes import SHARD, Client, Nodes, cut_slices

from memcluster.node.nbd import wire
from memcluster.node.nbd.wire import Command, Error
from memcluster.node.serving import connection
from memcluster.node.topology import names
from memcluster.node.transport.system import Kernel

SLICE = 4096
SLICES = 3 * SHARD // SLICE
END = 3 * SHARD - 512
"""The memory's last bytes are written here by the client that came later."""

SHARED = "shared links"
"""primary-secondary with these."""
MakeNodes = Callable[..., Nodes]


@pytest.fixture(params=[*names(), SHARED])
def topology(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeNodes]:
    made: list[Nodes] = []

    def make(kind: str, **more: object) -> Nodes:
        cut_slices(monkeypatch, SLICE)
        if kind == SHARED:
            kind, more = "primary-secondary", more | {"links": "shared"}
        made.append(Nodes(tmp_path, kind, **more))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for nodes in made:
        nodes.close()


def begin_zeroing(nodes: Nodes, offset: int) -> Client:
    """A client whose request is under way there, of an end of the memory that was full before."""
    nodes.fill(b"x")
    client = nodes.client(offset)
    client.ask(Command.WRITE_ZEROES, 7, offset, 3 * SHARD - offset)
    nodes.turn_until(lambda: nodes.bytes(offset, 1) == b"\0")
    return client


@pytest.mark.parametrize("fan_out", ["parallel", "serial"])
@pytest.mark.parametrize("servers", [1, 2, 3])
def test_zeroing_leaves_alone_what_was_written_since_its_client_left(
    make_nodes: MakeNodes, topology: str, fan_out: str, servers: int
) -> None:
    """Over one server, two or three, of which the last ones may not have begun their parts."""
    if topology == "client-routed" and servers > 1:
        pytest.skip("its requests are in one server")
    nodes = make_nodes(topology, fan_out=fan_out)
    client = begin_zeroing(nodes, (3 - servers) * SHARD)
    other = nodes.client(END)
    client.leave()
    other.done(Command.WRITE, 1, END, 512, b"B" * 512)
    nodes.turn(2 * SLICES)
    assert nodes.bytes(END, 512) == b"B" * 512


@pytest.mark.parametrize("fan_out", ["parallel", "serial"])
def test_zeroing_of_a_client_that_stays_is_done(make_nodes: MakeNodes, topology: str, fan_out: str) -> None:
    nodes = make_nodes(topology, fan_out=fan_out)
    begin = 2 * SHARD if topology == "client-routed" else SHARD // 2
    client = begin_zeroing(nodes, begin)
    assert not client.reply().error
    assert nodes.bytes(begin - 1, 1) == b"x" if topology != "client-routed" else True
    assert not any(nodes.bytes(2 * SHARD, SHARD))
    assert topology == "client-routed" or not any(nodes.bytes(SHARD, SHARD))


class Disk(Kernel):
    """The system, with a disk that may be full."""

    full = False

    def allocate(self, file: int, offset: int, length: int) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().allocate(file, offset, length)


def test_zeroing_goes_on_where_a_newer_write_found_no_room(make_nodes: MakeNodes, topology: str) -> None:
    """The write has changed nothing, so what was begun before it is done there, too."""
    disk = Disk()
    nodes = make_nodes(topology, system=disk)
    begin = 2 * SHARD
    other = nodes.client(begin)
    client = begin_zeroing(nodes, begin)
    disk.full = True
    other.ask(Command.WRITE, 1, begin, SHARD // 4, b"B" * (SHARD // 4))
    assert other.reply().error == Error.ENOSPC
    assert not client.reply().error
    assert not any(nodes.bytes(begin, SHARD))


@pytest.mark.parametrize("kind", ["chain", "dispatcher", "primary-secondary", SHARED])
def test_no_order_outlives_who_gave_it(make_nodes: MakeNodes, kind: str) -> None:
    """The server that clients connect to dies while another zeroes for it. The next one has clients of the same
    numbers, whose requests have the same cookies: nobody is told that they are done, and what they write stays."""
    nodes = make_nodes(kind)
    begin_zeroing(nodes, 2 * SHARD if kind != "chain" else SHARD)
    nodes.replace(0)
    client, other = nodes.client(), nodes.client()
    client.done(Command.READ, 1, 0, 1)
    other.done(Command.WRITE, 1, END, 512, b"B" * 512)
    client.sock.send(wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, Command.WRITE, 7, 0, SHARD) + b"A" * 1000)
    nodes.turn(2 * SLICES)
    with pytest.raises(BlockingIOError):
        client.sock.recv(1)
    assert nodes.bytes(END, 512) == b"B" * 512
    if kind not in ("primary-secondary", SHARED):  # whose next one asks for no more than the next link does
        assert nodes.bytes(END - SLICE, 1) == b"x"


@pytest.mark.parametrize("kind", ["chain", "dispatcher", "primary-secondary", SHARED])
@pytest.mark.parametrize("fan_out", ["parallel", "serial"])
def test_what_waits_for_a_server_that_is_away_is_not_begun_once_its_client_is_gone(
    make_nodes: MakeNodes, kind: str, fan_out: str
) -> None:
    """Nor is what was to follow it: another client has made a change since."""
    nodes = make_nodes(kind, fan_out=fan_out)
    client, other = nodes.client(), nodes.client()
    away = f"server{nodes.owner(SHARD)[0].spec.index}"
    nodes.servers[0].cut(away, True)
    client.ask(Command.WRITE, 1, 2 * SHARD - 512, 1024, b"A" * 1024)
    nodes.turn(20)
    client.leave()
    nodes.turn(20)
    other.ask(Command.WRITE, 1, 0, 1, b"B")
    nodes.servers[0].cut(away, False)
    assert not other.reply().error
    other.done(Command.READ, 2, SHARD, 1)
    other.done(Command.READ, 3, 2 * SHARD, 1)
    assert nodes.bytes(2 * SHARD - 512, 512) == bytes(512)
    if fan_out == "serial" or kind == "chain":
        assert nodes.bytes(2 * SHARD, 512) == bytes(512)


@pytest.mark.parametrize("kind", ["dispatcher", "primary-secondary", SHARED])
@pytest.mark.parametrize("how", ["closed", "reset"])
def test_what_waits_in_the_socket_of_a_client_that_is_gone_comes_after_nothing_newer(
    make_nodes: MakeNodes, monkeypatch: pytest.MonkeyPatch, kind: str, how: str
) -> None:
    """It was not read because the client had too much in flight. Another one's write is answered, and stays."""
    monkeypatch.setattr(connection, "ROOM", 1 << 16)
    nodes = make_nodes(kind)
    client, other = nodes.client(), nodes.client()
    first = nodes.owner(0)[0].spec.index
    away = f"server{first + 1}"
    nodes.servers[0].cut(away, True)
    client.ask(Command.WRITE, 1, SHARD, 1 << 17, b"A" * (1 << 17))
    nodes.turn_until(lambda: nodes.servers[0].connections[1].in_flight)
    client.ask(Command.WRITE, 2, 0, 512, b"A" * 512)
    if how == "reset":
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.leave()
    other.done(Command.WRITE, 1, 0, 512, b"B" * 512)
    nodes.servers[0].cut(away, False)
    nodes.turn_until(lambda: 1 not in nodes.servers[0].connections)
    other.done(Command.READ, 2, SHARD, 1)
    assert nodes.bytes(0, 512) == b"B" * 512


def test_what_the_system_of_a_client_that_is_gone_has_still_to_send_comes_after_nothing_newer(
    make_nodes: MakeNodes, topology: str
) -> None:
    """The end of its connection has not come, as it has sent more than the server's socket holds."""
    nodes = make_nodes(topology)
    client, other = nodes.client(), nodes.client()
    for cookie in range(100):
        client.ask(Command.WRITE, cookie, 0, 1 << 16, b"A" * (1 << 16))
    client.sock.close()
    other.done(Command.WRITE, 1, 0, 512, b"B" * 512)
    nodes.turn_until(lambda: all(1 not in one.connections for one in nodes.servers[:1]))
    other.done(Command.READ, 2, SHARD - 1, 1)
    assert nodes.bytes(0, 512) == b"B" * 512


def test_who_only_sends_no_more_is_served_what_nobody_has_overtaken(make_nodes: MakeNodes, topology: str) -> None:
    """A side that is closed is not yet an end: what came before is done and answered, if nobody has written since."""
    nodes = make_nodes(topology)
    nodes.client().done(Command.WRITE, 1, 0, 512, b"B" * 512)
    client = nodes.client()
    client.ask(Command.WRITE, 1, 0, 512, b"A" * 512)
    client.sock.shutdown(socket.SHUT_WR)
    if topology in ("client-routed", "primary-secondary", SHARED):
        assert not client.reply().error
    nodes.turn_until(lambda: nodes.bytes(0, 512) == b"A" * 512)
