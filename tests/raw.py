"""One NBD connection of a test, request by request: what memcluster's own client does not ask for by itself."""

from __future__ import annotations

import socket
from itertools import count
from types import TracebackType

from harness import TIMEOUT

from memcluster.node.nbd.client import ClientSession, Reply
from memcluster.node.nbd.wire import Command, TransmissionFlag
from memcluster.node.transport.address import Address


def shake_hands(sock: socket.socket, **options) -> None:
    """Into the transmission phase; not a byte too much is read. `options` are ClientSession's."""
    session = ClientSession("", **options)
    while not session.ready:
        if session.outgoing:
            sock.sendmsg(session.outgoing)
            session.outgoing.clear()
        session.received(sock.recv_into(session.receive_buffer(), 1))


class Raw:
    """`options` are ClientSession's; `received` counts the bytes that came."""

    def __init__(self, uri: str, export: str = "", **options) -> None:
        address = Address.parse(uri.removeprefix("nbd://"))
        self.sock = socket.socket(address.family)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(address.sockaddr)
        self.session = ClientSession(export, **options)
        self.received = 0
        self._cookies = count(1)
        while not self.session.ready:
            self._exchange()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.sock.close()

    @property
    def flags(self) -> TransmissionFlag:
        return self.session.flags

    def ask(self, command: Command, offset: int = 0, length: int = 0, flags: int = 0, payload: bytes = b"") -> Reply:
        self.session.submit(command, next(self._cookies), offset, length, flags, (payload,) if payload else ())
        while True:
            for reply in self._exchange():
                return reply

    def _exchange(self) -> list[Reply]:
        if self.session.outgoing:
            self.sock.sendall(b"".join(self.session.outgoing))
            self.session.outgoing.clear()
        got = self.sock.recv_into(self.session.receive_buffer())
        if not got:
            raise ConnectionError("the server closed the connection")
        self.received += got
        return self.session.received(got)
