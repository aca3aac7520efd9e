"""What is broken when in a run, drawn from its seed. Pure.

Most of what is broken does not come alone: within moments something follows that meets what the first has left half
done. A client dies whose requests lie unread at a server that stands still; the first server dies while another is cut
off; a link goes, and then who asked. So what takes two or three things at once is as likely as one.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from memcluster.simulator.world import MS, US, Dice

FAULTS = ("kill", "pause", "partition", "slow", "clock", "full")
WORK = 4 * MS
"""About how long clients work, beside their pauses, from when the cluster runs."""
AFTERWARDS = 0.15
"""Of the faults, which may begin after that."""
SPAN = 50 * MS
"""In which they begin."""
SPANS = (1 * MS, 10 * MS, 300 * MS, 3000 * MS)
REACH = (100 * US, 1 * MS, 5 * MS, SPAN)
"""Within which, at most, something follows."""
SUPERVISORS = 0.1
"""Of the kills."""
DEATHS = 3
"""Of one process, at most: one that dies more often is given up by its supervisor."""
MORTAL = 0.4
"""Of the runs, in which clients die, too, whatever else happens."""
STEPS = 60
"""Within which a process dies that is to."""
OWN_HOSTS = ("primary-secondary", "client-routed")
"""The topologies whose servers may be on hosts of their own; the others hand over sockets."""
PACES = (1_000_000, 1_000_100, 999_900, 1_100_000, 900_000)
"""Of clocks, in millionths of the world's."""
ALONE = 0.4
"""Of the faults."""
AFTER_SERVERS = (*("client",) * 6, "first", "first", "one", "pause", "pause", "slow", "cut", "cut", "full")
AFTER_CLIENTS = ("client", "first", "one", "one", "one", "pause", "cut")
"""What follows what befell a server, or a client, which has much unread then: a client or the first server or another
one dies, is stopped, slow, or cut off, or finds no room."""
LAGS = (0, 0, 200 * US, 2 * MS)
"""By which a lost connection's bytes come later."""
SLOWED = (100 * US, 500 * US, 2 * MS)
"""By which each turn of a slow process comes later."""


@dataclass(frozen=True)
class Fault:
    """`at` ns after the cluster runs do `kind` to the process `target`, for `span` ns. A kill comes `step` calls of the
    system later (0: at once), a partition is of a server or a client from the `other` process, a server. What was on
    its way between servers of different hosts is held up `step` ns beyond that, and comes then, as a network may bring
    an old connection's bytes when a new one is long made. The clock of a server's host jumps `span` ns ahead, and goes
    at `step` millionths of the world's pace from then on. What is full is a disk. Each turn of who is slow comes `step`
    ns later."""

    at: int
    kind: str
    target: str
    span: int = 0
    step: int = 0
    other: str = ""

    @property
    def end(self) -> int:
        """When nothing of it is left."""
        return self.at + self.span + (2 * self.step if self.kind == "partition" else 0)

    def __str__(self) -> str:
        words = {
            "kill": f"kill {self.target} at its step {self.step} from there",
            "pause": f"stop {self.target} for {self.span / 1e6:.1f} ms",
            "partition": f"cut {self.target} off from {self.other} for {self.span / 1e6:.1f} ms",
            "clock": f"the clock of {self.target} jumps {self.span / 1e6:.1f} ms, and goes at {self.step / 1e4:.1f} %",
            "full": f"no room for {self.target}, for {self.span / 1e6:.1f} ms",
            "slow": f"slow {self.target} down by {self.step / 1e6:.1f} ms, for {self.span / 1e6:.1f} ms",
        }
        return f"{self.at / 1e6:.3f} ms: {words[self.kind]}"


def draw_faults(
    dice: Dice, topology: str, servers: int, clients: int, wanted: Collection[str], work: int
) -> list[Fault]:
    """Those of a run whose clients `work` for so many ns, of the `wanted` kinds; in order."""
    drawing = _Drawing(dice, topology, servers, clients, wanted)
    for _ in range(dice.below(6) if drawing.kinds else 0):
        drawing.draw(dice.below(SPAN if dice.chance(AFTERWARDS) else work))
    for _ in range(1 + dice.below(4) if dice.chance(MORTAL) else 0):
        drawing.kill_client(dice.below(work))
    return sorted(drawing.found, key=lambda fault: fault.at)


class _Drawing:
    """What was drawn so far."""

    def __init__(self, dice: Dice, topology: str, servers: int, clients: int, wanted: Collection[str]) -> None:
        self.found: list[Fault] = []
        self.kinds = [kind for kind in FAULTS if kind in wanted]
        self._dice = dice
        self._topology = topology
        self._servers = [f"server{index}" for index in range(servers)]
        self._clients = [f"client{index}" for index in range(clients)]
        self._others = [f"logger{index}" for index in range(servers)] + self._clients
        self._deaths: dict[str, int] = {}

    def draw(self, at: int) -> None:
        """A fault, and perhaps what follows."""
        dice = self._dice
        kind = dice.pick(self.kinds)
        span = dice.pick(SPANS)
        target = dice.pick(dice.pick((self._servers[:1], self._servers, self._servers, self._clients, self._others)))
        if kind == "kill":
            if dice.chance(SUPERVISORS):
                self._kill(at, "supervisor", dice.below(3))  # it has little to do
            else:
                self._kill(at, target, 1 + dice.below(STEPS))
        elif kind == "partition":
            target = self._cut(at, dice.pick(self._servers), span)
        elif kind == "clock":
            if self._topology in OWN_HOSTS:
                self._add(at, kind, dice.pick(self._servers), span, dice.pick(PACES))
        elif kind == "full":
            self._add(at, kind, dice.pick(("logs", "memory")), min(span, 300 * MS))
        elif kind == "slow":
            self._slow(at, target, span)
        else:
            self._add(at, kind, target, span)
        if kind not in ("clock", "full") and not dice.chance(ALONE):
            within = min(dice.pick(REACH), max(span, 1 * MS))
            is_server = target in self._servers
            for _ in range(1 + dice.below(3)):
                what = dice.pick(AFTER_SERVERS if is_server else AFTER_CLIENTS)
                self._follow(what, at + dice.below(within), target if is_server else dice.pick(self._servers))

    def _follow(self, what: str, at: int, server: str) -> None:
        dice = self._dice
        if what == "client":
            self.kill_client(at)
        elif what in ("first", "one"):
            self._kill(at, self._servers[0] if what == "first" else server, 1 + dice.below(STEPS))
        elif what == "cut":
            self._cut(at, server, dice.pick(SPANS[:2]))
        elif what == "full":
            self._add(at, what, "memory", dice.pick(SPANS[:2]))
        elif what == "slow":
            self._slow(at, dice.pick(dice.pick((self._servers, self._clients))), dice.pick(SPANS))
        else:
            self._add(at, what, dice.pick(dice.pick((self._servers, self._clients))), dice.pick(SPANS[:3]))

    def kill_client(self, at: int) -> None:
        self._kill(at, self._dice.pick(self._clients), self._dice.pick((0, self._dice.below(STEPS))))

    def _slow(self, at: int, target: str, span: int) -> None:
        self._add(at, "slow", target, min(span, 300 * MS), self._dice.pick(SLOWED))

    def _add(self, at: int, kind: str, target: str, span: int, step: int = 0, other: str = "") -> None:
        if kind in self.kinds:
            self.found.append(Fault(at, kind, target, span, step, other))

    def _kill(self, at: int, target: str, step: int) -> None:
        self._deaths[target] = self._deaths.get(target, 0) + 1
        if self._deaths[target] <= DEATHS:
            self._add(at, "kill", target, 0, step)

    def _cut(self, at: int, server: str, span: int) -> str:
        """One end of a link of the server's, or of a client's where they have none. Returns who was cut off from whom
        it asks."""
        number, last = self._servers.index(server), len(self._servers) - 1
        if self._topology == "client-routed":
            self._add(at, "partition", self._dice.pick(self._clients), span, 0, server)
            return server
        if not last:
            return server
        if self._topology == "chain":
            first = number if number < last and (not number or self._dice.chance(0.5)) else number - 1
            pair = first, first + 1
        else:
            pair = 0, number or 1 + self._dice.below(last)
        lag = self._dice.pick(LAGS) if self._topology in OWN_HOSTS else 0
        self._add(at, "partition", self._servers[pair[0]], span, lag, self._servers[pair[1]])
        return self._servers[pair[1]]
