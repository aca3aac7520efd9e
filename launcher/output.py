"""What people read: the lines of `up` and `down`, and the table of `status`. Text only; no decisions."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memcluster.client.discover import command

COLUMNS = {
    "NAME": "name",
    "ROLE": "role",
    "STATE": "state",
    "READY": "ready",
    "PID": "pid",
    "ADDRESS": "address",
    "RANGE": "range",
    "UPTIME": "uptime_s",
    "RESTARTS": "restarts",
    "CLIENTS": "clients",
    "REQUESTS": "requests",
    "RSS": "rss_bytes",
    "CPU%": "cpu_percent",
}
GRACEFUL = "exited with status 0"
_RIGHT = {"PID", "UPTIME", "RESTARTS", "CLIENTS", "REQUESTS", "RSS", "CPU%"}


def happening_line(happening: dict[str, Any], stop_command: str) -> str:
    """A line, or a few, for something that the supervisor told; empty for what is not for people."""
    event, name, text = happening["event"], happening.get("name", ""), happening.get("text", "")
    match event:
        case "ready":
            return f"✔ {name:<10} ready  {text}"
        case "running":
            return (
                f"ready in {happening['seconds']:.2f} s\n"
                f"  clients connect to  {happening['uri']}\n"
                f"  to stop it          {stop_command}"
            )
        case "exited":
            return f"✔ {name:<10} stopped" if text == GRACEFUL else f"✘ {name:<10} {text}"
        case "died" | "failed" | "hung" | "late":
            return f"✘ {name:<10} {f'{event}: ' if event in ('failed', 'hung') else ''}{text}"
        case "restarting":
            return f"… {name:<10} restarting {text}"
        case "gave-up":
            return f"gave up: {text}"
        case "draining":
            return "stopping"
        case "collected":
            if "error" in happening:
                return f"✘ the merged log was not written: {happening['error']}"
            missing = f"; without {', '.join(happening['missing'])}" if happening["missing"] else ""
            return f"✔ {happening['collected']} log records merged into {happening['path']}{missing}"
        case "gone":
            return "stopped"
        case "leftover":
            return f"✔ {name:<10} ended: a supervisor that died had left it"
        case "supervisor-dead":
            return "the supervisor is dead; cleaning up after it"
        case "unresponsive":
            return f"✘ the supervisor does not answer ({text}): killed"
        case _:
            return ""


def status_table(status: dict[str, Any]) -> str:
    """The table of `memcluster status`, with a verdict as its last line."""
    rows = [list(COLUMNS)]
    rows += [[_cell(column, node.get(key)) for column, key in COLUMNS.items()] for node in status["nodes"]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = [
        "  ".join(
            cell.rjust(width) if title in _RIGHT else cell.ljust(width)
            for cell, width, title in zip(row, widths, COLUMNS, strict=True)
        ).rstrip()
        for row in rows
    ]
    return "\n".join([*(lines if status["nodes"] else []), verdict(status)])


def verdict(status: dict[str, Any]) -> str:
    """One line that says how the cluster is, and what to do if it is not well."""
    head = f"{status['cluster']} is {status['state']}"
    if status.get("problem"):
        return f"{head}: {status['problem']}"
    if status["state"] == "stopped":
        return f"{head}; `{command(Path(status['file']), 'up')}` starts it"
    servers = sum(node["role"] != "logger" for node in status["nodes"])
    reasons = [
        f"{node['name']} is {node['state']}" + (f" ({node['reason']})" if node.get("reason") else "")
        for node in status["nodes"]
        if not node["ready"]
    ]
    reasons += [f"{sentence}, the service goes on" for sentence in stopped_logs(status)]
    for name, problem in (("no_space", "requests found no room"), ("records_lost", "log records were not written")):
        reasons += [f"{node['name']}: {node[name]} {problem}" for node in status["nodes"] if node.get(name)]
    served = f"{status['topology']}, {servers} server{'s' if servers > 1 else ''}, {format_bytes(status['memory'])}"
    return f"{head}: {served} at {status['uri']}" + (f"; {', '.join(reasons)}" if reasons else "")


def stopped_logs(status: dict[str, Any]) -> list[str]:
    """A sentence for each server that cannot write its log."""
    return [
        f"the log of {node['name']} has stopped ({node['log_trouble']})"
        for node in status["nodes"]
        if node.get("log_trouble")
    ]


def _cell(column: str, value: Any) -> str:
    match column:
        case "READY":
            return "yes" if value else "no"
        case "RANGE":
            return f"{value[0]:#x}-{value[1]:#x}" if value else "-"
        case "UPTIME":
            return format_uptime(value)
        case "RSS":
            return format_bytes(value)
        case "CPU%":
            return f"{value:.1f}"
        case _:
            return "-" if value is None else str(value)


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

    with Live(Text(show()), auto_refresh=False) as view:
        while True:
            time.sleep(1)
            view.update(Text(show()), refresh=True)


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
