"""What a run found, as lines for people, and whether it is a failure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from bench.chaos.breaker import Breaker
from bench.chaos.logcheck import LogVerdict
from bench.chaos.realclients import Tally
from memcluster.simulator.history import ACKNOWLEDGED, EARLY, ERROR, UNKNOWN, Operation
from memcluster.simulator.rules import MAX_TOLD, Verdict


@dataclass
class Report:
    """All that is printed; `trouble` is what else went wrong, and fails the run."""

    title: str
    verdict: Verdict = field(default_factory=Verdict)
    log: LogVerdict = field(default_factory=LogVerdict)
    tallies: list[Tally] = field(default_factory=list)
    breaker: Breaker | None = None
    outcomes: dict[str, int] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    """Why operations were not acknowledged."""
    loaded: tuple[int, int] = 0, 0
    """From when to when there was load, by the monotonic clock, ns."""
    longest_pause: tuple[float, float, str] = 0.0, 0.0, ""
    """Seconds, when it began, and which client saw it."""
    disagreements: list[str] = field(default_factory=list)
    unserved: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)

    def count(self, operations: Iterable[Operation]) -> None:
        """The outcomes, and the longest time between two acknowledgements that one client saw."""
        ends: dict[str, list[int]] = defaultdict(list)
        self.outcomes = dict.fromkeys((ACKNOWLEDGED, UNKNOWN, ERROR, EARLY), 0)
        for operation in operations:
            self.outcomes[operation.outcome] += 1
            if not operation.acknowledged:
                self.reasons[operation.why.rpartition(": ")[2]] += 1
            if operation.acknowledged and operation.client != "last":
                ends[operation.client].append(operation.returned)
        first, last = self.loaded
        pauses = [
            ((later - earlier) / 1e9, (earlier - first) / 1e9, client)
            for client, found in ends.items()
            for earlier, later in pairwise(sorted([*found, first, last]))
        ]
        self.longest_pause = max(pauses, default=self.longest_pause)

    @property
    def found(self) -> dict[str, int]:
        """How often each rule was broken: all of it must be 0."""
        verdict, log = self.verdict, self.log
        return {
            "lost": len(verdict.lost),
            "wrong": len(verdict.wrong) + sum(len(tally.wrong) for tally in self.tallies),
            "back": len(verdict.back),
            "late": len(verdict.late),
            "mixed": len(verdict.mixed),
            "early": len(verdict.early),
            "disagree": len(self.disagreements),
            "unserved": len(self.unserved),
            "effects before causes": log.before,
            "log missing": log.missing + log.missing_pieces,
            "log double": log.double + log.double_pieces,
            "other": len(self.left) + len(self.trouble),
        }

    @property
    def failed(self) -> bool:
        return any(self.found.values())

    def figures(self) -> dict[str, Any]:
        """For programs."""
        broken = self.breaker.kills + self.breaker.others if self.breaker else Counter[str]()
        return {"title": self.title, "requests": sum(self.outcomes.values()), "faults": broken, "found": self.found}

    def lines(self) -> list[str]:
        verdict, log = self.verdict, self.log
        rows = [("run", self.title)]
        if self.breaker is not None:
            rows += [
                ("kill -9", _counts(self.breaker.kills)),
                ("other faults", _counts(self.breaker.others)),
                ("up again that failed", str(self.breaker.failed_ups)),
            ]
        rows += [
            ("requests", f"{sum(self.outcomes.values())}, {_counts(self.outcomes)}"),
            *(("not acknowledged", f"{count}: {reason}") for reason, count in self.reasons.most_common(5)),
            ("blocks read", str(verdict.blocks_read)),
            *((tally.name, f"{tally.jobs} jobs verified, {tally.reruns} run again") for tally in self.tallies),
            ("log", f"{log.requests} requests, {log.pieces} pieces"),
            *((name, str(count)) for name, count in self.found.items()),
            ("longest pause", "{:.2f} s, {:.1f} s after the load began, seen by {}".format(*self.longest_pause)),
            ("left behind", ", ".join(self.left) or "nothing"),
        ]
        details = [*verdict.told, *log.told, *self.disagreements[:MAX_TOLD], *self.unserved, *self.trouble]
        details += [f"{tally.name}: {wrong}" for tally in self.tallies for wrong in tally.wrong]
        return [*(f"{name:<22}{value}" for name, value in rows), *(f"! {line}" for line in details)]


def _counts(counts: dict[str, int]) -> str:
    """`3 server, 1 logger`."""
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
