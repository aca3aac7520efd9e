"""The log as a trace in Chrome's event format, for Perfetto and chrome://tracing.

Each server is a process there, and so is each client, with its waits. What overlaps goes to tracks beside one another,
for a track holds one thing at a time. An arrow leads from a request to each of its pieces. Written entry by entry, so
that the log may be as long as it likes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from memcluster.node.log.record import Kind, format_identifier
from memcluster.node.log.text import LogEntry, event_detail, event_name, kind_name, operation_name
from memcluster.node.nbd.wire import Error

CLIENTS = 1_000_000
"""Client n is process CLIENTS + n, server n is process n + 1: process 0 is a special one in Perfetto."""

REMEMBERED = 1 << 16
"""Requests from which arrows may still start."""


class Tracks:
    """Gives each span of one process the lowest track that is free when it starts."""

    def __init__(self) -> None:
        self._ends: list[int] = []

    def place(self, start: int, end: int) -> int:
        """The track for a span; to be asked in the order of starts."""
        for track, free in enumerate(self._ends):
            if free <= start:
                self._ends[track] = end
                return track
        self._ends.append(end)
        return len(self._ends) - 1


def write_trace(path: Path, entries: Iterable[LogEntry]) -> int:
    """Write the trace of entries in the order of the log; returns how many they were. Raises OSError."""
    with path.open("w", encoding="utf-8", buffering=1 << 20) as file:
        writer = _Writer(file)
        file.write('{"displayTimeUnit":"ns","traceEvents":[\n')
        for entry in entries:
            writer.add(entry)
        writer.name_processes()
        file.write("\n]}\n")
        return writer.count


class _Writer:
    def __init__(self, file: TextIO) -> None:
        self.count = 0
        self._file = file
        self._first = True
        self._zero: int | None = None
        self._tracks: dict[int, Tracks] = {}
        self._requests: dict[int, dict[str, Any]] = {}  # where they stand, for their pieces' arrows

    def add(self, entry: LogEntry) -> None:
        server, record = entry
        self.count += 1
        if self._zero is None:
            self._zero = record.start
        where = {"pid": server + 1, "ts": self._time(record.start)}
        if record.kind == Kind.EVENT:
            name = f"{event_name(record.operation)} {event_detail(entry)}".rstrip()
            self._tracks.setdefault(server + 1, Tracks())
            self._write({"ph": "i", "s": "p", "name": name, "cat": "event", "tid": 0, **where})
            return
        track = self._track(server + 1, record.start, record.duration)
        identifier = format_identifier(record.identifier)
        bar = {
            "ph": "X",
            "name": operation_name(record.operation),
            "cat": kind_name(record.kind),
            "tid": track,
            "dur": record.duration / 1000,
            **where,
            "args": {
                "request": identifier,
                "offset": f"{record.offset:#x}",
                "length": record.length,
                "error": Error(record.error).name if record.error in Error.__members__.values() else record.error,
            },
        }
        self._write(bar)
        if record.kind == Kind.PIECE and (cause := self._requests.get(record.identifier)) is not None:
            arrow = {"name": "piece", "cat": "piece", "id": f"{identifier}/{server}"}
            self._write({"ph": "s", **arrow, **cause})
            self._write({"ph": "f", "bp": "e", **arrow, "tid": track, **where})
        elif record.kind == Kind.REQUEST:
            self._requests[record.identifier] = {"tid": track, **where}
            if len(self._requests) > REMEMBERED:
                del self._requests[next(iter(self._requests))]
            process = CLIENTS + record.client
            wait = self._track(process, record.start, record.duration)
            self._write({**bar, "cat": "wait", "pid": process, "tid": wait})

    def name_processes(self) -> None:
        """Say what the processes are called; that may stand at the end."""
        for process in sorted(self._tracks):
            name = f"server{process - 1}" if process < CLIENTS else f"client {process - CLIENTS}"
            about = {"ph": "M", "pid": process, "tid": 0}
            self._write({**about, "name": "process_name", "args": {"name": name}})
            self._write({**about, "name": "process_sort_index", "args": {"sort_index": process % CLIENTS}})

    def _track(self, process: int, start: int, duration: int) -> int:
        return self._tracks.setdefault(process, Tracks()).place(start, start + duration)

    def _time(self, start: int) -> float:
        """Microseconds since the first entry."""
        assert self._zero is not None
        return (start - self._zero) / 1000

    def _write(self, event: dict[str, Any]) -> None:
        self._file.write(("" if self._first else ",\n") + json.dumps(event, separators=(",", ":")))
        self._first = False
