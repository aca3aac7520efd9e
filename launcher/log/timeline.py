"""The log as a space-time diagram: a lane for each process, time to the right, an arrow wherever one asks or answers.

Here the log becomes plain data: lanes, bars, arrows and marks. timeline.html, into which the data is put, draws them
with drawing.js, which other pages may have, too; the page needs nothing else, no network either. Who asks whom is told
by stories.py.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from memcluster.client.identifiers import BLOCK
from memcluster.launcher.log.stories import Arrow, Bar, Stories, shape_of
from memcluster.launcher.log.trace import Tracks
from memcluster.node.log.record import COUNTER_BITS, PROBE, SERVER_SHIFT, TROUBLE, Event, Kind, subject_name
from memcluster.node.log.text import LogEntry, event_detail, event_name, kind_name, operation_name
from memcluster.node.nbd.printable import printable
from memcluster.node.nbd.wire import Error

ROWS = 8
"""Things beside one another in a lane; what goes beyond is drawn over the last."""
MAX_CLIENTS = 24
"""Lanes for clients; those that come later share one."""
PLACEHOLDER = "/*DATA*/null"
FAULTS: dict[int, str] = {
    Event.PAUSED: "paused",
    Event.HANGING: "hangs",
    Event.SLOWED: "slow",
    Event.PARTITIONED: "cut off",
    Event.KILLED: "kept down",
}
ENDS: dict[int, tuple[int, ...]] = {
    Event.RESUMED: (Event.PAUSED, Event.HANGING, Event.SLOWED),
    Event.DIED: (Event.PAUSED, Event.HANGING),
    Event.READY: (Event.KILLED,),
    Event.RESTARTED: (Event.KILLED,),
}
"""Which faults of a node an event ends; HEALED ends what it names."""
DOWN = (Event.DIED, Event.STOPPED, Event.FAILED)
UP = (Event.STARTED, Event.RESTARTED, Event.READY)


@dataclass
class Lane:
    """A process, or a client as its server sees it; times in ns since 1970. Lanes of one `host`, which is another than
    the supervisor's, lie together. `down` are the spans in which the process did not live, and whether that was as
    planned; `faults` those in which it was broken on purpose, and how."""

    name: str
    kind: str
    host: str = ""
    rows: int = 0
    down: list[tuple[int, int, bool]] = field(default_factory=list)
    faults: list[tuple[int, int, str]] = field(default_factory=list)
    dead: tuple[int, bool] | None = None
    broken: dict[tuple[int, int], tuple[int, str]] = field(default_factory=dict)

    def heal(self, fault: tuple[int, int], at: int) -> None:
        """End a fault, if there is one."""
        if (found := self.broken.pop(fault, None)) is not None:
            self.faults.append((found[0], max(at, found[0]), found[1]))


class Timeline:
    """Takes the entries of a stretch of the log, in its order."""

    def __init__(self, cluster: str, topology: str, fan_out: str = "", homes: Mapping[str, str] | None = None) -> None:
        """`homes` are the nodes that run on other hosts, and on which."""
        self.cluster = cluster
        self._homes = homes or {}
        self.topology = topology
        self._zero: int | None = None
        self._end = 0
        self._clients: dict[tuple[tuple[int, int], int], Lane] = {}  # by ((server, its life), client)
        self._lives: Counter[int] = Counter()  # of each server, as far as the log tells of them
        self._newest: dict[tuple[int, int], Lane] = {}  # by (server, client)
        self._stayed: set[tuple[int, int]] = set()  # who has kept its connection, and has asked nothing since
        self._blocks: dict[int, tuple[Lane, set[int]]] = {}  # whose identifiers these are, and on which servers
        self._processes: dict[str, Lane] = {}
        self._marks: list[tuple[Lane, int, str, str, bool]] = []
        self._stories = Stories(topology, fan_out, lambda server: self._process(f"server{server}"))

    def add(self, entry: LogEntry) -> None:
        server, record = entry
        if record.kind != Kind.EVENT and record.flags & PROBE:
            return  # what `up` itself asks
        self._zero = record.start if self._zero is None else min(self._zero, record.start)
        self._end = max(self._end, record.start + record.duration)
        if record.kind == Kind.EVENT:
            self._add_event(entry)
            return
        lane = self._process(f"server{server}")
        if record.kind == Kind.PIECE:
            self._stories.piece(entry, lane)
        elif record.kind == Kind.REQUEST:
            self._stories.request(entry, self._client(entry), lane)
        else:
            self._stories.other(entry, lane)

    def data(self) -> dict[str, Any]:
        """What the page draws; times are µs since the first entry. Bars are lists: lane, row, start, duration, kind,
        operation, error, request, offset, length; arrows are lists: bar, time, bar, time, 1 for a reply; marks are
        lists: lane, time, name, detail, whether it means trouble."""
        bars, arrows = self._stories.drawn()
        clients = {id(lane): lane for lane in self._clients.values()}
        processes = sorted(self._processes.values(), key=lambda lane: (lane.host, _order(lane.name)))
        lanes = [*clients.values(), *processes]
        numbers = {id(lane): number for number, lane in enumerate(lanes)}
        for lane in lanes:
            if lane.dead is not None:
                lane.down.append((lane.dead[0], self._end, lane.dead[1]))
            lane.faults += [(since, self._end, label) for since, label in lane.broken.values()]
        bars.sort(key=lambda bar: bar.start)
        places = {id(bar): place for place, bar in enumerate(bars)}
        return {
            "cluster": self.cluster,
            "topology": self.topology,
            "begin": str(self._zero or 0),  # more digits than a number has in JavaScript
            "end": self._time(self._end),
            "bars": self._rows(bars, lanes, numbers),
            "lanes": [self._lane(lane) for lane in lanes],
            "arrows": [self._arrow(arrow, places) for arrow in arrows],
            "marks": [[numbers[id(lane)], self._time(at), *rest] for lane, at, *rest in self._marks],
        }

    # -- parts -------------------------------------------------------------------------------------------------------

    def _rows(self, bars: list[Bar], lanes: list[Lane], numbers: dict[int, int]) -> list[list[Any]]:
        """The bars, which come in the order of their starts, each in the first row of its lane that is free."""
        tracks = [Tracks() for _ in lanes]
        rows = []
        for bar in bars:
            number = numbers[id(bar.lane)]
            row = min(tracks[number].place(bar.start, max(bar.end, bar.start + 1)), ROWS - 1)
            lanes[number].rows = max(lanes[number].rows, row + 1)
            rows.append([number, row, self._time(bar.start), (bar.end - bar.start) / 1000, *_words(bar)])
        return rows

    def _lane(self, lane: Lane) -> dict[str, Any]:
        return {
            "name": lane.name,
            "kind": lane.kind,
            "host": lane.host,
            "rows": lane.rows,
            "down": [[self._time(since), self._time(until), planned] for since, until, planned in lane.down],
            "faults": [[self._time(since), self._time(until), label] for since, until, label in lane.faults],
        }

    def _arrow(self, arrow: Arrow, places: dict[int, int]) -> list[Any]:
        tail, head = places[id(arrow.tail)], places[id(arrow.head)]
        return [tail, self._time(arrow.leaves), head, self._time(arrow.arrives), int(arrow.reply)]

    def _add_event(self, entry: LogEntry) -> None:
        record = entry.record
        event, at = record.operation, record.start
        if event == Event.STARTED:
            self._lives[entry.server] += 1
        elif event == Event.CONNECTED and record.offset:
            self._stayed.add((entry.server, record.client))
        lane = self._process(subject_name(record.length))
        if event in DOWN and lane.dead is None:
            lane.dead = at, event == Event.STOPPED
        elif event in UP and lane.dead is not None:
            lane.down.append((lane.dead[0], max(at, lane.dead[0]), lane.dead[1]))
            lane.dead = None
        detail = event_detail(entry)
        if event in FAULTS:
            peer = record.offset if event == Event.PARTITIONED else 0
            lane.broken.setdefault((event, peer), (at, f"{FAULTS[event]} {detail}".strip()))
        elif event == Event.HEALED:
            lane.heal((Event.PARTITIONED, record.offset), at)
            lane.heal((Event.SLOWED, record.offset), at)
        for fault in ENDS.get(event, ()):
            lane.heal((fault, 0), at)
        self._marks.append((lane, at, event_name(event), detail, event in TROUBLE))

    def _process(self, name: str) -> Lane:
        return self._processes.setdefault(name, Lane(name, "process", printable(self._homes.get(name, ""))))

    def _client(self, entry: LogEntry) -> Lane:
        """Numbers of clients begin again with every start of their server, but for those that keep their connections. A
        client that routes by itself has a number on each server, and a block of identifiers that is its own."""
        server, record = entry
        routed = shape_of(self.topology).every_server_is_a_door
        place = server if routed else record.identifier >> SERVER_SHIFT, record.client
        key = ((server, self._lives[server]) if routed else (record.identifier >> COUNTER_BITS, 0)), record.client
        block = self._blocks.get(record.identifier // BLOCK) if routed else None
        if block is not None and server not in block[1]:
            self._clients[key] = block[0]
        elif key not in self._clients and place in self._stayed and place in self._newest:
            self._clients[key] = self._newest[place]
        elif key not in self._clients:
            if len({id(known) for known in self._clients.values()}) >= MAX_CLIENTS:
                key = (-1, -1), -1
                self._clients.setdefault(key, Lane("other clients", "client"))
            else:
                name = f"client {record.client}"
                taken = any(known.name == name for known in self._clients.values())
                self._clients[key] = Lane(f"{name} of server{server}" if taken else name, "client")
        self._stayed.discard(place)
        self._newest[place] = self._clients[key]
        self._blocks.setdefault(record.identifier // BLOCK, (self._clients[key], set()))[1].add(server)
        return self._clients[key]

    def _time(self, at: int) -> float:
        return (at - (self._zero or 0)) / 1000


def _words(bar: Bar) -> list[Any]:
    record = bar.record
    error = Error(record.error).name if record.error in Error.__members__.values() else str(record.error)
    kind = bar.kind or kind_name(record.kind)
    return [
        kind, operation_name(record.operation), error if record.error else "", bar.request, record.offset, record.length
    ]  # fmt: skip


def _order(name: str) -> tuple[bool, int]:
    """Servers first, by number."""
    return name.startswith("logger"), int(name[len("server") :])


def make_page(
    cluster: str,
    topology: str,
    entries: Iterable[LogEntry],
    fan_out: str = "",
    homes: Mapping[str, str] | None = None,
) -> str:
    """The page for a stretch of the log."""
    timeline = Timeline(printable(cluster), printable(topology), printable(fan_out), homes)
    for entry in entries:
        timeline.add(entry)
    data = json.dumps(timeline.data(), separators=(",", ":")).replace("<", "\\u003c")
    page = drawing_page("memcluster.launcher.log", "timeline.html")
    assert PLACEHOLDER in page
    return page.replace(PLACEHOLDER, data)


def drawing_page(package: str, name: str) -> str:
    """A page of ours that draws stretches of the log, with the drawing code in its place."""
    page = resources.files(package).joinpath(name).read_text(encoding="utf-8")
    for part in ("drawing.css", "drawing.js"):
        assert f"/*{part}*/" in page
        text = resources.files("memcluster.launcher.log").joinpath(part).read_text(encoding="utf-8")
        page = page.replace(f"/*{part}*/", text)
    return page
