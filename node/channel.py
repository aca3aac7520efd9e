"""A channel: a connected stream socket that carries frames in both directions, on the loop.

The supervisor holds one to each node (its end of file is how a node learns that the supervisor died), the command
line one to the supervisor, and the loggers one another's. It knows what a frame is, not what it means.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from node.frames import Frame, FrameError, FrameReader
from node.loop import READ, WRITE, Loop

RECEIVE = 1 << 16


class Channel:
    """Frames over a socket. `received(channel, frame)` and `closed(channel)` are called from the loop.

    `queued` is the number of bytes that wait to be sent; a sender of much data waits for `drained` before it goes on.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        received: Callable[[Channel, Frame], None],
        closed: Callable[[Channel], None] = lambda _: None,
    ) -> None:
        sock.setblocking(False)
        self.loop = loop
        self.sock = sock
        self.queued = 0
        self.drained: Callable[[Channel], None] = lambda _: None
        self.open = True
        self._received = received
        self._closed = closed
        self._reader = FrameReader()
        self._outgoing: deque[memoryview] = deque()
        self._mask = READ
        self._last = False
        loop.watch(sock, READ, self._ready)

    def __repr__(self) -> str:
        return f"<Channel {'open' if self.open else 'closed'}, {self.queued} bytes to send>"

    def send(self, head: dict[str, Any], body: bytes = b"") -> None:
        """Queue a frame and send what the socket takes; frames to a closed channel are dropped."""
        if not self.open or self._last:
            return
        data = memoryview(Frame(head, body).encode())
        self._outgoing.append(data)
        self.queued += len(data)
        if len(self._outgoing) == 1:
            self._flush()

    def finish(self) -> None:
        """Close as soon as everything queued is out."""
        self._last = True
        if not self._outgoing:
            self.close()

    def close(self) -> None:
        """Close now; `closed` is called once."""
        if not self.open:
            return
        self.open = False
        self.loop.unwatch(self.sock)
        self.sock.close()
        self._closed(self)

    def _ready(self, mask: int) -> None:
        if mask & WRITE:
            self._flush()
        if mask & READ and self.open:
            self._read()

    def _read(self) -> None:
        try:
            data = self.sock.recv(RECEIVE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        try:
            frames = self._reader.receive(data)
        except FrameError:
            self.close()
            return
        for frame in frames:
            self._received(self, frame)
            if not self.open:
                return

    def _flush(self) -> None:
        try:
            while self._outgoing:
                data = self._outgoing[0]
                sent = self.sock.send(data)
                self.queued -= sent
                if sent < len(data):
                    self._outgoing[0] = data[sent:]
                    break
                self._outgoing.popleft()
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.close()
            return
        mask = READ | WRITE if self._outgoing else READ
        if mask != self._mask:
            self._mask = mask
            self.loop.watch(self.sock, mask, self._ready)
        if not self._outgoing:
            if self._last:
                self.close()
            else:
                self.drained(self)
