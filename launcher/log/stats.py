"""`memcluster stats`: asks logger 0 for the figures of the last seconds, and shows them as a table or as JSON."""

from __future__ import annotations

import math
import socket
from typing import Any

from memcluster.launcher.log.reader import RECEIVE, LogsError, check_answer, connect, in_words
from memcluster.launcher.output import format_bytes
from memcluster.launcher.table import folded, table
from memcluster.node.log.tally import Figures, Tally
from memcluster.node.log.text import event_name, kind_name, operation_name
from memcluster.node.transport.frames import Frame, FrameReader

TIMEOUT = 10.0
BUSIEST = 5
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


def read_stats(
    address: str,
    secret: bytes,
    over: float,
    *,
    age: float = math.inf,
    sample: int = 1,
    timeout: float = TIMEOUT,
) -> dict[str, Any]:
    """The figures of the last `over` seconds, as `stats --json` prints them, but of no time before the cluster, which
    is `age` seconds old. A rate is of as much of that as the server's log covers. Counts of a log that keeps one story
    in `sample` are scaled up. Raises LogsError."""
    seconds = min(over, age)
    answer = _ask(address, secret, {"ask": "stats", "since": -max(1, int(seconds * 1e9))}, timeout)
    try:
        tallies = {node: Tally.from_head(head) for node, head in answer["stats"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LogsError(f"what answers at {address} is not logger0: it sent no figures") from error
    return figures(tallies, over, seconds, sample, {name: str(why) for name, why in answer.get("trouble", {}).items()})


def figures(
    tallies: dict[str, Tally], over: float, seconds: float, sample: int = 1, missing: dict[str, str] | None = None
) -> dict[str, Any]:
    """The figures of `seconds`, where those of `over` were asked for; `missing` loggers with the reason."""
    operations = [
        _row(node, kind, operation, found, min(seconds, tally.age / 1e9) if tally.age > 0 else seconds, sample)
        for node, tally in tallies.items()
        for (kind, operation), found in sorted(tally.figures.items())
    ]
    whole = Tally()
    for tally in tallies.values():
        whole.join(tally)
        whole.cell = tally.cell
    return {
        "over": over,
        "seconds": round(seconds, 3),
        "sample": sample,
        "operations": operations,
        "busiest": [
            {
                "range": [index * whole.cell, (index + 1) * whole.cell],
                "requests": count * sample,
                "bytes": whole.cell_bytes[index] * sample,
            }
            for index, count in sorted(whole.cells.items(), key=lambda pair: (-pair[1], pair[0]))[:BUSIEST]
        ],
        "events": {
            node: {event_name(event): count for event, count in sorted(tally.events.items())}
            for node, tally in tallies.items()
        },
        "records_missing": {node: tally.missing for node, tally in tallies.items() if tally.missing},
        "missing": missing or {},
    }


def _row(node: str, kind: int, operation: int, figures: Figures, seconds: float, sample: int) -> dict[str, Any]:
    return {
        "node": node,
        "kind": kind_name(kind),
        "operation": operation_name(operation),
        "count": figures.count * sample,
        "seconds": round(seconds, 3),
        "rate": round(figures.count * sample / seconds, 3),
        "bytes_per_second": round(figures.bytes * sample / seconds, 3),
        "errors": figures.errors * sample,
        "latency_us": {
            "mean": round(figures.time / figures.count / 1000, 3),
            **{name: round(figures.percentile(part) / 1000, 3) for name, part in PERCENTILES.items()},
            "max": round(figures.longest / 1000, 3),
        },
    }


def _ask(address: str, secret: bytes, head: dict[str, Any], timeout: float) -> dict[str, Any]:
    reader = FrameReader()
    with in_words(address, timeout), connect(address, secret, timeout) as sock:
        sock.sendall(Frame(head).encode())
        while data := sock.recv(RECEIVE):
            for frame in reader.receive(data):
                check_answer(frame)
                if "error" in frame.head:
                    raise LogsError(f"logger0: {frame.head['error']}")
                sock.shutdown(socket.SHUT_RDWR)
                return frame.head
    raise LogsError(f"logger0 at {address} hung up")


# -- the table ---------------------------------------------------------------------------------------------------

COLUMNS = ("NODE", "KIND", "OPERATION", "RATE", "BANDWIDTH", "ERRORS", "MEAN", "P50", "P90", "P99", "P99.9", "MAX")
IMPORTANCE = ("OPERATION", "RATE", "P50", "P99", "MAX", "ERRORS", "KIND", "BANDWIDTH", "P90", "MEAN", "P99.9")
"""Which column stays longest where there is no room for all; NODE is always there."""


def stats_table(stats: dict[str, Any], width: int = 0) -> str:
    """The figures for people; of at most `width` columns of text, if that is possible."""
    rows = [COLUMNS, *map(_cells, stats["operations"])]
    lines = table(rows, right=COLUMNS[3:], importance=IMPORTANCE, width=width)
    if not stats["operations"]:
        lines = [f"nothing was asked in the last {round(stats['seconds'], 1):g} s"]
    said: list[str] = []
    if stats["busiest"]:
        said.append("busiest ranges:")
        said += [
            f"  {first:#x}-{end:#x}  {found['requests']} requests, {format_bytes(found['bytes'])}"
            for found in stats["busiest"]
            for first, end in [found["range"]]
        ]
    for node, events in stats["events"].items():
        if events:
            said.append(f"{node}: " + ", ".join(f"{name} {count}" for name, count in events.items()))
    for name, why in stats["missing"].items():
        said.append(f"{name} is missing ({why}); these figures are without its share")
    if round(stats["seconds"], 1) < round(stats["over"], 1):
        said.append(f"of the last {stats['seconds']:.1f} s, for the cluster is no older")
    said += [f"{count} records of {node} are not there" for node, count in stats["records_missing"].items()]
    if stats["sample"] > 1:
        said.append(f"scaled up from one request in {stats['sample']} (logs.sample)")
    return "\n".join([*lines, *(folded(sentence, width) for sentence in said)])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    latency = row["latency_us"]
    return (
        row["node"],
        row["kind"],
        row["operation"],
        f"{row['rate']:,.1f}/s",
        f"{format_bytes(round(row['bytes_per_second']))}/s",
        str(row["errors"]),
        *(_span(latency[name]) for name in ("mean", *PERCENTILES, "max")),
    )


def _span(us: float) -> str:
    return f"{us:.0f}us" if us < 1000 else f"{us / 1000:.2f}ms" if us < 1e6 else f"{us / 1e6:.2f}s"
