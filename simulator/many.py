"""Many runs, one after the other or several processes at a time, and what they come to."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from memcluster.simulator.plan import Wish, make_plan
from memcluster.simulator.run import simulate

AT_A_TIME = 8
"""Seeds that a process takes."""


@dataclass(frozen=True)
class Result:
    """What is kept of a run."""

    seed: int
    topology: str
    broken: tuple[str, ...]
    requests: int
    acknowledged: int
    faults: Counter[str]
    seconds: float


@dataclass
class Sum:
    """Of many runs."""

    runs: int = 0
    requests: int = 0
    acknowledged: int = 0
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    failed: list[Result] = field(default_factory=list)

    def add(self, result: Result) -> None:
        self.runs += 1
        self.requests += result.requests
        self.acknowledged += result.acknowledged
        self.seconds += result.seconds
        self.faults += result.faults
        if result.broken:
            self.failed.append(result)


def run_seed(seed: int, wish: Wish) -> Result:
    outcome = simulate(make_plan(seed, wish))
    acknowledged = sum(operation.acknowledged for operation in outcome.history)
    return Result(
        seed,
        outcome.plan.shape.topology,
        tuple(outcome.broken),
        len(outcome.history),
        acknowledged,
        outcome.faults,
        outcome.seconds,
    )


def run_seeds(seeds: Iterable[int], wish: Wish, jobs: int = 1) -> Iterator[Result]:
    """In the order in which they come to their end."""
    if jobs == 1:
        yield from (run_seed(seed, wish) for seed in seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(partial(run_seed, wish=wish), seeds, AT_A_TIME)
