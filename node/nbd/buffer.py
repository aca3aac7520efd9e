"""The buffer that what comes is received into, before it is known what it is."""

from __future__ import annotations

import mmap

RECEIVE_BUFFER = 1 << 18


def fresh_buffer() -> memoryview:
    """Its pages take memory, and time, when they are used: of a client that reads a little at a time, a few of them. A
    bytearray is cleared when it is made, which takes 0.1 ms."""
    return memoryview(mmap.mmap(-1, RECEIVE_BUFFER, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
