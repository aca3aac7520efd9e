"""What one server's log holds, in the order of starts: the share that its logger gives. Files, but no sockets.

The segments are read twice, one at a time: once to find what is late in each (see node/log/merge.py), which is
remembered for segments that will not change any more, and once to give the records. A summary of each segment,
remembered too, tells which ones need not be read at all for the times or the request that are wanted. In between, and
after each segment, the reading stops for a breath, so that a loop can do other things. What is damaged is passed over,
and counted with what is missing.

A link that loses its connection sends again what was not answered, so a piece may be done and logged twice: by the
process that was killed before its reply left, and by the next one. Such a piece is marked when it is sent again
(REPEATED), and only marked pieces are looked up in what was logged before; so nothing is remembered for the others.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from memcluster.node.layout import Layout
from memcluster.node.log.filter import MAX_TIME, Filter
from memcluster.node.log.merge import Bound, Entry, Merger, Stretch, entries, in_order, survey
from memcluster.node.log.record import KEY, RECORD_SIZE, Kind, Summary, has_repeats, is_repeat, summarise
from memcluster.node.log.segments import Segment, SegmentReader, last_sequence, list_segments

MERGED = 4096
"""Records of several servers that are merged at a time, at most."""
HELD = 10_000
"""The last so many records are held until the end; of more, what comes before them is counted and passed over. (Records
that turn out to be doubles, or not to be whole, are counted with the others, so it may be a few less.)"""


class _Part(NamedTuple):
    """A segment in one reading: how many of its slots it gives (from `start` on), and its survey."""

    segment: Segment
    start: int
    stop: int
    stretch: Stretch


class History:
    """The log of one server, as a reader of its directory finds it; `layout` tells which bytes that server holds,
    `clock` what time it is there, `run` which run of the cluster is the newest."""

    def __init__(
        self,
        directory: str | Path,
        server: int,
        layout: Layout | None = None,
        clock: Callable[[], int] = time.time_ns,
        run: int = 0,
    ) -> None:
        self.clock = clock
        self.run = run
        self.directory = Path(directory)
        self.server = server
        self.layout = layout
        self.read_segments = 0
        """How often records of a segment were read, whole or in part, to be given."""
        self._surveys: dict[tuple[int, int, int], tuple[Bound, Stretch]] = {}
        self._summaries: dict[int, Summary | None] = {}

    def read(self, wanted: Filter) -> Reading:
        return Reading(self, wanted)

    def survey(self, segment: Segment, start: int, stop: int, bound: Bound, *, final: bool) -> Stretch:
        """The survey of a part of a segment, remembered if the segment is final."""
        key = (segment.number, start, stop)
        known = self._surveys.get(key)
        if known is not None and known[0] == bound:
            return known[1]
        stretch = survey(self.load(segment, start, stop)[0], bound)
        if final:
            self._surveys[key] = bound, stretch
        return stretch

    def summary(self, segment: Segment, stop: int, *, final: bool) -> Summary | None:
        """What the first `stop` slots of a segment say at a glance, remembered if it is final; None if they are gone
        or none."""
        if final and segment.number in self._summaries:
            return self._summaries[segment.number]
        data = self._slots(segment, 0, stop)
        found = summarise(data) if data else None
        if final:
            self._summaries[segment.number] = found
        return found

    def look_ahead(self) -> bool:
        """Summarise one more of the segments that will not change, so that no reader has to; false if none is left."""
        segments = list_segments(self.directory)
        for segment in segments[:-1]:
            if segment.number not in self._summaries:
                try:
                    with SegmentReader(segment) as reader:
                        stop = reader.committed()
                except FileNotFoundError:
                    continue
                self.summary(segment, stop, final=True)
                return True
        if segments:
            self.forget(segments[0].number)
        return False

    def forget(self, oldest: int) -> None:
        """Drop what is remembered of segments before `oldest`."""
        for key in [key for key in self._surveys if key[0] < oldest]:
            del self._surveys[key]
        for number in [number for number in self._summaries if number < oldest]:
            del self._summaries[number]

    def load(self, segment: Segment, start: int, stop: int) -> tuple[list[Entry], int]:
        """The entries in the slots [start, stop), and how many records there are not; all if the segment is gone."""
        data = self._slots(segment, start, stop)
        self.read_segments += 1
        found = entries(self.server, data)
        return self.without_doubles(segment.first + start, data, found), stop - start - len(found)

    def without_doubles(self, first: int, data: bytes, batch: list[Entry]) -> list[Entry]:
        """The batch, in the order of the log, without pieces that are in the log before; `data` are its slots, `first`
        the sequence number of the first one."""
        if not has_repeats(data):
            return batch
        suspects = {(entry[1], entry[2]) for entry in batch if entry[1] != Kind.EVENT and is_repeat(entry[4])}
        logged = self._logged_before(first, set(suspects))
        kept = []
        for entry in batch:
            if entry[1:3] in suspects:
                if entry[1:3] in logged and is_repeat(entry[4]):
                    continue
                logged.add(entry[1:3])
            kept.append(entry)
        return kept

    def _logged_before(self, first: int, sought: set[tuple[int, int]]) -> set[tuple[int, int]]:
        """Those (kind, identifier) under which something was logged before the record `first`."""
        logged: set[tuple[int, int]] = set()
        segments = [segment for segment in list_segments(self.directory) if segment.first < first]
        for index in range(len(segments) - 1, -1, -1):
            segment = segments[index]
            final = index < len(segments) - 1
            stop = (segments[index + 1].first if final else first) - segment.first
            summary = self.summary(segment, stop, final=final)
            if summary is not None and any(summary.lowest <= identifier <= summary.highest for _, identifier in sought):
                found = {key[:0:-1] for key in KEY.iter_unpack(self._slots(segment, 0, stop))} & sought
                logged |= found
                sought -= found
            if not sought:
                break
        return logged

    def _slots(self, segment: Segment, start: int, stop: int) -> bytes:
        """What is there of these slots."""
        try:
            with SegmentReader(segment) as reader:
                data = reader.read(start, stop)
        except FileNotFoundError:
            return b""
        return data[: len(data) // RECORD_SIZE * RECORD_SIZE]


class Reading:
    """One pass through a history: iterate over the batches, then look at `gaps` and `after`.

    A batch may be empty: a breath. `after` is the sequence number of the last record that there was: what came later
    is not in this reading. `run` is that of the batch just given: a batch is of one run. `gaps` are (sequence number
    before the gap, records missing). Raises OSError.
    """

    def __init__(self, history: History, wanted: Filter) -> None:
        self.history = history
        self.wanted = wanted.at(history.clock(), history.run)
        self.after = wanted.after
        self.run = 0
        self.age = 0
        """How far the log reaches back, in ns; 0 if there is none."""
        self.gaps: list[tuple[int, int]] = []
        self._here = wanted.within(history.layout, history.server)

    def keep(self, batch: list[Entry]) -> list[Entry]:
        """The entries that are wanted, whatever `last` says."""
        return self.wanted.keep(batch, self._here)

    def __iter__(self) -> Iterator[list[Entry]]:
        if self.wanted.news:
            self.after = max(self.after, last_sequence(self.history.directory))
            return
        parts: list[_Part] = []
        for part in self._survey():
            if part is not None:
                parts.append(part)
            yield []
        batches = zip(parts, in_order([part.stretch for part in parts], map(self._load, parts)), strict=True)
        if not self.wanted.last:
            for part, batch in batches:
                self.run = part.segment.run
                yield self.keep(batch)
            return
        if self.wanted.last > HELD and self._by_count:
            surplus = sum(part.stop - part.start for part in parts) - self.wanted.last
            for part, batch in batches:
                self.run = part.segment.run
                yield batch[surplus:] if surplus > 0 else batch
                surplus -= len(batch)
            return
        last: deque[tuple[int, list[Entry]]] = deque()
        held = 0
        for part, batch in batches:
            last.append((part.segment.run, self.keep(batch)))
            held += len(last[-1][1])
            while held - len(last[0][1]) >= self.wanted.last:
                held -= len(last.popleft()[1])
            yield []
        for self.run, batch in last:
            yield batch[max(0, held - self.wanted.last) :]
            held -= len(batch)

    def _survey(self) -> Iterator[_Part | None]:
        """The parts that may hold what is wanted; fixes how far each is read. None is a segment that does not."""
        wanted = self.wanted
        segments = list_segments(self.history.directory)
        if segments:
            self.history.forget(segments[0].number)
            self.age = self.history.clock() - segments[0].created
        first = self._first(segments)
        if first:
            self.after = max(self.after, segments[first].first - 1)  # what was passed over is not missing
        bound: Bound = ()
        before: Segment | None = None
        for segment in segments[first:]:
            final = segment is not segments[-1]
            try:
                with SegmentReader(segment) as reader:
                    stop = reader.committed()
            except FileNotFoundError:
                continue  # dropped since; the gap shows at the next one
            start = max(0, self.after + 1 - segment.first)
            if start >= stop:
                continue
            if wanted.run and segment.run != wanted.run:
                self.after = max(self.after, segment.first + stop - 1)  # what of another run is missing is not told
                continue
            if segment.first > self.after + 1:
                self.gaps.append((self.after, segment.first - self.after - 1))
            self.after = segment.first + stop - 1
            if self._by_summary and not wanted.may_hold(self.history.summary(segment, stop, final=final)):
                yield None
                continue
            if before is not None and _begins_an_order(segment, before, bound):
                bound = ()
            before = segment
            stretch = self.history.survey(segment, start, stop, bound, final=final)
            bound = stretch.latest
            yield _Part(segment, start, stop, stretch)

    @property
    def _by_count(self) -> bool:
        """Whether every record is wanted, so that it is known beforehand how many there are."""
        return self.wanted.is_plain and not self.wanted.since and self.wanted.until == MAX_TIME

    @property
    def _by_summary(self) -> bool:
        """Whether a summary may tell that a segment need not be read."""
        wanted = self.wanted
        return bool(wanted.since) or wanted.until != MAX_TIME or wanted.request is not None

    def _first(self, segments: list[Segment]) -> int:
        """The index of the first segment that must be looked at."""
        wanted = self.wanted
        first = 0
        for index, (segment, neighbour) in enumerate(pairwise(segments)):
            # Records are written when they end; but only where the clock did not go back does that say anything.
            if neighbour.created >= wanted.since or neighbour.created < segment.created:
                break
            first = index + 1
        if wanted.last and wanted.is_plain and wanted.until == MAX_TIME:
            while first + 1 < len(segments) and segments[-1].first - segments[first + 1].first >= wanted.last:
                first += 1
        return first

    def _load(self, part: _Part) -> list[Entry]:
        """A part's entries."""
        segment, start, stop, _ = part
        found, missing = self.history.load(segment, start, stop)
        if missing:  # dropped since it was surveyed, or not whole
            self.gaps.append((segment.first + start - 1, missing))
        return found


def merged(readings: Mapping[int, Reading], *, one_clock: bool) -> Iterator[list[Entry]]:
    """What the readings of several servers give, as one log, in batches; `one_clock` as in Merger. Raises OSError."""
    batches = {server: iter(reading) for server, reading in readings.items()}
    merger = Merger(readings, one_clock=one_clock)
    while not merger.finished:
        for server in tuple(merger.wanting):
            batch = next(batches[server], None)
            if batch is None:
                merger.end(server)
            else:
                merger.feed(server, batch, readings[server].run)
        if taken := merger.take(MERGED):
            yield taken


def _begins_an_order(segment: Segment, before: Segment, bound: Bound) -> bool:
    """Whether what is in a segment comes after all that was before it, whatever its times say: it is of another run, or
    of a process whose clock was behind that of the one before. While a process lives its clock goes only forward."""
    behind = bool(bound) and segment.created < bound[0]
    return segment.run != before.run or (segment.incarnation != before.incarnation and behind)
