"""Counting on the loop: a logger's own server's log, and, for logger 0, what all the loggers have counted.

A `Count` reads a stretch of the log, or goes on for ever, in turns of the loop. A `Census` asks every logger for its
tally at once and answers when the last one has, or when time is up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from memcluster.node.log.filter import Filter
from memcluster.node.log.history import History
from memcluster.node.log.merge import Entry
from memcluster.node.log.tally import Tally
from memcluster.node.logger.shares import LocalShare, reason_of
from memcluster.node.spec import NodeSpec
from memcluster.node.transport.address import Address
from memcluster.node.transport.channel import Channel
from memcluster.node.transport.frames import Frame
from memcluster.node.transport.introduction import Introduction, introduce
from memcluster.node.transport.loop import Loop, Timer
from memcluster.node.transport.proof import Pass
from memcluster.node.transport.stream import Line

ANSWER_WITHIN = 5.0
"""Seconds a logger has to count and answer."""


class Count:
    """Counts what a filter wants of this logger's own server's log; `done(trouble)` is called at the end of the
    history, and with `follow` it goes on with what is added."""

    def __init__(
        self, loop: Loop, history: History, memory: int, wanted: Filter, done: Callable[[str], None], *, follow: bool
    ) -> None:
        self.tally = Tally(memory)
        self.follow = follow
        self._done = done
        self._share = LocalShare(loop, history, wanted, self)
        self._share.more()

    def fed(self, _server: int, batch: list[Entry], missing: int, _run: int) -> None:
        self.tally.add([entry[4] for entry in batch])
        self.tally.missing += missing
        self._share.more()

    def ended(self, _server: int, gaps: Sequence[tuple[int, int]], trouble: str) -> None:
        self.tally.missing += sum(count for _, count in gaps)
        self.tally.age = self._share.age
        if self.follow and not trouble:
            self._share.more()
        self._done(trouble)

    def back(self, server: int) -> None:
        """A local share is never lost for a time."""

    def close(self) -> None:
        self._share.close()


class Census:
    """The tallies of all loggers by the number of their server; `done(tallies, trouble)` is called once."""

    def __init__(
        self,
        loop: Loop,
        spec: NodeSpec,
        head: dict[str, Any],
        own: Callable[[Callable[[Tally | None, str], None]], Callable[[], None]],
        done: Callable[[dict[int, Tally], dict[str, str]], None],
    ) -> None:
        self._done: Callable[[dict[int, Tally], dict[str, str]], None] | None = done
        self._tallies: dict[int, Tally] = {}
        self._trouble: dict[str, str] = {}
        self._left = len(spec.cluster.servers)
        self._calls = [
            _Call(
                loop,
                server.logger,
                spec.pass_to(f"logger{index}"),
                {"ask": "tally", **head},
                partial(self._told, index),
            )
            for index, server in enumerate(spec.cluster.servers)
            if index != spec.index
        ]
        self._end_own = own(lambda found, why: self._told(spec.index, found, why))

    def close(self) -> None:
        self._done = None
        self._end_own()
        for call in self._calls:
            call.close()

    def _told(self, server: int, found: Tally | None, trouble: str) -> None:
        if found is None:
            self._trouble[f"logger{server}"] = trouble
        else:
            self._tallies[server] = found
        self._left -= 1
        if not self._left and self._done is not None:
            done, self._done = self._done, None
            done(dict(sorted(self._tallies.items())), self._trouble)


class _Call:
    """One question to another logger, and one answer."""

    def __init__(
        self,
        loop: Loop,
        address: str,
        key: Pass,
        head: dict[str, Any],
        done: Callable[[Tally | None, str], None],
    ) -> None:
        self._loop = loop
        self._head = head
        self._done: Callable[[Tally | None, str], None] | None = done
        self._introduction: Introduction | None = None
        self._channel: Channel | None = None
        self._address = address
        self._key = key
        self._deadline: Timer = loop.after(ANSWER_WITHIN, lambda: self._end(None, "does not answer"))
        loop.soon(self._open)

    def close(self) -> None:
        self._done = None
        self._deadline.cancel()
        if self._introduction is not None:
            self._introduction.close()
        if self._channel is not None:
            self._channel.close()

    def _open(self) -> None:
        if self._done is None:
            return
        try:
            self._introduction = introduce(
                self._loop, Address.parse(self._address), self._key, self._met, partial(self._end, None)
            )
        except OSError as error:
            self._end(None, error.strerror or str(error))

    def _met(self, line: Line) -> None:
        self._channel = Channel(self._loop, line, self._received, self._hung_up)
        self._channel.send(self._head)

    def _hung_up(self, _channel: Channel) -> None:
        self._end(None, "hung up")

    def _received(self, _channel: Channel, frame: Frame) -> None:
        try:
            tally = Tally.from_head(frame.head["tally"])
        except (KeyError, TypeError, ValueError):
            self._end(None, reason_of(frame.head.get("error")))
        else:
            self._end(tally, "")

    def _end(self, found: Tally | None, trouble: str) -> None:
        done = self._done
        self.close()
        if done is not None:
            done(found, trouble)
