"""Which bytes of the memory each client works on. Pure."""

from __future__ import annotations

from typing import NamedTuple

from bench.chaos.history import BLOCK
from memcluster.node.layout import Layout, Linear

REGION = 256 << 10
REAL = 2 << 20
"""Bytes of a real client's region."""
PAGE = 4096
ODD = 8 * 13
"""Regions of our own clients begin so far beside a page, so that blocks lie across pages, stripes and shards."""


class Region(NamedTuple):
    name: str
    offset: int
    length: int


class Places(NamedTuple):
    private: list[Region]
    shared: list[Region]
    fio: Region
    copy: Region


def choose(layout: Layout, clients: int) -> Places:
    """Shared regions and nbdcopy's lie across borders between servers, if there are; one shared and some private ones
    lie within the first server."""
    size = layout.size
    borders = [size // 3, 2 * size // 3]
    if isinstance(layout, Linear) and len(layout.sizes) > 1:
        borders = [layout.range(server)[1] for server in range(len(layout.sizes) - 1)]
    taken: list[Region] = []

    def place(name: str, centre: int, length: int, odd: int) -> Region:
        start = max(0, centre - length // 2) // PAGE * PAGE + odd
        while start + length > size or any(
            start < other.offset + other.length and other.offset < start + length for other in taken
        ):
            start = start + REGION // 4 if start + length <= size else odd
        taken.append(Region(name, start, length))
        return taken[-1]

    shared = [place("shared0", borders[0], REGION, ODD)]
    copy = place("copy", borders[-1], REAL, 0)
    shared.append(place("shared1", borders[0] // 4, REGION, ODD))
    fio = place("fio", (borders[-1] + size) // 2, REAL, 0)
    private = [
        place(f"private{index}", size * (2 * index + 1) // (2 * clients), REGION, ODD) for index in range(clients)
    ]
    return Places(private, shared, fio, copy)


assert REGION % BLOCK == 0
