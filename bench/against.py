"""Two checkouts side by side, each with its own .venv: what a change does to speed, or another Python.

`python -m bench.against FOLDER` measures this checkout's clusters beside those of the one in FOLDER, in pairs as short
as can be: a shared machine changes its speed within seconds. Prints a table; above 1 is in favour of FOLDER. With
`--links shared` the clusters of FOLDER, which may be this checkout, share memory over their links.
"""

from __future__ import annotations

import signal
import statistics
from pathlib import Path

import click

from bench.cases import DEEP_READ, DEEP_WRITE, KIB, LONG_READ, LONG_WRITE, ONE_READ, ONE_WRITE
from bench.cluster import cluster
from bench.fio import Load, measure
from bench.report import Rows, markdown, number
from memcluster.client.console import unwind

LOADS = {
    "4 KiB reads": DEEP_READ,
    "4 KiB writes": DEEP_WRITE,
    "4 KiB reads, depth 1": ONE_READ,
    "4 KiB writes, depth 1": ONE_WRITE,
    "1 MiB reads": LONG_READ,
    "1 MiB writes": LONG_WRITE,
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--pairs", type=click.IntRange(1), default=20, show_default=True)
@click.option("--runtime", type=click.FloatRange(0.001), default=0.5, show_default=True, help="Seconds of each load.")
@click.option("--large", is_flag=True, help="Requests of 1 MiB, too.")
@click.option("--single", is_flag=True, help="Requests of 4 KiB one at a time, too.")
@click.option("--links", type=click.Choice(["copy", "shared"]), help="Of those in FOLDER; only with several servers.")
def main(folder: Path, pairs: int, runtime: float, large: bool, single: bool, links: str | None) -> None:
    """Measure the clusters of the checkout in FOLDER beside those of this one."""
    unwind(signal.SIGTERM, signal.SIGHUP)
    rows: Rows = [("servers", "load", "unit", "this:", "that:", "ratio:", "quartiles:")]
    keys = {"links": links} if links else {}
    for servers in (4,) if links else (1, 4):
        for title, load in LOADS.items():
            if (large or load.block == 4 * KIB) and (single or load.depth > 1):
                rows.append((str(servers), title, *_beside(folder, servers, load, pairs, runtime, keys)))
    click.echo(markdown(rows), nl=False)


def _beside(
    folder: Path, servers: int, load: Load, pairs: int, runtime: float, keys: dict[str, str]
) -> tuple[str, ...]:
    """The cells of a row: unit, both medians, the median of the ratios and its quartiles."""
    small = load.block == 4 * KIB
    ours: list[float] = []
    theirs: list[float] = []
    with cluster(servers=servers) as this, cluster(servers=servers, root=folder.resolve(), **keys) as that:
        for _ in range(pairs):
            for service, figures in ((this, ours), (that, theirs)):
                found = measure(service.uri, load, runtime)
                figures.append(found.iops if small else found.bytes_per_second / 1e9)
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if pairs > 1 else ratios * 3
    medians = number(statistics.median(ours)), number(statistics.median(theirs))
    return "IOPS" if small else "GB/s", *medians, f"{middle:.2f}×", f"{low:.2f}–{high:.2f}"


if __name__ == "__main__":
    main(prog_name="python -m bench.against")
