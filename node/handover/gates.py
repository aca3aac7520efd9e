"""Gates: how several processes write to one client's stream without ever mixing their replies. For the dispatcher.

Every client has a gate, a byte in a file that all of them have mapped and on which a lock can be held (an open file
description's, so that it goes with the process that holds it). Who holds it may write; a reply that does not fit
into the socket is finished before the gate is given back, however long the client takes. Nobody waits for a gate: who
finds it held marks that, goes on with other work, and is woken (a datagram) when it is given back. The mark is set
before the second try and read after the gate is free, so no wake-up is lost.

`dirty` says who has begun to write and not finished. If its lock is gone and the mark is not, it died in the middle of
a reply, and the stream is of no use any more.

Tickets count the pieces of a request that several servers answer; they are touched only by who holds the client's gate.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from memcluster.node.native import mypyc_attr
from memcluster.node.transport.loop import READ, Loop

MAX_WRITERS = 127
MAX_GATES = 1 << 17
MAX_TICKETS = 1 << 20
_TICKET = struct.Struct("=HH")  # pieces to come, error of one that failed
_GATE_SIZE = 1 + MAX_WRITERS  # dirty: 1 + the writer; then a byte for each writer that waits
_SIZE = MAX_TICKETS * _TICKET.size + MAX_GATES * _GATE_SIZE
_CHUNK = 1 << 16
"""Bytes for which room is made at once, when the first of them is to be used."""
_FLOCK = struct.Struct("hhqqi4x")  # struct flock of Linux on 64 bits: type, whence, start, length, pid


@mypyc_attr(allow_interpreted_subclasses=True)
class Gates:
    """The gates of one cluster, as one process (`writer`, a server's number) sees them. `directory` is on tmpfs."""

    def __init__(self, loop: Loop, directory: Path, writer: int, *, create: bool) -> None:
        if not 0 <= writer < MAX_WRITERS:
            raise ValueError(f"writer {writer} of at most {MAX_WRITERS}")
        self._directory = directory
        self._writer = writer
        self._loop = loop
        path = directory / "gates"
        if create:  # afresh: what an earlier dispatcher's servers still hold is not for these clients
            path.unlink(missing_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
        if create:
            os.ftruncate(self._fd, _SIZE)
        self._memory = mmap.mmap(self._fd, _SIZE)
        self._chunks: set[int] = set()  # those that have room: touching a page that finds none would be a SIGBUS
        self._waiting: dict[int, Callable[[], None]] = {}
        self._bell = loop.system.make_socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._bell.setblocking(False)
        own = self._bell_of(writer)
        Path(own).unlink(missing_ok=True)
        self._bell.bind(own)
        loop.watch(self._bell, READ, self._woken)

    def __repr__(self) -> str:
        return f"<Gates of writer {self._writer}, waiting at {sorted(self._waiting)}>"

    def take(self, gate: int, again: Callable[[], None]) -> bool:
        """Take the gate if it is free; if not, `again` is called once when it may be. Raises BrokenStream if a writer
        died in the middle of a reply."""
        if not self._lock(gate):
            mark = self._place(gate) + 1 + self._writer
            self._memory[mark] = 1
            if not self._lock(gate):
                self._waiting[gate] = again
                return False
            self._memory[mark] = 0
        place = self._place(gate)
        if self._memory[place]:
            died = self._memory[place] - 1
            self._unlock(gate)
            raise BrokenStream(died)
        self._memory[place] = 1 + self._writer
        return True

    def give_back(self, gate: int) -> None:
        """Everything that was begun is written: let others write."""
        place = self._place(gate)
        self._memory[place] = 0
        self._unlock(gate)
        marks, end = place + 1, place + _GATE_SIZE
        while (mark := self._memory.find(b"\1", marks, end)) >= 0:
            self._memory[mark] = 0
            self._wake(mark - place - 1)
            marks = mark + 1

    def forget(self, gate: int) -> None:
        """Wait for the gate no longer."""
        self._waiting.pop(gate, None)

    def reset(self, gate: int) -> None:
        """Make the gate ready for another client: nobody may use it. Raises OSError if there is no room for it."""
        place = self._place(gate)
        self._make_room(place)
        self._memory[place : place + _GATE_SIZE] = bytes(_GATE_SIZE)

    def open_ticket(self, ticket: int, pieces: int) -> None:
        """So many pieces are to come. To be called before any of them can be answered. Raises OSError if there is no
        room for it."""
        self._make_room(ticket * _TICKET.size)
        _TICKET.pack_into(self._memory, ticket * _TICKET.size, pieces, 0)

    def count(self, ticket: int, error: int, done: int = 1) -> tuple[bool, int]:
        """A piece is done, or several that will never be: (whether it was the last, the error of the request so far).
        With the client's gate held."""
        pieces, failed = _TICKET.unpack_from(self._memory, ticket * _TICKET.size)
        failed = failed or error
        _TICKET.pack_into(self._memory, ticket * _TICKET.size, pieces - done, failed)
        return pieces == done, failed

    def failed(self, ticket: int) -> int:
        """The error of the request so far; to be asked while nobody has a piece of it in hand."""
        error: int = _TICKET.unpack_from(self._memory, ticket * _TICKET.size)[1]
        return error

    def close(self) -> None:
        self._loop.unwatch(self._bell)
        self._bell.close()
        Path(self._bell_of(self._writer)).unlink(missing_ok=True)
        self._memory.close()
        os.close(self._fd)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _place(self, gate: int) -> int:
        return MAX_TICKETS * _TICKET.size + gate * _GATE_SIZE

    def _make_room(self, place: int) -> None:
        chunk = place // _CHUNK
        if chunk not in self._chunks:
            self._loop.system.allocate(self._fd, chunk * _CHUNK, _CHUNK)
            self._chunks.add(chunk)

    def _lock(self, gate: int) -> bool:
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, gate, 1, 0))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _unlock(self, gate: int) -> None:
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, gate, 1, 0))

    def _bell_of(self, writer: int) -> str:
        return str(self._directory / f"bell{writer}")

    def _wake(self, writer: int) -> None:
        try:
            self._bell.sendto(b"!", self._bell_of(writer))
        except OSError:
            pass  # it is dead, or has so many that it is awake anyway

    def _woken(self, _mask: int) -> None:
        try:
            while self._bell.recv(16):
                pass
        except BlockingIOError:
            pass
        waiting, self._waiting = self._waiting, {}
        for again in waiting.values():
            again()


class BrokenStream(Exception):
    """The writer of this number died in the middle of a reply: the client's connection must end."""

    def __init__(self, writer: int) -> None:
        self.writer = writer
        super().__init__(f"server{writer} died in the middle of a reply")
