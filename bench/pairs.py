"""A case: one figure of memcluster's beside the same figure of a peer's, taken in alternating pairs.

A machine that others share is slower in one minute than in the next. Two measurements that follow one another have
the same minute, so the ratio of a pair says more than either figure; the median of the ratios is the result, their
least and greatest say how much it is worth.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from memcluster.client.units import format_size

Measure = Callable[[], float]
Prepare = Callable[["Plan"], AbstractContextManager[Sequence[Measure]]]
"""Starts what is measured: gives the measures of memcluster, of the peer, and of the ceiling if there is one."""


@dataclass(frozen=True)
class Plan:
    """How thorough a run is: pairs of each case, seconds of each load, clients of the larger idle case, bytes of the
    large shard."""

    pairs: int = 5
    runtime: float = 3.0
    many: int = 10_000
    large: int = 1 << 30

    def __str__(self) -> str:
        return (
            f"{self.pairs} pairs of {self.runtime:g} s; many idle clients are {self.many:,}, "
            f"a large shard is {format_size(self.large)}"
        )


@dataclass(frozen=True)
class Wire:
    """The bytes that a case moves, for the limit that a program without any server in it reaches (see limits.py)."""

    request: int
    reply: int
    depth: int
    hops: int = 1

    @property
    def payload(self) -> int:
        return max(self.request, self.reply)


@dataclass(frozen=True)
class Case:
    """`target` is the least ratio that will do, and a ratio above 1 is always in memcluster's favour: where less is
    better (`lower`), it is the peer's figure over memcluster's."""

    name: str
    title: str
    unit: str
    peer: str
    target: float
    prepare: Prepare
    lower: bool = False
    wire: Wire | None = None
    pairs: int | None = None
    """Instead of the plan's, at most: for cases that take long and vary little."""


@dataclass(frozen=True)
class Outcome:
    """The figures of a case, pair by pair."""

    case: Case
    subject: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    ceiling: list[float] = field(default_factory=list)
    """Of a server in C with the same shape (see ceiling.py)."""

    @property
    def ratios(self) -> list[float]:
        pairs = zip(self.subject, self.peer, strict=True)
        return [peer / max(ours, 1e-12) if self.case.lower else ours / max(peer, 1e-12) for ours, peer in pairs]

    def to_json(self) -> dict[str, Any]:
        case, ratios = self.case, self.ratios
        ratio = statistics.median(ratios)
        ceiling: dict[str, Any] = {}
        if self.ceiling:
            reached = [ours / ceiling for ours, ceiling in zip(self.subject, self.ceiling, strict=True)]
            ceiling = {
                "ceiling_figures": self.ceiling,
                "ceiling_median": statistics.median(self.ceiling),
                "ceiling_reached": statistics.median(reached),
            }
        return ceiling | {
            "title": case.title,
            "unit": case.unit,
            "lower_is_better": case.lower,
            "peer": case.peer,
            "memcluster_figures": self.subject,
            "peer_figures": self.peer,
            "memcluster_median": statistics.median(self.subject),
            "peer_median": statistics.median(self.peer),
            "ratios": ratios,
            "ratio_median": ratio,
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "target": case.target,
            "met": ratio >= case.target,
        }


def take(case: Case, plan: Plan, progress: Callable[[str], object] = lambda _: None) -> Outcome:
    """Measure a case: memcluster, peer, memcluster, peer, …; and the ceiling between them, where there is one."""
    outcome = Outcome(case)
    pairs = plan.pairs if case.pairs is None else min(plan.pairs, case.pairs)
    with case.prepare(plan) as measures:
        for number in range(pairs):
            progress(f"pair {number + 1} of {pairs}")
            for figures, measure in zip((outcome.subject, outcome.peer, outcome.ceiling), measures, strict=False):
                figures.append(measure())
    return outcome
