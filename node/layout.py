"""Where each byte of the memory lives: (offset, length) -> pieces. Pure arithmetic.

A layout deals the address space out to the servers' shards, either one range after another (linear) or in stripes in
turn. Either way the bytes of one contiguous request that fall to one server are contiguous in that server's shard:
its stripes lie side by side there in the order of their addresses. So a request has at most one piece a server, and
the request's identifier is enough to name the piece.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import NamedTuple


class Piece(NamedTuple):
    """The part of one request that one server holds.

    `offset` counts from the start of the server's shard. `spans` are the (start, end) of the request's own bytes that
    make up the piece, in order: their lengths add up to `length`. (A named tuple: one is made for every request.)
    """

    server: int
    offset: int
    length: int
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Linear:
    """Server 0 holds the first sizes[0] bytes, server 1 the next sizes[1], and so on."""

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        ends = tuple(accumulate(self.sizes))
        object.__setattr__(self, "_ends", ends)
        object.__setattr__(self, "_starts", (0, *ends[:-1]))

    _ends: tuple[int, ...] = ()
    _starts: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Bytes in the whole memory."""
        return self._ends[-1]

    def range(self, server: int) -> tuple[int, int]:
        """[start, end) of a server's bytes in the memory."""
        return self._starts[server], self._ends[server]

    def owner(self, offset: int) -> int:
        """The server that holds the byte at `offset`."""
        return bisect_right(self._ends, offset)

    def address(self, server: int, offset: int) -> int:
        """Where in the memory the byte at `offset` of a server's shard lies."""
        return self._starts[server] + offset

    def holder(self, offset: int, length: int) -> tuple[int, int]:
        """(server, offset in its shard) if one server holds all of a request, at least one byte; else (-1, 0)."""
        server = bisect_right(self._ends, offset)
        return (server, offset - self._starts[server]) if offset + length <= self._ends[server] else (-1, 0)

    def split(self, offset: int, length: int) -> list[Piece]:
        """The pieces of a request that lies within the memory, by server; none for an empty one."""
        ends = self._ends
        server = bisect_right(ends, offset)
        end = offset + length
        pieces = []
        position = offset
        while position < end:
            stop = min(end, ends[server])
            if stop > position:  # an owner of no bytes gets no piece
                span = (position - offset, stop - offset)
                pieces.append(Piece(server, position - self._starts[server], stop - position, (span,)))
            position = stop
            server += 1
        return pieces


@dataclass(frozen=True)
class Striped:
    """Stripes of `stripe` bytes are dealt to the servers in turn; a server that is full is passed over.

    Every shard is a whole number of stripes. Shards of unequal size make rounds in which fewer and fewer servers take
    part; `_phases` lists them as (first address, first stripe row, servers that take part).
    """

    sizes: tuple[int, ...]
    stripe: int
    _phases: tuple[tuple[int, int, tuple[int, ...]], ...] = ()
    _starts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if any(size % self.stripe for size in self.sizes):
            raise ValueError(f"shards of {self.sizes} bytes are not whole stripes of {self.stripe}")
        phases = []
        address = row = 0
        for rows in sorted({size // self.stripe for size in self.sizes} - {0}):
            members = tuple(i for i, size in enumerate(self.sizes) if size // self.stripe > row)
            phases.append((address, row, members))
            address += (rows - row) * len(members) * self.stripe
            row = rows
        object.__setattr__(self, "_phases", tuple(phases))
        object.__setattr__(self, "_starts", tuple(start for start, _, _ in phases))

    @property
    def size(self) -> int:
        """Bytes in the whole memory."""
        return sum(self.sizes)

    def range(self, server: int) -> None:  # noqa: ARG002 - the same call as Linear's
        """A striped server holds no one range."""
        return

    def owner(self, offset: int) -> int:
        """The server that holds the byte at `offset`."""
        return self._locate(offset)[0]

    def address(self, server: int, offset: int) -> int:
        """Where in the memory the byte at `offset` of a server's shard lies."""
        row, within = divmod(offset, self.stripe)
        address, first, members = next(phase for phase in reversed(self._phases) if phase[1] <= row)
        return address + ((row - first) * len(members) + members.index(server)) * self.stripe + within

    def holder(self, offset: int, length: int) -> tuple[int, int]:
        """(server, offset in its shard) if one stripe holds all of a request, at least one byte; else (-1, 0)."""
        return self._locate(offset) if offset % self.stripe + length <= self.stripe else (-1, 0)

    def split(self, offset: int, length: int) -> list[Piece]:
        """The pieces of a request that lies within the memory, by server; none for an empty one."""
        stripe = self.stripe
        first: dict[int, int] = {}
        spans: dict[int, list[tuple[int, int]]] = {}
        position = 0
        while position < length:
            server, local = self._locate(offset + position)
            stop = min(length, position + stripe - (offset + position) % stripe)
            parts = spans.get(server)
            if parts is None:
                first[server] = local
                spans[server] = [(position, stop)]
            elif parts[-1][1] == position:  # the only server left in the round
                parts[-1] = parts[-1][0], stop
            else:
                parts.append((position, stop))
            position = stop
        return [
            Piece(server, first[server], sum(end - start for start, end in parts), tuple(parts))
            for server, parts in sorted(spans.items())
        ]

    def _locate(self, offset: int) -> tuple[int, int]:
        """(server, offset in its shard) of a byte."""
        address, row, members = self._phases[bisect_right(self._starts, offset) - 1]
        index, within = divmod(offset - address, self.stripe)
        turn, place = divmod(index, len(members))
        return members[place], (row + turn) * self.stripe + within


Layout = Linear | Striped


def make_layout(sizes: Sequence[int], stripe: int = 0) -> Layout:
    """The layout for shards of these sizes: striped when `stripe` (bytes) is not 0."""
    return Striped(tuple(sizes), stripe) if stripe else Linear(tuple(sizes))


# -- extents -----------------------------------------------------------------------------------------------------

Extents = Sequence[tuple[int, int]]
"""(length, status) of runs of like bytes, as a BLOCK_STATUS tells them."""


def join_extents(answers: Sequence[tuple[Piece, Extents]], *, one: bool = False) -> list[tuple[int, int]]:
    """The extents of a request from those of its pieces, or the first `one`."""
    joined = _join_extents(answers)
    return list(islice(joined, 1)) if one else list(joined)


def _join_extents(answers: Sequence[tuple[Piece, Extents]]) -> Iterator[tuple[int, int]]:
    """The extents of a request from those of its pieces, each of which may end early; so may the result.

    Neighbours with the same status become one.
    """
    sources = {piece.server: _Runs(extents) for piece, extents in answers}
    spans = sorted((start, end, piece.server) for piece, _ in answers for start, end in piece.spans)
    length, status = 0, 0
    for start, end, server in spans:
        position = start
        while position < end:
            run = sources[server].take(end - position)
            if run is None:
                break
            if length and run[1] != status:
                yield length, status
                length = 0
            length += run[0]
            status = run[1]
            position += run[0]
        if position < end:
            break
    if length:
        yield length, status


class _Runs:
    """Takes extents apart at the borders of spans."""

    def __init__(self, extents: Extents) -> None:
        self._extents = iter(extents)
        self._left = 0
        self._status = 0

    def take(self, most: int) -> tuple[int, int] | None:
        """At most `most` bytes of one status; None at the end."""
        while not self._left:
            extent = next(self._extents, None)
            if extent is None:
                return None
            self._left, self._status = extent
        length = min(most, self._left)
        self._left -= length
        return length, self._status
