"""Which pages of a shard have been changed, for one who copies the shard while its server goes on serving.

A file that both have mapped: a byte a page, twice. The server marks in one half what it is about to change; told to
turn, it goes on in the other one, and what is in the first is what it had changed until then. It has marked a page
before the page changes, and both in one turn of its loop, so whoever reads the marks after the answer to a turn, and
then the pages, misses nothing. Whatever kills the server, its marks are there.
"""

from __future__ import annotations

import mmap
import os
from typing import Final

from memcluster.node.files import open_file

PAGE: Final = 4096


def pages_of(size: int) -> int:
    """Of a shard of so many bytes."""
    return -(-size // PAGE)


class Changes:
    """The server's side. It stands among a shard's `readers`, and stays there."""

    def __init__(self, path: str, size: int) -> None:
        """The file must be there, and large enough for a shard of this size. Raises OSError, ValueError."""
        self._pages = pages_of(size)
        self._base = 0
        file = open_file(path, os.O_RDWR)
        try:
            self._map = mmap.mmap(file, 2 * self._pages)
        finally:
            os.close(file)

    def settle(self) -> None:
        """Nothing of the shard is held here."""

    def mark(self, offset: int, length: int) -> None:
        """These bytes, at least one, are about to be changed."""
        first, last = offset // PAGE, (offset + length - 1) // PAGE + 1
        if last - first == 1:
            self._map[self._base + first] = 1
        else:
            self._map[self._base + first : self._base + last] = b"\1" * (last - first)

    def turn(self) -> None:
        """Mark in the other half from now on."""
        self._base = self._pages - self._base

    def close(self) -> None:
        self._map.close()
