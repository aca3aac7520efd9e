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
