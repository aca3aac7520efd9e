"""What a logger answers to each kind of query: its share, the merged log, its figures, everybody's figures.

An answer begins when it is made, says what it has to say through the asker's channel, and calls `done` at its end. It
pauses while its asker does not read; `go_on` is called when it has read.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from memcluster.node.log.filter import Filter, flag
from memcluster.node.log.history import History
from memcluster.node.log.merge import Entry
from memcluster.node.log.record import LOGGER
from memcluster.node.log.tally import Tally
from memcluster.node.logger.gathering import Gathering
from memcluster.node.logger.shares import BATCH, LocalShare
from memcluster.node.logger.tallying import Census
from memcluster.node.nbd.printable import shown
from memcluster.node.spec import NodeSpec
from memcluster.node.transport.channel import Channel
from memcluster.node.transport.loop import Loop, Timer

QUEUE = 1 << 20
"""Bytes that may wait to be sent to one asker before its answer pauses."""
SIGN = 2.0
"""Seconds between two signs of life to one who follows."""


class QueryError(Exception):
    """The asker's fault: what it sent is not a query."""


class Keeper(Protocol):
    """What an answer needs of the logger that gives it."""

    loop: Loop
    spec: NodeSpec
    history: History

    def tally(self, head: Mapping[str, Any], done: Callable[[Tally | None, str], None]) -> Callable[[], None]:
        """Count this server's records; returns what ends that."""

    def census(self, head: dict[str, Any], done: Callable[[dict[int, Tally], dict[str, str]], None]) -> Census:
        """Ask all loggers for their figures."""


class ShareAnswer:
    """Sends this logger's share to an asker, `window` frames ahead of its requests for more (None: all)."""

    def __init__(self, logger: Keeper, channel: Channel, head: Mapping[str, Any], done: Callable[[], None]) -> None:
        wanted = Filter.from_head(head)
        window = head.get("window")
        if window is not None and (type(window) is not int or window < 1):
            raise QueryError(f"window must be a whole number from 1, not {shown(window)}")
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

    def fed(self, _server: int, batch: list[Entry], missing: int, run: int) -> None:
        self._asked = False
        for position in range(0, max(1, len(batch)), BATCH):
            part = batch[position : position + BATCH]
            head: dict[str, Any] = {"node": self._node, "records": len(part)}
            if not self._history:
                head["after"] = self._share.after
            elif run:
                head["run"] = run
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

    def __init__(self, logger: Keeper, channel: Channel, head: Mapping[str, Any], done: Callable[[], None]) -> None:
        count = len(logger.spec.cluster.servers)
        if logger.spec.index:
            raise QueryError(f"logger{logger.spec.index} gives its own share only; logger0 has the merged log")
        names = {f"server{server}": server for server in range(count)}
        follow = flag(head, "follow")
        after = head.get("after", {})
        if not isinstance(after, dict) or not all(name in names and type(after[name]) is int for name in after):
            raise QueryError(f"after must be sequence numbers by the names of servers, not {shown(after)}")
        wanted = Filter.from_head({name: value for name, value in head.items() if name != "after"})
        self.channel = channel
        self._done = done
        servers = sorted({one % LOGGER for one in wanted.subjects}) or range(count)
        if not set(servers) <= set(range(count)):
            raise QueryError(f"there is no node {servers[-1]}; there are {count}")
        self._gathering = Gathering(
            logger.loop, logger.spec, logger.history, wanted, servers, follow, self,
            after={names[name]: sequence for name, sequence in after.items()},
        )  # fmt: skip

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


class TallyAnswer:
    """Sends the figures of this logger's server: of a stretch of time, or those that are kept for Prometheus."""

    def __init__(self, logger: Keeper, channel: Channel, head: Mapping[str, Any], done: Callable[[], None]) -> None:
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

    def __init__(self, logger: Keeper, channel: Channel, head: Mapping[str, Any], done: Callable[[], None]) -> None:
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


Answer = ShareAnswer | MergedAnswer | TallyAnswer | StatsAnswer
ANSWERS: Mapping[str, type[Answer]] = {
    "merged": MergedAnswer,
    "share": ShareAnswer,
    "stats": StatsAnswer,
    "tally": TallyAnswer,
}
"""By what is asked."""
