"""What the simulator finds: plants faults in copies of the code, one at a time, and runs seeds until one breaks a rule.

`python -m bench.mutations [NAME]...` prints a table: the fault, the seed that found it, the rules that seed broke. The
faults are in bench/mutations/faults.py, each a small change of the text. One whose text is no longer there ends the
program before anything runs: a table of faults that were not planted would say nothing.

All are hunted a while before any is hunted for long, so what is found at all is mostly found early. Of faults that have
marks the code as it should be runs first, with the marks of all: then each is planted for those seeds alone that got to
where it matters. With any other seed its run would be the same.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import click

from bench.mutations.faults import FAULTS, Planted
from bench.mutations.ledger import Entry, Ledger
from bench.mutations.marks import MARKS
from bench.mutations.plant import Hunt, Unplantable, hunt, marked, patched, reach
from bench.report import markdown

ROOT = Path(__file__).parent.parent.parent
A_WHILE = 50
"""Seeds that each is hunted with at first; then twice as many, and so on."""
AT_A_TIME = 100
"""Seeds of which is looked where they get to, between two times that it is written down."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1)
@click.option("--within", type=click.IntRange(1), default=10_000, show_default=True, help="Seeds, from 1 on.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes at a time.")
@click.option("--results", type=click.Path(dir_okay=False, path_type=Path), help="Keep there what was hunted; go on.")
@click.option("--markdown", "as_markdown", is_flag=True, help="The table alone, when all is done.")
def main(names: tuple[str, ...], within: int, jobs: int, results: Path | None, as_markdown: bool) -> None:
    """Plant the faults of these NAMES, or all, one at a time, and tell by which seed each is found."""
    unknown = set(names) - {fault.name for fault in FAULTS}
    if unknown:
        raise click.UsageError(f"no fault is called {', '.join(sorted(unknown))}")
    chosen = [fault for fault in FAULTS if not names or fault.name in names]
    with_marks = [fault for fault in FAULTS if fault.name in MARKS]
    try:
        for fault in chosen:
            patched(ROOT, fault)
        marked(ROOT, with_marks)
    except Unplantable as error:
        raise click.ClickException(str(error)) from None
    ledger = Ledger(ROOT, results, with_marks)
    with ThreadPoolExecutor(jobs) as pool:
        for last in _rounds(within):
            left = [fault for fault in chosen if not ledger.of(fault).seed and ledger.of(fault).looked < last]
            if any(fault.name in MARKS for fault in left):
                _reach(ledger, with_marks, last, jobs, pool)
            for fault, found in zip(left, pool.map(partial(_hunt, ledger, last), left), strict=True):
                entry = ledger.of(fault)
                entry.looked, entry.seed, entry.rules = found.seed or last, found.seed, found.rules
                entry.ran += found.ran
                ledger.keep()
                if not as_markdown and (entry.seed or last == within):
                    click.echo(f"{fault.name:28} {_found(entry):>24}  {', '.join(entry.rules)}")
    entries = {fault: ledger.of(fault) for fault in chosen}
    missed = sum(not entry.seed for entry in entries.values())
    if as_markdown:
        rows = [("planted", "topologies", "found by seed", "that ran", "rules")]
        rows += [_row(fault, entry) for fault, entry in entries.items()]
        click.echo(markdown(rows), nl=False)
    else:
        click.echo(f"{len(chosen) - missed} of {len(chosen)} found")
    sys.exit(bool(missed))


def _rounds(within: int) -> Iterator[int]:
    """Up to which seed all are hunted, one round after the other."""
    last = A_WHILE
    while last < within:
        yield last
        last *= 2
    yield within


def _reach(ledger: Ledger, faults: Sequence[Planted], last: int, jobs: int, pool: ThreadPoolExecutor) -> None:
    """Where the seeds up to `last` get to."""
    found = ledger.reach
    while found.looked < last:
        first = found.looked + 1
        end = min(last, found.looked + AT_A_TIME * jobs)
        parts = [range(first + job, end + 1, jobs) for job in range(jobs)]
        for met in pool.map(partial(reach, ROOT, faults), parts):
            found.add(met)
        found.looked = end
        ledger.keep()
        for seed in found.met[""]:
            if seed >= first:
                click.echo(f"seed {seed} breaks a rule though nothing is planted", err=True)


def _hunt(ledger: Ledger, last: int, fault: Planted) -> Hunt:
    seeds: Sequence[int] = range(ledger.of(fault).looked + 1, last + 1)
    if fault.name in MARKS:
        seeds = [seed for seed in ledger.reach.met[fault.name] if seed in seeds]
        if not seeds:
            return Hunt(0, [], 0)
    return hunt(ROOT, fault, seeds)


def _found(entry: Entry) -> str:
    return f"{entry.seed:,}" if entry.seed else f"not in {entry.looked:,}"


def _row(fault: Planted, entry: Entry) -> tuple[str, ...]:
    rules = ", ".join(f"*{rule}*" for rule in entry.rules)
    return fault.text, ", ".join(fault.topologies) or "all", _found(entry), f"{entry.ran:,}", rules


main()
