"""A shard: a file mapped into memory, with a map of the pages that hold data.

The file, not the process, is the memory: it survives the death of any process, and whoever maps it again finds
every byte. A page that was never written, or was trimmed, is a hole: it takes no memory, reads as zeroes, and is
given room with fallocate before it is first written, so that a full disk is an OSError (ENOSPC) and never a SIGBUS.
It knows no protocol; errors are OSErrors.

What is read is lent: a view of the bytes as they are when they are sent. Whoever has sent a part of a view when the
bytes are about to change gets the rest as it was (`readers`), so nobody sees half of a change.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

from memcluster.node.files import open_file
from memcluster.node.layout import MAX_EXTENTS
from memcluster.node.nbd.wire import Buffer, Status
from memcluster.node.nbd.zeroes import ZEROES
from memcluster.node.serving.changes import PAGE, Changes

SPARSE: Final = 16
"""Pages of a hole beside data that are worth being told of as a hole; fewer are read as zeroes."""


Allocate = Callable[[int, int, int], None]


class ShardError(Exception):
    """The file cannot be this shard; says why and what to do."""


class Shard:
    """`size` bytes of memory in the file at `path`, which must be there: another one in its place would be zeroes where
    bytes were acknowledged.

    With `durable`, `sync` reaches the disk. Offsets and lengths must lie within the shard: callers have checked.
    """

    def __init__(
        self, path: str, size: int, *, durable: bool = False, allocate: Allocate = os.posix_fallocate
    ) -> None:
        """`allocate(file, offset, length)` makes room."""
        self.path = path
        self.size = size
        self.durable = durable
        self._allocate = allocate
        try:
            self._fd = open_file(path, os.O_RDWR)
        except FileNotFoundError:
            raise ShardError(f"{path} is gone, and with it {size} bytes of the memory: put it back") from None
        try:
            self.look()
        except ShardError:
            os.close(self._fd)
            raise
        self._map = mmap.mmap(self._fd, size) if size else mmap.mmap(-1, PAGE)  # an empty file cannot be mapped
        self._view = memoryview(self._map)
        self._pages = _find_data(self._fd, size)
        self.readers: set[Any] = set()
        """Streams that have sent a part of what was lent: told once to `settle`, before the bytes change. While changes
        are watched the set is never empty, so that a change looks here alone."""
        self._changes: Changes | None = None

    def __repr__(self) -> str:
        return f"<Shard {self.path} {self.size} bytes, {self._pages.count(1)} of {len(self._pages)} pages in use>"

    @property
    def used(self) -> int:
        """Bytes in pages that hold data."""
        return min(self._pages.count(1) * PAGE, self.size)

    @property
    def identity(self) -> tuple[int, int]:
        """Of the file, whatever lies at its path by now: device and inode."""
        found = os.fstat(self._fd)
        return found.st_dev, found.st_ino

    def look(self) -> None:
        """Raises ShardError if the file has another size: what was cut off reads as zeroes to the end of its page."""
        found = os.fstat(self._fd).st_size
        if found != self.size:
            raise ShardError(
                f"{self.path} has {found} bytes, the shard {self.size}: move it away, or give the old sizes back"
            )

    def read(self, offset: int, length: int) -> Sequence[Buffer]:
        """The bytes, at least one, as buffers in order: a tuple with a view of them; where there are holes a list, in
        which these are views of ZEROES. With both the data is copied, as a hole that is filled meanwhile would show in
        one part and not in the other."""
        first, last = offset // PAGE, (offset + length - 1) // PAGE
        # One page is looked at without a search: 25 ns instead of 100.
        if self._pages[first] if first == last else self._pages.find(0, first, last + 1) < 0:
            return (self._view[offset : offset + length],)
        if length <= len(ZEROES) and self._pages.find(1, first, last + 1) < 0:
            return [ZEROES[:length]]
        found: list[Buffer] = []
        copied = bytearray()
        for start, end, data in self._runs(offset, length):
            if data:
                copied += self._view[start:end]
            elif end - start < SPARSE * PAGE:
                copied += ZEROES[: end - start]
            else:
                if copied:
                    found.append(copied)
                found.append(ZEROES[: end - start])
                copied = bytearray()
        if copied:
            found.append(copied)
        return found

    def is_data(self, offset: int, length: int) -> bool:
        """Whether no byte of it, at least one, lies in a hole."""
        first, last = offset // PAGE, (offset + length - 1) // PAGE
        return bool(self._pages[first]) if first == last else self._pages.find(0, first, last + 1) < 0

    def room(self, offset: int, length: int) -> memoryview:
        """The bytes themselves, to be written to. Raises OSError when there is no room for them."""
        if self.readers:
            self._settle(offset, length)
        first, last = offset // PAGE, (offset + length - 1) // PAGE + 1
        if not self._pages[first] or (last - first > 1 and self._pages.find(0, first, last) >= 0):
            start = first * PAGE
            self._allocate(self._fd, start, min(last * PAGE, self.size) - start)
            self._pages[first:last] = b"\1" * (last - first)
        return self._view[offset : offset + length]

    def write(self, offset: int, data: Buffer) -> None:
        """Raises OSError when there is no room."""
        length = len(data)
        if self.readers:
            self._settle(offset, length)
        first = offset // PAGE
        if first == (offset + length - 1) // PAGE and self._pages[first]:  # most writes are of one page that has room
            self._map[offset : offset + length] = data  # with no view of it: 30 ns less
        else:
            self.room(offset, length)[:] = data

    def zero(self, offset: int, length: int, *, keep: bool = False) -> None:
        """Make the bytes zero. Whole pages become holes, unless they are to `keep` their room."""
        if self.readers:
            self._settle(offset, length)
        end = offset + length
        if not keep:
            first, last = -(-offset // PAGE), (end if end == self.size else end // PAGE * PAGE)
            if first * PAGE < last and self._punch(first, -(-last // PAGE)):
                self._clear(offset, first * PAGE)
                self._clear(last, end)
                return
            self._clear(offset, end)
            return
        self.room(offset, length)
        self._clear(offset, end)

    def sync(self, offset: int, length: int) -> None:
        """Bring the bytes to the disk, if there is one behind the shard."""
        if self.durable:
            start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
            self._map.flush(start, offset + length - start)

    def sync_all(self) -> None:
        """Bring everything to the disk, holes that were made included."""
        if self.durable:
            os.fdatasync(self._fd)

    def extents(self, offset: int, length: int, most: int = MAX_EXTENTS) -> list[tuple[int, int]]:
        """(length, Status) of the runs of data and holes from `offset` on, at most `most` of them."""
        extents = []
        for start, end, data in self._runs(offset, length):
            extents.append((end - start, int(Status.DATA if data else Status.HOLE | Status.ZERO)))
            if len(extents) == most:
                break
        return extents

    def watch(self, changes: Changes | None) -> None:
        """Mark there what is changed from now on; None: nowhere."""
        if self._changes is not None:
            self.readers.discard(self._changes)
            self._changes.close()
        self._changes = changes
        if changes is not None:
            self.readers.add(changes)

    def close(self) -> None:
        """Unmap the shard, now or when nobody has a view of it any more; the file stays."""
        self.watch(None)
        with suppress(BufferError):
            self._view.release()
            self._map.close()
        os.close(self._fd)

    def _settle(self, offset: int, length: int) -> None:
        """These bytes are about to change."""
        readers, self.readers = self.readers, set()
        for reader in readers:
            reader.settle()
        if self._changes is not None:
            self.readers.add(self._changes)
            if length:
                self._changes.mark(offset, length)

    def _runs(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """(start, end, holds data) of the runs of like pages, in order; each is looked for when it is asked for."""
        position, end = offset, offset + length
        while position < end:
            page = position // PAGE
            data = self._pages[page] == 1
            other = self._pages.find(0 if data else 1, page, (end - 1) // PAGE + 1)
            stop = end if other < 0 else other * PAGE
            yield position, stop, data
            position = stop

    def _clear(self, start: int, end: int) -> None:
        """Write zeroes over what is not a hole."""
        for at, stop, data in self._runs(start, end - start) if start < end else ():
            if data:
                for piece in range(at, stop, len(ZEROES)):
                    size = min(stop - piece, len(ZEROES))
                    self._view[piece : piece + size] = ZEROES[:size]

    def _punch(self, first: int, last: int) -> bool:
        """Make holes of whole pages; false where the file system cannot."""
        if self._pages.find(1, first, last) < 0:
            return True
        try:
            self._map.madvise(mmap.MADV_REMOVE, first * PAGE, (last - first) * PAGE)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                return False
            raise
        self._pages[first:last] = bytes(last - first)
        return True


def _find_data(fd: int, size: int) -> bytearray:
    """The page map of a file: 1 where it holds data."""
    pages = bytearray(-(-size // PAGE))
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data behind here
                break
            raise
        position = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        first, last = start // PAGE, -(-position // PAGE)
        pages[first:last] = b"\1" * (last - first)
    return pages
