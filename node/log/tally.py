"""Figures from the records of the log: how many, how much, how long, what failed, and which bytes are busiest. Pure.

Latencies are counted in a histogram whose buckets have equal relative widths, as HdrHistogram's have: 32 to a doubling,
so a percentile is at most 3 % too high, whatever the range. Tallies add up: of stretches of time, and of servers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from memcluster.node.log.record import PROBE, RECORD, Kind

SUB_BITS = 5
CELLS = 256
"""Ranges into which the memory is cut to see which are busy, at most."""
MIN_CELL = 4096
MAX_DURATION = (1 << 64) - 1
MAX_NUMBER = 1 << 100
"""More than any sum of what 64 bits can say."""
REQUEST, PIECE, EVENT = int(Kind.REQUEST), int(Kind.PIECE), int(Kind.EVENT)


def bucket(ns: int) -> int:
    """The bucket of a duration: below 64 each its own, then 32 to a doubling."""
    shift = max(0, ns.bit_length() - SUB_BITS - 1)
    return (shift << SUB_BITS) + (ns >> shift)


def bucket_end(index: int) -> int:
    """The longest duration in a bucket."""
    shift = max(0, (index >> SUB_BITS) - 1)
    return ((index - (shift << SUB_BITS) + 1) << shift) - 1


@dataclass
class Figures:
    """Of one kind of record and one operation."""

    count: int = 0
    bytes: int = 0
    errors: int = 0
    time: int = 0
    """ns, all durations together."""
    longest: int = 0
    latency: Counter[int] = field(default_factory=Counter)
    """How many by `bucket`."""

    def percentile(self, part: float) -> int:
        """The duration in ns that this part (0 to 1) of all did not exceed."""
        wanted = part * self.count
        seen = 0
        for index in sorted(self.latency):
            seen += self.latency[index]
            if seen >= wanted:
                return min(bucket_end(index), self.longest)
        return self.longest


class Tally:
    """The figures of one server, by (kind, operation); `cells` counts requests and bytes by range of the memory."""

    def __init__(self, memory: int = 0) -> None:
        cell = MIN_CELL
        while cell * CELLS < memory:
            cell *= 2
        self.cell = cell
        self.figures: dict[tuple[int, int], Figures] = {}
        self.events: Counter[int] = Counter()
        self.cells: Counter[int] = Counter()
        self.cell_bytes: Counter[int] = Counter()
        self.missing = 0
        self.age = 0
        """ns since the log of the server begins, where that is known: what was before it cannot have been counted."""

    def __repr__(self) -> str:
        return f"<Tally {sum(found.count for found in self.figures.values())} records, {self.missing} missing>"

    def add(self, slots: Iterable[bytes]) -> None:
        """Count records."""
        figures, unpack = self.figures, RECORD.unpack
        for slot in slots:
            _, duration, _, offset, length, _, kind, operation, flags, error, _ = unpack(slot)
            if kind == EVENT:
                self.events[operation] += 1
                continue
            if flags & PROBE:  # by which `up` sees that all answers: nobody asked for it
                continue
            found = figures.get((kind, operation))
            if found is None:
                found = figures[kind, operation] = Figures()
            found.count += 1
            found.time += duration
            found.longest = max(found.longest, duration)
            found.latency[bucket(duration)] += 1
            if error:
                found.errors += 1
                continue
            found.bytes += length
            if kind == REQUEST and length:
                self._touch(offset, offset + length)

    def _touch(self, start: int, end: int) -> None:
        cell = self.cell
        first, last = start // cell, (end - 1) // cell
        for index in range(first, min(last, first + CELLS) + 1):
            self.cells[index] += 1
            self.cell_bytes[index] += min(end, (index + 1) * cell) - max(start, index * cell)

    def join(self, other: Tally) -> None:
        """Add another tally of the same cluster."""
        for key, theirs in other.figures.items():
            ours = self.figures.setdefault(key, Figures())
            ours.count += theirs.count
            ours.bytes += theirs.bytes
            ours.errors += theirs.errors
            ours.time += theirs.time
            ours.longest = max(ours.longest, theirs.longest)
            ours.latency += theirs.latency
        self.events += other.events
        self.cells += other.cells
        self.cell_bytes += other.cell_bytes
        self.missing += other.missing

    def to_head(self) -> dict[str, Any]:
        """As a part of a frame."""
        return {
            "cell": self.cell,
            "missing": self.missing,
            "age": self.age,
            "figures": [
                [*key, one.count, one.bytes, one.errors, one.time, one.longest, list(one.latency.items())]
                for key, one in self.figures.items()
            ],
            "events": list(self.events.items()),
            "cells": [[index, count, self.cell_bytes[index]] for index, count in self.cells.items()],
        }

    @classmethod
    def from_head(cls, head: Mapping[str, Any]) -> Tally:
        """Raises ValueError, KeyError or TypeError if that is none."""
        tally = cls()
        tally.cell, tally.missing = _number(head["cell"], 1), _number(head["missing"])
        tally.age = _number(head["age"], -MAX_NUMBER)
        for kind, operation, count, size, errors, time, longest, latency in head["figures"]:
            buckets = _counter(latency)
            if max(buckets, default=0) > bucket(MAX_DURATION):
                raise ValueError("a duration beyond all bounds")
            tally.figures[_number(kind), _number(operation)] = Figures(
                _number(count, 1), _number(size), _number(errors), _number(time), _number(longest), buckets
            )
        tally.events = _counter(head["events"])
        for index, count, size in head["cells"]:
            tally.cells[_number(index)], tally.cell_bytes[index] = _number(count), _number(size)
        return tally


def _number(found: Any, least: int = 0) -> int:
    if type(found) is not int or not least <= found <= MAX_NUMBER:
        raise ValueError("a figure that cannot be right")
    return found


def _counter(found: Any) -> Counter[int]:
    return Counter({_number(key): _number(count) for key, count in found})
