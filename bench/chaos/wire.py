"""One connection as it is on the wire, for clients that no library would make: half a request, requests that nobody
waits for, a connection that is closed in the middle. It negotiates nothing, so every answer is a simple reply."""

from __future__ import annotations

import select
import socket
import struct
import time
from contextlib import suppress

from memcluster.client.uri import parse_uri
from memcluster.node.nbd import wire

HANDSHAKE_WITHIN = 5.0


class Lost(Exception):
    """The connection is gone, or nothing came in time."""


class Wire:
    """Raises Lost when it cannot be had, and from then on wherever the server has gone. One that is `hasty` has said
    its part of the handshake and waits for nothing: `shake_hands` is to be called before anything is read."""

    def __init__(self, uri: str, *, hasty: bool = False) -> None:
        target = parse_uri(uri)
        try:
            self._sock = socket.create_connection((target.host, target.port), HANDSHAKE_WITHIN)
        except OSError as error:
            raise Lost(str(error)) from error
        try:
            self.send(wire.CLIENT_FLAGS.pack(wire.HandshakeFlag.FIXED_NEWSTYLE | wire.HandshakeFlag.NO_ZEROES))
            self.send(wire.OPTION.pack(wire.IHAVEOPT, wire.Option.EXPORT_NAME, 0))
            if not hasty:
                self.shake_hands()
        except Lost:
            self._sock.close()
            raise

    def shake_hands(self) -> None:
        """What the server has to say before the first reply."""
        self.data(wire.GREETING.size + wire.EXPORT_NAME_REPLY.size, HANDSHAKE_WITHIN)

    def send(self, data: bytes | memoryview, seconds: float = HANDSHAKE_WITHIN) -> None:
        """All of it."""
        self._sock.settimeout(seconds)
        try:
            self._sock.sendall(data)
        except OSError as error:
            raise Lost(str(error)) from error

    def send_now(self, data: bytes) -> int:
        """As much of it as goes without waiting."""
        self._sock.setblocking(False)
        sent = 0
        with suppress(BlockingIOError, ConnectionError):
            while sent < len(data):
                sent += self._sock.send(memoryview(data)[sent:])
        return sent

    def reply(self, seconds: float) -> tuple[int, int]:
        """The cookie and the error of the next reply; the bytes of a READ without an error follow."""
        magic, error, cookie = wire.SIMPLE_REPLY.unpack(self.data(wire.SIMPLE_REPLY.size, seconds))
        if magic != wire.SIMPLE_REPLY_MAGIC:
            raise Lost(f"magic {magic:#x}")
        return cookie, error

    def data(self, length: int, seconds: float) -> bytes:
        """So many bytes, in so many seconds."""
        data = bytearray()
        deadline = time.monotonic() + seconds
        while len(data) < length:
            self._sock.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                got = self._sock.recv(length - len(data))
            except OSError as error:
                raise Lost(str(error)) from error
            if not got:
                raise Lost("closed by the server")
            data += got
        return bytes(data)

    def speaks(self, seconds: float) -> bool:
        """Something comes within so many seconds, or the end."""
        return bool(select.select([self._sock], [], [], seconds)[0])

    def close(self) -> None:
        """A server on another host cannot know that this side is gone before it has read all that was sent, and what
        still waits here would come later: that is thrown away."""
        with suppress(OSError):  # the connection is gone already
            if self._sock.getsockname()[0] != self._sock.getpeername()[0]:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()
