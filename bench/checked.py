"""What the simulator checks in a second of a processor beside what the chaos program does in a second on the clock.

`python -m bench.checked`: the same shape for both, 3 servers, 3 clients, kills alone, each topology in its turn. The
chaos program spends most of its time waiting for processes and timers, the simulator none; but a simulated request is
a request whose every step Python carries out on both sides.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import click

from bench.processes import ROOT, run
from bench.report import Rows, markdown, number
from memcluster.simulator.many import Sum, run_seed
from memcluster.simulator.plan import TOPOLOGIES, Wish

KILLS = ("kill server", "kill logger", "kill supervisor")
Rate = tuple[float, float]
"""Requests that were checked, and deaths, a second."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seconds", type=click.IntRange(2), default=20, show_default=True, help="Of the chaos program's load.")
@click.option("--seeds", type=click.IntRange(1), default=200, show_default=True, help="Of the simulator's.")
def main(seconds: int, seeds: int) -> None:
    """Measure both, in each topology."""
    rows: Rows = [("topology", "chaos requests/s:", "simulated:", "ratio:", "chaos deaths/s:", "simulated:", "ratio:")]
    for topology in TOPOLOGIES:
        real, simulated = _chaos(topology, seconds), _simulated(topology, seeds)
        cells = [[number(one), number(other), number(other / one)] for one, other in zip(real, simulated, strict=True)]
        rows.append((topology, *cells[0], *cells[1]))
        click.echo("  ".join(rows[-1]), err=True)
    click.echo(markdown(rows), nl=False)


def _chaos(topology: str, seconds: int) -> Rate:
    """On the clock, from the start of the program to its verdict."""
    words = ["--topology", topology, "--servers", "3", "--clients", "3", "--no-real"]
    words += [word for kind in KILLS for word in ("--only", kind)]
    with tempfile.TemporaryDirectory(prefix="memcluster-checked-") as folder:
        figures = Path(folder) / "figures"
        words += ["--for", f"{seconds}s", "--every", "0.5", "--figures", str(figures)]
        began = time.monotonic()
        run(sys.executable, "-m", "bench.chaos", *words, cwd=ROOT, timeout=10 * seconds + 120)
        took = time.monotonic() - began
        found = json.loads(figures.read_text())
    return found["requests"] / took, sum(found["faults"].values()) / took


def _simulated(topology: str, seeds: int) -> Rate:
    """Of this process's own time."""
    wish, total = Wish(topology, clients=3, faults=("kill",)), Sum()
    run_seed(0, wish)
    began = time.process_time()
    for seed in range(1, seeds + 1):
        total.add(run_seed(seed, wish))
    took = time.process_time() - began
    if total.failed:
        raise click.ClickException(f"seed {total.failed[0].seed} broke a rule: {total.failed[0].broken[0]}")
    return total.requests / took, total.faults["kill"] / took


if __name__ == "__main__":
    main()
