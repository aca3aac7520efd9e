"""A link by itself: what becomes of it when the system has nothing left for it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from harness import SECRET, no_descriptors

from memcluster.node.forwarding.link import Link
from memcluster.node.handover.passage import PassageLink
from memcluster.node.transport.address import Address
from memcluster.node.transport.dialer import Dialer, pause_before
from memcluster.node.transport.loop import Loop, Timer
from memcluster.node.transport.proof import Pass, Who

KEY = Pass(SECRET, Who.SERVER, "server1")


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def accept(loop: Loop, listener: socket.socket) -> socket.socket:
    """The connection that comes when the loop has turned often enough."""
    for _ in range(1000):
        try:
            return listener.accept()[0]
        except BlockingIOError:
            loop.turn(0.1)
    raise AssertionError("nobody has connected")


def test_a_passage_without_a_descriptor_waits_for_one(loop: Loop, tmp_path: Path) -> None:
    """As a link does."""
    address = Address("", 0, str(tmp_path / "s"))
    joined: list[PassageLink] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address.path)
        listener.listen()
        listener.setblocking(False)
        with no_descriptors():
            link = PassageLink(
                loop, 1, address, 0, memoryview(bytearray(1 << 18)), KEY, joined=joined.append,
                answered=lambda *_: None, lost=lambda _: None, lender=SimpleNamespace(readers=set()),
            )  # fmt: skip
            assert "Too many open files" in link.trouble
        accept(loop, listener).close()
        link.close()


def test_a_link_without_a_descriptor_waits_for_one(loop: Loop) -> None:
    """Clients may have taken them all when a server comes back; that must not end the one who asks it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        with no_descriptors():
            link = Link(loop, Address(*listener.getsockname()), "shard", 30.0, memoryview(bytearray(1 << 18)))
            assert "Too many open files" in link.trouble
        accept(loop, listener).close()
        link.close()


class NotedLoop(Loop):
    """Notes how long is waited for what."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    def after(self, seconds: float, call: Callable[[], None]) -> Timer:
        self.pauses.append(seconds)
        return super().after(seconds, call)


def test_a_dialer_tries_at_once_then_after_growing_pauses(tmp_path: Path) -> None:
    """Until there was an answer; then the next loss is the first again."""
    loop = NotedLoop()
    dialer = Dialer(loop, Address("", 0, str(tmp_path / "s")), lambda _: None)
    dialer.dial()
    while len(loop.pauses) < 4:
        loop.turn(0.1)
    assert dialer.trouble == f"{dialer.address}: No such file or directory"
    dialer.reached()
    assert not dialer.trouble
    dialer.lost("closed by the server")
    assert loop.pauses == [0, 0.01, 0.03, 0.07, 0]
    assert max(map(pause_before, range(100))) == 0.5
    loop.close()


def test_a_dialer_keeps_to_one_connection_and_to_none_while_cut(loop: Loop, tmp_path: Path) -> None:
    """Who connects at once is not connected by the attempt that was due, too."""
    found: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX) as listener:
        address = Address("", 0, str(tmp_path / "s"))
        listener.bind(address.path)
        listener.listen()
        dialer = Dialer(loop, address, found.append)

        def connections() -> int:
            """How many are made in a while."""
            for _ in range(20):
                loop.turn(0.01)
            for sock in found:
                sock.close()
            count = len(found)
            found.clear()
            return count

        dialer.dial()
        assert connections() == 1
        dialer.lost("closed by the server")
        dialer.dial()
        assert connections() == 1
        dialer.lost("closed by the server")
        dialer.cut(True, None)
        assert connections() == 0
        dialer.cut(False, None)
        assert connections() == 1
        dialer.cut(True, None)
        dialer.lost("cut by a fault")
        dialer.dial()
        assert connections() == 0
        dialer.close()
        dialer.cut(False, None)
        dialer.lost("closed by the server")
        assert connections() == 0
