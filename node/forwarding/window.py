"""A window on another server's shard: that server's memory, mapped here to be read, and the rules by which it may be.

Over a link that has one a READ may be answered without its bytes: its server has seen to it that they are there, has
written the log record, and says so; then they are taken here. A payload is announced by where it lies in the staging
area. Nothing is ever written through a window, so what is in the shard is its server's affair alone, as without.

Every change of the shard is ordered over the link, so this side knows when bytes may change: from when a change is sent
until it is answered, or until the server says, by another connection, that it has ended this one. Therefore

1. bytes are taken only when no change that meets them is on its way; else they are asked for once more, as bytes;
2. views that were lent are made copies before a change is sent, and when the connection is lost;
3. what the server has not called data is never touched: a page that is a hole might find no room;
4. what was announced is not used again before it is answered, or the connection it went by is known to have ended.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from memcluster.node.files import open_file
from memcluster.node.forwarding.staging import IN_PLACE, Staging, agreement
from memcluster.node.nbd.client import ClientSession
from memcluster.node.nbd.wire import Command
from memcluster.node.serving.connection import Connection

if TYPE_CHECKING:
    from memcluster.node.forwarding.link import Submission

READ: Final = int(Command.READ)
CHANGING: Final = frozenset(int(command) for command in (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES))
LEND: Final = 1 << 14
"""Bytes of a READ from which on they are lent as a view; fewer are copied, which costs less than to remember it."""
MANY: Final = 32
"""With more changes on their way bytes are asked for as such: each READ in place is held against all of them."""


class Reader(Protocol):
    """Who was lent a view."""

    def keep(self, lent: object) -> None:
        """Replace views of this memory by copies."""


class Window:
    """The shard of `size` bytes at `path`, the staging area that both sides have, and the state of one link."""

    def __init__(self, path: str, size: int, staging: Staging) -> None:
        self.agreed = False
        """The connection is one over which memory is shared."""
        self.trouble = "not yet connected"
        """Why it is not."""
        self.readers: set[Reader] = set()
        """Who may hold views."""
        self._path = path
        self._size = size
        self._staging = staging
        self._identity = (0, 0)
        self._map: mmap.mmap | None = None
        self._view = memoryview(b"")
        self._changes: dict[int, Submission] = {}  # on their way, by cookie
        self._doubtful: list[object] = []  # payloads that were given up, and may still be looked at

    def __repr__(self) -> str:
        state = "shared" if self.agreed else f"not shared: {self.trouble}"
        return f"<Window on {self._path} {state}, {len(self._changes)} changes under way>"

    # -- the connection ----------------------------------------------------------------------------------------------

    def word(self) -> str:
        """What to say to the server at the next connection; "" if the shard cannot be mapped here."""
        try:
            file = open_file(self._path, os.O_RDONLY)
            try:
                found = os.fstat(file)
                identity = found.st_dev, found.st_ino
                if found.st_size != self._size:
                    raise OSError(f"{self._path} has {found.st_size} bytes instead of {self._size}")
                if identity != self._identity:
                    self._map = mmap.mmap(file, self._size, prot=mmap.PROT_READ)
                    self._view = memoryview(self._map)
                    self._identity = identity
            finally:
                os.close(file)
        except OSError as error:
            self.trouble = f"{self._path}: {error.strerror}" if error.strerror else str(error)
            return ""
        self.trouble = "the server does not have the same memory"
        return agreement(self._staging.token, self._identity)

    def begin(self, *, agreed: bool) -> None:
        """There is a new connection; the server has ended every earlier one."""
        self.agreed = agreed
        self._changes.clear()
        self._doubtful.clear()

    def lost(self) -> None:
        """The connection is lost, and may go on at the other side."""
        self._settle()
        self.agreed = False
        self.trouble = "not connected"

    def close(self) -> None:
        """Unmap the shard, now or when nobody has a view of it any more."""
        self._settle()
        if self._map is not None:
            with suppress(BufferError):
                self._view.release()
                self._map.close()

    # -- requests ----------------------------------------------------------------------------------------------------

    def send(self, session: ClientSession, request: Submission, flags: int) -> None:
        """Queue a request in the form that is due."""
        command = request.command
        if not self.agreed:
            request.in_place = False
            session.send(request, flags, request.payload)
        elif command == READ:
            if request.length and len(self._changes) <= MANY:
                request.in_place = True
                session.send(request, flags | IN_PLACE, ())
            else:
                request.in_place = False
                session.send(request, flags, ())
        else:
            if command in CHANGING:
                self._changes[request.cookie] = request
                if self.readers:
                    self._settle()
            if request.spans:
                session.announce(request, flags | IN_PLACE, request.spans)
            else:
                session.send(request, flags, request.payload)

    def answered(self, request: Submission) -> bool:
        """The server has answered; false if a READ must be asked for once more, as bytes."""
        if not request.in_place:
            self._changes.pop(request.cookie, None)
        elif request.data is None and not request.error:
            start, length = request.offset, request.length
            end = start + length
            if self._changes:
                for change in self._changes.values():
                    if change.offset < end and start < change.offset + change.length:
                        return False
            if length < LEND:
                request.data = self._view[start:end].tobytes()
            else:
                request.data = self._view[start:end]
                request.lender = self
        return True

    def gave_up(self, request: Submission) -> None:
        """Nobody waits for the answer any more; the server may still find the order, and what lies where it says."""
        if self._changes.pop(request.cookie, None) is not None and request.spans:
            self._doubtful.append(request.payload)

    def lend(self, reader: Reader) -> None:
        """It has views from now on."""
        self.readers.add(reader)

    def pass_on(self, reader: Reader, connection: Connection) -> None:
        """What it has goes to a client now, or nowhere."""
        self.readers.discard(reader)
        if connection.open:
            self.readers.add(connection)

    def _settle(self) -> None:
        readers, self.readers = self.readers, set()
        for reader in readers:
            reader.keep(self._map)
