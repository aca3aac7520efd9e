"""Moving bytes between a memory and a file, a pipe or another memory; pipelined, and sparse where that can be.

A copy is a source of chunks and a sink for them. A chunk of None bytes is a hole: it reads as zeroes and need not be
stored.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol

from memcluster.client.memory import Memory
from memcluster.client.requests import Extent, Future

CHUNK = 256 << 10
DEPTH = 16
"""Chunks in flight."""
STEP = 64 << 20
"""Bytes of a hole in one chunk, at most: progress is seen between chunks."""

Chunk = tuple[int, int, bytes | None]
"""(offset from the start of the copy, length, bytes or None for a hole)."""


class Source(Protocol):
    @property
    def length(self) -> int | None:
        """Bytes that will come; None where nobody knows."""

    def chunks(self) -> Iterator[Chunk]:
        """All of it, in order and without gaps."""


class Sink(Protocol):
    def put(self, chunk: Chunk) -> None:
        """Take the next chunk."""

    def finish(self, length: int) -> None:
        """`length` bytes were put, and that was all: have them stored when this returns."""


def copy(source: Source, sink: Sink, progress: Callable[[int], Any] = lambda _: None) -> int:
    """Copy everything; `progress(bytes so far)` is called now and then. Returns the number of bytes."""
    done = 0
    for chunk in source.chunks():
        sink.put(chunk)
        done = chunk[0] + chunk[1]
        progress(done)
    sink.finish(done)
    return done


class MemorySource:
    """`length` bytes of a memory from `offset` on; what reads as zeroes is not read, unless it is not `sparse`."""

    def __init__(self, memory: Memory, offset: int, length: int, *, sparse: bool = True) -> None:
        self.memory = memory
        self.offset = offset
        self.length: int | None = length
        whole = [Extent(offset, length, hole=False, zero=False)]
        self._extents = memory.each_extent(length, offset) if sparse else iter(whole)

    def chunks(self) -> Iterator[Chunk]:
        waiting: deque[tuple[int, int, Future[bytes] | None]] = deque()
        for offset, length, zero in self._ranges():
            future = None if zero else self.memory.start_pread(length, offset)
            waiting.append((offset - self.offset, length, future))
            if len(waiting) == DEPTH:
                yield self._first(waiting)
        while waiting:
            yield self._first(waiting)

    def _ranges(self) -> Iterator[tuple[int, int, bool]]:
        """(offset, length, reads as zeroes), in order."""
        for extent in self._extents:
            end = extent.offset + extent.length
            step = STEP if extent.zero else CHUNK
            for start in range(extent.offset, end, step):
                yield start, min(step, end - start), extent.zero

    @staticmethod
    def _first(waiting: deque[tuple[int, int, Future[bytes] | None]]) -> Chunk:
        offset, length, future = waiting.popleft()
        return offset, length, future.result() if future else None


class MemorySink:
    """Writes from `offset` on; what is beyond the end of the memory is an IndexError."""

    def __init__(self, memory: Memory, offset: int) -> None:
        self.memory = memory
        self.offset = offset
        self._waiting: deque[Future[int] | Future[None]] = deque()

    def put(self, chunk: Chunk) -> None:
        at, length, data = chunk
        if data is None:
            self._waiting.append(self.memory.start_zero(length, self.offset + at))
        else:
            self._waiting.append(self.memory.start_pwrite(data, self.offset + at))
        if len(self._waiting) > DEPTH:
            self._waiting.popleft().result()

    def finish(self, length: int) -> None:  # noqa: ARG002 - a memory has the size it has
        while self._waiting:
            self._waiting.popleft().result()
        self.memory.flush()


class FileSource:
    """A file or a pipe, `most` bytes of it at most; the holes of a regular file are found."""

    def __init__(self, file: BinaryIO, most: int | None = None) -> None:
        self.file = file
        self._start = 0
        self._most = most
        self.length: int | None = None
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode):
            self._start = os.lseek(file.fileno(), 0, os.SEEK_CUR)  # stdin may be read from the middle on
            if status.st_size > self._start:  # those of /proc say 0 and have bytes all the same
                self.length = status.st_size - self._start
                if most is not None:
                    self.length = min(self.length, most)

    def chunks(self) -> Iterator[Chunk]:
        return self._stream() if self.length is None else self._file(self._start, self._start + self.length)

    def _file(self, position: int, end: int) -> Iterator[Chunk]:
        start = position
        while position < end:
            data = self._seek(position, os.SEEK_DATA, end)
            while position < data:
                size = min(STEP, data - position)
                yield position - start, size, None
                position += size
            hole = self._seek(position, os.SEEK_HOLE, end)
            while position < hole:
                chunk = os.pread(self.file.fileno(), min(CHUNK, hole - position), position)
                if not chunk:
                    return  # the file has become shorter
                yield position - start, len(chunk), chunk
                position += len(chunk)

    def _stream(self) -> Iterator[Chunk]:
        position = 0
        while chunk := self.file.read(CHUNK if self._most is None else min(CHUNK, self._most - position)):
            yield position, len(chunk), chunk
            position += len(chunk)

    def _seek(self, position: int, whence: int, end: int) -> int:
        try:
            return min(os.lseek(self.file.fileno(), position, whence), end)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from here on
                return end
            if error.errno == errno.EINVAL:  # a file system that does not tell
                return end if whence == os.SEEK_HOLE else position
            raise


class FileSink:
    """A file or a pipe. In a regular file that is empty (`fresh`: opened for this copy) holes stay holes."""

    def __init__(self, file: BinaryIO, *, fresh: bool = False) -> None:
        self.file = file
        self._sparse = fresh and stat.S_ISREG(os.fstat(file.fileno()).st_mode)

    def put(self, chunk: Chunk) -> None:
        _, length, data = chunk
        if data is not None:
            self.file.write(data)
        elif self._sparse:
            self.file.seek(length, io.SEEK_CUR)
        else:
            for start in range(0, length, CHUNK):
                self.file.write(bytes(min(CHUNK, length - start)))

    def finish(self, length: int) -> None:
        self.file.flush()
        if self._sparse:
            self.file.truncate(length)  # a hole at the end counts, too
