"""A secondary by itself, on a loop of the test's: of its primary's links only the last one counts."""

from __future__ import annotations

import fcntl
import socket
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from harness import SECRET
from strangers import FLAGS, go

from memcluster.node.cluster_map import ClusterMap, ServerEntry
from memcluster.node.forwarding.link import Link
from memcluster.node.nbd import wire
from memcluster.node.nbd.buffer import RECEIVE_BUFFER
from memcluster.node.nbd.client import ClientSession
from memcluster.node.nbd.errors import Refused
from memcluster.node.nbd.server import REQUEST_COST, Request
from memcluster.node.nbd.wire import Command, CommandFlag
from memcluster.node.serving import keeper
from memcluster.node.serving.connection import TURN_BUDGET
from memcluster.node.spec import NodeSpec
from memcluster.node.topologies.primary_secondary import LINK, LINKS, Secondary
from memcluster.node.transport.address import Address
from memcluster.node.transport.dialer import Dialer
from memcluster.node.transport.loop import Loop
from memcluster.node.transport.proof import ANSWER, CHALLENGE, MAGIC, Pass, Who

SIZE = 4 << 20
KEY = Pass(SECRET, Who.SERVER, "server1")
LONG = 1 << 20
"""Bytes of a payload that is received in its place."""


class Peer:
    """One connection to the secondary, or to a door for clients."""

    def __init__(self, loop: Loop, address: str, export: str = LINK) -> None:
        self.loop = loop
        met: list[socket.socket] = []
        key = KEY if export == LINK else None
        dialer = Dialer(loop, Address(path=address), met.append, key)
        dialer.dial()
        while not met:
            loop.turn(0.01)
        self.sock = met[0]
        self.session = ClientSession(export)
        while not self.session.ready:
            self.turn()

    def turn(self) -> list[int]:
        """A turn of the server's loop; the cookies of what was answered."""
        if self.session.outgoing:
            self.sock.sendmsg(self.session.outgoing)
            self.session.outgoing.clear()
        self.loop.turn(0.01)
        try:
            count = self.sock.recv_into(self.session.receive_buffer())
        except BlockingIOError:
            return []
        return [reply.cookie for reply in self.session.received(count)]

    def done(self, *request: object) -> None:
        """Carry a request out."""
        self.session.submit(*request)
        while not self.turn():
            pass

    def is_cut_off(self) -> bool:
        """The server has closed this connection."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True


def unread(sock: socket.socket) -> int:
    """What was sent and waits in the other side's socket (unix(7), SIOCOUTQ): not 0 as long as there is anything."""
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


class Subject:
    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "s")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.address)
        listener.listen()
        listener.setblocking(False)
        (folder / "shard").write_bytes(bytes(SIZE))
        entries = tuple(ServerEntry("unix:/nowhere", "unix:/nowhere", SIZE, role) for role in ("primary", "secondary"))
        cluster = ClusterMap("test", "primary-secondary", "parallel", 0, entries)
        log = str(folder / "log")
        spec = NodeSpec("server1", "secondary", 1, cluster, str(folder / "shard"), False, log, 0, "", SECRET)
        self.loop = Loop()
        self.listener = listener
        self.server = Secondary(self.loop, spec, [listener], lambda _: None)
        self.server.start()

    def peer(self) -> Peer:
        return Peer(self.loop, self.address)

    def bytes(self, offset: int, length: int) -> bytes:
        return b"".join(self.server.shard.read(offset, length))


@pytest.fixture
def subject(tmp_path: Path) -> Iterator[Subject]:
    subject = Subject(tmp_path)
    yield subject
    for connection in list(subject.server.connections.values()):
        connection.cut_off("")
    subject.server.close()
    subject.listener.close()
    subject.loop.close()


def test_what_a_lost_link_still_brings_is_not_done(subject: Subject) -> None:
    """The primary has given the write up, said so to its client, and sent a newer one on its next link."""
    lost = subject.peer()
    lost.sock.send(wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, Command.WRITE, 1, 0, LONG) + b"A" * 4096)
    while subject.bytes(0, 1) != b"A":  # received in its place
        subject.loop.turn(0.01)
    subject.peer().done(Command.WRITE, 2, LONG - 512, 512, 0, (b"B" * 512,))
    assert lost.is_cut_off()
    assert subject.bytes(LONG - 512, 512) == b"B" * 512


def test_what_a_lost_link_had_begun_is_not_gone_on_with(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes turns of the loop: bytes that are written meanwhile stay."""
    monkeypatch.setattr(keeper, "SLICE", 4096)
    lost = subject.peer()
    lost.session.submit(Command.WRITE_ZEROES, 1, 0, SIZE)
    lost.turn()
    subject.peer().done(Command.WRITE, 2, SIZE - 512, 512, 0, (b"B" * 512,))
    for _ in range(SIZE // 4096):
        subject.loop.turn(0)
    assert lost.is_cut_off()
    assert subject.bytes(SIZE - 512, 512) == b"B" * 512


def test_a_newer_write_stays_under_an_older_zeroing_that_takes_long(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client may be gone, which nobody tells a secondary: what is left of it leaves the newer bytes alone."""
    monkeypatch.setattr(keeper, "KEEPING_SLICE", 4096)
    link = subject.peer()
    link.session.submit(Command.WRITE_ZEROES, 1, 0, SIZE, CommandFlag.NO_HOLE)
    link.turn()
    link.done(Command.WRITE, 2, SIZE - 512, 512, 0, (b"B" * 512,))
    assert subject.server.under_way
    while subject.server.under_way:
        subject.loop.turn(0)
    assert subject.bytes(SIZE - 512, 512) == b"B" * 512
    assert subject.bytes(0, SIZE - 512) == bytes(SIZE - 512)


def test_only_who_knows_the_secret_ends_a_link(subject: Subject) -> None:
    """Who says the same words without is told nothing but a nonce; it is counted, and the link goes on."""
    link = subject.peer()
    for words in (b"", FLAGS + go(LINK.encode()), bytes(ANSWER.size)):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(subject.address)
            stranger.sendall(words)
            before = subject.server.strangers
            stranger.shutdown(socket.SHUT_WR)
            while subject.server.strangers == before:
                subject.loop.turn(0.01)
            told = b""
            with suppress(ConnectionResetError):
                while part := stranger.recv(1000):
                    told += part
            assert len(told) == CHALLENGE.size
            assert told.startswith(MAGIC)
    link.done(Command.READ, 2, 0, 512)
    assert subject.server.status()["strangers"] == 3
    assert len(subject.server.connections) == 1


def test_links_have_places(subject: Subject) -> None:
    """What is left of one keeps its place as long as something of it is under way; then another one finds it."""
    request = Request(Command.READ, 0, 1, 0, 512)
    for _ in range(LINKS):
        subject.peer()
        (connection,) = subject.server.connections.values()
        connection.begin(request)
    with pytest.raises(Refused, match="slots are taken"):
        subject.peer()
    connection.end(request)
    subject.peer().done(Command.READ, 2, 0, 512)


def test_no_more_requests_are_begun_while_replies_are_held_up(subject: Subject) -> None:
    """A turn's worth of them is; what comes meanwhile waits in the socket, and all are answered in the end."""
    peer = subject.peer()
    subject.loop.slow(3600)
    cookies = list(range(2 * RECEIVE_BUFFER // wire.REQUEST.size))
    for cookie in cookies:
        peer.session.submit(Command.READ, cookie, 0, 1)
    unsent = b"".join(peer.session.outgoing)
    peer.session.outgoing.clear()

    def turn() -> list[int]:
        nonlocal unsent
        with suppress(BlockingIOError):
            unsent = unsent[peer.sock.send(unsent) :] if unsent else unsent
        return peer.turn()

    assert not any(turn() for _ in range(20))
    assert 0 < subject.server.requests <= TURN_BUDGET // REQUEST_COST
    subject.loop.slow(0)
    answered: list[int] = []
    while len(answered) < len(cookies):
        answered += turn()
    assert answered == cookies


def test_who_has_no_room_left_is_not_read_from_when_others_have_used_up_the_budget(subject: Subject) -> None:
    """It holds replies that it does not take; until it does, what it sends waits in the socket."""
    peer = subject.peer()
    peer.session.submit(Command.READ, 1, 0, SIZE)
    while peer.session.outgoing:
        peer.sock.sendmsg(peer.session.outgoing)
        peer.session.outgoing.clear()
    (connection,) = subject.server.connections.values()
    while not connection.queued:
        subject.loop.turn(0.01)
    assert not unread(peer.sock)
    subject.server.budget.left = 0
    peer.session.submit(Command.READ, 2, 0, 512)
    peer.sock.sendmsg(peer.session.outgoing)
    peer.session.outgoing.clear()
    for _ in range(20):
        subject.loop.turn(0)
    assert unread(peer.sock)
    answered: list[int] = []
    while len(answered) < 2:
        answered += peer.turn()
    assert answered == [1, 2]


def test_a_link_whose_server_has_hung_up_is_closed_and_stays_so(subject: Subject) -> None:
    """Its goodbye finds nobody: no error, and no new connection."""
    scratch = memoryview(bytearray(1 << 18))
    link = Link(subject.loop, Address(path=subject.address), LINK, 30.0, scratch, key=KEY)
    while not link.ready:
        subject.loop.turn(0.01)
    (connection,) = subject.server.connections.values()
    connection.cut_off("")
    assert link.ready
    link.close()
    for _ in range(20):
        subject.loop.turn(0.01)
    assert not link.ready
    assert not subject.server.connections
