"""What a run found, as lines for people, and whether it is a failure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from bench.chaos.breaker import Breaker
from bench.chaos.checker import Verdict
from bench.chaos.history import ACKNOWLEDGED, ERROR, UNKNOWN, Operation
from bench.chaos.logcheck import LogVerdict
from bench.chaos.realclients import Tally


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
    left: list[str] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)

    def count(self, operations: Iterable[Operation]) -> None:
        """The outcomes, and the longest time between two acknowledgements that one client saw."""
        ends: dict[str, list[int]] = defaultdict(list)
        self.outcomes = dict.fromkeys((ACKNOWLEDGED, UNKNOWN, ERROR), 0)
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
    def wrong_reads(self) -> int:
        return self.verdict.wrong + sum(len(tally.wrong) for tally in self.tallies)

    @property
    def missing(self) -> int:
        return self.log.missing + self.log.missing_pieces

    @property
    def double(self) -> int:
        return self.log.double + self.log.double_pieces

    @property
    def failed(self) -> bool:
        found = self.verdict.lost, self.wrong_reads, self.missing, self.double, self.left, self.trouble
        return any(found)

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
            ("blocks read", f"{verdict.blocks_read}, {verdict.late} of writes that had been given up"),
            *((tally.name, f"{tally.jobs} jobs verified, {tally.reruns} run again") for tally in self.tallies),
            ("lost writes", str(len(verdict.lost))),
            ("wrong reads", str(self.wrong_reads)),
            ("log", f"{log.requests} requests, {log.pieces} pieces"),
            ("missing log records", f"{log.missing} requests, {log.missing_pieces} pieces"),
            ("double log records", f"{log.double} requests, {log.double_pieces} pieces"),
            ("longest pause", "{:.2f} s, {:.1f} s after the load began, seen by {}".format(*self.longest_pause)),
            ("left behind", ", ".join(self.left) or "nothing"),
        ]
        details = [*verdict.told, *log.told, *self.trouble]
        details += [f"{tally.name}: {wrong}" for tally in self.tallies for wrong in tally.wrong]
        return [*(f"{name:<22}{value}" for name, value in rows), *(f"! {line}" for line in details)]


def _counts(counts: dict[str, int]) -> str:
    """`3 server, 1 logger`."""
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
