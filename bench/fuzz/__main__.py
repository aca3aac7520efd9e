"""The command `python -m bench.fuzz`.

    python -m bench.fuzz                           # 20 million executions over all targets, on one processor
    python -m bench.fuzz --runs 100000 maps        # one target, so many
    python -m bench.fuzz --replay FILE maps        # one input again
    python -m bench.fuzz --by-chance --runs 3000   # without atheris, as CI does

Inputs are made by atheris (`pip install atheris`; `make fuzz` has it), which is guided by what they reach. One that
breaks a rule is kept, with what it broke, and the program fails.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path

from bench.fuzz.engine import Outcome, by_chance, guided, replay
from bench.fuzz.targets import TARGETS
from bench.report import markdown

RUNS = 20_000_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz", description=__doc__.split("\n\n")[2])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"by default all: {', '.join(TARGETS)}")
    parser.add_argument("--runs", type=int, default=RUNS, help="executions in all (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where inputs are kept, and go on from")
    parser.add_argument("--by-chance", action="store_true", help="without atheris")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run this input")
    given = parser.parse_args()
    names = given.targets or list(TARGETS)
    if unknown := set(names) - TARGETS.keys():
        parser.error(f"there is no target {', '.join(sorted(unknown))}")
    if given.replay:
        return _replay(given.replay, names)
    if not given.by_chance and importlib.util.find_spec("atheris") is None:
        parser.error("atheris is not installed: make fuzz, or pip install atheris, or --by-chance")
    folder = given.folder or Path(tempfile.mkdtemp(prefix="memcluster-fuzz-"))
    whole = sum(TARGETS[name].share for name in names)
    outcomes = []
    for name in names:
        target = TARGETS[name]
        count = -(-given.runs * target.share // whole)
        if given.by_chance:
            outcome = by_chance(target, count, given.seed, folder / name)
        else:
            outcome = guided(target, count, given.seed, folder / name)
        outcomes.append(outcome)
        print(_line(outcome), file=sys.stderr, flush=True)
    print(markdown(table(outcomes)), end="")
    found = [outcome for outcome in outcomes if outcome.found]
    for outcome in found:
        print(f"\n{outcome.target} broke a rule; its inputs are in {folder / outcome.target}:\n{outcome.found}")
    return 1 if found else 0


def _replay(path: Path, names: list[str]) -> int:
    broken = 0
    for name in names:
        if found := replay(TARGETS[name], path.read_bytes()):
            print(f"{name}:\n{found}")
            broken = 1
    return broken


def _line(outcome: Outcome) -> str:
    return f"{outcome.target}: {outcome.executions:,} executions in {outcome.seconds:.0f} s" + (
        "; it broke a rule" if outcome.found else ""
    )


def table(outcomes: list[Outcome]) -> list[tuple[str, ...]]:
    """As docs/security.md has it."""
    rows = [("target", "whose bytes", "executions:", "a second:", "edges:", "inputs kept:", "found:")]
    rows += [
        (
            one.target,
            TARGETS[one.target].what,
            f"{one.executions:,}",
            f"{one.rate:,.0f}",
            f"{one.edges:,}",
            f"{one.kept:,}",
            "a rule broken" if one.found else "0",
        )
        for one in outcomes
    ]
    return [*rows, ("all", "", f"{sum(one.executions for one in outcomes):,}", "", "", "", "")]


if __name__ == "__main__":
    sys.exit(main())
