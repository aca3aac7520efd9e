"""The logger of a server: gives its server's log to whoever asks, and, on server 0, everybody's as one.

A query is a frame, and so are its answers; docs/log.md has the protocol. Nothing here blocks: work is cut into pieces
that each take a turn of the loop, and an answer pauses while its asker does not read.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from memcluster.node.log.filter import Filter, flag
from memcluster.node.log.history import History
from memcluster.node.log.segments import last_sequence
from memcluster.node.log.tally import Tally
from memcluster.node.logger.answers import ANSWERS, Answer, QueryError
from memcluster.node.logger.collection import Collection
from memcluster.node.logger.metrics import MetricsPage, Page, exposition
from memcluster.node.logger.tallying import Census, Count
from memcluster.node.nbd.printable import shown
from memcluster.node.spec import NodeSpec
from memcluster.node.transport.channel import Channel
from memcluster.node.transport.frames import MAX_QUESTION, Frame
from memcluster.node.transport.introduction import Doorkeeper
from memcluster.node.transport.listener import Listener
from memcluster.node.transport.loop import Loop, Timer
from memcluster.node.transport.notices import Notices
from memcluster.node.transport.proof import Who
from memcluster.node.transport.stream import Line

MAX_CONNECTIONS = 64
"""Of each kind of asker."""
MAX_QUERIES = 16
"""Queries of the owner answered at a time, for as long as each asker likes: a person who reads page by page is one."""
PLACES = {Who.OWNER: MAX_QUERIES, Who.LOGGER: 2 * MAX_QUERIES}
"""Those of another logger have places of their own: logger 0 asks on behalf of whoever has asked it, for the page of
figures, and for the merged log of the stop, which must not be without a share because people follow the log."""
ASK_TIMEOUT = 10.0
"""Seconds a connection has to ask."""
LINGER = 1.0
"""Seconds an asker has to hang up once it has got everything. Who closes with words unread may cost the other side the
end of the answer, so the asker, who knows the end when it sees it, closes first."""
LOOK_AHEAD = 1.0
"""Seconds between two looks for segments that can be summarised before anybody asks."""
DRAIN = 5.0
"""Seconds that answers under way have to come to their end when the logger is to stop."""


class Query:
    """A connection to this logger: it asks once, and is answered."""

    def __init__(self, logger: Logger, line: Line, who: Who) -> None:
        self.logger = logger
        self.who = who
        self.answer: Answer | None = None
        self._over = False
        self.channel = Channel(logger.loop, line, self._received, self._closed, most=MAX_QUESTION)
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
        places = PLACES[self.who]
        if self.logger.busy(self.who) >= places:
            raise QueryError(f"{self.logger.spec.name} answers {places} queries already; try again later")
        kind = ANSWERS.get(ask) if isinstance(ask, str) else None
        if kind is None:
            *most, last = ANSWERS
            raise QueryError(f"ask must be {', '.join(most)} or {last}, not {shown(ask)}")
        self.answer = kind(self.logger, self.channel, head, self._done)
        if self._over:  # the asker was gone when the first word was to be sent
            self._let_go()

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
        self.history = History(
            spec.log_directory,
            spec.index,
            spec.cluster.layout,
            clock=spec.run.clock(loop.system.monotonic_ns),
            run=spec.run.number,
        )
        self.answered = 0
        self._queries: set[Query] = set()
        self._collections: set[Collection] = set()
        self._drained: Callable[[], None] | None = None
        self._deadline: Timer | None = None
        self.strangers = 0
        self._notices = Notices(loop.system, spec.name)
        self._doorkeeper = Doorkeeper(
            loop,
            spec.secret,
            spec.name,
            PLACES,
            self._admit,
            self._turned_away,
            tls=spec.door_tls(),
            far=bool(spec.host),
        )
        self._listeners = [Listener(loop, sock, self._doorkeeper.take) for sock in listeners[:1]]
        self._running: Count | None = None
        self._censuses: set[Census] = set()  # for the page
        self._page = MetricsPage(loop, listeners[1], self._make_page) if len(listeners) > 1 else None
        self._count()

    def __repr__(self) -> str:
        return f"<Logger {self.spec.index}, {len(self._queries)} connections>"

    def busy(self, who: Who) -> int:
        """Queries of this kind of asker that are being answered."""
        return sum(query.answer is not None and query.who is who for query in self._queries)

    def tune_process(self) -> None:
        """A logger's process is as it was started."""

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
        except OSError:
            records = 0
        counters: dict[str, Any] = {"clients": len(self._queries), "requests": self.answered, "records": records}
        counters["strangers"] = self.strangers
        return counters | {"metrics": self._page.address} if self._page is not None else counters

    def command(self, head: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> None:
        """{"do": "collect", "within": seconds}: write the merged log to `spec.merged_log`, if there is time for it."""
        if head.get("do") != "collect" or self.spec.index:
            answer({"error": f"{self.spec.name} does not understand {shown(head.get('do'))}"})
            return
        collection = Collection(self.loop, self.spec, self.history, answer, self._collected, head.get("within"))
        self._collections.add(collection)
        collection.start()

    def settle_on(self, spec: NodeSpec, page: socket.socket | None) -> None:
        """Go on with other settings, from now on, and with another page."""
        self.spec = spec
        if self._page is not None and (page is not None or not spec.metrics):
            self._page.close()
            self._page = None
        if page is not None:
            self._page = MetricsPage(self.loop, page, self._make_page)
        self._count()

    def _count(self) -> None:
        """Keep figures for the page, from here on; or keep none."""
        spec = self.spec
        if self._running is not None and not spec.metrics:
            self._running.close()
            self._running = None
        elif self._running is None and spec.metrics:
            try:
                end = Filter(after=last_sequence(Path(spec.log_directory)))
            except OSError:
                end = Filter()
            self._running = Count(self.loop, self.history, spec.cluster.memory, end, lambda _: None, follow=True)

    def cut(self, peer: str, cut: bool) -> None:
        """A partition from logger 0, the only one that asks: its connections are lost, new ones wait."""
        if peer != "logger0":
            return
        for listener in self._listeners:
            listener.pause() if cut else listener.start()
        if cut:
            self._doorkeeper.close()
        for query in tuple(self._queries) if cut else ():
            query.channel.close()

    def drain(self, mode: str, done: Callable[[], None]) -> None:  # noqa: ARG002 - answers always come to their end
        """Take no more queries, end those that follow, finish the others; at the deadline what is left is cut off."""
        self._drained = done
        if self._deadline is not None:
            return
        self._deadline = self.loop.after(DRAIN, self._cut_off)
        self._shut()
        for query in tuple(self._queries):
            query.drain()
        self._check_drained()

    def close(self) -> None:
        """Give everything back."""
        self._shut()
        if self._running is not None:
            self._running.close()
        for census in self._censuses:
            census.close()
        self._cut_off()

    def _shut(self) -> None:
        for listener in self._listeners:
            listener.stop()
        self._doorkeeper.close()
        if self._page is not None:
            self._page.close()

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

    def census(self, head: dict[str, Any], done: Callable[[dict[int, Tally], dict[str, str]], None]) -> Census:
        """Ask all loggers for their figures."""
        return Census(self.loop, self.spec, head, lambda told: self.tally(head, told), done)

    def _make_page(self, answer: Callable[[Page], None]) -> None:
        def made(tallies: dict[int, Tally], _trouble: dict[str, str]) -> None:
            self._censuses.discard(census)
            answer(exposition(tallies, len(self.spec.cluster.servers), self.spec.log_sample))

        census = self.census({"running": True}, made)
        self._censuses.add(census)

    # -- the queries' side -----------------------------------------------------------------------------------------

    def left(self, query: Query) -> None:
        """A connection is gone."""
        self._queries.discard(query)
        self._check_drained()

    def _admit(self, line: Line, who: Who) -> None:
        if sum(query.who is who for query in self._queries) < MAX_CONNECTIONS:
            self._queries.add(Query(self, line, who))
        else:
            line.close()

    def _turned_away(self, reason: str) -> None:
        self.strangers += 1
        self._notices.say(f"a stranger was turned away: {reason}")

    def _look_ahead(self) -> None:
        """One segment a turn, so that nobody waits."""
        try:
            more = self.history.look_ahead()
        except OSError:
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
