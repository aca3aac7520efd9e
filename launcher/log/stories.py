"""Who asked whom, who answered, and when: the records of a request as bars and arrows. Pure.

An order leaves whoever asks and arrives where its piece begins; a reply leaves where the work ends. What the log has of
these times is taken as it is. Where orders are handed on (dispatcher, chain) it has all of them: the record of a piece
says for how long its order was on the way, and that of the request who answered the client, and when. Over a primary's
links it says when the request came and when each piece began and ended; with serial fan-out an order leaves when the
piece before it has been done. Clients log nothing: they wait as long as their server says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from memcluster.node.log.record import SERVER_SHIFT, Record, format_identifier
from memcluster.node.log.text import LogEntry
from memcluster.node.nbd.wire import Command
from memcluster.node.topology import DEFAULT, Topology, load, names

READ = int(Command.READ)


def shape_of(topology: str) -> Topology:
    """What the topology of a log is; one that this version does not know is drawn as the default one."""
    return load(topology if topology in names() else DEFAULT)


@dataclass(eq=False)
class Bar:
    """Something that takes a while on a lane; ns since 1970."""

    lane: Any
    record: Record
    start: int
    end: int
    request: str
    kind: str = ""


@dataclass(eq=False)
class Arrow:
    """From one bar at a time to another at another, which is not before it."""

    tail: Bar
    leaves: int
    head: Bar
    arrives: int
    reply: bool = False


@dataclass(eq=False)
class _Story:
    """A request as far as it is in the log."""

    answers: list[tuple[int, Bar, Bar]] = field(default_factory=list)
    """The server that answered, the client's wait, the request; several where clients route by themselves."""
    pieces: dict[int, Bar] = field(default_factory=dict)


class Stories:
    """Takes records in the order of the log; `lane_of` gives the lane of a server."""

    def __init__(self, topology: str, fan_out: str, lane_of: Callable[[int], Any]) -> None:
        shape = shape_of(topology)
        self._hands_over = shape.hands_over
        self._chain = not shape.fans_out
        self._serial = fan_out == "serial"
        self._lane_of = lane_of
        self._stories: dict[int, _Story] = {}
        self._bars: list[Bar] = []
        self._arrows: list[Arrow] = []

    def request(self, entry: LogEntry, client: Any, lane: Any) -> None:
        """A client's request: it is in the hands of the server that took it, whoever answers."""
        server, record = entry
        if self._hands_over:
            lane = self._lane_of(record.identifier >> SERVER_SHIFT)
        wait, request = self._bar(record, client, "wait"), self._bar(record, lane)
        self._story(record).answers.append((server, wait, request))

    def piece(self, entry: LogEntry, lane: Any) -> None:
        """What a server did of one."""
        self._story(entry.record).pieces.setdefault(entry.server, self._bar(entry.record, lane))

    def other(self, entry: LogEntry, lane: Any) -> None:
        """What belongs to nothing else."""
        self._bar(entry.record, lane)

    def drawn(self) -> tuple[list[Bar], list[Arrow]]:
        """All bars, and all arrows in the order of the stories."""
        for identifier, story in self._stories.items():
            taker = identifier >> SERVER_SHIFT
            for answerer, wait, request in story.answers:
                self._ask(wait, wait.start, request, request.start)
                if self._hands_over:
                    self._handed_on(story, taker, answerer, wait, request)
                else:
                    self._fanned_out(story, taker, request)
                    self._answer(request, wait, request.end)
        return self._bars, self._arrows

    def _fanned_out(self, story: _Story, taker: int, request: Bar) -> None:
        """The server that took the request asks the others, and answers when the last of them has."""
        pieces = sorted((bar for server, bar in story.pieces.items() if server != taker), key=lambda bar: bar.start)
        leaves = request.start
        for piece in pieces:
            self._ask(request, leaves, piece, piece.start)
            if self._serial:
                leaves = piece.end
        last = max(pieces, key=lambda bar: bar.end, default=None)
        for piece in pieces:
            self._answer(piece, request, piece.end, max(piece.end, request.end) if piece is last else piece.end)

    def _handed_on(self, story: _Story, taker: int, answerer: int, wait: Bar, request: Bar) -> None:
        """The request goes on to the servers that hold its pieces, and the last of them answers the client."""
        others = [server for server in sorted(story.pieces) if server != taker]
        for place, server in enumerate(others):
            piece = story.pieces[server]
            before = request if not self._chain or not place else story.pieces[others[place - 1]]
            self._ask(before, piece.start - piece.record.client, piece, piece.start)
        if answerer == taker or answerer not in story.pieces:
            for server in others if not self._chain else ():
                self._answer(story.pieces[server], request, story.pieces[server].end)
            self._answer(request, wait, request.end)
            return
        done = story.pieces[answerer]
        if not self._chain and request.record.operation == READ:
            for server in others:  # each says what it has read
                if server != answerer:
                    self._answer(story.pieces[server], wait, story.pieces[server].end)
        said = Bar(done.lane, request.record, min(done.end, request.end), request.end, request.request, "answer")
        self._bars.append(said)
        self._answer(said, wait, request.end)

    def _ask(self, tail: Bar, leaves: int, head: Bar, arrives: int) -> None:
        self._arrows.append(Arrow(tail, min(leaves, arrives), head, arrives))

    def _answer(self, tail: Bar, head: Bar, leaves: int, arrives: int | None = None) -> None:
        self._arrows.append(Arrow(tail, leaves, head, leaves if arrives is None else arrives, reply=True))

    def _bar(self, record: Record, lane: Any, kind: str = "") -> Bar:
        end = record.start + record.duration
        bar = Bar(lane, record, record.start, end, format_identifier(record.identifier), kind)
        self._bars.append(bar)
        return bar

    def _story(self, record: Record) -> _Story:
        return self._stories.setdefault(record.identifier, _Story())
