"""A channel: a connected stream socket that carries frames in both directions, on the loop.

The supervisor holds one to each node (its end of file is how a node learns that the supervisor died), the command
line one to the supervisor, and the loggers one another's. It knows what a frame is, not what it means.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from memcluster.node.transport.frames import MAX_FRAME, Frame, FrameError, FrameReader
from memcluster.node.transport.loop import Loop
from memcluster.node.transport.stream import Line, Stream

RECEIVE = 1 << 16


class Channel(Stream):
    """Frames over a socket; who sends one of more than `most` bytes is cut off. `received(channel, frame)` and
    `closed(channel)` are called from the loop.

    `queued` is the number of bytes that wait to be sent; a sender of much data waits for `drained` before it goes on.
    """

    def __init__(
        self,
        loop: Loop,
        line: Line,
        received: Callable[[Channel, Frame], None],
        closed: Callable[[Channel], None] = lambda _: None,
        *,
        most: int = MAX_FRAME,
    ) -> None:
        super().__init__(loop, line, [])
        self.drained: Callable[[Channel], None] = lambda _: None
        self._received = received
        self._closed = closed
        self._reader = FrameReader(most)
        self._last = False
        self.update()

    def __repr__(self) -> str:
        return f"<Channel {'open' if self.open else 'closed'}, {self.queued} bytes to send>"

    def send(self, head: dict[str, Any], body: bytes = b"") -> None:
        """Queue a frame and send what the socket takes; frames to a closed channel are dropped."""
        if self.open and not self._last:
            self.outgoing.append(Frame(head, body).encode())
            if self.queued:
                self.queued += len(self.outgoing[-1])
            else:
                self.flush()

    def hand(self, head: dict[str, Any], sock: socket.socket) -> None:
        """Send a frame that takes a socket along, over a unix socket. Raises OSError if it does not take that at once.
        """
        data = Frame(head).encode()
        if self.queued:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        sent = socket.send_fds(self.sock, [data], [sock.fileno()])
        if sent < len(data):
            self.outgoing.append(data[sent:])
            self.flush()

    def finish(self) -> None:
        """Close as soon as everything queued is out."""
        self._last = True
        if not self.queued:
            self.close()

    def close(self) -> None:
        """Close now; `closed` is called once."""
        if self.open:
            super().close()
            self._closed(self)

    def _readable(self) -> None:
        data = self.receive(RECEIVE)
        if data is None:
            return
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

    def _lost(self, reason: str) -> None:  # noqa: ARG002 - whoever was connected is gone
        self.close()

    def _flushed(self) -> None:
        if self.queued:
            return
        if self._last:
            self.close()
        else:
            self.drained(self)


class HandedChannel(Channel):
    """A channel over which sockets come along with frames; see Channel.hand."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._handed: deque[int] = deque()
        super().__init__(*arguments, **named)

    def receive(self, most: int) -> bytes | None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self.sock, most, 1)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return b""
        self._handed.extend(descriptors)
        return data

    def take_socket(self) -> socket.socket | None:
        """The socket that came first and was not taken; None if the system had no descriptor left for it."""
        return self.loop.system.socket_of(self._handed.popleft()) if self._handed else None
