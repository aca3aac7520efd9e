"""A simulated client: a process with the client's own library, which asks as its plan says and notes what it saw.

The library's connection, or its router where clients route, does all that has to do with servers; it is driven as an
event loop drives it (client/flow.py), so that nothing waits. What the library gives up is given up, and another
connection opened. When its process is killed another one takes its place and goes on with what is left.
"""

from __future__ import annotations

from collections.abc import Callable
from select import POLLIN, POLLOUT

from memcluster.client.connection import Connection
from memcluster.client.errors import ClusterError
from memcluster.client.memory import opening_carrier
from memcluster.client.pending import Pending
from memcluster.client.router import Router
from memcluster.client.system import Errand, Interest
from memcluster.client.uri import Target
from memcluster.node.nbd.client import Reply
from memcluster.node.nbd.wire import Command, CommandFlag, Status
from memcluster.node.transport.loop import READ, WRITE, Timer
from memcluster.simulator.descriptions import Description
from memcluster.simulator.history import ACKNOWLEDGED, BLOCK, ERROR, UNKNOWN, Operation, identify, pattern, zeroes
from memcluster.simulator.plan import Ask
from memcluster.simulator.plan import Client as Errands
from memcluster.simulator.process import Process
from memcluster.simulator.world import World

TAG_SHIFT = 20
AGAIN = 0.001
"""Seconds until another connection is opened in the place of one that was given up."""
BACK = 0.001
"""Seconds until another process takes the place of one that was killed."""
PATIENCE = 30.0
"""Seconds that the library takes to have a connection again: its own default."""
KILLED = "killed"
FLAGS = {0: 0, 1: CommandFlag.FUA, 2: CommandFlag.NO_HOLE, 4: CommandFlag.DF}


class _Begun:
    """A request under way."""

    def __init__(self, number: int, ask: Ask, tag: int, invoked: int, losses: int) -> None:
        self.number = number
        self.ask = ask
        self.tag = tag
        self.invoked = invoked
        self.losses = losses
        """How many connections had been lost, and made again, before."""
        payload = (pattern(tag, ask.offset, ask.length),) if ask.kind == "WRITE" else ()
        self.pending = Pending(Command[ask.kind], ask.offset, ask.length, int(FLAGS[ask.flags]), payload)


class Client:
    """It finds the memory at `entry`. `done` is called when all has been asked and answered, or given up."""

    def __init__(
        self,
        world: World,
        number: int,
        errand: Errands,
        entry: Target,
        history: list[Operation],
        done: Callable[[Client], None],
    ) -> None:
        self.world = world
        self.name = f"client{number}"
        self.errand = errand
        self.entry = entry
        self.history = history
        self.finished = False
        self.stays = False
        """More may still be asked for."""
        self.asked = 0
        self.crashes: list[str] = []
        """Why its process ended, where it was not killed."""
        self._first_tag = (number + 1) << TAG_SHIFT
        self._done = done
        self._asks = list(errand.asks)
        self._begun: dict[int, _Begun] = {}
        self.process = self._live()

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.process.run(self._step)

    def _live(self) -> Process:
        self._carrier: Connection | Router | None = None
        self._opening: Errand[Connection | Router] | None = None
        self._watched: dict[int, tuple[int, Description]] = {}
        self._timer: Timer | None = None
        self._expected = self._waits = False
        return Process(self.world, self.name, self._died)

    def _died(self, why: str) -> None:
        """All that was under way is given up from here on."""
        if self.finished:
            self._done(self)
            return
        if why != KILLED:
            self.crashes.append(why)
        for begun in list(self._begun.values()):
            self._finish(begun, UNKNOWN, why)
        self.process = self._live()
        self.world.after(int(BACK * 1e9), self.start)

    def _check_done(self) -> None:
        if not (self.finished or self.stays) and self.asked == len(self._asks) and not self._begun:
            self.finished = True
            if self._carrier is not None:
                self._carrier.close()
            self.process.loop.stop()

    # -- asking ------------------------------------------------------------------------------------------------------

    @property
    def asks(self) -> int:
        """How many it has been given."""
        return len(self._asks)

    def ask(self, ask: Ask) -> None:
        """For one thing more."""
        self._asks.append(ask)
        self.process.run(self._step)

    def leave(self) -> None:
        """Nothing more will be asked for."""
        self.stays = False
        self.process.run(self._check_done)

    def tag(self, number: int) -> int:
        """Of its request with this number, the first of which is 1."""
        return self._first_tag | number

    @property
    def ready(self) -> bool:
        return self._carrier is not None

    def _ask_more(self, carrier: Connection | Router) -> None:
        """The next, if there may be more under way."""
        while not self._waits and self._may_ask and not carrier.full:
            ask = self._asks[self.asked]
            if ask.pause:
                self._waits = True
                self.process.loop.after(ask.pause / 1e9, self._pause_is_over)
            else:
                self._ask(carrier, ask)

    @property
    def _may_ask(self) -> bool:
        return self.asked < len(self._asks) and len(self._begun) < self.errand.depth

    def _pause_is_over(self) -> None:
        self._waits = False
        if self._carrier is not None and self._may_ask and not self._carrier.full:
            self._ask(self._carrier, self._asks[self.asked])
        self._step()

    def _ask(self, carrier: Connection | Router, ask: Ask) -> None:
        now = self.process.system.monotonic_ns()  # it may be killed here
        self.asked += 1
        number = self.asked
        begun = self._begun[number] = _Begun(number, ask, self.tag(number), now, carrier.reconnections)
        carrier.submit(begun.pending)
        self._step_soon()

    # -- steps -------------------------------------------------------------------------------------------------------

    def _step_soon(self) -> None:
        if not self._expected:
            self._expected = True
            self.process.loop.soon(self._step)

    def _step(self, _mask: int = 0) -> None:
        """Whatever can be done now, and then wait for what the library waits for."""
        self._expected = False
        if self.finished:
            return
        carrier = self._carrier or self._open()
        if carrier is not None:
            carrier.progress()
            self._take_outcomes(carrier)
        if self._carrier is not None:
            self._ask_more(self._carrier)
        self._check_done()
        if not self.finished:
            self._watch()

    def _open(self) -> Connection | Router | None:
        """Go on with opening the memory."""
        if self._opening is None:
            way = opening_carrier(self.process.system, self.entry, timeout=PATIENCE, reconnect=self.errand.repeats)
            self._opening = Errand(way)
        try:
            if self._opening.step():
                self._carrier, self._opening = self._opening.result, None
        except ClusterError:
            self._opening = None
            self._step_in(AGAIN)
        return self._carrier

    def _take_outcomes(self, carrier: Connection | Router) -> None:
        over = carrier.lost and not self.errand.repeats
        for begun in list(self._begun.values()):
            outcome = begun.pending.outcome
            if isinstance(outcome, ClusterError):
                over = True
                self._finish(begun, UNKNOWN, str(outcome))
            elif outcome is not None and outcome.error:
                self._finish(begun, ERROR, f"error {outcome.error}: {outcome.message}")
            elif outcome is not None:
                self._finish(begun, ACKNOWLEDGED, "", outcome)
        if over:  # what was asked elsewhere is given up, too
            carrier.close()
            for begun in list(self._begun.values()):
                self._finish(begun, UNKNOWN, str(begun.pending.outcome))
            self._carrier = None
            self._step_in(AGAIN)

    def _watch(self) -> None:
        """Step when the library has something to do."""
        descriptors, until = self._interest()
        loop, process = self.process.loop, self.process
        wanted = {number: (mask, process.description(number)) for number, mask in descriptors.items()}
        for number, known in self._watched.items():
            if wanted.get(number, (0, None))[1] is not known[1]:  # perhaps it is another's number now
                loop.unwatch(number)
        for number, (mask, description) in wanted.items():
            if self._watched.get(number) != (mask, description):
                loop.watch(number, (READ if mask & POLLIN else 0) | (WRITE if mask & POLLOUT else 0), self._ready)
        self._watched = wanted
        if until != float("inf"):
            self._step_in(max(0.0, until - process.system.monotonic()))

    def _interest(self) -> Interest:
        if self._carrier is not None:
            return self._carrier.interest
        return ({}, float("inf")) if self._opening is None else self._opening.interest

    def _ready(self, _mask: int) -> None:
        self._step_soon()

    def _step_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.process.loop.after(seconds, self._step_soon)

    # -- what it saw -------------------------------------------------------------------------------------------------

    def _finish(self, begun: _Begun, outcome: str, why: str, reply: Reply | None = None) -> None:
        now = self.process.system.monotonic_ns() if self.process.alive else self.world.now  # it may be killed here
        del self._begun[begun.number]
        ask = begun.ask
        assert self._carrier is not None
        repeats = self._carrier.reconnections - begun.losses
        seen = [] if reply is None else _seen(ask, reply)
        known = (self.name, begun.number, ask.kind, ask.offset, ask.length, begun.tag, begun.invoked, now)
        self.history.append(Operation(*known, outcome, repeats, seen, why))


def _seen(ask: Ask, reply: Reply) -> list[int | str | None]:
    if ask.kind == "READ":
        return identify(bytes(reply.data or b""), ask.offset)
    if ask.kind == "BLOCK_STATUS":
        found, at = [], ask.offset
        for length, status in reply.extents or ():
            found.append((at, length, bool(status & Status.ZERO)))
            at += length
        return zeroes(found, ask.offset, ask.length)
    return []


assert BLOCK % 16 == 0
