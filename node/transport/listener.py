"""A listening socket on the loop: accepts what waits, a bounded number a turn.

The socket was bound and is kept open by the supervisor, so that clients wait in its backlog while a server restarts.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from memcluster.node.transport.loop import READ, Loop

ACCEPTS_A_TURN = 64
PAUSE = 0.1
"""Seconds without accepting when descriptors or memory have run out: the backlog keeps the clients meanwhile."""
RUN_OUT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
GONE = (
    *(errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.ENONET),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ETIMEDOUT),
)
"""What became of the connection that was to be accepted, or that a firewall forbids it (accept(2)): the next may do."""


class Listener:
    """Calls `accepted(sock)` for each connection between `start` and `stop`."""

    def __init__(self, loop: Loop, sock: socket.socket, accepted: Callable[[socket.socket], None]) -> None:
        sock.setblocking(False)
        self.loop = loop
        self.sock = sock
        self.accepted = accepted
        self._started = False

    def start(self) -> None:
        """Accept what comes; no more after `stop`, which may have come first."""
        if self.sock.fileno() >= 0:
            self._started = True
            self._watch()

    def pause(self) -> None:
        """Accept no more for now; who connects waits in the backlog."""
        self._started = False
        self.loop.unwatch(self.sock)

    def stop(self) -> None:
        """Accept no more, and let go of the socket; the supervisor still has it."""
        if self.sock.fileno() >= 0:
            self.pause()
            self.sock.close()

    def _watch(self) -> None:
        if self._started:
            self.loop.watch(self.sock, READ, self._ready)

    def _ready(self, _mask: int) -> None:
        for _ in range(ACCEPTS_A_TURN):
            try:
                sock, _address = self.sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in GONE:
                    continue
                if error.errno not in RUN_OUT:
                    raise
                self.loop.unwatch(self.sock)
                self.loop.after(PAUSE, self._watch)
                return
            self.accepted(sock)
            if not self._started:
                return
