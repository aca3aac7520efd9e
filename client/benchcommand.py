"""`memclient bench`: a quick benchmark of a running cluster, by itself or beside another server.

Only reads are done unless writes are asked for, and those need a region: what is there is lost.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import click

from memcluster.client import beside
from memcluster.client.bench import KINDS, TICK, Load, Opened, measure
from memcluster.client.console import EXIT_INTERRUPTED, EXIT_USAGE, Failure
from memcluster.client.console import seconds as seconds_type
from memcluster.client.console import size as size_type
from memcluster.client.memory import Memory
from memcluster.client.units import format_size

SHARES = {"read": 0.0, "write": 1.0, "mix": 0.5}
"""The share of writes among the requests."""


@click.command("bench")
@click.option("--read", "mode", flag_value="read", default="read", help="Reads only.  [default]")
@click.option("--write", "mode", flag_value="write", help="Writes only. Destroys what is in the region.")
@click.option("--mix", "mode", flag_value="mix", help="As many writes as reads. Destroys what is in the region.")
@click.option("--offset", type=size_type, help="Where the region begins.  [default: 0; to write it must be given]")
@click.option("--length", type=size_type, help="Its length.  [default: to the end; to write it must be given]")
@click.option("--block", type=size_type, default="4KiB", show_default=True, help="Bytes in a request.")
@click.option("--depth", type=click.IntRange(1, 4096), default=32, show_default=True, help="In flight per client.")
@click.option("--clients", type=click.IntRange(1, 1000), default=1, show_default=True, help="Connections.")
@click.option("--runtime", type=seconds_type, default="5s", show_default=True, help="How long.")
@click.option("--against", metavar="URI", help="Another server, of any make, for the same load in turns.")
@click.option("--pairs", type=click.IntRange(1), default=5, show_default=True, help="Turns of both, with --against.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def command(
    opened: Callable[..., Memory],
    mode: str,
    offset: int | None,
    length: int | None,
    block: int,
    depth: int,
    clients: int,
    runtime: float,
    against: str | None,
    pairs: int,
    as_json: bool,
) -> int:
    """Measure how fast the memory is: random requests, many in flight.

    Reads unless --write or --mix is given, and these need --offset and --length: the bytes there are overwritten.
    With --against another server gets the same load, each for the --runtime, in turns; above 1 is in favour of this.
    """
    if mode != "read" and (offset is None or length is None):
        raise Failure(
            f"--{mode} overwrites what is in the memory: say with --offset and --length which bytes may be lost",
            EXIT_USAGE,
        )
    start = offset or 0
    makers: list[Opened] = [opened] if against is None else [opened, partial(opened, against)]
    regions, uris = [], []
    for make in makers:
        with make() as memory:
            region = max(0, memory.size - start) if length is None else length
            if start + region > memory.size or not 0 < block <= region:
                raise Failure(
                    f"requests of {block} bytes do not fit {region} bytes at {start} of {memory.target}, a memory of "
                    f"{memory.size} bytes",
                    EXIT_USAGE,
                )
            if mode != "read" and memory.read_only:
                raise Failure(f"{memory.target} is read-only")
            regions.append(region)
            uris.append(str(memory.target))
    load = Load(block, depth, SHARES[mode], start, min(regions))
    with _progress(runtime * len(makers), shown=sys.stderr.isatty()) as progress:
        if against is None:
            result, interrupted = measure(opened, load, clients, runtime, progress)
            results = [result]
        else:
            both, interrupted = beside.alternate(makers[0], makers[1], load, clients, runtime, pairs, progress)
            results = [both.ours, both.theirs]
    told = [{"uri": uri, "mode": mode} | one.to_json() for uri, one in zip(uris, results, strict=True)]
    if against is not None:
        told[0] |= {"against": told[1], "ratio": both.to_json()}
    if as_json:
        click.echo(json.dumps(told[0], indent=2))
    else:
        for one in told:
            click.echo(describe(one))
        if against is not None:
            click.echo(f"this beside {uris[1]}\n{beside.describe(told[0]['ratio'])}")
    return EXIT_INTERRUPTED if interrupted else 0


def describe(found: dict[str, Any]) -> str:
    """A result in words."""
    clients = f"{found['clients']} client{'s' * (found['clients'] > 1)}"
    lines = [f"{found['uri']}  {format_size(found['block'])}, {found['depth']} in flight, {clients}, "
             f"{found['seconds']:.1f} s"]  # fmt: skip
    for kind in KINDS:
        if figures := found[kind]:
            times = "  ".join(f"{name} {_milliseconds(value)}" for name, value in figures["latency_us"].items())
            lines.append(
                f"  {kind + 's':<7}{figures['iops']:>10,.0f} IOPS  {figures['bytes_per_second'] / 1e6:,.1f} MB/s"
            )
            lines.append(f"         {times}")
    return "\n".join(lines)


def _milliseconds(microseconds: float) -> str:
    return f"{microseconds:.0f} µs" if microseconds < 1000 else f"{microseconds / 1000:.1f} ms"


@contextmanager
def _progress(runtime: float, *, shown: bool) -> Iterator[Callable[[float, int], object]]:
    if not shown:
        yield lambda _seconds, _requests: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = BarColumn(), TextColumn("{task.completed:.0f} of {task.total:g} s  {task.fields[rate]:>9,.0f} IOPS")
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as bar:
        task = bar.add_task("bench", total=runtime, rate=0.0)

        def update(seconds: float, requests: int) -> None:
            bar.update(task, completed=min(seconds, runtime), rate=requests / max(seconds, TICK), refresh=True)

        yield update
