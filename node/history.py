"""What one server's log holds, in the order of starts: the share that its logger gives. Files, but no sockets.

The segments are read twice, one at a time: once to find what is late in each (see node/merge.py), which is remembered
for segments that will not change any more, and once to give the records. In between, and after each segment, the
reading stops for a breath, so that a loop can do other things.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from node.merge import Bound, Entry, Stretch, entries, in_order, survey
from node.record import MAX_IDENTIFIER
from node.segments import Segment, SegmentReader, list_segments

MAX_LAST = 1_000_000
"""What `last` may ask for: it is held in memory."""
MAX_TIME = (1 << 64) - 1


@dataclass(frozen=True)
class Filter:
    """Which records are wanted. `after` is a sequence number, `last` 0 for all."""

    since: int = 0
    until: int = MAX_TIME
    request: int | None = None
    last: int = 0
    after: int = 0

    @classmethod
    def from_head(cls, head: Mapping[str, Any]) -> Filter:
        """The filter in a query. Raises ValueError with a sentence."""
        request = head.get("request")
        return cls(
            since=_number(head, "since", 0, MAX_TIME),
            until=_number(head, "until", MAX_TIME, MAX_TIME),
            request=None if request is None else _number(head, "request", 0, MAX_IDENTIFIER),
            last=_number(head, "last", 0, MAX_LAST),
            after=_number(head, "after", 0, MAX_TIME),
        )

    def to_head(self) -> dict[str, int]:
        """As a part of a query; only what differs from the default."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in fields.items() if value != getattr(Filter, name)}

    def keep(self, batch: list[Entry]) -> list[Entry]:
        """The entries that are wanted, whatever `last` says."""
        if self.since or self.until != MAX_TIME:
            batch = [entry for entry in batch if self.since <= entry[0] <= self.until]
        if self.request is not None:
            batch = [entry for entry in batch if entry[2] == self.request]
        return batch


def _number(head: Mapping[str, Any], name: str, default: int, most: int) -> int:
    value = head.get(name, default)
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{name} must be a whole number from 0 to {most}, not {value!r}")
    return value


class _Part(NamedTuple):
    """A segment in one reading: how many of its slots it gives (from `start` on), and its survey."""

    segment: Segment
    start: int
    stop: int
    stretch: Stretch


class History:
    """The log of one server, as a reader of its directory finds it."""

    def __init__(self, directory: str | Path, server: int) -> None:
        self.directory = Path(directory)
        self.server = server
        self._surveys: dict[tuple[int, int, int], tuple[Bound, Stretch]] = {}

    def read(self, wanted: Filter) -> Reading:
        return Reading(self, wanted)

    def survey(self, segment: Segment, start: int, stop: int, bound: Bound, *, final: bool) -> Stretch:
        """The survey of a part of a segment, remembered if the segment is final."""
        key = (segment.number, start, stop)
        known = self._surveys.get(key)
        if known is not None and known[0] == bound:
            return known[1]
        stretch = survey(self.load(segment, start, stop), bound)
        if final:
            self._surveys[key] = bound, stretch
        return stretch

    def forget(self, oldest: int) -> None:
        """Drop what is remembered of segments before `oldest`."""
        for key in [key for key in self._surveys if key[0] < oldest]:
            del self._surveys[key]

    def load(self, segment: Segment, start: int, stop: int) -> list[Entry]:
        """The entries in the slots [start, stop); none if the segment is gone."""
        try:
            with SegmentReader(segment) as reader:
                return entries(self.server, reader.read(start, stop))
        except FileNotFoundError:
            return []


class Reading:
    """One pass through a history: iterate over the batches, then look at `gaps` and `after`.

    A batch may be empty: a breath. `after` is the sequence number of the last record that there was: what came later
    is not in this reading. `gaps` are (sequence number before the gap, records missing). Raises SegmentError, OSError.
    """

    def __init__(self, history: History, wanted: Filter) -> None:
        self.history = history
        self.wanted = wanted
        self.after = wanted.after
        self.gaps: list[tuple[int, int]] = []

    def __iter__(self) -> Iterator[list[Entry]]:
        parts: list[_Part] = []
        for part in self._survey():
            parts.append(part)
            yield []
        batches = in_order([part.stretch for part in parts], map(self._load, parts))
        if not self.wanted.last:
            for batch in batches:
                yield self.wanted.keep(batch)
            return
        last: deque[Entry] = deque(maxlen=self.wanted.last)
        for batch in batches:
            last += self.wanted.keep(batch)
            yield []
        yield list(last)

    def _survey(self) -> Iterator[_Part]:
        """The parts that may hold what is wanted; fixes how far each is read."""
        segments = list_segments(self.history.directory)
        if segments:
            self.history.forget(segments[0].number)
        first = self._first(segments)
        if first:
            self.after = max(self.after, segments[first].first - 1)  # what was passed over is not missing
        bound: Bound = ()
        incarnation = -1
        for segment in segments[first:]:
            try:
                with SegmentReader(segment) as reader:
                    stop = reader.committed()
            except FileNotFoundError:
                continue  # dropped since; the gap shows at the next one
            start = max(0, self.after + 1 - segment.first)
            if start >= stop:
                continue
            if segment.first > self.after + 1:
                self.gaps.append((self.after, segment.first - self.after - 1))
            self.after = segment.first + stop - 1
            if segment.incarnation != incarnation:
                bound, incarnation = (), segment.incarnation  # nothing was in flight when the process started
            stretch = self.history.survey(segment, start, stop, bound, final=segment is not segments[-1])
            bound = stretch.latest
            yield _Part(segment, start, stop, stretch)

    def _first(self, segments: list[Segment]) -> int:
        """The index of the first segment that must be read."""
        wanted = self.wanted
        first = 0
        for index, (segment, neighbour) in enumerate(pairwise(segments)):
            # Records are written when they end; only within an incarnation is the clock known not to go back.
            if neighbour.incarnation != segment.incarnation or neighbour.created >= wanted.since:
                break
            first = index + 1
        if wanted.last and wanted.request is None and wanted.until == MAX_TIME:
            while first + 1 < len(segments) and segments[-1].first - segments[first + 1].first >= wanted.last:
                first += 1
        return first

    def _load(self, part: _Part) -> list[Entry]:
        """A part's entries, unless its times tell that none is wanted."""
        segment, start, stop, (bound, latest, _) = part
        if (latest and latest[0] < self.wanted.since) or (bound and bound[0] > self.wanted.until):
            return []
        found = self.history.load(segment, start, stop)
        if len(found) < stop - start:  # dropped since it was surveyed, or not whole
            self.gaps.append((segment.first + start - 1, stop - start - len(found)))
        return found
