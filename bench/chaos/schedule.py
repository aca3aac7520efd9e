"""When what is broken: a list of faults that follows from a seed alone. Pure."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

FIRST = 0.5
"""Seconds before the first fault: the load has begun."""
QUIET = 1.0
"""Seconds at the end in which nothing new is broken."""
PHASE = 5.0
"""Seconds in which the primary, and whatever it would die with, is spared; in as many that follow nothing is. With an
odd seed it is the other way round."""

WEIGHTS = {
    "kill server": 16,
    "kill logger": 6,
    "kill fork server": 4,
    "kill supervisor": 6,
    "kill all": 3,
    "pause server": 9,
    "pause logger": 3,
    "pause supervisor": 3,
    "pause, kill": 7,
    "pause, kill primary": 6,
    "pause, partition": 6,
    "slow": 8,
    "partition": 9,
    "hang": 2,
    "crowd": 5,
    "zeroes": 3,
    "fail": 4,
}
"""Of a hundred. What waits before a paused server is in flight for certain when that is killed, cut off, or asked again
by the next primary. `crowd`: very many reads wait for a stopped server. `zeroes`: the first server dies while another
is stopped in the middle of a long zeroing. `fail`: a server stays away for good while another one restarts."""
RESHAPE = {"reshape": 70} | {
    kind: weight
    for kind, weight in WEIGHTS.items()
    if kind.startswith(("kill", "pause")) or kind in ("slow", "partition", "hang")
}
"""The same where the memory gets another shape now and then, but for those that rely on the shape that it had: `crowd`
and `zeroes` on where bytes are, `fail` on the name of a shard's file."""
LEASE = 3.0
"""Of the hosts of a run that has several, in seconds."""
HOSTS = WEIGHTS | {"kill guardian": 9, "kill host": 4, "lose host": 6, "cut": 9, "cut for long": 4}
"""The same over several hosts. `kill host` and `lose host` are asked of the cluster; `cut` is the link itself, for less
than the lease, and `for long` for more."""
FATAL = ("kill fork server", "kill supervisor", "kill all", "pause, kill primary", "zeroes", "fail")
"""The primary dies with them."""


class Fault(NamedTuple):
    """`at` seconds after the load has begun do `kind` to `target`, a node or a process, for `span` seconds."""

    at: float
    kind: str
    target: str
    span: float = 0.0


def plan(
    seed: int,
    seconds: float,
    servers: int,
    mean: float = 1.0,
    *,
    linked: bool = True,
    only: Collection[str] = WEIGHTS,
    weights: Mapping[str, int] = WEIGHTS,
    hosts: Sequence[str] = (),
) -> list[Fault]:
    """The faults of a run of so many seconds, `mean` seconds apart on average. Servers that are not `linked` to one
    another cannot be cut off; other `hosts` can. Where `only` kinds that are fatal are wanted, nothing is spared."""
    rng = random.Random(f"schedule {seed}")
    faults: list[Fault] = []
    at = FIRST + rng.expovariate(1 / mean)
    while at < seconds - QUIET:
        spared = servers > 1 and (int(at / PHASE) + seed) % 2 == 0 and not set(only) <= set(FATAL)
        kinds = [kind for kind in weights if kind in only and not (spared and kind in FATAL)]
        [kind] = rng.choices(kinds, [weights[kind] for kind in kinds])
        if kind in HOSTS and kind not in WEIGHTS:
            faults += _of_host(rng, kind, round(at, 3), rng.choice(hosts))
        else:
            faults += _fault(rng, kind, round(at, 3), servers, spared=spared, linked=linked and servers > 1)
        at += rng.expovariate(1 / mean)
    return sorted(faults)


def _fault(rng: random.Random, kind: str, at: float, servers: int, *, spared: bool, linked: bool) -> list[Fault]:
    server, secondary = f"server{rng.randrange(servers)}", f"server{rng.randrange(1, max(2, servers))}"
    if spared:
        server = secondary
    logger = f"logger{rng.randrange(servers)}"
    span = round(rng.uniform(0.1, 1.5), 3)
    if kind.startswith("kill"):
        what = kind.removeprefix("kill ")
        return [Fault(at, "kill", {"server": server, "logger": logger}.get(what, what))]
    if kind.startswith("pause, "):
        then = round(at + rng.uniform(0.05, 0.4), 3)
        if kind == "pause, partition" and linked:
            return [*_pause(at, secondary, span + 0.5), Fault(then, "partition", secondary, 0.1)]
        if kind == "pause, kill primary" and servers > 1:
            return [*_pause(at, secondary, span + 0.5), Fault(then, "kill", "server0")]
        return [*_pause(at, server, span + 0.5), Fault(then, "kill", server)]
    if kind.startswith("pause"):
        target = {"pause logger": logger, "pause supervisor": "supervisor"}.get(kind, server)
        return _pause(at, target, span)
    if kind == "zeroes" and servers > 1:
        return [Fault(at, kind, f"server{servers // 2}")]  # which has what is zeroed, if not all have
    if kind == "fail" and servers > 1:
        return [Fault(at, kind, secondary)]
    if kind == "reshape":
        return [Fault(at, kind, rng.choice(("forward", "forward", "forward", "back")), span)]
    if kind == "crowd":
        last = f"server{servers - 1}"
        return [Fault(at, kind, last), Fault(round(at + 2.0 + 2 * span, 3), "resume", last)]
    if kind == "partition" and linked:
        return [Fault(at, kind, secondary, span)]
    if kind == "hang":
        return [Fault(at, kind, server, 5.0)]
    return [Fault(at, "slow", server, span)]


def _of_host(rng: random.Random, kind: str, at: float, host: str) -> list[Fault]:
    span = round(rng.uniform(0.2, LEASE / 2), 3)
    if kind.startswith("cut"):
        span += LEASE + 1.0 if kind == "cut for long" else 0.0
        return [Fault(at, kind, host), Fault(round(at + span, 3), "mend", host)]
    return [Fault(at, kind, host, span)]


def _pause(at: float, target: str, span: float) -> list[Fault]:
    return [Fault(at, "pause", target), Fault(round(at + span, 3), "resume", target)]
