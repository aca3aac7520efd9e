"""The log of a cluster as its segments lie in its folder, whether or not anything runs: in the same order and by the
same filters as logger 0 gives it, without asking a node."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memcluster.launcher.log.reader import Wanted, gap_sentences
from memcluster.launcher.run.maps import read_map
from memcluster.node import topology
from memcluster.node.cluster_map import ClusterMap
from memcluster.node.log.filter import Filter
from memcluster.node.log.history import History, merged
from memcluster.node.log.merge import Entry
from memcluster.node.log.record import LOGGER, RECORD, Record
from memcluster.node.log.segments import SegmentReader, list_segments
from memcluster.node.log.tally import Tally
from memcluster.node.log.text import LogEntry


@dataclass
class KeptRun:
    """A run of which something is kept; times are ns since 1970."""

    number: int
    begin: int
    end: int
    records: int
    servers: int


class KeptLog:
    """The logs of all servers in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = _runs(folder)

    def cluster(self, run: int) -> ClusterMap:
        """The map of a run, of the newest for 0; one without servers if it is gone."""
        newest = self.runs[-1].number if self.runs else 0
        return read_map(self.folder, run or newest) or ClusterMap(self.folder.name, "topology unknown", "", 0, ())

    def read_batches(
        self, run: int, *, told: Callable[[str], object] = lambda _: None, **wanted: Any
    ) -> Iterator[list[LogEntry]]:
        """The merged log of a run, or of all (0); `wanted` are the fields of Wanted."""
        wish = Filter.from_head({**Wanted(**wanted).to_head(), "run": run})
        if wanted.get("last") == 0:
            return
        batches = self._merged(wish, told)
        if not wish.last:
            yield from (_to_entries(batch) for batch in batches)
            return
        last: deque[Entry] = deque(maxlen=wish.last)
        for batch in batches:
            last += batch
        yield _to_entries(list(last))

    def tallies(self, run: int, since: int) -> dict[str, Tally]:
        """The figures of every server from a time on."""
        cluster = self.cluster(run)
        found = {}
        for server, history in self._histories(cluster).items():
            tally = Tally(cluster.memory)
            reading = history.read(Filter(run=run, since=since))
            for batch in reading:
                tally.add([entry[4] for entry in batch])
            tally.missing = sum(count for _, count in reading.gaps)
            found[f"server{server}"] = tally
        return found

    def _histories(self, cluster: ClusterMap) -> dict[int, History]:
        clock = self.runs[-1].end if self.runs else time.time_ns()  # what is `5m` ago is so before the end
        known = range(len(cluster.servers))
        return {
            server: History(path, server, cluster.layout if server in known else None, clock=lambda: clock)
            for server, path in _folders(self.folder).items()
        }

    def _merged(self, wanted: Filter, told: Callable[[str], object]) -> Iterator[list[Entry]]:
        cluster = self.cluster(wanted.run)
        histories = self._histories(cluster)
        if wanted.subjects:
            involved = {subject % LOGGER for subject in wanted.subjects}
            histories = {server: history for server, history in histories.items() if server in involved}
        readings = {server: history.read(replace(wanted, last=0)) for server, history in histories.items()}
        one_clock = cluster.topology in topology.names() and topology.load(cluster.topology).hands_over
        yield from merged(readings, one_clock=one_clock)
        gaps = [
            {"node": f"server{server}", "records": count}
            for server, reading in readings.items()
            for _, count in reading.gaps
        ]
        for sentence in gap_sentences(gaps):
            told(sentence)


def _to_entries(batch: list[Entry]) -> list[LogEntry]:
    return [LogEntry(server, Record._make(RECORD.unpack(slot))) for _, _, _, server, slot in batch]


def _folders(folder: Path) -> dict[int, Path]:
    """Those of the servers, by their numbers."""
    found = {}
    for path in folder.glob("server*"):
        number = path.name.removeprefix("server")
        if number.isascii() and number.isdecimal() and len(number) < 5 and path.is_dir():
            found[int(number)] = path
    return dict(sorted(found.items()))


def _runs(folder: Path) -> list[KeptRun]:
    """The runs of which something is kept, oldest first. What cannot be read is passed over."""
    found: dict[int, KeptRun] = {}
    for path in _folders(folder).values():
        seen = set()
        try:
            segments = list_segments(path)
        except OSError:
            continue
        for segment in segments:
            run = found.setdefault(segment.run, KeptRun(segment.run, segment.created, segment.created, 0, 0))
            run.servers += segment.run not in seen
            seen.add(segment.run)
            try:
                with SegmentReader(segment) as reader:
                    count = reader.committed()
                    slot = reader.read(count - 1, count) if count else b""
            except OSError:
                continue
            run.records += count
            run.begin = min(run.begin, segment.created)
            if len(slot) == RECORD.size:
                start, duration, *_ = RECORD.unpack(slot)
                run.end = max(run.end, start + duration)
    return [found[number] for number in sorted(found)]
