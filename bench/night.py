"""A long run of the simulator in one process: what it went through, by topology and fault, and the memory it takes.

`python -m bench.night 1000001 100000` runs so many seeds from there on and prints two tables when it is at its end or
is interrupted; a seed that breaks a rule is told at once.
"""

from __future__ import annotations

import resource
import time
from pathlib import Path

import click

from bench.report import Rows, markdown
from memcluster.simulator.many import Sum, run_seed
from memcluster.simulator.plan import FAULTS, TOPOLOGIES, Wish

ALL = "all"
STEPS = sorted({first * 10**power for first in (1, 2, 5) for power in range(3, 7)})
"""The counts of seeds after which the memory is looked at."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("first", type=int)
@click.argument("count", type=click.IntRange(1))
def main(first: int, count: int) -> None:
    """Run COUNT seeds from FIRST on."""
    sums = {name: Sum() for name in (*TOPOLOGIES, ALL)}
    memory: list[tuple[int, int]] = []
    try:
        for done, seed in enumerate(range(first, first + count), 1):
            result = run_seed(seed, Wish())
            for name in (result.topology, ALL):
                sums[name].add(result)
            if result.broken:
                click.echo(f"seed {seed}, {result.topology}: {'; '.join(result.broken)}")
            if done in STEPS or done == count:
                memory.append((done, _resident()))
                click.echo(f"{time.strftime('%T')} {done:,} seeds, {memory[-1][1]:,} KiB")
    except KeyboardInterrupt:
        pass
    click.echo(_by_topology(sums))
    click.echo(_by_count(memory))
    click.echo(f"{resource.getrusage(resource.RUSAGE_SELF).ru_utime:.0f} s of user time")


def _resident() -> int:
    """KiB of memory that this process has."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def _by_topology(sums: dict[str, Sum]) -> str:
    faults = [f"{kind}:" for kind in FAULTS]
    rows: Rows = [("topology", "seeds:", "requests:", "acknowledged:", *faults, "broke a rule:")]
    for topology, found in sums.items():
        counts = (found.runs, found.requests, found.acknowledged, *(found.faults[kind] for kind in FAULTS))
        rows.append((topology, *(f"{count:,}" for count in counts), str(len(found.failed))))
    return markdown(rows)


def _by_count(memory: list[tuple[int, int]]) -> str:
    return markdown([("seeds:", "KiB:"), *((f"{done:,}", f"{size:,}") for done, size in memory)])


if __name__ == "__main__":
    main()
