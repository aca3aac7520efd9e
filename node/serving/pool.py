"""Buffers for large payloads that a process passes on, used again and again.

A fresh buffer of 1 MiB costs 256 page faults and the kernel's and Python's zeroing, as much as copying it costs. The
pool knows no protocol; a buffer comes back by itself when the last view of it is gone.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Sequence

BLOCK = 1 << 20
"""Bytes of a pooled buffer; what is smaller than a quarter, or larger, is made afresh."""
BLOCKS = 16
"""Buffers that are kept, at most."""


def _references(blocks: Sequence[bytearray] | Sequence[mmap.mmap], index: int) -> int:
    return sys.getrefcount(blocks[index])


_UNUSED = _references([bytearray()], 0)  # measured, for what counts differs between versions of Python


def users_of(blocks: Sequence[bytearray] | Sequence[mmap.mmap], index: int) -> int:
    """Who refers to a buffer beside the list; each view of it does."""
    return _references(blocks, index) - _UNUSED


class Pool:
    """Lends views of buffers. At most BLOCKS of them are kept; when all are lent, others are made and forgotten."""

    def __init__(self) -> None:
        self._blocks: list[bytearray] = []

    def take(self, length: int) -> memoryview:
        """`length` bytes, of whatever content: they are to be written before they are read."""
        if not BLOCK >> 2 <= length <= BLOCK:
            return memoryview(bytearray(length))
        for index in range(len(self._blocks)):
            if not users_of(self._blocks, index):
                return memoryview(self._blocks[index])[:length]
        fresh = bytearray(BLOCK)
        if len(self._blocks) < BLOCKS:
            self._blocks.append(fresh)
        return memoryview(fresh)[:length]
