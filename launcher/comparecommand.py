"""`memcluster compare` on the command line: what is to be measured, and how it is shown."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import click

from memcluster.client.console import size, unwind, wait_seconds
from memcluster.launcher import completing
from memcluster.launcher.output import steps
from memcluster.launcher.table import width_of


@click.command()
@click.option("--topology", "topologies", multiple=True, metavar="TOPOLOGY", shell_complete=completing.topologies,
              help="Only this one; may be repeated.")  # fmt: skip
@click.option("--servers", type=click.IntRange(1, 16), default=4, show_default=True, help="That own the memory.")
@click.option("--size", type=size, default="4KiB", show_default=True, help="Of a small request.")
@click.option("--large", type=size, default="1MiB", show_default=True, help="Of one that spans all servers.")
@click.option("--depth", type=click.IntRange(1, 1024), default=32, show_default=True, help="Small ones in flight.")
@click.option("--for", "span", type=wait_seconds, default="3s", show_default=True, help="Each load.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--wide", is_flag=True, help="Every column, however narrow the terminal is.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Also draw a picture (SVG).")
def compare(
    topologies: tuple[str, ...],
    servers: int,
    size: int,
    large: int,
    depth: int,
    span: float,
    as_json: bool,
    wide: bool,
    plot: Path | None,
) -> None:
    """Measure the topologies side by side, each on a private cluster (64 MiB in stripes of 64 KiB)."""
    from memcluster.launcher import comparison
    from memcluster.launcher.compare import Options
    from memcluster.launcher.compare import compare as measure
    from memcluster.node.topology import names

    if unknown := set(topologies) - set(names()):
        raise click.UsageError(f"there is no topology {min(unknown)!r}; there are {', '.join(names())}")
    options = Options(topologies or names(), servers=servers, size=size, large=large, depth=depth, seconds=span)
    if not 0 < size <= options.memory or not 0 < large <= options.memory:
        raise click.UsageError(f"requests must have 1 to {options.memory} bytes")
    unwind(signal.SIGTERM, signal.SIGHUP)
    with steps(len(options.cases) * (1 + len(options.workloads))) as step:
        results = measure(options, step)
    click.echo(json.dumps({"cases": results}, indent=2) if as_json else comparison.table(results, width_of(wide)))
    if plot is not None:
        plot.write_text(comparison.picture(results))
