"""What is to happen in a run: the cluster's shape, what each client asks for, and what is broken when. Pure.

A plan follows from a seed and what the run is to be like. It is plain data: a run that failed is made smaller by taking
things out of its plan, and what is left can be kept in a file and run again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from memcluster.simulator.faults import FAULTS, WORK, Fault, draw_faults
from memcluster.simulator.history import BLOCK
from memcluster.simulator.world import MS, US, Dice

TOPOLOGIES = ("primary-secondary", "dispatcher", "chain", "client-routed")
PAGE = 4096
SLICE = 64 << 20
"""Bytes that the product clears in one turn: more than there are here."""
LATE = 20 * MS
"""By which a client comes later than others, at most."""
LARGE = 0.25
"""Of the runs, in which some requests are too long for a receive buffer."""
KINDS = (("WRITE", 40), ("READ", 34), ("WRITE_ZEROES", 7), ("TRIM", 7), ("BLOCK_STATUS", 8), ("FLUSH", 4))
ZEROING = (("WRITE_ZEROES", 12), *KINDS)
"""Where zeroing takes several turns, with NO_HOLE the most: so that it is met."""
CROWDED = 0.4
"""Of the runs, in which clients want the same bytes nearly always."""
HASTE = (0, 50 * US, 500 * US, 2 * MS)
"""Between two requests, at most; most clients of a run have the same, so that they work at the same time."""
NAP = 5 * MS
"""That a client may rest before a request, at most, beside its haste: others begin something meanwhile."""
RETAIN = (64 << 10, 16 << 10)
"""Bytes of a server's log: four segments, of 256 records or of 64."""


@dataclass(frozen=True)
class Shape:
    """The cluster. `stripe` is 0 for the linear layout; `sizes` are the shards' of the servers that own memory. A TRIM
    clears `slice` bytes a turn, and what keeps its room a part of that. A server keeps `retain` bytes of its log.
    Buffers of sockets that are `narrow` hold less than a reply."""

    topology: str
    sizes: tuple[int, ...]
    stripe: int
    fan_out: str
    slice: int = SLICE
    retain: int = RETAIN[0]
    narrow: bool = False


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
    fan_out = "serial" if dice.chance(0.5) else "parallel"
    shape = Shape(
        topology,
        tuple(sizes),
        stripe,
        fan_out,
        PAGE << dice.below(3) + 2 * large if dice.chance(0.4) else SLICE,
        dice.pick(RETAIN),
        not large and dice.chance(0.4),
    )
    meeting = _meeting(dice, shape)
    shares = [wish.requests // wish.clients + (index < wish.requests % wish.clients) for index in range(wish.clients)]
    pace, crowd = dice.pick(HASTE), 0.9 if dice.chance(CROWDED) else 0.4
    clients = [_client(dice, shape, meeting, crowd, pace, share, large=large) for share in shares]
    if dice.chance(0.7 if large else 0.4):  # one is there before the others
        clients[1:] = [replace(client, late=dice.below(WORK)) for client in clients[1:]]
    work = WORK + max(sum(ask.pause for ask in client.asks) for client in clients)
    servers = len(sizes) + (topology == "dispatcher")
    faults = draw_faults(dice, topology, servers, wish.clients, wish.faults, work)
    return Plan(seed, shape, tuple(clients), tuple(faults))


def _meeting(dice: Dice, shape: Shape) -> int:
    """The block around which clients meet: anywhere, or among the first server's, or just before a server's end."""
    if dice.chance(0.5):
        return dice.below(dice.pick((shape.sizes[0], sum(shape.sizes))) // BLOCK)
    return max(0, sum(shape.sizes[: 1 + dice.below(len(shape.sizes))]) // BLOCK - 1 - dice.below(8))


def _client(
    dice: Dice, shape: Shape, meeting: int, crowd: float, pace: int, count: int, *, large: bool
) -> Client:
    depth = dice.pick((1, 1, 2, 4, 8, 16))
    haste = pace if dice.chance(0.7) else dice.pick(HASTE)
    asks = [_ask(dice, shape, meeting, crowd, haste, large=large) for _ in range(count)]
    return Client(depth, dice.chance(0.5), tuple(asks), dice.below(LATE) if dice.chance(0.2) else 0)


def _ask(dice: Dice, shape: Shape, meeting: int, crowd: float, haste: int, *, large: bool) -> Ask:
    pause = dice.below(NAP if dice.chance(0.08) else haste + 1)
    long_zeroing = shape.slice < SLICE
    kind = _weighted(dice, ZEROING if long_zeroing else KINDS)
    if kind == "FLUSH":
        return Ask(kind, 0, 0, 0, pause)
    blocks = sum(shape.sizes) // BLOCK
    long = large and dice.chance(0.4)
    if long_zeroing and kind in ("TRIM", "WRITE_ZEROES"):  # they have no payload
        long = dice.chance(0.6)
    most = blocks // 2 if long else 24 if dice.chance(0.4) else 4
    length = 1 + dice.below(most)
    first = dice.below(blocks - length + 1)
    if dice.chance(crowd):  # where all meet
        first = min(blocks - length, max(0, meeting - dice.below(min(8, length))))
    flags = 0
    if kind == "WRITE" and dice.chance(0.1):
        flags = 1  # FUA
    elif kind == "WRITE_ZEROES" and dice.chance(0.7 if long_zeroing else 0.5):
        flags = 2  # NO_HOLE
    elif kind == "READ" and dice.chance(0.1):
        flags = 4  # DF
    return Ask(kind, first * BLOCK, length * BLOCK, flags, pause)


def _weighted(dice: Dice, kinds: Sequence[tuple[str, int]]) -> str:
    roll = dice.below(sum(weight for _, weight in kinds))
    for kind, weight in kinds:
        roll -= weight
        if roll < 0:
            return kind
    raise AssertionError


def without_faults(plan: Plan) -> Plan:
    return replace(plan, faults=())
