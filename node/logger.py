"""The logger of a server: gives its server's log to whoever asks, and, on server 0, everybody's as one.

A query is a frame, and so are its answers; docs/log.md has the protocol. Nothing here blocks: work is cut into pieces
that each take a turn of the loop, and an answer pauses while its asker does not read.
"""

from __future__ import annotations

import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from node.channel import Channel
from node.filter import Filter, flag
from node.frames import Frame
from node.gathering import Gathering
from node.history import History
from node.listener import Listener
from node.logtext import LogEntry, format_text
from node.loop import Loop, Timer
from node.merge import Entry
from node.metrics import MetricsPage, Page, exposition
from node.record import RECORD, Record
from node.segments import SegmentError, last_sequence
from node.shares import BATCH, LocalShare
from node.spec import NodeSpec
from node.tally import Tally
from node.tallying import Census, Count

QUEUE = 1 << 20
"""Bytes that may wait to be sent to one asker before its answer pauses."""
MAX_CONNECTIONS = 64
MAX_QUERIES = 16
"""Queries answered at a time."""
ASK_TIMEOUT = 10.0
"""Seconds a connection has to ask."""
LINGER = 1.0
"""Seconds an asker has to hang up once it has got everything. Who closes with words unread may cost the other side the
end of the answer, so the asker, who knows the end when it sees it, closes first."""
COLLECTED = 600_000
"""Records in the merged log that is written at the stop, at most: some 3 s of the time that a stop may take."""
SIGN = 2.0
"""Seconds between two signs of life to one who follows."""
LOOK_AHEAD = 1.0
"""Seconds between two looks for segments that can be summarised before anybody asks."""
DRAIN = 5.0
"""Seconds that answers under way have to come to their end when the logger is to stop."""

Answer = Callable[[dict[str, Any]], None]


class QueryError(Exception):
    """The asker's fault: what it sent is not a query."""


# -- answers -----------------------------------------------------------------------------------------------------


class ShareAnswer:
    """Sends this logger's share to an asker, `window` frames ahead of its requests for more (None: all)."""

    def __init__(self, logger: Logger, channel: Channel, head: Mapping[str, Any], done: Callable[[], None]) -> None:
        wanted = Filter.from_head(head)
        window = head.get("window")
        if window is not None and (type(window) is not int or window < 1):
            raise QueryError(f"window must be a whole number from 1, not {window!r}")
        self.follow = flag(head, "follow")
        self.channel = channel
        self._done = done
        self._credit: int | None = window
        self._node = f"server{logger.spec.index}"
        self._ready: deque[tuple[dict[str, Any], bytes]] = deque()
        self._asked = False
        self._history = True
        self._loop = logger.loop
        self._alive: Timer | None = None
        self._share = LocalShare(logger.loop, logger.history, wanted, self)
        channel.send({"node": self._node, "records": 0})  # a sign of life
        self.go_on()

    def more(self) -> None:
        """The asker has used a frame."""
        if self._credit is not None:
            self._credit += 1
        self.go_on()

    def fed(self, _server: int, batch: list[Entry], missing: int) -> None:
        self._asked = False
        for position in range(0, max(1, len(batch)), BATCH):
            part = batch[position : position + BATCH]
            head: dict[str, Any] = {"node": self._node, "records": len(part)}
            if not self._history:
                head["after"] = self._share.after
            if missing:
                head["missing"], missing = missing, 0
            self._ready.append((head, b"".join([entry[4] for entry in part])))
        self.go_on()

    def ended(self, _server: int, gaps: Sequence[tuple[int, int]], trouble: str) -> None:
        self._asked = False
        if trouble:
            self.channel.send({"error": trouble})
            self._close()
            return
        self._history = False
        found = [{"after": after, "records": count} for after, count in gaps]
        self._ready.append(({"node": self._node, "end": True, "after": self._share.after, "gaps": found}, b""))
        self._sign()
        self.go_on()

    def back(self, server: int) -> None:
        """A local share is never lost for a time."""

    def _sign(self) -> None:
        """A sign of life now and then, when there may be nothing else to say for long."""
        if self.follow:
            self.channel.send({"node": self._node, "records": 0})
            self._alive = self._loop.after(SIGN, self._sign)

    def go_on(self) -> None:
        """Send what may be sent; then see to it that there is more."""
        while self._ready and self._credit != 0 and self.channel.queued <= QUEUE:
            head, body = self._ready.popleft()
            if self._credit is not None:
                self._credit -= 1
            self.channel.send(head, body)
        if self._ready or self._asked:
            return
        if self._history or self.follow:
            self._asked = True
            self._share.more()
        else:
            self._close()

    def stop(self) -> None:
        if self.follow:
            self._close()

    def close(self) -> None:
        self._share.close()
        if self._alive is not None:
            self._alive.cancel()

    def _close(self) -> None:
        self.close()
        self._done()


class MergedAnswer:
    """Sends the merged log to an asker. A frame's body holds the records, then their servers' numbers (u16 each)."""

    def __init__(self, logger: Logger, channel: Channel, head: Mapping[str, Any], done: Callable[[], None]) -> None:
        count = len(logger.spec.cluster.servers)
        if logger.spec.index:
            raise QueryError(f"logger{logger.spec.index} gives its own share only; logger0 has the merged log")
        node = head.get("node")
        names = {f"server{server}": server for server in range(count)}
        if node is not None and node not in tuple(names):
            raise QueryError(f"there is no node {node!r} with a log; there are {', '.join(names)}")
        follow = flag(head, "follow")
        wanted = Filter.from_head(head)
        self.channel = channel
        self._done = done
        servers = range(count) if node is None else [names[node]]
        self._gathering = Gathering(logger.loop, logger.spec, logger.history, wanted, servers, follow, self)

    @property
    def ready(self) -> bool:
        return self.channel.queued <= QUEUE

    def write(self, batch: Sequence[Entry]) -> None:
        servers = struct.pack(f"<{len(batch)}H", *[entry[3] for entry in batch])
        self.channel.send({"records": len(batch)}, b"".join([entry[4] for entry in batch]) + servers)

    def tell(self, head: dict[str, Any]) -> None:
        self.channel.send(head)

    def finish(self, head: dict[str, Any]) -> None:
        self.channel.send({"end": True, **head})
        self._done()

    def go_on(self) -> None:
        self._gathering.go_on()

    def more(self) -> None:
        raise QueryError("the merged log comes without being asked for more")

    def stop(self) -> None:
        if self._gathering.follow:
            self._gathering.stop()

    def close(self) -> None:
        self._gathering.close()


class Collection:
    """Writes the merged log to a file, as text; the file has its name only when it is whole."""

    ready = True

    def __init__(self, logger: Logger, path: str, answer: Answer, done: Callable[[Collection], None]) -> None:
        self.logger = logger
        self.path = Path(path)
        self._answer = answer
        self._done = done
        self._count = 0
        self._new = self.path.with_name(f".{self.path.name}.{os.getpid()}.{id(self):x}")
        self._file: TextIO | None = None
        self._gathering: Gathering | None = None

    def start(self) -> None:
        logger = self.logger
        servers = range(len(logger.spec.cluster.servers))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._new.open("w", encoding="utf-8", buffering=1 << 20)
        except OSError as error:
            self._fail(error)
        else:
            self._gathering = Gathering(
                logger.loop,
                logger.spec,
                logger.history,
                Filter(last=max(1, COLLECTED // len(servers))),
                servers,
                False,
                self,
                last_of_each=True,
            )

    def write(self, batch: Sequence[Entry]) -> None:
        assert self._file is not None
        lines = [
            format_text(LogEntry(server, Record._make(RECORD.unpack(slot))), date=True)
            for _, _, _, server, slot in batch
        ]
        try:
            self._file.write("\n".join(lines) + "\n")
        except OSError as error:
            self._fail(error)
        else:
            self._count += len(lines)

    def tell(self, head: dict[str, Any]) -> None:
        """Nothing is told: a file is not followed."""

    def finish(self, head: dict[str, Any]) -> None:
        assert self._file is not None
        try:
            self._file.close()
            os.rename(self._new, self.path)
        except OSError as error:
            self._fail(error)
            return
        self._answer({"collected": self._count, "path": str(self.path), **head})
        self._done(self)

    def close(self) -> None:
        """Give up. What an earlier collection wrote stays as it is."""
        if self._gathering is not None:
            self._gathering.close()
        if self._file is not None:
            with suppress(OSError):  # what was buffered has no room, and does not matter any more
                self._file.close()
            self._new.unlink(missing_ok=True)

    def _fail(self, error: OSError) -> None:
        self.close()
        self._answer({"collected": 0, "path": str(self.path), "missing": [], "error": str(error)})
        self._done(self)


class TallyAnswer:
    """Sends the figures of this logger's server: of a stretch of time, or those that are kept for Prometheus."""

    follow = False

    def __init__(self, logger: Logger, channel: Channel, head: Mapping[str, Any], done: Callable[[], None]) -> None:
        self.channel = channel
        self._done = done
        self._close = logger.tally(head, self._counted)

    def _counted(self, tally: Tally | None, trouble: str) -> None:
        self.channel.send({"error": trouble} if tally is None else {"tally": tally.to_head()})
        self._done()

    def more(self) -> None:
        """There is one answer."""

    go_on = stop = more

    def close(self) -> None:
        self._close()


class StatsAnswer:
    """Sends the figures of all servers; logger 0 only."""

    def __init__(self, logger: Logger, channel: Channel, head: Mapping[str, Any], done: Callable[[], None]) -> None:
        if logger.spec.index:
            raise QueryError(f"logger{logger.spec.index} counts its own server only; logger0 has everybody's figures")
        self.channel = channel
        self._done = done
        self._census = logger.census(Filter.from_head(head).to_head(), self._counted)

    def _counted(self, tallies: dict[int, Tally], trouble: dict[str, str]) -> None:
        found = {f"server{server}": tally.to_head() for server, tally in tallies.items()}
        self.channel.send({"stats": found, "missing": sorted(trouble), "trouble": trouble})
        self._done()

    def more(self) -> None:
        """There is one answer."""

    go_on = stop = more

    def close(self) -> None:
        self._census.close()


# -- the role ----------------------------------------------------------------------------------------------------


class Query:
    """A connection to this logger: it asks once, and is answered."""

    def __init__(self, logger: Logger, sock: socket.socket) -> None:
        self.logger = logger
        self.answer: ShareAnswer | MergedAnswer | TallyAnswer | StatsAnswer | None = None
        self._over = False
        self.channel = Channel(logger.loop, sock, self._received, self._closed)
        self.channel.drained = self._drained
        self._deadline = logger.loop.after(ASK_TIMEOUT, self.channel.close)

    def __repr__(self) -> str:
        return f"<Query {type(self.answer).__name__ if self.answer else 'not asked yet'}, {self.channel!r}>"

    def _received(self, _channel: Channel, frame: Frame) -> None:
        if self._over:
            return
        try:
            self._take(frame.head)
        except (QueryError, ValueError) as error:
            self.channel.send({"error": str(error)})
            self._end()

    def _take(self, head: dict[str, Any]) -> None:
        """Raises QueryError or ValueError with a sentence."""
        ask = head.get("ask")
        if self.answer is not None:
            if ask != "more":
                raise QueryError("one connection asks once")
            self.answer.more()
            return
        self._deadline.cancel()
        if self.logger.busy >= MAX_QUERIES:
            raise QueryError(f"{self.logger.spec.name} answers {MAX_QUERIES} queries already; try again later")
        if ask == "share":
            self.answer = ShareAnswer(self.logger, self.channel, head, self._done)
        elif ask == "merged":
            self.answer = MergedAnswer(self.logger, self.channel, head, self._done)
        elif ask == "tally":
            self.answer = TallyAnswer(self.logger, self.channel, head, self._done)
        elif ask == "stats":
            self.answer = StatsAnswer(self.logger, self.channel, head, self._done)
        else:
            raise QueryError(f"ask must be merged, share, stats or tally, not {ask!r}")

    def _drained(self, _channel: Channel) -> None:
        if self._over:
            self._linger()
        elif self.answer is not None:
            self.logger.loop.soon(self._go_on)

    def _go_on(self) -> None:
        if self.answer is not None:
            self.answer.go_on()

    def _done(self) -> None:
        """The answer is complete."""
        self.logger.answered += 1
        self._end()

    def _end(self) -> None:
        """There is nothing more to say."""
        self._let_go()
        if not self.channel.queued:
            self._linger()

    def _linger(self) -> None:
        self._deadline.cancel()
        self._deadline = self.logger.loop.after(LINGER, self.channel.close)

    def _let_go(self) -> None:
        self._over = True
        answer, self.answer = self.answer, None
        if answer is not None:
            answer.close()

    def _closed(self, _channel: Channel) -> None:
        self._let_go()
        self._deadline.cancel()
        self.logger.left(self)

    def drain(self) -> None:
        """End what would never end by itself."""
        if self.answer is not None:
            self.answer.stop()
        elif not self._over:
            self.channel.close()


class Logger:
    """The log keeper of server `spec.index`."""

    def __init__(
        self, loop: Loop, spec: NodeSpec, listeners: Sequence[socket.socket], report: Callable[[dict[str, Any]], None]
    ) -> None:
        self.loop = loop
        self.spec = spec
        self.report = report
        self.history = History(spec.log_directory, spec.index, spec.cluster.layout)
        self.answered = 0
        self._queries: set[Query] = set()
        self._collections: set[Collection] = set()
        self._drained: Callable[[], None] | None = None
        self._deadline: Timer | None = None
        self._listeners = [Listener(loop, sock, self._accept) for sock in listeners[:1]]
        self._running: Count | None = None
        self._censuses: set[Census] = set()
        self._page = MetricsPage(loop, listeners[1], self._make_page) if len(listeners) > 1 else None
        if spec.metrics:
            try:
                end = Filter(after=last_sequence(Path(spec.log_directory)))
            except (OSError, SegmentError):
                end = Filter()
            self._running = Count(loop, self.history, spec.cluster.memory, end, lambda _: None, follow=True)

    def __repr__(self) -> str:
        return f"<Logger {self.spec.index}, {self.busy} of {len(self._queries)} connections answered>"

    @property
    def busy(self) -> int:
        """Queries that are being answered."""
        return sum(query.answer is not None for query in self._queries)

    def start(self) -> None:
        """Let askers in."""
        for listener in self._listeners:
            listener.start()
        self.report({"event": "ready"})
        self.loop.after(LOOK_AHEAD, self._look_ahead)

    def status(self) -> dict[str, Any]:
        """The counters, for `memcluster status`."""
        try:
            records = last_sequence(Path(self.spec.log_directory))
        except (OSError, SegmentError):
            records = 0
        counters: dict[str, Any] = {"clients": len(self._queries), "requests": self.answered, "records": records}
        return counters | {"metrics": self._page.address} if self._page is not None else counters

    def command(self, head: dict[str, Any], answer: Answer) -> None:
        """{"do": "collect"}: write the merged log to `spec.merged_log`."""
        if head.get("do") != "collect" or self.spec.index:
            answer({"error": f"{self.spec.name} does not understand {head.get('do')!r}"})
            return
        collection = Collection(self, self.spec.merged_log, answer, self._collected)
        self._collections.add(collection)
        collection.start()

    def cut(self, peer: str, cut: bool) -> None:
        """A partition from logger 0, the only one that asks: its connections are lost, new ones wait."""
        if peer != "logger0":
            return
        for listener in self._listeners:
            listener.pause() if cut else listener.start()
        for query in tuple(self._queries) if cut else ():
            query.channel.close()

    def drain(self, mode: str, done: Callable[[], None]) -> None:  # noqa: ARG002 - answers always come to their end
        """Take no more queries, end those that follow, finish the others; at the deadline what is left is cut off."""
        self._drained = done
        if self._deadline is not None:
            return
        self._deadline = self.loop.after(DRAIN, self._cut_off)
        for listener in self._listeners:
            listener.stop()
        if self._page is not None:
            self._page.close()
        for query in tuple(self._queries):
            query.drain()
        self._check_drained()

    def close(self) -> None:
        """Give everything back."""
        for listener in self._listeners:
            listener.stop()
        if self._page is not None:
            self._page.close()
        if self._running is not None:
            self._running.close()
        for census in self._censuses:
            census.close()
        self._cut_off()

    # -- figures ---------------------------------------------------------------------------------------------------

    def tally(self, head: Mapping[str, Any], done: Callable[[Tally | None, str], None]) -> Callable[[], None]:
        """Count this server's records; returns what ends that. Raises ValueError if the query makes no sense."""
        if flag(head, "running"):
            running = self._running
            found = None if running is None else running.tally
            self.loop.soon(lambda: done(found, "no figures are kept: cluster.yaml names no address for metrics"))
            return lambda: None

        def counted(trouble: str) -> None:
            done(None if trouble else count.tally, trouble)

        wanted = Filter.from_head(head)
        count = Count(self.loop, self.history, self.spec.cluster.memory, wanted, counted, follow=False)
        return count.close

    def census(
        self, head: dict[str, Any], done: Callable[[dict[int, Tally], dict[str, str]], None]
    ) -> Census:
        """Ask all loggers for their figures."""

        def finish(tallies: dict[int, Tally], trouble: dict[str, str]) -> None:
            self._censuses.discard(census)
            done(tallies, trouble)

        census = Census(self.loop, self.spec, head, lambda told: self.tally(head, told), finish)
        self._censuses.add(census)
        return census

    def _make_page(self, answer: Callable[[Page], None]) -> None:
        self.census(
            {"running": True},
            lambda tallies, _: answer(exposition(tallies, len(self.spec.cluster.servers), self.spec.log_sample)),
        )

    # -- the queries' side -----------------------------------------------------------------------------------------

    def left(self, query: Query) -> None:
        """A connection is gone."""
        self._queries.discard(query)
        self._check_drained()

    def _accept(self, sock: socket.socket) -> None:
        if len(self._queries) < MAX_CONNECTIONS:
            self._queries.add(Query(self, sock))
        else:
            sock.close()

    def _look_ahead(self) -> None:
        """One segment a turn, so that nobody waits."""
        try:
            more = self.history.look_ahead()
        except (OSError, SegmentError):
            more = False  # who asks will be told
        self.loop.after(0.0 if more else LOOK_AHEAD, self._look_ahead)

    def _collected(self, collection: Collection) -> None:
        self._collections.discard(collection)
        self._check_drained()

    def _cut_off(self) -> None:
        for query in tuple(self._queries):
            query.channel.close()
        for collection in tuple(self._collections):
            collection.close()
        self._collections.clear()
        self._check_drained()

    def _check_drained(self) -> None:
        if self._drained is not None and not self._queries and not self._collections:
            done, self._drained = self._drained, None
            if self._deadline is not None:
                self._deadline.cancel()
            done()
