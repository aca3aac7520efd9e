"""What the memory holds when nobody writes any more, told in three ways that must agree: what a client reads, what is
reported as zeroes, and what the shards' files hold, which is what a server finds that starts again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from memcluster.client.memory import Memory
from memcluster.node.layout import Layout

STEP = 4 << 20
PAGE = 4096
TRIES = 3
"""What a client that left had begun may still be under way at the first look."""


def disagreements(memory: Memory, layout: Layout, shard: Callable[[int], Path]) -> list[str]:
    """Of each step the first page that is told in two ways, as a sentence."""
    files = {server: os.open(shard(server), os.O_RDONLY) for server, size in enumerate(layout.sizes) if size}
    try:
        steps = range(0, layout.size, STEP)
        return [found for offset in steps if (found := _step(memory, layout, files, offset))]
    finally:
        for file in files.values():
            os.close(file)


def _step(memory: Memory, layout: Layout, files: dict[int, int], offset: int) -> str:
    length = min(STEP, layout.size - offset)
    found = ""
    for _ in range(TRIES):
        extents = memory.extents(length, offset)
        content = memory.pread(length, offset)
        stored = bytearray(length)
        for piece in layout.split(offset, length):
            data, done = os.pread(files[piece.server], piece.length, piece.offset), 0
            for start, end in piece.spans:
                stored[start:end] = data[done : done + end - start]
                done += end - start
        zeroed = bytearray(content)
        for extent in extents:
            if extent.zero:
                start = extent.offset - offset
                zeroed[start : start + extent.length] = bytes(extent.length)
        found = _differ("is reported as zeroes and does not read so", content, zeroed, offset)
        found = found or _differ("reads otherwise than it lies in its shard", content, stored, offset)
        if not found:
            break
    return found


def _differ(what: str, one: bytes, other: bytes | bytearray, offset: int) -> str:
    if one == other:
        return ""
    pages = [at for at in range(0, len(one), PAGE) if one[at : at + PAGE] != other[at : at + PAGE]]
    return f"{offset + pages[0]:#x} {what}, and {len(pages) - 1} more pages of {len(one) // PAGE}"
