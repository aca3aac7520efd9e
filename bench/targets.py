"""Both forms of the data path and both kinds of links beside nbdkit, in one sitting: what each is worth.

`python -m bench.targets COMPILED [--base FOLDER]`: this checkout, as it is, beside the one in COMPILED, which
`make compile` has made, and with --base one of before. All run at the same time and are measured in turns, so that a
busy minute meets all of them. A cell is the median of the ratios within turns, above 1 in memcluster's favour.
"""

from __future__ import annotations

import signal
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path

import click

from bench.against import LOADS
from bench.cases import KIB
from bench.cluster import cluster
from bench.fio import Load, measure
from bench.peers import nbdkit_memory, nbdkit_proxy
from bench.processes import ROOT, Service
from bench.report import Rows, markdown, number
from memcluster.client.console import unwind

Start = Callable[[], AbstractContextManager[Service]]
PROXY, MEMORY, BASE = "the proxy", "nbdkit memory", "the base"
SMALL_WRITES = "4 KiB writes"
CASES: list[tuple[int, str, dict[str, str], str]] = [
    *((4, title, {}, "primary-secondary") for title in LOADS),
    *((1, title, {}, "one server") for title in LOADS if "depth 1" in title),
    *((3, title, {"topology": name}, name)
      for name in ("dispatcher", "chain", "client-routed") for title in ("4 KiB reads", SMALL_WRITES)),
]  # fmt: skip
"""Servers, load, keys of cluster.yaml, and what it is called."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("compiled", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--base", type=click.Path(exists=True, file_okay=False, path_type=Path), help="A checkout of before.")
@click.option("--pairs", type=click.IntRange(1), default=7, show_default=True, help="Turns of each case.")
@click.option("--runtime", type=click.FloatRange(0.001), default=0.4, show_default=True, help="Seconds of each load.")
@click.option("--only", default="", help="The cases in whose name this stands.")
def main(compiled: Path, base: Path | None, pairs: int, runtime: float, only: str) -> None:
    """Print the table of both forms and both kinds of links."""
    unwind(signal.SIGTERM, signal.SIGHUP)
    rows: Rows = [("case", "beside", "source, copy:", "shared:", "compiled, copy:", "shared:", "peer:")]
    roots = {"source": ROOT, "compiled": compiled.resolve()}
    for servers, title, keys, name in CASES:
        if only not in f"{name}, {title}":
            continue
        sides: dict[str, Start] = {}
        for form, root in roots.items():
            for links in ("copy", "shared") if name == "primary-secondary" else ("copy",):
                more = keys | ({"links": links} if links == "shared" else {})
                sides[f"{form} {links}"] = partial(cluster, servers=servers, root=root, **more)
        peers: dict[str, Start] = {MEMORY: nbdkit_memory}
        if servers > 1:
            peers[PROXY] = nbdkit_proxy
        if base is not None:
            peers[BASE] = partial(cluster, servers=servers, root=base.resolve(), **keys)
        rows += _measured(f"{name}, {title}", LOADS[title], sides, peers, pairs, runtime)
    click.echo(markdown(rows), nl=False)


def _measured(
    case: str, load: Load, sides: dict[str, Start], peers: dict[str, Start], pairs: int, runtime: float
) -> Rows:
    """A row for each peer."""
    found: dict[str, list[float]] = {name: [] for name in (*sides, *peers)}
    with ExitStack() as stack:
        services = {name: stack.enter_context(start()) for name, start in (sides | peers).items()}
        for _ in range(pairs):
            for name, service in services.items():
                figures = measure(service.uri, load, runtime)
                found[name].append(figures.iops if load.block == 4 * KIB else figures.bytes_per_second / 1e9)
    unit = "IOPS" if load.block == 4 * KIB else "GB/s"
    rows: Rows = []
    for peer in peers:
        cells = [
            f"{statistics.median(a / b for a, b in zip(found[side], found[peer], strict=True)):.2f}×"
            if side in found
            else ""
            for side in ("source copy", "source shared", "compiled copy", "compiled shared")
        ]
        rows.append((case, peer, *cells, f"{number(statistics.median(found[peer]))} {unit}"))
    return rows


if __name__ == "__main__":
    main(prog_name="python -m bench.targets")
