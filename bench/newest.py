"""memcluster beside servers of two generations: those that this machine has, and the newest.

`python -m bench.newest ROOT [--checkout FOLDER]`: ROOT is a root of its own with newer packages, as `make test-newest`
makes one. The servers run in it by chroot, which takes root, and fio stays this machine's. What is measured beside them
is this checkout or that in FOLDER, such as one that `make compile` has made. All run at the same time and are measured
in turns. A cell is the median of the ratios within turns, above 1 in memcluster's favour.
"""

from __future__ import annotations

import signal
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import click

from bench.against import LOADS
from bench.cluster import cluster
from bench.fio import measure
from bench.peers import entered, nbdkit_memory, nbdkit_proxy, qemu_nbd
from bench.processes import ROOT, Service, run
from bench.report import Rows, markdown
from memcluster.client.console import unwind

PEERS: dict[int, dict[str, Callable[..., AbstractContextManager[Service]]]] = {
    1: {"nbdkit memory": nbdkit_memory, "qemu-nbd": qemu_nbd},
    4: {"nbdkit memory": nbdkit_memory, "nbdkit proxy": nbdkit_proxy},
}
"""By how many servers of ours stand beside them."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("newest", metavar="ROOT", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--checkout", type=click.Path(exists=True, file_okay=False, path_type=Path), default=ROOT)
@click.option("--pairs", type=click.IntRange(1), default=7, show_default=True, help="Turns of each case.")
@click.option("--runtime", type=click.FloatRange(0.001), default=0.4, show_default=True, help="Seconds of each load.")
@click.option("--only", default="", help="The loads in whose name this stands.")
def main(newest: Path, checkout: Path, pairs: int, runtime: float, only: str) -> None:
    """Print the table of both generations."""
    unwind(signal.SIGTERM, signal.SIGHUP)
    generations = {"as installed": None, "newest": newest.resolve()}
    for title, of in generations.items():
        nbdkit, qemu = (run(*entered(of), name, "--version").splitlines()[0] for name in ("nbdkit", "qemu-nbd"))
        click.echo(f"{title}: {nbdkit}, {qemu}")
    click.echo()
    rows: Rows = [("load", "servers:", "beside", *(f"{title}:" for title in generations))]
    for servers, peers in PEERS.items():
        with ExitStack() as stack:
            ours = stack.enter_context(cluster(servers=servers, root=checkout.resolve()))
            theirs = {
                (name, title): stack.enter_context(start(prefix=entered(of)))
                for name, start in peers.items()
                for title, of in generations.items()
            }
            for load in LOADS:
                if only not in load:
                    continue
                ratios: dict[tuple[str, str], list[float]] = {peer: [] for peer in theirs}
                for _ in range(pairs):
                    rate = measure(ours.uri, LOADS[load], runtime).iops
                    for peer, service in theirs.items():
                        ratios[peer].append(rate / measure(service.uri, LOADS[load], runtime).iops)
                for name in peers:
                    cells = (f"{statistics.median(ratios[name, title]):.2f}×" for title in generations)
                    rows.append((load, str(servers), name, *cells))
    click.echo(markdown(rows), nl=False)


if __name__ == "__main__":
    main(prog_name="python -m bench.newest")
