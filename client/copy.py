"""Moving bytes between a memory and a file, a pipe or another memory; pipelined, and sparse where that can be.

A copy is a source of chunks and a sink for them. A chunk of None bytes is a hole: it reads as zeroes and need not be
stored.
"""

from __future__ import annotations

import errno
import io
import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol

from client.memory import Future, Memory

CHUNK = 256 << 10
DEPTH = 16
"""Chunks in flight."""

Chunk = tuple[int, int, bytes | None]
"""(offset from the start of the copy, length, bytes or None for a hole)."""


class Source(Protocol):
    @property
    def length(self) -> int | None:
        """Bytes that will come; None where nobody knows."""

    def chunks(self) -> Iterator[Chunk]: ...


class Sink(Protocol):
    def put(self, chunk: Chunk) -> None: ...
    def finish(self, length: int) -> None: ...


def copy(source: Source, sink: Sink, progress: Callable[[int], Any] = lambda _: None) -> int:
    """Copy everything; `progress(bytes so far)` is called now and then. Returns the number of bytes."""
    done = 0
    for chunk in source.chunks():
        sink.put(chunk)
        done = max(done, chunk[0] + chunk[1])
        progress(done)
    sink.finish(done)
    return done


class MemorySource:
    """`length` bytes of a memory from `offset` on; holes are not read."""

    def __init__(self, memory: Memory, offset: int, length: int) -> None:
        self.memory = memory
        self.offset = offset
        self.length: int | None = length

    def chunks(self) -> Iterator[Chunk]:
        waiting: deque[tuple[int, int, Future[bytes] | None]] = deque()
        for offset, length, hole in self._ranges():
            future = None if hole else self.memory.start_pread(length, offset)
            waiting.append((offset - self.offset, length, future))
            if len(waiting) == DEPTH:
                yield self._first(waiting)
        while waiting:
            yield self._first(waiting)

    def _ranges(self) -> Iterator[tuple[int, int, bool]]:
        """(offset, length, reads as zeroes), in order, none larger than a chunk unless it is zeroes."""
        assert self.length is not None
        for extent in self.memory.extents(self.length, self.offset):
            if extent.zero:
                yield extent.offset, extent.length, True
                continue
            end = extent.offset + extent.length
            for start in range(extent.offset, end, CHUNK):
                yield start, min(CHUNK, end - start), False

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
        """Wait for what is under way, and make it durable."""
        while self._waiting:
            self._waiting.popleft().result()
        if not self.memory.read_only:
            self.memory.flush()


class FileSource:
    """A file or a pipe; of a regular file the holes are found."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        try:
            self.length: int | None = file.seek(0, io.SEEK_END)
            file.seek(0)
        except (OSError, ValueError):
            self.length = None

    def chunks(self) -> Iterator[Chunk]:
        if self.length is None:
            yield from self._stream()
            return
        position = 0
        while position < self.length:
            data = self._seek(position, os.SEEK_DATA)
            if data > position:
                yield position, data - position, None
            position = data
            hole = self._seek(position, os.SEEK_HOLE)
            self.file.seek(position)
            while position < hole:
                chunk = self.file.read(min(CHUNK, hole - position))
                if not chunk:
                    return  # the file has become shorter
                yield position, len(chunk), chunk
                position += len(chunk)

    def _stream(self) -> Iterator[Chunk]:
        position = 0
        while chunk := self.file.read(CHUNK):
            yield position, len(chunk), chunk
            position += len(chunk)

    def _seek(self, position: int, whence: int) -> int:
        assert self.length is not None
        try:
            return min(os.lseek(self.file.fileno(), position, whence), self.length)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from here on
                return self.length
            if error.errno == errno.EINVAL:  # a file system that does not tell
                return self.length if whence == os.SEEK_HOLE else position
            raise


class FileSink:
    """A file, in which holes stay holes, or a pipe."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self._sparse = file.seekable()

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
        """A hole at the end has its length, too."""
        self.file.flush()
        if self._sparse:
            self.file.truncate(length)
