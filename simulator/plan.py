"""What is to happen in a run: the cluster's shape, what each client asks for, and what is broken when. Pure.

A plan follows from a seed and what the run is to be like. It is plain data: a run that failed is made smaller by taking
things out of its plan, and what is left can be kept in a file and run again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

from memcluster.simulator.history import BLOCK
from memcluster.simulator.world import MS, US, Dice

TOPOLOGIES = ("primary-secondary", "dispatcher", "chain", "client-routed")
FAULTS = ("kill", "pause", "partition", "slow", "clock", "full")
PAGE = 4096
SLICE = 64 << 20
"""Bytes that the product clears in one turn: more than there are here."""
LATE = 20 * MS
"""By which a client comes later than others, at most."""
LARGE = 0.1
"""Of the runs, in which some requests are too long for a receive buffer."""
KINDS = (("WRITE", 40), ("READ", 34), ("WRITE_ZEROES", 7), ("TRIM", 7), ("BLOCK_STATUS", 8), ("FLUSH", 4))
WORK = 4 * MS
"""About how long clients work, beside their pauses, from when the cluster runs."""
AFTERWARDS = 0.15
"""Of the faults, which may begin after that."""
SPAN = 50 * MS
"""In which they begin."""
SUPERVISORS = 0.1
"""Of the kills."""
OWN_CLOCKS = ("primary-secondary", "client-routed")
"""The topologies whose servers may be on hosts of their own; the others hand over sockets."""
DEATHS = 3
"""Of one process, at most: one that dies more often is given up by its supervisor."""


@dataclass(frozen=True)
class Shape:
    """The cluster. `stripe` is 0 for the linear layout; `sizes` are the shards' of the servers that own memory. A TRIM
    clears `slice` bytes a turn, and what keeps its room a sixteenth of that."""

    topology: str
    sizes: tuple[int, ...]
    stripe: int
    fan_out: str
    slice: int = SLICE


@dataclass(frozen=True)
class Ask:
    """One request; `pause` ns after the one before."""

    kind: str
    offset: int
    length: int
    flags: int
    pause: int


@dataclass(frozen=True)
class Client:
    """One client, which comes `late` by so many ns: at most `depth` requests in flight; one that `repeats` sends again
    what a lost connection had, as memcluster's library does, and the others give it up."""

    depth: int
    repeats: bool
    asks: tuple[Ask, ...]
    late: int = 0


@dataclass(frozen=True)
class Fault:
    """`at` ns after the cluster runs do `kind` to the process `target`, for `span` ns. A kill comes `step` calls of the
    system later (0: at once), a partition is of a server or a client from the `other` process, a server. The clock of
    a server's host jumps `span` ns ahead, and goes at `step` millionths of the world's pace from then on. What is full
    is a disk."""

    at: int
    kind: str
    target: str
    span: int = 0
    step: int = 0
    other: str = ""

    def __str__(self) -> str:
        words = {
            "kill": f"kill {self.target} at its step {self.step} from there",
            "pause": f"stop {self.target} for {self.span / 1e6:.1f} ms",
            "partition": f"cut {self.target} off from {self.other} for {self.span / 1e6:.1f} ms",
            "clock": f"the clock of {self.target} jumps {self.span / 1e6:.1f} ms, and goes at {self.step / 1e4:.1f} %",
            "full": f"no room for {self.target}, for {self.span / 1e6:.1f} ms",
            "slow": f"slow {self.target} down for {self.span / 1e6:.1f} ms",
        }
        return f"{self.at / 1e6:.3f} ms: {words[self.kind]}"


@dataclass(frozen=True)
class Plan:
    """All of it; `seed` is the world's."""

    seed: int
    shape: Shape
    clients: tuple[Client, ...]
    faults: tuple[Fault, ...]

    @property
    def requests(self) -> int:
        return sum(len(client.asks) for client in self.clients)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Plan:
        """Raises KeyError, TypeError."""
        shape = document["shape"]
        return cls(
            document["seed"],
            Shape(**{**shape, "sizes": tuple(shape["sizes"])}),
            tuple(
                Client(**{**client, "asks": tuple(Ask(**ask) for ask in client["asks"])})
                for client in document["clients"]
            ),
            tuple(Fault(**fault) for fault in document["faults"]),
        )


@dataclass(frozen=True)
class Wish:
    """What runs are to be like. A `topology` or `layout` that is empty is any."""

    topology: str = ""
    layout: str = ""
    servers: int = 3
    clients: int = 3
    requests: int = 60
    faults: Collection[str] = FAULTS


def make_plan(seed: int, wish: Wish) -> Plan:
    """The plan of a seed."""
    dice = Dice(seed ^ 0x5EED)
    topology = wish.topology or TOPOLOGIES[dice.below(len(TOPOLOGIES))]
    striped = {"linear": False, "stripe": True}.get(wish.layout, dice.chance(0.5))
    large = dice.chance(LARGE)
    stripe = (BLOCK << dice.below(5)) if striped else 0
    unit = (256 << 10) if large else (4 * PAGE)
    sizes = [unit] * wish.servers
    if not striped and dice.chance(0.5):  # borders that lie in a page
        sizes[0] += PAGE // 2
    fan_out = "serial" if dice.chance(0.3) else "parallel"
    shape = Shape(topology, tuple(sizes), stripe, fan_out, PAGE << dice.below(3) if dice.chance(0.3) else SLICE)
    clients = [_client(dice, shape, share, large=large) for share in _shares(wish.requests, wish.clients)]
    work = WORK + max(sum(ask.pause for ask in client.asks) for client in clients)
    return Plan(seed, shape, tuple(clients), tuple(_faults(dice, shape, wish, work)))


def _shares(count: int, parts: int) -> list[int]:
    return [count // parts + (index < count % parts) for index in range(parts)]


def _client(dice: Dice, shape: Shape, count: int, *, large: bool) -> Client:
    depth = (1, 1, 2, 4, 8, 16)[dice.below(6)]
    haste = (0, 50 * US, 500 * US, 2 * MS)[dice.below(4)]
    asks = [_ask(dice, sum(shape.sizes), haste, large=large) for _ in range(count)]
    return Client(depth, dice.chance(0.5), tuple(asks), dice.below(LATE) if dice.chance(0.2) else 0)


def _ask(dice: Dice, memory: int, haste: int, *, large: bool) -> Ask:
    pause = dice.below(haste + 1)
    kind = _weighted(dice)
    if kind == "FLUSH":
        return Ask(kind, 0, 0, 0, pause)
    blocks = memory // BLOCK
    most = blocks // 2 if large and dice.chance(0.3) else 24 if dice.chance(0.4) else 4
    length = 1 + dice.below(most)
    first = dice.below(blocks - length + 1)
    if dice.chance(0.4):  # where all meet
        first = min(blocks - length, blocks // 3 + dice.below(8))
    flags = 0
    if kind == "WRITE" and dice.chance(0.1):
        flags = 1  # FUA
    elif kind == "WRITE_ZEROES" and dice.chance(0.5):
        flags = 2  # NO_HOLE
    elif kind == "READ" and dice.chance(0.1):
        flags = 4  # DF
    return Ask(kind, first * BLOCK, length * BLOCK, flags, pause)


def _weighted(dice: Dice) -> str:
    roll = dice.below(sum(weight for _, weight in KINDS))
    for kind, weight in KINDS:
        roll -= weight
        if roll < 0:
            return kind
    raise AssertionError


def _faults(dice: Dice, shape: Shape, wish: Wish, work: int) -> list[Fault]:
    kinds = [kind for kind in FAULTS if kind in wish.faults]
    count = len(shape.sizes) + (shape.topology == "dispatcher")
    servers = [f"server{index}" for index in range(count)]
    others = [f"logger{index}" for index in range(count)] + [f"client{index}" for index in range(wish.clients)]
    deaths: dict[str, int] = {}
    found = []
    for _ in range(dice.below(6) if kinds else 0):
        kind = kinds[dice.below(len(kinds))]
        at = dice.below(SPAN if dice.chance(AFTERWARDS) else work)
        span = (1 * MS, 10 * MS, 300 * MS, 3000 * MS)[dice.below(4)]
        target = servers[dice.below(count)] if dice.chance(0.75) else others[dice.below(len(others))]
        if kind == "kill" and dice.chance(SUPERVISORS):
            target = "supervisor"
        if kind == "kill":
            deaths[target] = deaths.get(target, 0) + 1
            if deaths[target] <= DEATHS:
                step = dice.below(3) if target == "supervisor" else 1 + dice.below(60)  # it has little to do
                found.append(Fault(at, kind, target, 0, step))
        elif kind == "partition":
            one, other = dice.below(count), dice.below(count)
            if shape.topology == "client-routed":  # whose servers have nothing to say to one another
                found.append(Fault(at, kind, f"client{dice.below(wish.clients)}", span, 0, servers[other]))
            elif one != other:
                found.append(Fault(at, kind, servers[one], span, 0, servers[other]))
        elif kind == "clock":
            if shape.topology in OWN_CLOCKS:
                pace = (1_000_000, 1_000_100, 999_900, 1_100_000, 900_000)[dice.below(5)]
                found.append(Fault(at, kind, servers[dice.below(count)], span, pace))
        elif kind == "full":
            found.append(Fault(at, kind, ("logs", "memory")[dice.below(2)], min(span, 300 * MS)))
        elif kind == "slow":
            found.append(Fault(at, kind, target, min(span, 300 * MS)))
        else:
            found.append(Fault(at, kind, target, span))
            if target in servers and dice.chance(0.5):
                found += _meanwhile(dice, found[-1], kinds, servers, wish.clients)
    return sorted(found, key=lambda fault: fault.at)


def _meanwhile(dice: Dice, pause: Fault, kinds: list[str], servers: list[str], clients: int) -> list[Fault]:
    """What happens while a server is stopped: what it was sent lies there unread."""
    at = pause.at + dice.below(min(pause.span, SPAN))
    what = dice.below(3)
    if what == 0 and "kill" in kinds:
        return [Fault(at, "kill", f"client{dice.below(clients)}")]
    if what == 1 and "partition" in kinds:
        other = servers[dice.below(len(servers))]
        return [Fault(at, "partition", other, pause.span // 4, 0, pause.target)] if other != pause.target else []
    if what == 2 and "kill" in kinds and pause.target != servers[0]:
        return [Fault(at, "kill", servers[0], 0, 1 + dice.below(60))]
    return []


def without_faults(plan: Plan) -> Plan:
    return replace(plan, faults=())
