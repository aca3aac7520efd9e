"""A link by itself: what becomes of it when the system has nothing left for it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import no_descriptors

from node.forwarding.link import Link
from node.handover.passage import PassageLink
from node.transport.address import Address
from node.transport.dialer import Dialer
from node.transport.loop import Loop


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
                loop, 1, address, 0, memoryview(bytearray(1 << 18)), joined=joined.append,
                answered=lambda *_: None, lost=lambda _: None,
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


def test_a_dialer_keeps_to_one_connection_and_to_none_while_stopped(loop: Loop, tmp_path: Path) -> None:
    """Nobody is there at first; and who connects at once is not connected by the attempt that was due, too."""
    address = Address("", 0, str(tmp_path / "s"))
    found: list[socket.socket] = []
    dialer = Dialer(loop, address, found.append)

    def pass_time() -> None:
        for _ in range(20):
            loop.turn(0.01)

    dialer.dial()
    assert dialer.trouble == f"{address}: No such file or directory"
    dialer.stop()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address.path)
        listener.listen()
        pass_time()
        assert not found
        dialer.start()
        found.pop().close()
        dialer.reached()
        assert not dialer.trouble
        dialer.lost("closed by the server")
        dialer.dial()
        pass_time()
        found.pop().close()
        assert not found
        dialer.lost("closed by the server")
        while not found:
            loop.turn(0.01)
        found.pop().close()
        dialer.stop()
