"""What the simulated kernel keeps of a socket, whoever has it: that of datagrams is here, streams are in streams.py.

Several descriptors of several processes may refer to a description, or a message on its way that hands it over; when
none does any more, it is closed. tests/test_simulated_sockets.py holds all of them against the kernel's.
"""

from __future__ import annotations

import os
import select
import socket
from collections import deque
from typing import Protocol

from memcluster.simulator.world import World

IN, OUT, ERR, HUP, RDHUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLERR, select.EPOLLHUP, select.EPOLLRDHUP
UNIX = socket.AF_UNIX
DATAGRAMS = 10
"""Messages that wait in a datagram socket, at most (net.unix.max_dgram_qlen)."""


def failure(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Watcher(Protocol):
    """Who waits for a description to be ready for something."""

    def changed(self) -> None: ...
    def gone(self) -> None: ...


class Description:
    """What descriptors refer to. `watchers` are told when it may be ready for something new."""

    def __init__(self, world: World, family: int) -> None:
        self.world = world
        self.family = family
        self.references = 0
        self.watchers: list[Watcher] = []

    def ready(self, wanted: int) -> int:
        """Those of the wanted events of epoll that there are."""
        raise NotImplementedError

    def closed(self) -> None:
        """Nobody refers to it any more."""

    def hold(self) -> None:
        self.references += 1

    def release(self) -> None:
        self.references -= 1
        if not self.references:
            for watcher in list(self.watchers):
                watcher.gone()
            self.closed()

    def changed(self) -> None:
        for watcher in self.watchers:
            watcher.changed()


class Datagrams(Description):
    """A unix datagram socket."""

    def __init__(self, world: World) -> None:
        super().__init__(world, UNIX)
        self.name = ""
        self.inbox: deque[bytes] = deque()

    def ready(self, wanted: int) -> int:
        return wanted & (OUT | IN if self.inbox else OUT)

    def closed(self) -> None:
        if self.world.names.get(self.name) is self:
            del self.world.names[self.name]
