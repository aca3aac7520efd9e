"""The log as a space-time diagram: a lane for each process, time to the right, an arrow wherever one asks another.

Here the log becomes plain data: lanes, bars, arrows and marks. launcher/log/timeline.html, into which the data is put,
draws them; the page needs nothing else, no network either.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from memcluster.launcher.log.trace import Tracks
from memcluster.node.log.record import COUNTER_BITS, SERVER_SHIFT, TROUBLE, Event, Kind, format_identifier, subject_name
from memcluster.node.log.text import LogEntry, event_detail, event_name, kind_name, operation_name
from memcluster.node.nbd.wire import Error
from memcluster.node.topology import load, names

ROWS = 8
"""Things beside one another in a lane; what goes beyond is drawn over the last."""
MAX_CLIENTS = 24
"""Lanes for clients; those that come later share one."""
PLACEHOLDER = "/*DATA*/null"
DOWN = (Event.DIED, Event.STOPPED, Event.FAILED)


@dataclass
class Lane:
    """A process, or a client as its server sees it. `down` are the spans in which the process did not live."""

    name: str
    kind: str
    rows: int = 1
    down: list[list[float]] = field(default_factory=list)
    tracks: Tracks = field(default_factory=Tracks)
    dead_since: float | None = None


class Timeline:
    """Takes the entries of a stretch of the log, in its order."""

    def __init__(self, cluster: str, topology: str) -> None:
        self.cluster = cluster
        self.topology = topology
        self._zero: int | None = None
        self._end = 0.0
        self._clients: dict[tuple[int, int], Lane] = {}  # by (server and incarnation, client)
        self._processes: dict[str, Lane] = {}
        self._bars: list[tuple[Lane, list[Any]]] = []
        self._marks: list[tuple[Lane, list[Any]]] = []
        self._causes: dict[int, int] = {}  # identifier: the index of the bar of who asks for its pieces
        self._waits: dict[int, int] = {}  # the same of the client that waits, until it is known whom it asked
        self._passes_along = topology in names() and not load(topology).fans_out
        self._arrows: list[list[int]] = []

    def add(self, entry: LogEntry) -> None:
        server, record = entry
        if self._zero is None:
            self._zero = record.start
        start = self._time(record.start)
        self._end = max(self._end, start + record.duration / 1000)
        if record.kind == Kind.EVENT:
            self._add_event(entry, start)
            return
        index = self._add_bar(self._process(f"server{server}"), entry, start)
        if record.kind == Kind.PIECE:
            self._add_piece(record.identifier, server, index)
        elif record.kind == Kind.REQUEST:
            self._causes[record.identifier] = index
            wait = self._add_bar(self._client(record.identifier, record.client), entry, start, "wait")
            if server == record.identifier >> SERVER_SHIFT:
                self._arrows.append([wait, index])
            else:
                self._waits[record.identifier] = wait

    def data(self) -> dict[str, Any]:
        """What the page draws; times are µs since the first entry. Bars are lists: lane, row, start, duration, kind,
        operation, error, request, offset, length; arrows are pairs of bars; marks are lists: lane, time, name, detail,
        whether it means trouble."""
        lanes = [*self._clients.values(), *(self._processes[name] for name in sorted(self._processes, key=_order))]
        numbers = {id(lane): number for number, lane in enumerate(lanes)}
        for lane in lanes:
            if lane.dead_since is not None:
                lane.down.append([lane.dead_since, self._end])
        return {
            "cluster": self.cluster,
            "topology": self.topology,
            "begin": str(self._zero or 0),  # more digits than a number has in JavaScript
            "end": self._end,
            "lanes": [{"name": lane.name, "kind": lane.kind, "rows": lane.rows, "down": lane.down} for lane in lanes],
            "bars": [[numbers[id(lane)], *rest] for lane, rest in self._bars],
            "arrows": self._arrows,
            "marks": [[numbers[id(lane)], *rest] for lane, rest in self._marks],
        }

    def _add_piece(self, identifier: int, server: int, index: int) -> None:
        """The arrow to a piece. Where another server answers than who took the request (dispatcher, chain), the client
        asked the taker, whose piece says that it was there, and the taker asked the others, or the next one."""
        cause = self._causes.get(identifier)
        wait = self._waits.pop(identifier, None) if server == identifier >> SERVER_SHIFT else None
        if wait is not None:
            self._arrows.append([wait, index])
        elif cause is not None and self._bars[cause][0] is not self._bars[index][0]:  # its own piece needs none
            self._arrows.append([cause, index])
        if wait is not None or (self._passes_along and cause is not None):
            self._causes[identifier] = index

    # -- parts -------------------------------------------------------------------------------------------------------

    def _add_bar(self, lane: Lane, entry: LogEntry, start: float, kind: str = "") -> int:
        record = entry.record
        row = min(lane.tracks.place(record.start, record.start + max(record.duration, 1)), ROWS - 1)
        lane.rows = max(lane.rows, row + 1)
        error = Error(record.error).name if record.error in Error.__members__.values() else str(record.error)
        self._bars.append((
            lane,
            [
                row,
                start,
                record.duration / 1000,
                kind or kind_name(record.kind),
                operation_name(record.operation),
                error if record.error else "",
                format_identifier(record.identifier),
                record.offset,
                record.length,
            ],
        ))  # fmt: skip
        return len(self._bars) - 1

    def _add_event(self, entry: LogEntry, start: float) -> None:
        record = entry.record
        lane = self._process(subject_name(record.length))
        if record.operation in DOWN and lane.dead_since is None:
            lane.dead_since = start
        elif record.operation in (Event.STARTED, Event.RESTARTED, Event.READY) and lane.dead_since is not None:
            lane.down.append([lane.dead_since, start])
            lane.dead_since = None
        detail = event_detail(entry)
        self._marks.append((lane, [start, event_name(record.operation), detail, record.operation in TROUBLE]))

    def _process(self, name: str) -> Lane:
        return self._processes.setdefault(name, Lane(name, "process"))

    def _client(self, identifier: int, client: int) -> Lane:
        """Numbers of clients begin again with every start of their server."""
        key = identifier >> COUNTER_BITS, client
        if key not in self._clients and len(self._clients) >= MAX_CLIENTS:
            key = -1, -1
        if key not in self._clients:
            others = [known for known in self._clients if known[1] == client]
            name = "other clients" if client == -1 or key[0] == -1 else f"client {client}"
            server = identifier >> SERVER_SHIFT
            self._clients[key] = Lane(f"{name} of server{server}" if others and key[0] != -1 else name, "client")
        return self._clients[key]

    def _time(self, start: int) -> float:
        assert self._zero is not None
        return (start - self._zero) / 1000


def _order(name: str) -> tuple[bool, int]:
    """Servers first, by number."""
    return name.startswith("logger"), int(name[len("server") :])


def make_page(cluster: str, topology: str, entries: Iterable[LogEntry]) -> str:
    """The page for a stretch of the log."""
    timeline = Timeline(cluster, topology)
    for entry in entries:
        timeline.add(entry)
    data = json.dumps(timeline.data(), separators=(",", ":")).replace("</", "<\\/")
    page = resources.files("memcluster.launcher.log").joinpath("timeline.html").read_text(encoding="utf-8")
    assert PLACEHOLDER in page
    return page.replace(PLACEHOLDER, data)
