"""The shards of a shape as open files: bytes of the memory are read and written, wherever the shape has them."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from memcluster.launcher.run.memory import Shape
from memcluster.node.files import open_file

PAGE = 4096
IOV_MAX = 1024
"""Buffers in one call, at most (Linux)."""
ZEROES = bytes(PAGE)


class Files:
    """The open shards of a shape. To be used in a `with`."""

    def __init__(self, directory: Path, shape: Shape) -> None:
        self.layout = shape.layout
        self._stack = ExitStack()
        self._buffer = memoryview(b"")
        self._descriptors: list[int] = []
        try:
            for name in shape.files:
                descriptor = open_file(directory / name, os.O_RDWR)
                self._stack.callback(os.close, descriptor)
                self._descriptors.append(descriptor)
        except OSError:
            self._stack.close()
            raise

    def __enter__(self) -> Files:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def close(self) -> None:
        self._stack.close()

    def read(self, start: int, length: int) -> memoryview | None:
        """Bytes of the memory, as they are until more are read; None for a hole."""
        pieces = self.layout.split(start, length)
        if all(self._is_hole(piece.server, piece.offset, piece.length) for piece in pieces):
            return None
        if length > len(self._buffer):
            self._buffer = memoryview(bytearray(length))
        view = self._buffer[:length]
        for piece in pieces:
            offset = piece.offset
            for first in range(0, len(piece.spans), IOV_MAX):
                views = [view[begin:end] for begin, end in piece.spans[first : first + IOV_MAX]]
                offset += _read_all(self._descriptors[piece.server], views, offset)
        return view

    def write(self, start: int, length: int, content: memoryview | None) -> None:
        """Bytes of the memory; None for zeroes. Pages of zeroes become holes."""
        for piece in self.layout.split(start, length, spans=content is not None):
            server, offset = piece.server, piece.offset
            zero = offset
            if content is not None:
                parts = [content[begin:end] for begin, end in piece.spans]
                whole = parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
                for begin, end in _used(whole, offset):
                    self._clear(server, zero, offset + begin)
                    _write_all(self._descriptors[server], whole[begin:end], offset + begin)
                    zero = offset + end
            self._clear(server, zero, offset + piece.length)

    def sync(self) -> None:
        for descriptor in self._descriptors:
            os.fdatasync(descriptor)

    def give_up(self, start: int, end: int) -> None:
        """Have whole pages of these bytes take no room any more, where the file system can do that."""
        for piece in self.layout.split(start, end - start, spans=False):
            first, last = _whole_pages(piece.offset, piece.offset + piece.length)
            if first < last:
                self._punch(piece.server, first, last)

    def _clear(self, server: int, start: int, end: int) -> None:
        """Have [start, end) of a shard be zero."""
        if start >= end or self._is_hole(server, start, end - start):
            return
        first, last = _whole_pages(start, end)
        if first >= last or not self._punch(server, first, last):
            first = last = end
        for begin, stop in ((start, first), (last, end)):
            for at in range(begin, stop, PAGE):
                _write_all(self._descriptors[server], memoryview(ZEROES)[: stop - at], at)

    def _punch(self, server: int, first: int, last: int) -> bool:
        """Make a hole of whole pages; false where the file system cannot."""
        with mmap.mmap(self._descriptors[server], 0) as mapped:
            try:
                mapped.madvise(mmap.MADV_REMOVE, first, last - first)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
                return False
        return True

    def _is_hole(self, server: int, offset: int, length: int) -> bool:
        try:
            found = os.lseek(self._descriptors[server], offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data behind here
                return True
            raise
        return found >= offset + length


def _whole_pages(start: int, end: int) -> tuple[int, int]:
    """[first, last) of the bytes of the whole pages in there; none if last is not after first."""
    return -(-start // PAGE) * PAGE, end // PAGE * PAGE


def _used(content: memoryview, offset: int) -> Iterator[tuple[int, int]]:
    """[begin, end) of the runs of pages, as they lie in a file where the content begins at `offset`, that are not all
    zeroes."""
    begin = None
    position = 0
    while position < len(content):
        end = min(len(content), position + PAGE - (offset + position) % PAGE)
        if content[position:end] != ZEROES[: end - position]:
            begin = position if begin is None else begin
        elif begin is not None:
            yield begin, position
            begin = None
        position = end
    if begin is not None:
        yield begin, position


def _read_all(descriptor: int, views: list[memoryview], offset: int) -> int:
    """Fill the buffers from there on; returns how many bytes that were."""
    total = sum(map(len, views))
    done = 0
    while views:
        count = os.preadv(descriptor, views, offset + done)
        if not count:
            raise OSError(errno.EIO, "a shard ends too early")
        done += count
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if count:
            views[0] = views[0][count:]
    return total


def _write_all(descriptor: int, content: memoryview, offset: int) -> None:
    while content:
        count = os.pwrite(descriptor, content, offset)
        content, offset = content[count:], offset + count
