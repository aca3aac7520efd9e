"""What people read: the lines of `up` and `down`, units, and views that go on. Text only; no decisions."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from memcluster.node.nbd.printable import printable_all

GRACEFUL = "exited with status 0"
UNCOLLECTED = "the merged log was not written: {}; `memcluster logs` shows what is kept"


def happening_line(happening: dict[str, Any], stop_command: str) -> str:
    """A line, or a few, for something that the supervisor told; empty for what is not for people."""
    happening = printable_all(happening)
    event, name, text = happening["event"], happening.get("name", ""), happening.get("text", "")
    match event:
        case "ready":
            return f"✔ {name:<10} ready  {text}"
        case "running":
            return (
                f"ready in {happening['seconds']:.2f} s\n"
                f"  clients connect to  {happening['uri']}\n"
                f"  to stop it          {stop_command}"
            ) + "".join(f"\n  note                {notice}" for notice in happening["notices"])
        case "exited":
            return f"✔ {name:<10} stopped" if text == GRACEFUL else f"✘ {name:<10} {text}"
        case "died" | "failed" | "hung" | "late":
            if not name:
                return f"✘ {text}"
            return f"✘ {name:<10} {f'{event}: ' if event in ('failed', 'hung') else ''}{text}"
        case "stopped" if name:
            return f"✔ {name:<10} stopped, on purpose"
        case "restarting":
            return f"… {name:<10} restarting {text}"
        case "gave-up":
            return f"gave up: {text}"
        case "draining":
            return "stopping"
        case "uncollected":
            return f"✘ {UNCOLLECTED.format(text)}"
        case "collected":
            if "error" in happening:
                return f"✘ {UNCOLLECTED.format(happening['error'])}"
            missing = f"; without {', '.join(happening['missing'])}" if happening["missing"] else ""
            return f"✔ {happening['collected']} log records merged into {happening['path']}{missing}"
        case "gone":
            return "stopped"
        case "leftover":
            return f"✔ {name:<10} ended: a supervisor that died had left it"
        case "applied":
            return f"✔ applied: {text}"
        case "discarded":
            return f"✔ {name:<10} has thrown away its part of the memory"
        case "lost":
            return f"✘ {text}"
        case "supervisor-dead":
            return "the supervisor is dead; cleaning up after it"
        case "unresponsive":
            return f"✘ the supervisor does not answer ({text}): killed"
        case _:
            return ""


def stopped_logs(status: dict[str, Any]) -> list[str]:
    """A sentence for each server that cannot write its log."""
    return [
        f"the log of {node['name']} has stopped ({node['log_trouble']})"
        for node in status["nodes"]
        if node.get("log_trouble")
    ]


def listed(words: Sequence[str]) -> str:
    """`one`, `one and other`, `one, other and third`."""
    *before, last = words
    return f"{', '.join(before)} and {last}" if before else last


def format_uptime(seconds: float) -> str:
    """4.2s, 3m12s, 5h07m, 2d03h."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d{hour:02}h"
    return f"{hours}h{minute:02}m" if hours else f"{minutes}m{second:02}s"


def format_bytes(count: float) -> str:
    """64MiB, 1.5GiB, 512B."""
    unit, *larger = "B", "KiB", "MiB", "GiB", "TiB"
    while count >= 1024 and larger:
        count /= 1024
        unit, *larger = larger
    return f"{count:.0f}{unit}" if count == int(count) else f"{count:.1f}{unit}"


def show_again(show: Callable[[], str], *, live: bool) -> None:
    """Show again every second: in place on a terminal, one after another elsewhere."""
    if not live:
        while True:
            print(show(), flush=True)
            time.sleep(1)
    from rich.live import Live
    from rich.text import Text

    with Live(Text.from_ansi(show()), auto_refresh=False) as view:
        while True:
            time.sleep(1)
            view.update(Text.from_ansi(show()), refresh=True)


@contextmanager
def steps(count: int) -> Iterator[Callable[[str], None]]:
    """Call what it gives at the beginning of each step: a bar on a terminal, a line elsewhere, on stderr."""
    if not sys.stderr.isatty():
        yield lambda text: print(text, file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=count)
        done = -1

        def step(text: str) -> None:
            nonlocal done
            done += 1
            bar.update(task, completed=done, description=text)

        yield step


@contextmanager
def moving() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Call what it gives with how far bytes are moved: a bar on a terminal, with bytes, rate and time left; nothing
    elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(told: dict[str, Any]) -> None:
            words = "moving back" if told["back"] else "moving"
            bar.update(task, description=words, total=told["total"], completed=told["moved"])

        yield show
