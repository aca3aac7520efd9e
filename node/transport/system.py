"""What a node needs of the system that it runs on: clocks, sockets and who waits for them, randomness, room on a disk.

All of it comes in through one object, which the loop holds and hands on, so that the same roles run on the kernel
(`KERNEL`) and in a simulated world, where every failure is one number (simulator/). What a socket can do it does by
itself, by the names of Python's socket module. Files that outlive processes are real in both.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from memcluster.node.transport.peer import is_gone


class Poller(Protocol):
    """Tells which descriptors are ready, as select.epoll does."""

    def register(self, descriptor: int, events: int, /) -> None: ...
    def modify(self, descriptor: int, events: int, /) -> None: ...
    def unregister(self, descriptor: int, /) -> None: ...
    def poll(self, timeout: float | None, most: int, /) -> list[tuple[int, int]]: ...
    def close(self) -> None: ...


class System(Protocol):
    """The clocks are kept by who asks them often: this is the data path."""

    @property
    def monotonic(self) -> Callable[[], float]:
        """A clock, in seconds."""

    @property
    def monotonic_ns(self) -> Callable[[], int]:
        """The same, in ns; all processes share it."""

    def poller(self) -> Poller: ...

    def make_socket(self, family: int, kind: int) -> socket.socket: ...

    def socket_of(self, descriptor: int) -> socket.socket:
        """The socket that another process has handed over."""

    def duplicate(self, descriptor: int) -> int:
        """Another descriptor of the same socket. Raises OSError when there is none left."""

    def close(self, descriptor: int) -> None: ...

    def is_gone(self, sock: socket.socket) -> bool:
        """See node/transport/peer.py."""

    def random(self, count: int) -> bytes:
        """Bytes that nobody can guess."""

    def allocate(self, file: int, offset: int, length: int) -> None:
        """Make room in a file, so that writing there cannot fail. Raises OSError."""

    def complain(self, line: bytes) -> None:
        """Write into the process's own output, if that can be."""


class Kernel:
    """The real one."""

    def __init__(self) -> None:
        self.monotonic = time.monotonic
        self.monotonic_ns = time.monotonic_ns

    def poller(self) -> Poller:
        return select.epoll()

    def make_socket(self, family: int, kind: int) -> socket.socket:
        return socket.socket(family, kind)

    def socket_of(self, descriptor: int) -> socket.socket:
        return socket.socket(fileno=descriptor)

    def duplicate(self, descriptor: int) -> int:
        return os.dup(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def is_gone(self, sock: socket.socket) -> bool:
        return is_gone(sock)

    def random(self, count: int) -> bytes:
        return os.urandom(count)

    def allocate(self, file: int, offset: int, length: int) -> None:
        os.posix_fallocate(file, offset, length)

    def complain(self, line: bytes) -> None:
        with suppress(OSError):  # the disk is full: no reason to stop serving
            os.write(sys.stderr.fileno(), line)


KERNEL = Kernel()
