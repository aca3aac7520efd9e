"""Logger 0's own work: asks all loggers for their shares and merges them on their way to an output.

Each logger is asked for the next batch when its last one is used up, so memory is bounded by a few batches of each,
however long the log. A logger that cannot be reached or falls silent is named at the end, and its share is left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from memcluster.node import topology
from memcluster.node.log.filter import MAX_TIME, Filter
from memcluster.node.log.history import History
from memcluster.node.log.merge import UNKNOWN, Entry, Live, Merger
from memcluster.node.log.record import RECORD
from memcluster.node.logger.shares import BATCH, POLL, LocalShare, RemoteShare
from memcluster.node.spec import NodeSpec
from memcluster.node.transport.loop import Loop, Timer

WINDOW = 200_000_000
"""ns that a record waits for earlier ones of other servers when the log is followed."""

Share = LocalShare | RemoteShare


class Output(Protocol):
    """Where the merged log goes."""

    @property
    def ready(self) -> bool:
        """More is welcome; when it becomes so again, the output calls the gathering's `go_on`."""

    def write(self, batch: Sequence[Entry]) -> None:
        """The next entries of the merged log."""

    def tell(self, head: dict[str, Any]) -> None:
        """Something about the log while it is followed: loggers lost, records missing."""

    def finish(self, head: dict[str, Any]) -> None:
        """The end: `missing` loggers and why, and the gaps."""


class Gathering:
    """Asks all the loggers for their shares, and writes the merged log to `output`."""

    def __init__(
        self,
        loop: Loop,
        spec: NodeSpec,
        history: History,
        wanted: Filter,
        servers: Sequence[int],
        follow: bool,
        output: Output,
        *,
        last_of_each: bool = False,
        after: Mapping[int, int] | None = None,
    ) -> None:
        """With `last_of_each` the filter's `last` is meant for each server, and nothing need be held for it. Of servers
        in `after` all that was added after the record of this number is wanted."""
        after = after or {}
        self.loop = loop
        self.wanted = wanted
        self.follow = follow
        self.output = output
        self._now = spec.run.clock(loop.system.monotonic_ns)
        self.live = False
        """The histories are given; now it is news."""
        self._trouble: dict[str, str] = {}
        self._gaps: list[dict[str, Any]] = []
        part = bool(wanted.last or wanted.since or after)
        self._merger = Merger(servers, one_clock=topology.load(spec.cluster.topology).hands_over)
        with_tail = wanted.last and not (last_of_each or after)
        self._tail: deque[Entry] | None = deque(maxlen=wanted.last) if with_tail else None
        self._gate: Live | None = None
        self._asked: set[int] = set()
        self._pump_is_due = False
        self._closed = False
        self._timer: Timer | None = None
        self._lost: dict[int, RemoteShare] = {}  # to be tried again
        if follow:
            patience = int((spec.bounds.retry_timeout + 5) * 1e9)
            self._gate = Live(dict.fromkeys(servers, UNKNOWN if part else 0), WINDOW, patience)
        self._shares: dict[int, Share] = {}
        for server in servers:
            of_it = wanted.onwards(after[server]) if server in after else wanted
            if server == spec.index:
                self._shares[server] = LocalShare(loop, history, of_it, self)
            else:
                address = spec.cluster.servers[server].logger
                self._shares[server] = RemoteShare(
                    loop, server, address, spec.pass_to(f"logger{server}"), of_it, follow, self
                )
        self.go_on()

    def go_on(self) -> None:
        """Work when this turn ends."""
        if not self._pump_is_due:
            self._pump_is_due = True
            self.loop.soon(self._pump)

    def stop(self) -> None:
        """Bring a gathering that follows to its end."""
        self._finish()

    def close(self) -> None:
        self._closed = True
        for share in self._shares.values():
            share.close()
        if self._timer is not None:
            self._timer.cancel()

    # -- from the shares -------------------------------------------------------------------------------------------

    def fed(self, server: int, batch: list[Entry], missing: int, run: int) -> None:
        self._asked.discard(server)
        if self.live:
            assert self._gate is not None
            self._gate.add(batch, self._now())
            if missing:
                self.output.tell({"gaps": [{"node": f"server{server}", "records": missing}]})
        else:
            if self._gate is not None:
                self._gate.expect(batch)
            self._merger.feed(server, batch, run)
        self.go_on()

    def ended(self, server: int, gaps: Sequence[tuple[int, int]], trouble: str) -> None:
        self._asked.discard(server)
        if self._gate is not None and self._gate.floors.get(server) == UNKNOWN:
            self._gate.floors[server] = 0  # nothing of its log is given: all its requests are still to come
        found = [{"node": f"server{server}", "after": after, "records": count} for after, count in gaps]
        if trouble:
            self._lose(server, trouble)
        if not self.live:
            self._gaps += found
            self._merger.end(server)
        elif not trouble:
            self.output.tell({"gaps": found, "after": self._given()})
        self.go_on()

    def back(self, server: int) -> None:
        self._lost.pop(server)
        self._trouble.pop(f"logger{server}", None)
        assert self._gate is not None
        self._gate.floors.setdefault(server, 0)
        self.output.tell({"back": [f"logger{server}"]})
        self.go_on()

    def _lose(self, server: int, trouble: str) -> None:
        """A logger is gone; one that is followed is expected back, so what it may still tell is waited for."""
        name = f"logger{server}"
        self._trouble[name] = trouble
        share = self._shares[server]
        if not (self.follow and isinstance(share, RemoteShare)):
            del self._shares[server]
            if self._gate is not None:
                self._gate.floors.pop(server, None)
        else:
            self._lost[server] = share
            if self.live:
                share.retry()
            elif self._gate is not None:
                self._gate.floors.pop(server, None)
        if self.live:
            self.output.tell({"missing": [name], "trouble": {name: trouble}})

    # -- to the output ---------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        self._pump_is_due = False
        if self._closed or not self.output.ready:
            return
        if self.live:
            self._ask(self._shares)
            return
        taken = self._merger.take(BATCH)
        self._pass_on(taken)
        self._ask(self._merger.wanting)
        if taken:
            self.go_on()
        elif self._merger.finished:
            if self._tail:
                self._write_tail()
            elif self.follow:
                self._go_live()
            else:
                self._finish()

    def _ask(self, servers: Iterable[int]) -> None:
        """Ask each of these servers for a batch, if that is not done yet."""
        for server in servers:
            if server not in self._asked and server in self._shares and server not in self._lost:
                self._asked.add(server)
                self._shares[server].more()

    def _pass_on(self, batch: list[Entry]) -> None:
        if self._gate is not None:
            batch = self._gate.pass_on(batch, self._now())
        if self._tail is not None:
            self._tail += batch
        elif batch:
            self.output.write(batch)

    def _write_tail(self) -> None:
        """Write a batch of the last N."""
        assert self._tail is not None
        self.output.write([self._tail.popleft() for _ in range(min(BATCH, len(self._tail)))])
        self.go_on()

    def _go_live(self) -> None:
        self.live = True
        self._tail = None
        head = {"missing": sorted(self._trouble), "trouble": self._trouble, "gaps": self._gaps}
        self.output.tell({"live": True, "after": self._given(), **head})
        self._gaps = []
        for share in self._lost.values():
            share.retry()
        self._tick()
        self.go_on()

    def _tick(self) -> None:
        """Write what has waited long enough."""
        self._timer = self.loop.after(POLL, self._tick)
        if self.output.ready:
            assert self._gate is not None
            if batch := self._gate.take(self._now()):
                self.output.write(batch)

    def _given(self) -> dict[str, int]:
        """Up to which record each server's log is given whole: there who has to ask again goes on."""
        assert self._gate is not None
        given = {server: share.after for server, share in self._shares.items() if server not in self._lost}
        for _, _, _, server, slot in self._gate.pending:
            if server in given:
                given[server] = min(given[server], RECORD.unpack(slot)[-1] - 1)
        return {f"server{server}": sequence for server, sequence in given.items()}

    def _finish(self) -> None:
        if self._closed:
            return
        if self.live and self._gate is not None and (batch := self._gate.take(MAX_TIME)):
            self.output.write(batch)
        self.close()
        if self.live:  # who was lost has been told already
            self._trouble = {}
        self.output.finish({"missing": sorted(self._trouble), "trouble": self._trouble, "gaps": self._gaps})
