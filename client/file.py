"""A stretch of the memory as a raw binary file, for all that reads and writes files: io.BufferedRandom, zipfile,
shutil.copyfileobj, numpy.load. Every call is a request; wrap it in io.BufferedRandom for many small ones."""

from __future__ import annotations

import errno
import io
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memcluster.client.memory import Memory


class MemoryFile(io.RawIOBase):
    """`length` bytes from `offset` on. It has a size that does not change: what is written beyond its end is ENOSPC."""

    def __init__(self, memory: Memory, offset: int, length: int) -> None:
        super().__init__()
        if offset < 0 or length < 0:
            raise ValueError(f"length {length} at offset {offset}: neither may be negative")
        if offset + length > memory.size:
            raise IndexError(f"length {length} at offset {offset} goes beyond the memory of {memory.size} bytes")
        self._memory = memory
        self._offset = offset
        self._length = length
        self._position = 0

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"at {self._position}"
        return f"<MemoryFile of {self._length} bytes from {self._offset} on, {state}>"

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return not self._memory.read_only

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._check_open()
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}
        if whence not in bases:
            raise ValueError(f"whence is one of 0, 1 and 2 (got {whence})")
        position = bases[whence] + offset
        if position < 0:
            raise ValueError(f"a negative position: {position}")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        from memcluster.client.requests import as_bytes

        self._check_open()
        view = as_bytes(buffer)
        count = min(len(view), max(0, self._length - self._position))
        if count:
            self._memory.readinto(view[:count], self._offset + self._position)
            self._position += count
        return count

    def write(self, data: Any) -> int:
        """As much as there is room for; raises OSError (ENOSPC) where there is none."""
        from memcluster.client.requests import as_bytes

        self._check_open()
        if not self.writable():
            raise io.UnsupportedOperation("this memory is read-only")
        view = as_bytes(data)
        count = min(len(view), max(0, self._length - self._position))
        if len(view) and not count:
            raise OSError(errno.ENOSPC, f"the file has {self._length} bytes and cannot grow")
        if count:
            self._memory.pwrite(view[:count], self._offset + self._position)
            self._position += count
        return count

    def truncate(self, _size: int | None = None) -> int:
        raise io.UnsupportedOperation("a stretch of a memory has one size")

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on a closed file")
