"""The command: which measurements, how thorough, and what becomes of the figures."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console

from bench import curves, limits, machine, plots, profiles, report, results, transports
from bench.cases import CASES
from bench.pairs import Case, Plan, take
from bench.processes import ROOT, Failed, Missing
from memcluster.client.console import unwind
from memcluster.client.errors import ClusterError

QUICK = Plan(pairs=2, runtime=0.5, many=2000, large=128 << 20)
Progress = Callable[[str], object]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", multiple=True, metavar="CASE", help="This case only; may be given again. See --list.")
@click.option("--list", "listing", is_flag=True, help="Name the cases and end.")
@click.option("--quick", is_flag=True, help="2 pairs of half a second, fewer clients: to see that it works.")
@click.option("--pairs", type=click.IntRange(1), help="Pairs of each case.  [default: 5]")
@click.option("--runtime", type=click.FloatRange(0.001), help="Seconds of each load.  [default: 3]")
@click.option("--curves", "with_curves", is_flag=True, help="The curves, too: shards, depth, block, clients.")
@click.option("--transports", "with_transports", is_flag=True, help="TCP, unix and UDP, too (see docs/why-tcp.md).")
@click.option("--profiles", "with_profiles", is_flag=True, help="Where server 0's time goes, too.")
@click.option("--all", "everything", is_flag=True, help="All of these.")
@click.option("--no-cases", is_flag=True, help="Not the cases, only what is asked for beside them.")
@click.option("--write-docs", is_flag=True, help="Put tables and plots into docs/; with --no-cases, the last figures.")
@click.option("--results", "path", type=click.Path(path_type=Path), default=results.LATEST, help="The JSON file.")
def main(
    only: tuple[str, ...],
    listing: bool,
    quick: bool,
    pairs: int | None,
    runtime: float | None,
    with_curves: bool,
    with_transports: bool,
    with_profiles: bool,
    everything: bool,
    no_cases: bool,
    write_docs: bool,
    path: Path,
) -> None:
    """Measure memcluster beside its peers. Figures go to a JSON file; what is not measured again stays in it."""
    if listing:
        for case in CASES:
            click.echo(f"{case.name:<22} {case.title}, vs {case.peer}")
        return
    unknown = set(only) - {case.name for case in CASES}
    if unknown:
        raise click.BadParameter(f"{', '.join(sorted(unknown))}; --list names the cases", param_hint="--only")
    unwind(signal.SIGTERM, signal.SIGHUP)  # so that what was started is ended
    base = QUICK if quick else Plan()
    plan = Plan(pairs or base.pairs, runtime or base.runtime, base.many, base.large)
    console = Console(stderr=True)
    known = results.load(path)
    missed: list[str] = []
    tables: list[str] = []

    def attempt(name: str, measure: Callable[[Progress], None]) -> None:
        with console.status(name) as status:
            try:
                measure(lambda text: status.update(f"{name}: {text}"))
            except (Missing, Failed, ClusterError) as error:
                missed.append(f"{name}: {error}")
                console.print(f"[bold]{name}[/]: {error}", markup=True)
        results.save(known, path)

    chosen = [] if no_cases else [case for case in CASES if not only or case.name in only]
    if chosen or with_curves or with_transports or with_profiles or everything:
        known["machine"] = machine.facts(str(plan))
    for case in chosen:
        attempt(case.name, lambda progress, case=case: _take(known, case, plan, progress))  # type: ignore[misc]
    if chosen:
        tables += ["machine", "cases", "limits"]
        attempt("memcpy", lambda _: results.put(known, "limits", "memcpy", limits.copies(plan.runtime)))
    if with_curves or everything:
        attempt("curves", lambda progress: _put_all(known, "curves", curves.each_curve(plan.runtime, progress)))
    sections = (transports.SECTIONS if with_transports or everything else {}) | (
        profiles.SECTIONS if with_profiles or everything else {}
    )
    for section, measure in sections.items():
        tables.append(section)
        attempt(section, lambda progress, s=section, m=measure: _put_all(known, s, m(plan, progress)))  # type: ignore[misc]
    report.show(known, Console(width=None if sys.stdout.isatty() else 160), tables)
    if write_docs:
        for written in [*plots.draw(known, ROOT / "docs"), *report.write_documents(known)]:
            click.echo(f"wrote {written.relative_to(ROOT)}")
    for line in missed:
        click.echo(f"not measured: {line}", err=True)
    sys.exit(bool(missed))


def _take(known: results.Results, case: Case, plan: Plan, progress: Progress) -> None:
    circumstances = {"measured": str(plan), "load_average": round(os.getloadavg()[0], 2)}
    figures = circumstances | take(case, plan, progress).to_json()
    if case.wire:
        progress("the limit")
        replies = limits.wire(case.wire, plan.runtime)
        figures["limit"] = replies if case.unit == "IOPS" else replies * case.wire.payload / 1e9
    results.put(known, "cases", case.name, figures)


def _put_all(known: results.Results, section: str, found: results.Found) -> None:
    for name, figures in found:
        results.put(known, section, name, figures)


if __name__ == "__main__":
    main(prog_name="python -m bench")
