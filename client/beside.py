"""`memclient bench --against URI`: the same load on two servers in turns, and the ratio of what they give.

Turns are short and alternate, for a machine changes its speed within seconds, and takes the other with it: each pair of
turns has its own ratio, and the median of these is what counts.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from memcluster.client.bench import KINDS, Load, Opened, Result, measure


@dataclass
class Beside:
    """What both got in all their turns, and the ratio of each pair, by kind: above 1 is in favour of ours."""

    ours: Result
    theirs: Result
    ratios: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    def to_json(self) -> dict[str, Any]:
        return {kind: _spread(found) if found else None for kind, found in self.ratios.items()}

    def add(self, ours: Result, theirs: Result) -> None:
        """Another pair of turns."""
        for kind, found in self.ratios.items():
            if ours.rate(kind) and theirs.rate(kind):
                found.append(ours.rate(kind) / theirs.rate(kind))
        self.ours.add(ours)
        self.theirs.add(theirs)


def alternate(
    ours: Opened,
    theirs: Opened,
    load: Load,
    clients: int,
    runtime: float,
    pairs: int,
    progress: Callable[[float, int], object],
) -> tuple[Beside, bool]:
    """Measure both, each for `runtime` seconds in all, in so many pairs of turns; and whether Ctrl-C ended it early:
    then a pair that is not complete is left out. Raises Failure."""
    found = Beside(Result(load, clients), Result(load, clients))
    for number in range(pairs):
        pair: list[Result] = []
        for opened in (ours, theirs):
            passed = (2 * number + len(pair)) * runtime / pairs
            before = found.ours.requests + found.theirs.requests + sum(one.requests for one in pair)

            def so_far(seconds: float, requests: int, passed: float = passed, before: int = before) -> None:
                progress(passed + seconds, before + requests)

            result, interrupted = measure(opened, load, clients, runtime / pairs, so_far)
            if interrupted:
                return found, True
            pair.append(result)
        found.add(*pair)
    return found, False


def describe(ratios: dict[str, Any]) -> str:
    """The ratios in words."""
    lines = [
        f"  {kind + 's':<7}{figures['median']:>9.2f}×  ({figures['least']:.2f} to {figures['greatest']:.2f} in "
        f"{figures['pairs']} pair{'s' * (figures['pairs'] > 1)})"
        for kind, figures in ratios.items()
        if figures
    ]
    return "\n".join(lines or ["  no pair was complete"])


def _spread(ratios: list[float]) -> dict[str, float]:
    return {
        "median": statistics.median(ratios),
        "least": min(ratios),
        "greatest": max(ratios),
        "pairs": len(ratios),
    }
