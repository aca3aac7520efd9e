"""Where the log is to be had: from logger 0 of what runs, or from the segments of a run that is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from memcluster.client.console import EXIT_NOT_RUNNING, Failure
from memcluster.launcher.checked import load, name_of, running, secret_of
from memcluster.launcher.log.kept import KeptLog
from memcluster.launcher.log.reader import read_batches
from memcluster.launcher.log.stats import figures, read_stats
from memcluster.launcher.run.directory import RunRecord
from memcluster.launcher.table import table, width_of
from memcluster.node.log.text import LogEntry

Told = Callable[[str], object]
NEWEST = -1
OVER = 10.0
"""Seconds of which the figures of what runs are, where nobody says otherwise."""
RUN_COLUMNS = ("RUN", "FROM", "TO", "TOPOLOGY", "SERVERS", "RECORDS")


class Source:
    """The log of one run, or of all, of a cluster."""

    running = False
    cluster: str
    topology: str
    memory: int
    nodes: tuple[str, ...]
    fan_out: str
    homes: dict[str, str]
    """The nodes that run on other hosts, and on which."""

    def read_batches(self, **wanted: Any) -> Iterator[list[LogEntry]]:
        """The merged log; see launcher.log.reader.read_batches."""
        raise NotImplementedError

    def stats(self, over: float | None) -> dict[str, Any]:
        """The figures of its last seconds; without a number, those of 10 s of what runs, and of all of what is over."""
        raise NotImplementedError

    def checked(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """What is wanted, if that can be. Raises UsageError."""
        for name in wanted["nodes"]:
            if name not in self.nodes:
                raise click.UsageError(f"there is no node {name!r}; there are {', '.join(self.nodes)}")
        if (span := wanted["span"]) is not None and sum(span) > self.memory > 0:
            raise click.UsageError(f"--range ends at byte {sum(span)}, but the memory has {self.memory} bytes")
        return wanted


class _Running(Source):
    running = True

    def __init__(self, record: RunRecord, run: int, told: Told) -> None:
        self.cluster, self.topology, self.memory = record.cluster, record.topology, record.memory
        self.nodes = tuple(node.name for node in record.nodes)
        self._record = record
        self._secret = secret_of(record)
        self._run = run
        self.fan_out, self.homes = record.fan_out, record.homes
        self._told = told

    def read_batches(self, **wanted: Any) -> Iterator[list[LogEntry]]:
        return read_batches(self._record.logger0.address, self._secret, run=self._run, told=self._told, **wanted)

    def stats(self, over: float | None) -> dict[str, Any]:
        record, over = self._record, OVER if over is None else over
        return read_stats(record.logger0.address, self._secret, over, age=record.supervisor.age, sample=record.sample)


class _Kept(Source):
    def __init__(self, log: KeptLog, run: int, told: Told) -> None:
        found = log.cluster(run)
        self.cluster, self.topology, self.memory = log.folder.name, found.topology, found.memory
        self.fan_out = found.fan_out
        count = max(len(found.servers), *(one.servers for one in log.runs))
        self.nodes = tuple(f"{kind}{index}" for kind in ("server", "logger") for index in range(count))
        homes = {index: server.host for index, server in enumerate(found.servers) if server.host}
        self.homes = {f"{kind}{index}": host for index, host in homes.items() for kind in ("server", "logger")}
        self._log = log
        self._run = run
        self._told = told

    def read_batches(self, **wanted: Any) -> Iterator[list[LogEntry]]:
        wanted.pop("follow", None)  # there is nothing to come
        wanted.pop("output", None)
        return self._log.read_batches(self._run, told=self._told, **wanted)

    def stats(self, over: float | None) -> dict[str, Any]:
        run = next(one for one in self._log.runs if one.number == self._run)
        whole = max((run.end - run.begin) / 1e9, 1e-3)
        seconds = whole if over is None else min(over, whole)
        tallies = self._log.tallies(self._run, run.end - int(seconds * 1e9))
        return figures(tallies, round(whole, 3) if over is None else over, seconds)


def open_log(
    file: Path, run: int | None, *, all_runs: bool = False, follow: bool = False, told: Told
) -> Source:
    """The log of the newest run, of run `run`, or of all. Raises Failure, NotRunning, UsageError."""
    if run is not None and all_runs:
        raise click.UsageError("--run is one run, --all-runs is all of them")
    if run is None:
        try:
            return _Running(running(file), 0 if all_runs else NEWEST, told)
        except Failure as failure:
            if follow or failure.code != EXIT_NOT_RUNNING or not (log := _kept(file)).runs:
                raise
            if not all_runs:
                run = log.runs[-1].number
                told(f"cluster {log.folder.name} is not running; of its last run, {_span(log, run)}:")
    else:
        log = _kept(file)
        if run not in (numbers := [one.number for one in log.runs]):
            known = f"kept are {', '.join(map(str, numbers))}" if numbers else "none is kept"
            raise Failure(f"there is no run {run} in {log.folder}; {known}")
    return _Kept(log, run or 0, told)


def runs_table(file: Path, *, as_json: bool) -> str:
    """The runs of which something is kept. Raises Failure."""
    import json

    log = _kept(file)
    if not log.runs and not as_json:
        raise Failure(f"no run is kept in {log.folder}")
    going_on = 0
    try:
        running(file)
        going_on = log.runs[-1].number if log.runs else 0
    except Failure:
        pass
    found: list[dict[str, Any]] = [
        {
            "run": one.number,
            "state": "running" if one.number == going_on else "over",
            "topology": log.cluster(one.number).topology,
            "servers": one.servers,
            "records": one.records,
            "begin_ns": one.begin,
            "end_ns": one.end,
        }
        for one in log.runs
    ]
    if as_json:
        return json.dumps(found, indent=2)
    rows = [RUN_COLUMNS]
    rows += [
        (
            str(one["run"]),
            _time(one["begin_ns"]),
            "now" if one["state"] == "running" else _time(one["end_ns"]),
            one["topology"],
            str(one["servers"]),
            str(one["records"]),
        )
        for one in found
    ]
    right, importance = ("RUN", "SERVERS", "RECORDS"), ("FROM", "RECORDS", "TO", "TOPOLOGY", "SERVERS")
    return "\n".join(table(rows, right=right, importance=importance, width=width_of()))


def _kept(file: Path) -> KeptLog:
    return KeptLog(load(file, room=False).logs.directory / name_of(file))


def _span(log: KeptLog, run: int) -> str:
    one = next(found for found in log.runs if found.number == run)
    return f"from {_time(one.begin)} to {_time(one.end)}"


def _time(ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ns // 10**9))
