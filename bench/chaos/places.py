"""Which bytes of the memory each client works on. Pure."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from memcluster.node.layout import Layout, Linear
from memcluster.simulator.history import BLOCK

REGION = 256 << 10
WIDE = 4 << 20
"""Bytes of a region for long requests, which begins and ends with a page."""
SPOTS = 16
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
    wide: list[Region]
    fio: Region
    copy: Region
    rest: Region
    """The longest stretch that nobody else works on, whole pages: for zeroing that takes long."""

    @property
    def spots(self) -> list[Region]:
        """What is written and read of the rest, spread over it."""
        step = self.rest.length // SPOTS // PAGE * PAGE
        return [Region(f"spot{index}", self.rest.offset + index * step, PAGE) for index in range(SPOTS)]

    @property
    def ours(self) -> list[Region]:
        """Those that our own clients work on."""
        return [*self.private, *self.shared, *self.wide, self.rest]


def choose(layout: Layout, clients: int) -> Places:
    """One shared region and nbdcopy's lie across borders between servers, if there are; the wide ones, one shared and
    some private ones lie within one server, if its part is not in stripes."""
    size = layout.size
    borders = [size // 3, 2 * size // 3]
    if isinstance(layout, Linear) and len(layout.sizes) > 1:
        borders = [end for start, end in map(layout.range, range(len(layout.sizes))) if start < end < size]
    taken: list[Region] = []

    def place(name: str, centre: int, length: int, odd: int) -> Region:
        start = max(0, centre - length // 2) // PAGE * PAGE + odd
        while start + length > size or any(
            start < other.offset + other.length and other.offset < start + length for other in taken
        ):
            start = start + REGION // 4 if start + length <= size else odd
        taken.append(Region(name, start, length))
        return taken[-1]

    shared = [place("shared0", borders[-1], REGION, ODD)]
    copy = place("copy", borders[0], REAL, 0)
    shared.append(place("shared1", borders[0] // 4, REGION, ODD))
    wide = [place("wide0", borders[0] // 2, WIDE, 0), place("wide1", borders[0] + 2 * WIDE, WIDE, 0)]
    fio = place("fio", (borders[-1] + size) // 2, REAL, 0)
    private = [
        place(f"private{index}", size * (2 * index + 1) // (2 * clients), REGION, ODD) for index in range(clients)
    ]
    return Places(private, shared, wide, fio, copy, _rest(taken, size))


def _rest(taken: list[Region], size: int) -> Region:
    """The longest gap."""
    ends = sorted((region.offset, region.offset + region.length) for region in taken)
    gaps = [(start - end, end) for (_, end), (start, _) in pairwise([(0, 0), *ends, (size, size)])]
    length, start = max(gaps)
    start = -(-start // PAGE) * PAGE
    return Region("rest", start, (length - PAGE) // PAGE * PAGE)


assert REGION % BLOCK == 0
