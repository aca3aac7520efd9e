"""When what is broken: a list of faults that follows from a seed alone. Pure."""

from __future__ import annotations

import random
from typing import NamedTuple

FIRST = 0.5
"""Seconds before the first fault: the load has begun."""
QUIET = 1.0
"""Seconds at the end in which nothing new is broken."""

WEIGHTS = {
    "kill server": 24,
    "kill logger": 8,
    "kill fork server": 5,
    "kill supervisor": 7,
    "kill all": 3,
    "pause server": 14,
    "pause logger": 4,
    "pause supervisor": 3,
    "pause, kill primary, resume": 8,
    "slow": 10,
    "partition": 12,
    "hang": 2,
}


class Fault(NamedTuple):
    """`at` seconds after the load has begun do `kind` to `target`, a node or a process, for `span` seconds."""

    at: float
    kind: str
    target: str
    span: float = 0.0


def plan(seed: int, seconds: float, servers: int, mean: float = 1.0) -> list[Fault]:
    """The faults of a run of so many seconds, `mean` seconds apart on average."""
    rng = random.Random(f"schedule {seed}")
    faults: list[Fault] = []
    kinds, weights = list(WEIGHTS), list(WEIGHTS.values())
    at = FIRST + rng.expovariate(1 / mean)
    while at < seconds - QUIET:
        [kind] = rng.choices(kinds, weights)
        faults += _fault(rng, kind, round(at, 3), servers)
        at += rng.expovariate(1 / mean)
    return sorted(faults)


def _fault(rng: random.Random, kind: str, at: float, servers: int) -> list[Fault]:
    server, secondary = f"server{rng.randrange(servers)}", f"server{rng.randrange(1, max(2, servers))}"
    logger = f"logger{rng.randrange(servers)}"
    span = round(rng.uniform(0.1, 1.5), 3)
    if kind.startswith("kill"):
        what = kind.removeprefix("kill ")
        return [Fault(at, "kill", {"server": server, "logger": logger}.get(what, what))]
    if kind.startswith("pause, kill") and servers > 1:
        # What the dead primary had sent lies unread before the paused secondary, while the next primary sends more.
        kill = round(at + rng.uniform(0.05, 0.4), 3)
        return [*_pause(at, secondary, span + 0.5), Fault(kill, "kill", "server0")]
    if kind.startswith("pause"):
        target = {"pause logger": logger, "pause supervisor": "supervisor"}.get(kind, server)
        return _pause(at, target, span)
    if kind == "partition" and servers > 1:
        return [Fault(at, kind, secondary, span)]
    if kind == "hang":
        return [Fault(at, kind, server, 5.0)]
    return [Fault(at, "slow", server, span)]


def _pause(at: float, target: str, span: float) -> list[Fault]:
    return [Fault(at, "pause", target), Fault(round(at + span, 3), "resume", target)]
