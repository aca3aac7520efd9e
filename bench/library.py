"""What the client library costs a program: an event loop, the guard against a second thread, the start of `memclient`.

Each is a ratio of pairs that follow one another, so a shared machine does no harm; above 1 is in favour of the first.
"""

from __future__ import annotations

import asyncio
import compileall
import contextlib
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click

import memcluster
from bench.cluster import cluster
from bench.pairs import Case, Measure, Plan, take
from bench.processes import ROOT, environment, run
from bench.report import Rows, markdown, number
from memcluster.client.connection import Connection
from memcluster.client.console import unwind

BLOCK, DEPTH, PAGES = 4096, 32, 4096
STARTS = 5
"""Starts of `memclient` in one measurement; the least counts."""


def in_a_thread(uri: str, seconds: float) -> float:
    """Reads a second by `start_pread`, DEPTH in flight."""
    with memcluster.connect(uri) as memory:
        began, done = time.perf_counter(), 0
        waiting = deque(memory.start_pread(BLOCK, page * BLOCK) for page in range(DEPTH))
        while time.perf_counter() - began < seconds:
            for _ in range(DEPTH):
                waiting.popleft().result()
                done += 1
                waiting.append(memory.start_pread(BLOCK, done % PAGES * BLOCK))
        return done / (time.perf_counter() - began)


def in_a_loop(uri: str, seconds: float) -> float:
    """Reads a second by DEPTH tasks."""

    async def reads(memory: memcluster.AsyncMemory, end: float, start: int) -> int:
        done = 0
        while time.perf_counter() < end:
            await memory.pread(BLOCK, (start + done) % PAGES * BLOCK)
            done += 1
        return done

    async def measured() -> float:
        async with memcluster.aconnect(uri) as memory:
            began = time.perf_counter()
            found = await asyncio.gather(*(reads(memory, began + seconds, task) for task in range(DEPTH)))
            return sum(found) / (time.perf_counter() - began)

    return asyncio.run(measured())


@contextlib.contextmanager
def unguarded() -> Iterator[None]:
    """Connections without the lock that tells a second thread at once."""
    names = ("submit", "wait_for", "progress")
    guarded = {name: getattr(Connection, name) for name in names}
    for name, method in guarded.items():
        setattr(Connection, name, method.__wrapped__)
    try:
        yield
    finally:
        for name, method in guarded.items():
            setattr(Connection, name, method)


def start_of_memclient(uri: str, root: Path) -> float:
    """Seconds of processor time, which is nearly all that it takes, of the least `memclient read` of a byte."""
    module = "memcluster.client.cli" if (root / "memcluster").is_dir() else "client.cli"
    command = [sys.executable, "-m", module, "--uri", uri, "read", "0", "1"]
    least = float("inf")
    for _ in range(STARTS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, cwd=root, env=environment(root), stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        least = min(least, spent)
    return least


@contextlib.contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A commit's files in a folder of their own, compiled as these are."""
    with tempfile.TemporaryDirectory(prefix="memcluster-bench-") as name:
        folder = Path(name) / "checkout"
        run("git", "worktree", "add", "--detach", str(folder), commit, cwd=ROOT)
        try:
            for root in (ROOT, folder):
                compileall.compile_dir(root, maxlevels=4, quiet=2)
            yield folder
        finally:
            run("git", "worktree", "remove", "--force", str(folder), cwd=ROOT)


def _case(title: str, peer: str, measures: Sequence[Callable[[float], float]], *, unit: str, lower: bool) -> Case:
    @contextlib.contextmanager
    def prepare(plan: Plan) -> Iterator[Sequence[Measure]]:
        yield [lambda measure=measure: measure(plan.runtime) for measure in measures]  # type: ignore[misc]

    return Case(title, title, unit, peer, 0.0, prepare, lower=lower)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--pairs", type=click.IntRange(1), default=15, show_default=True)
@click.option("--runtime", type=click.FloatRange(0.001), default=0.5, show_default=True, help="Seconds of each load.")
@click.option("--against", metavar="COMMIT", help="The start of memclient, too, beside that of a commit.")
def main(pairs: int, runtime: float, against: str | None) -> None:
    """Measure the client library beside itself."""
    unwind(signal.SIGTERM, signal.SIGHUP)
    rows: Rows = [("what", "beside", "unit", "this:", "that:", "ratio:", "from, to:")]
    with contextlib.ExitStack() as stack:
        uri = stack.enter_context(cluster()).uri
        told = stack.enter_context(cluster(memory=1 << 20)).uri
        loads = [lambda seconds: in_a_loop(uri, seconds), lambda seconds: in_a_thread(uri, seconds)]

        def without(seconds: float) -> float:
            with unguarded():
                return in_a_thread(uri, seconds)

        cases = [
            _case("reads by tasks, 32 in flight", "by start_pread", loads, unit="IOPS", lower=False),
            _case("reads by start_pread", "without the lock", [loads[1], without], unit="IOPS", lower=False),
        ]
        if against:
            there = stack.enter_context(checkout(against))
            starts = [lambda _: start_of_memclient(told, ROOT), lambda _: start_of_memclient(told, there)]
            cases.append(_case("start of memclient read", against, starts, unit="s", lower=True))
        for case in cases:
            found = take(case, Plan(pairs=pairs, runtime=runtime)).to_json()
            medians = [found["memcluster_median"], found["peer_median"]]
            shown = [f"{each:.4f}" if case.unit == "s" else number(each) for each in medians]
            spread = f"{found['ratio_min']:.2f}–{found['ratio_max']:.2f}"
            rows.append((case.title, case.peer, case.unit, *shown, f"{found['ratio_median']:.2f}×", spread))
    click.echo(markdown(rows), nl=False)


if __name__ == "__main__":
    main(prog_name="python -m bench.library")
