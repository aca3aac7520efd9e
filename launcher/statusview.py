"""The table of `memcluster status`, its verdict, and faults in words. Text only; no decisions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from memcluster.client.discover import command
from memcluster.launcher.output import format_bytes, format_uptime, listed, stopped_logs
from memcluster.launcher.table import coloured, folded, table
from memcluster.node.nbd.printable import printable_all

COLUMNS = {
    "NAME": "name",
    "ROLE": "role",
    "STATE": "state",
    "READY": "ready",
    "HOST": "host",
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
RIGHT = {"PID", "UPTIME", "RESTARTS", "CLIENTS", "REQUESTS", "RSS", "CPU%"}
IMPORTANCE = (
    "HOST", "ROLE", "ADDRESS", "RANGE", "CLIENTS", "RESTARTS", "PID", "UPTIME", "REQUESTS", "READY", "RSS", "CPU%"
)  # fmt: skip
"""Which column stays longest where there is no room for all; NAME and STATE are always there."""
OWN_SOCKET = r"^unix:/dev/shm/memcluster-[^/]*/"
"""Where nobody but the cluster's own is let in; `--json` has the whole path."""
COLOURS = {"ready": "green", "failed": "red", "exited": "red", "unreachable": "red"}
DOING = {"pause": "paused", "kill": "killed", "slow": "slow", "hang": "hanging"}


def status_table(status: dict[str, Any], width: int = 0) -> str:
    """A line a node, with a verdict as the last line; of at most `width` columns if that is possible."""
    status = printable_all(status)
    columns = [column for column in COLUMNS if column != "HOST" or any("host" in node for node in status["nodes"])]
    rows = [columns]
    rows += [[_cell(status, column, node) for column in columns] for node in status["nodes"]]
    lines = table(rows, right=RIGHT, importance=IMPORTANCE, width=width, paint=_paint)
    sentences = [*status.get("exposed", []), status.get("changed")]
    notes = [folded(f"note: {sentence}", width) for sentence in sentences if sentence]
    return "\n".join([*(lines if status["nodes"] else []), *notes, folded(verdict(status), width)])


def verdict(status: dict[str, Any]) -> str:
    """One line that says how the cluster is, and what to do if it is not well."""
    faults = status.get("faults", [])
    head = f"{status['cluster']} is {status['state']}"
    if faults:
        head += f", with {len(faults)} fault{'s' if len(faults) > 1 else ''} on purpose"
    if status.get("problem"):
        return f"{head}: {status['problem']}"
    moving = progress_words(status["applying"]) if status.get("applying") else ""
    if moving and status["state"] == "applying":
        return f"{head}: {moving}"
    if status["state"] == "stopped":
        return f"{head}; `{command(Path(status['file']), 'up')}` starts it"
    told = {(name, DOING.get(fault["kind"])) for fault in faults for name in fault["nodes"]}
    reasons = [
        f"{node['name']} is {node['state']}" + (f" ({node['reason']})" if node.get("reason") else "")
        for node in status["nodes"]
        if not node["ready"] and (node["name"], node["state"]) not in told
    ]
    reasons += [f"{sentence}, the service goes on" for sentence in stopped_logs(status)]
    for name, problem in (("no_space", "requests found no room"), ("records_lost", "log records were not written")):
        reasons += [f"{node['name']}: {node[name]} {problem}" for node in status["nodes"] if node.get(name)]
    reasons += status.get("missing", [])
    if down := [node["name"] for node in status["nodes"] if node["state"] == "stopped"]:
        reasons.append(f"`{command(Path(status['file']), ' '.join(['start', *down]))}` ends that")
    if moving:
        reasons.append(moving)
    if faults:
        reasons += fault_sentences(faults)
        reasons.append(f"`{command(Path(status['file']), 'fault resume all')}` ends what was done on purpose")
    reasons += [
        f"the link to {name} goes by {kind}"
        for node in status["nodes"]
        for name, kind in node.get("links", {}).items()
        if kind != "shared"
    ]
    served = f"{status['topology']}, {_servers(status)}, {format_bytes(status['memory'])}"
    return f"{head}: {served} at {status['uri']}" + (f"; {', '.join(reasons)}" if reasons else "")


def progress_words(progress: dict[str, Any]) -> str:
    """How far bytes are moved: `12MiB of 1GiB are moved, 1.1GiB a second, 0.9s left`; and on whom that waits."""
    if progress.get("waits_for") and progress.get("round"):
        return f"{_moved_words(progress)}, waiting for {listed(progress['waits_for'])}"
    return _moved_words(progress)


def _moved_words(progress: dict[str, Any]) -> str:
    moved, total, seconds = progress["moved"], progress["total"], max(progress["seconds"], 1e-3)
    words = f"{format_bytes(moved)} of {format_bytes(total)} {'are still' if progress['back'] else 'are'} moved"
    if progress["back"] or not moved:
        return words
    return f"{words}, {format_bytes(moved / seconds)} a second, {format_uptime((total - moved) * seconds / moved)} left"


def fault_sentences(faults: list[dict[str, Any]]) -> list[str]:
    """Faults in force, as sentences have them: `server1 is slow (50 ms a reply, 12.0s left)`. What was done alike to
    several nodes is one."""
    alike: dict[tuple[str, str], list[str]] = {}
    for fault in faults:
        kind, left, names = fault["kind"], fault["left_s"], fault["nodes"]
        until = "until it is resumed" if left is None else f"{format_uptime(left)} left"
        if kind == "hang" and left is None:
            until = "until it is found and ended"
        pace = f"{fault['delay_s'] * 1000:g} ms a reply, " if kind == "slow" else ""
        if host := fault.get("host"):
            kind, names = "partition", [f"the nodes of {host}", "all others"]
        cut = listed(names) if kind == "partition" else ""  # each cut is a sentence of its own
        alike.setdefault((cut or kind, f"({pace}{until})"), []).extend(names)
    return [
        f"{what} are cut off from each other {until}"
        if what not in DOING
        else f"{listed(names)} {'is' if len(names) == 1 else 'are'} {DOING[what]} {until}"
        for (what, until), names in alike.items()
    ]


def _servers(status: dict[str, Any]) -> str:
    """Those that cluster.yaml speaks of, which own the memory; one that owns none comes before them."""
    count = sum(bool(node["memory"]) for node in status["nodes"])
    before = [node["role"] for node in status["nodes"] if node["role"] != "logger" and not node["memory"]]
    return f"{count} server{'s' if count > 1 else ''}" + "".join(f" behind a {role}" for role in before)


def state_words(status: dict[str, Any], node: dict[str, Any]) -> str:
    """`ready, slow 12.0s`: how a node is, and what is done to it on purpose for how long."""
    words = [node["state"]]
    for fault in status.get("faults", []):
        if node["name"] in fault["nodes"]:
            peers = [name for name in fault["nodes"] if name != node["name"]]
            if fault.get("host"):
                peers = ["all other hosts"]
            doing = f"cut from {peers[0]}" if peers else DOING[fault["kind"]]
            if doing == words[0]:
                words.pop(0)
            words.append(doing if fault["left_s"] is None else f"{doing} {format_uptime(fault['left_s'])}")
    return ", ".join(words)


def _paint(title: str, cell: str) -> str:
    return coloured(cell, COLOURS.get(cell.strip(), "yellow")) if title == "STATE" else cell


def _cell(status: dict[str, Any], column: str, node: dict[str, Any]) -> str:
    value: Any = node.get(COLUMNS[column])
    match column:
        case "STATE":
            return state_words(status, node)
        case "ADDRESS":
            return re.sub(OWN_SOCKET, "unix:…/", value) if value else "-"
        case "READY":
            return "yes" if value else "no"
        case "PID":
            where = f"{node['host']}/" if "host" in node else ""
            return "-" if value is None else f"{where}{value}"
        case "RANGE":
            if value is None and node["memory"]:
                return f"{format_bytes(status['stripe'])} stripes"
            return f"{value[0]:#x}-{value[1]:#x}" if value else "-"
        case "UPTIME":
            return format_uptime(value)
        case "RSS":
            return format_bytes(value)
        case "CPU%":
            return f"{value:.1f}"
        case _:
            return "-" if value is None else str(value)
