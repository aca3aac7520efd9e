"""What the simulator finds: plants faults in copies of the code, one at a time, and runs seeds until one breaks a rule.

`python -m bench.mutations [NAME]...` prints a table: the fault, the seed that found it, the rules that seed broke. The
faults are in bench/mutations/faults.py, each a small change of the text. One whose text is no longer there ends the
program before anything runs: a table of faults that were not planted would say nothing.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from bench.mutations.faults import FAULTS, Planted
from bench.mutations.plant import Unplantable, hunt, patched
from bench.report import markdown

ROOT = Path(__file__).parent.parent.parent


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1)
@click.option("--within", type=click.IntRange(1), default=10_000, show_default=True, help="Seeds, from 1 on.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Faults at a time.")
@click.option("--markdown", "as_markdown", is_flag=True, help="The table alone, when all is done.")
def main(names: tuple[str, ...], within: int, jobs: int, as_markdown: bool) -> None:
    """Plant the faults of these NAMES, or all, one at a time, and tell by which seed each is found."""
    unknown = set(names) - {fault.name for fault in FAULTS}
    if unknown:
        raise click.UsageError(f"no fault is called {', '.join(sorted(unknown))}")
    chosen = [fault for fault in FAULTS if not names or fault.name in names]
    try:
        for fault in chosen:
            patched(ROOT, fault)
    except Unplantable as error:
        raise click.ClickException(str(error)) from None
    missed = 0
    rows = [("planted", "topologies", "found by seed", "rules")]
    with ThreadPoolExecutor(jobs) as pool:
        for fault, found in zip(chosen, pool.map(lambda fault: hunt(ROOT, fault, within), chosen), strict=True):
            missed += not found
            rows.append(_row(fault, found, within))
            if not as_markdown:
                click.echo(f"{fault.name:28} {rows[-1][2]:>18}  {rows[-1][3]}")
    if as_markdown:
        click.echo(markdown(rows), nl=False)
    else:
        click.echo(f"{len(chosen) - missed} of {len(chosen)} found")
    sys.exit(bool(missed))


def _row(fault: Planted, found: tuple[int, list[str]] | None, within: int) -> tuple[str, str, str, str]:
    seed, rules = (
        (f"{found[0]:,}", ", ".join(f"*{rule}*" for rule in found[1])) if found else (f"not in {within:,}", "")
    )
    return fault.text, ", ".join(fault.topologies) or "all", seed, rules


main()
