"""Where each byte of the memory lives: (offset, length) -> pieces. Pure arithmetic.

A layout deals the address space out to the servers' shards, either one range after another (linear) or in stripes in
turn. Either way the bytes of one contiguous request that fall to one server are contiguous in that server's shard:
its stripes lie side by side there in the order of their addresses. So a request has at most one piece a server, and
the request's identifier is enough to name the piece.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Final


class Piece:
    """The part of one request that one server holds.

    `offset` counts from the start of the server's shard. `spans` are the (start, end) of the request's own bytes that
    make up the piece, in order: their lengths add up to `length`; none if nobody asked for them. (Plain slots: one is
    made for every request, and a compiled named tuple is made by the interpreter.)
    """

    __slots__ = ("length", "offset", "server", "spans")

    def __init__(self, server: int, offset: int, length: int, spans: tuple[tuple[int, int], ...]) -> None:
        self.server = server
        self.offset = offset
        self.length = length
        self.spans = spans

    @property
    def place(self) -> tuple[int, int, int]:
        """Without the spans."""
        return self.server, self.offset, self.length

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Piece) and (self.place, self.spans) == (other.place, other.spans)

    def __hash__(self) -> int:
        return hash(self.place)

    def __repr__(self) -> str:
        return f"Piece{(*self.place, self.spans)}"


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

    def __reduce__(self) -> tuple[object, ...]:
        return Linear, (self.sizes,)

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

    def owners(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """(length, server) of the runs that lie in one server each, in order."""
        position, end = offset, offset + length
        while position < end:
            server = self.owner(position)
            stop = min(end, self._ends[server])
            yield stop - position, server
            position = stop

    def holder(self, offset: int, length: int) -> tuple[int, int]:
        """(server, offset in its shard) if one server holds all of a request, at least one byte; else (-1, 0)."""
        server = bisect_right(self._ends, offset)
        return (server, offset - self._starts[server]) if offset + length <= self._ends[server] else (-1, 0)

    def split(self, offset: int, length: int, *, spans: bool = True) -> list[Piece]:  # noqa: ARG002 - Striped's call
        """The pieces of a request that lies within the memory, by server; none for an empty one."""
        ends = self._ends
        server = bisect_right(ends, offset)
        end = offset + length
        if length > 0 and end <= ends[server]:  # as nearly all small ones
            return [Piece(server, offset - self._starts[server], length, ((0, length),))]
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

    def runs(self, offset: int, length: int, found: Mapping[int, Extents]) -> Iterator[tuple[int, int]]:
        """The extents of a request in order, from those of its pieces by server; they end where a piece's end early."""
        for piece in self.split(offset, length):
            source, left = _Runs(found[piece.server]), piece.length
            while left:
                run = source.take(left)
                if run is None:
                    return
                yield run
                left -= run[0]


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

    def __reduce__(self) -> tuple[object, ...]:
        return Striped, (self.sizes, self.stripe)

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

    def owners(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """(length, server) of the runs that lie in one server each, in order: stripes, and at the end of the memory
        perhaps what is left of the largest shard."""
        position, end = offset, offset + length
        while position < end:
            start = position
            server = self.owner(position)
            position = min(end, self._next(position))
            while position < end and self.owner(position) == server:
                position = min(end, self._next(position))
            yield position - start, server

    def _next(self, offset: int) -> int:
        """Where the run of the byte at `offset` ends, or at least its stripe."""
        if len(self._phases[-1][2]) == 1 and offset >= self._starts[-1]:
            return self.size
        return offset - offset % self.stripe + self.stripe

    def holder(self, offset: int, length: int) -> tuple[int, int]:
        """(server, offset in its shard) if one stripe holds all of a request, at least one byte; else (-1, 0)."""
        return self._locate(offset) if offset % self.stripe + length <= self.stripe else (-1, 0)

    def split(self, offset: int, length: int, *, spans: bool = True) -> list[Piece]:
        """The pieces of a request that lies within the memory, by server; none for an empty one. Without `spans` that
        is arithmetic, however many stripes there are: 4 GiB have 8 million of 512 bytes."""
        if length > 0 and offset % self.stripe + length <= self.stripe:  # as nearly all small ones
            server, there = self._locate(offset)
            return [Piece(server, there, length, ((0, length),) if spans else ())]
        parts = self._spans(offset, length) if spans else {}
        pieces = []
        for server in range(len(self.sizes)):
            start, end = self._held(server, offset), self._held(server, offset + length)
            if start < end:
                pieces.append(Piece(server, start, end - start, tuple(parts.get(server, ()))))
        return pieces

    def runs(self, offset: int, length: int, found: Mapping[int, Extents]) -> Iterator[tuple[int, int]]:
        """The extents of a request in order, from those of its pieces by server; they end where a piece's end early.
        Rounds in which all servers' bytes are alike are one run."""
        sources = {server: _Runs(extents) for server, extents in found.items()}
        position, end = offset, offset + length
        while position < end:
            phase = bisect_right(self._starts, position) - 1
            address, _, members = self._phases[phase]
            index, within = divmod(position - address, self.stripe)
            place = index % len(members)
            if not within and not place:
                stop = self._starts[phase + 1] if phase + 1 < len(self._starts) else self.size
                rounds = (min(end, stop) - position) // (self.stripe * len(members))
                alike = _alike([sources[member] for member in members], self.stripe, rounds) if rounds else None
                if alike is not None:
                    run = alike[0] * len(members), alike[1]
                    yield run
                    position += run[0]
                    continue
            taken = sources[members[place]].take(min(end - position, self.stripe - within))
            if taken is None:
                return
            yield taken
            position += taken[0]

    def _spans(self, offset: int, length: int) -> dict[int, list[tuple[int, int]]]:
        """The request's own bytes that each server holds."""
        stripe = self.stripe
        spans: dict[int, list[tuple[int, int]]] = {}
        position, stop = 0, stripe - offset % stripe
        while position < length:
            phase = bisect_right(self._starts, offset + position) - 1
            address, _, members = self._phases[phase]
            behind = min(length, self._starts[phase + 1] - offset) if phase + 1 < len(self._starts) else length
            place = (offset + position - address) // stripe % len(members)
            while position < behind:
                stop = min(stop, length)
                parts = spans.setdefault(members[place], [])
                if parts and parts[-1][1] == position:  # the only server left in the round
                    parts[-1] = parts[-1][0], stop
                else:
                    parts.append((position, stop))
                position, stop = stop, stop + stripe
                place = place + 1 if place + 1 < len(members) else 0
        return spans

    def _held(self, server: int, end: int) -> int:
        """How many of the bytes before the address `end` a server holds: they lie first in its shard."""
        phase = bisect_left(self._starts, end) - 1
        if phase < 0:
            return 0
        address, row, members = self._phases[phase]
        if server not in members:
            return self.sizes[server]
        rounds, rest = divmod(end - address, self.stripe * len(members))
        within = rest - members.index(server) * self.stripe
        return (row + rounds) * self.stripe + min(max(within, 0), self.stripe)

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


def same_places(one: Layout, other: Layout) -> bool:
    """Whether each byte that both have lies in the server of the same number, at the same place in its shard. Where the
    stripes are alike, how much of the first bytes each server holds says in which order they were dealt; that shards of
    one stripe each are like linear ones is not seen."""
    end = min(one.size, other.size)
    mine, theirs = ([piece.place for piece in layout.split(0, end, spans=False)] for layout in (one, other))
    alike = getattr(one, "stripe", 0) == getattr(other, "stripe", 0)
    return mine == theirs and (alike or len(mine) == 1)


# -- extents -----------------------------------------------------------------------------------------------------

Extents = Sequence[tuple[int, int]]
"""(length, status) of runs of like bytes, as a BLOCK_STATUS tells them."""
MAX_EXTENTS: Final = 1 << 12
"""Extents in one answer, at most: some 3 ms of work. An answer may cover less than was asked."""


def join_extents(
    layout: Layout, offset: int, length: int, found: Mapping[int, Extents], *, one: bool = False
) -> list[tuple[int, int]]:
    """The extents of a request from those of its pieces by server, or the first `one`. Neighbours with the same status
    become one."""
    return list(islice(_merged(layout.runs(offset, length, found)), 1 if one else MAX_EXTENTS))


def _merged(runs: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    length, status = 0, 0
    for more, kind in runs:
        if length and kind != status:
            yield length, status
            length = 0
        length += more
        status = kind
    if length:
        yield length, status


class _Runs:
    """Takes extents apart at the borders of pieces and stripes."""

    def __init__(self, extents: Extents) -> None:
        self._extents = iter(extents)
        self.left = 0
        """Bytes that are left of the run at hand, and what they are; see `look`."""
        self.status = 0

    def look(self) -> bool:
        """Have a run at hand; false at the end."""
        while not self.left:
            extent = next(self._extents, None)
            if extent is None:
                return False
            self.left, self.status = extent
        return True

    def take(self, most: int) -> tuple[int, int] | None:
        """At most `most` bytes of one status; None at the end."""
        if not self.look():
            return None
        length = min(most, self.left)
        self.left -= length
        return length, self.status


def _alike(sources: Sequence[_Runs], stripe: int, rounds: int) -> tuple[int, int] | None:
    """Take as many whole stripes of each as have one status everywhere, at most so many: (bytes of each, status)."""
    if not all(source.look() for source in sources) or len({source.status for source in sources}) > 1:
        return None
    size = min(rounds, *(source.left // stripe for source in sources)) * stripe
    for source in sources:
        source.left -= size
    return (size, sources[0].status) if size else None
