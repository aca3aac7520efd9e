"""The command: one run from a seed, or an earlier run once more."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path
from threading import Event

import click

from bench.chaos.far import Far, names, run_in_lab
from bench.chaos.report import Report
from bench.chaos.run import LOGS, Options, replay, run
from bench.chaos.schedule import HOSTS, RESHAPE, WEIGHTS, Fault, plan
from bench.chaos.sweep import sweep, table
from memcluster.client.units import parse_duration
from memcluster.node import topology as topologies


def _seconds(_context: click.Context, _parameter: click.Parameter, text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seed", type=int, default=1, show_default=True, help="What is broken when follows from it.")
@click.option("--for", "seconds", callback=_seconds, default="60s", show_default=True, help="How long.")
@click.option("--topology", type=click.Choice(topologies.names()), default="primary-secondary", show_default=True)
@click.option("--servers", type=click.IntRange(1, 16), default=3, show_default=True)
@click.option("--layout", type=click.Choice(["linear", "stripe"]), default="linear", show_default=True)
@click.option("--fan-out", type=click.Choice(["parallel", "serial"]), default="parallel", show_default=True)
@click.option("--links", type=click.Choice(["copy", "shared"]), show_default="copy; with --sweep both")
@click.option("--storage", type=click.Choice(["memory", "directory"]), default="memory", show_default=True)
@click.option("--memory", type=click.IntRange(48), default=48, show_default=True, help="MiB; long zeroing needs 512.")
@click.option("--logs", type=click.Choice(list(LOGS)), default="all", show_default=True, help="What is kept of them.")
@click.option("--clients", type=click.IntRange(1, 16), default=4, show_default=True, help="Our own ones.")
@click.option("--rate", type=click.FloatRange(1), default=250.0, show_default=True, help="Operations a second of each.")
@click.option("--every", type=click.FloatRange(0.05), default=1.0, show_default=True, help="Seconds between faults.")
@click.option("--only", type=click.Choice(list(HOSTS)), multiple=True, help="These faults alone; may be given again.")
@click.option("--reshape", is_flag=True, help="The memory gets another shape now and then.")
@click.option("--hosts", type=click.IntRange(0, 8), default=0, show_default=True,
              help="Other hosts, made as namespaces; takes root.")  # fmt: skip
@click.option("--lab", type=click.Path(path_type=Path), hidden=True, help="Where they were made.")
@click.option("--no-real", is_flag=True, help="Without fio and nbdcopy.")
@click.option("--keep", is_flag=True, help="Keep the folder of a run that went well, too.")
@click.option("--replay", "earlier", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="FOLDER",
              help="Check the history in FOLDER again, then run its schedule again.")  # fmt: skip
@click.option("--check-only", is_flag=True, help="With --replay: do not run it again.")
@click.option("--figures", type=click.Path(dir_okay=False, path_type=Path), help="Write what was found there as JSON.")
@click.option("--sweep", "seeds", type=click.IntRange(1), metavar="N",
              help="N runs from --seed on, over all topologies and layouts.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Runs at a time, with --sweep.")
def main(
    seed: int,
    seconds: float,
    topology: str,
    servers: int,
    layout: str,
    fan_out: str,
    links: str | None,
    storage: str,
    memory: int,
    logs: str,
    clients: int,
    rate: float,
    every: float,
    only: tuple[str, ...],
    reshape: bool,
    hosts: int,
    lab: Path | None,
    no_real: bool,
    keep: bool,
    earlier: Path | None,
    check_only: bool,
    figures: Path | None,
    seeds: int | None,
    jobs: int,
) -> None:
    """Break a cluster under verified load, and tell what became of the bytes and of the log."""
    if seeds is not None:
        words = ["--for", f"{seconds}s", "--every", f"{every}", *["--no-real"] * no_real, *["--reshape"] * reshape]
        words += ["--hosts", f"{hosts}"] if hosts else []
        words += [word for kind in only for word in ("--only", kind)]
        tell = partial(click.echo, err=True)
        rows = sweep(range(seed, seed + seeds), words, jobs, tell, links, hosts=hosts > 0)
        click.echo("\n".join(table(rows)))
        sys.exit(any(row.found.total() for row in rows.values()))
    if earlier is not None:
        options, schedule, report = replay(earlier)
        _show(report)
        if check_only:
            sys.exit(report.failed)
    else:
        links = links or "copy"
        storage = "data" if storage == "directory" else storage
        options = Options(
            seed, seconds, servers, layout, fan_out, storage, clients, rate, not no_real, topology, memory, logs, links,
            reshape, hosts,
        )  # fmt: skip
        shape = topologies.load(topology)
        processes = servers + shape.dispatches
        linked = bool(shape.links(processes))
        weights = RESHAPE if reshape else HOSTS if hosts else WEIGHTS
        schedule = plan(
            seed, seconds, processes, every, linked=linked, only=only or weights, weights=weights, hosts=names(hosts)
        )
    if options.hosts and lab is None:
        sys.exit(run_in_lab(options.hosts, sys.argv[1:]))
    far = Far(lab, options.hosts) if lab else None
    sys.exit(_run(options, schedule, far, keep=keep, figures=figures))


def _run(options: Options, schedule: list[Fault], far: Far | None, *, keep: bool, figures: Path | None) -> int:
    end = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: end.set())
    folder = Path(tempfile.mkdtemp(prefix="memcluster-chaos-"))
    report = run(options, schedule, folder, end, lambda text: click.echo(text, err=True), far)
    _show(report)
    (folder / "report").write_text("\n".join(report.lines()) + "\n")
    if figures is not None:
        figures.write_text(json.dumps(report.figures()))
    if report.failed or keep:
        click.echo(f"everything about it is in {folder}; again: python -m bench.chaos --replay {folder}", err=True)
    else:
        shutil.rmtree(folder)
    return int(report.failed)


def _show(report: Report) -> None:
    click.echo("\n".join(report.lines()))


if __name__ == "__main__":
    main()
