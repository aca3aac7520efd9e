"""`memcluster compare`: the topologies side by side, each a private cluster under the same loads.

A cluster is started for each case by the command that people use, driven by `memclient bench`, asked for its counters
before and after, and stopped; no process of it stays, whatever happens.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import yaml

from memcluster.client.console import Failure
from memcluster.client.units import format_size
from memcluster.launcher.run.control import ask
from memcluster.launcher.run.directory import RunDirectory
from memcluster.node import topology
from memcluster.node.zygote import end_with

CLIENT = "memcluster.client.cli"
ANSWER_WITHIN = 10.0
COUNTERS = ("received", "sent", "messages_in", "messages_out")


@dataclass(frozen=True)
class Case:
    """One way to serve the memory."""

    topology: str
    fan_out: str
    """Empty where there is no choice."""
    links: str = ""
    """What cluster.yaml says of them, unless that is the default."""

    def __str__(self) -> str:
        return ", ".join(word for word in (self.topology, self.fan_out, self.links) if word)


@dataclass(frozen=True)
class Workload:
    """`mode` is an option of `memclient bench`; `block` in bytes."""

    name: str
    mode: str
    block: int
    depth: int


@dataclass(frozen=True)
class Options:
    """Bytes, seconds, and counts."""

    topologies: Sequence[str]
    servers: int = 4
    memory: int = 64 << 20
    stripe: int = 64 << 10
    size: int = 4096
    large: int = 1 << 20
    depth: int = 32
    seconds: float = 3.0

    @property
    def cases(self) -> list[Case]:
        found = []
        for name in self.topologies:
            shape = topology.load(name)
            fan_outs = ("parallel", "serial") if shape.fans_out else ("",)
            found += [Case(name, fan_out) for fan_out in fan_outs]
            if shape.shares:
                found.append(Case(name, fan_outs[0], "shared"))
        return found

    @property
    def workloads(self) -> list[Workload]:
        small, large = format_size(self.size), format_size(self.large)
        return [
            Workload(f"{small} reads, {self.depth} in flight", "--read", self.size, self.depth),
            Workload(f"{small} reads, one at a time", "--read", self.size, 1),
            Workload(f"{small} writes, {self.depth} in flight", "--write", self.size, self.depth),
            Workload(f"{large} reads, 4 in flight", "--read", self.large, 4),
        ]


def compare(options: Options, progress: Callable[[str], object]) -> list[dict[str, Any]]:
    """The results of all cases, as they are shown; `progress` is told what is being done. Raises Failure."""
    results = []
    for case in options.cases:
        progress(f"{case}: starting")
        with _cluster(case, options) as (name, uri):
            found = []
            for workload in options.workloads:
                progress(f"{case}: {workload.name}")
                found.append({"workload": workload.name, **_measure(name, uri, workload, options)})
        named = {"topology": case.topology, "fan_out": case.fan_out or None, "links": case.links or None}
        results.append({**named, "workloads": found})
    return results


@contextmanager
def _cluster(case: Case, options: Options) -> Iterator[tuple[str, str]]:
    """(name, URI) of a running cluster."""
    name = f"compare-{os.getpid()}"
    folder = Path(tempfile.mkdtemp(prefix="memcluster-compare-"))
    file = folder / "cluster.yaml"
    description: dict[str, Any] = {
        "name": name,
        "memory": options.memory,
        "servers": options.servers,
        "topology": case.topology,
        "layout": {"stripe": options.stripe},
        "listen": "127.0.0.1:0",
    }
    if case.fan_out:
        description["fan_out"] = case.fan_out
    if case.links:
        description["links"] = case.links
    try:
        file.write_text(yaml.safe_dump(description))
        with _supervised(file):
            uri = RunDirectory(name).uri.read_text().strip()
            # Every page is there before anything is measured: a hole is faster to read, and slower to write.
            data = os.urandom(1 << 20) * (options.memory >> 20)
            _run(CLIENT, "--uri", uri, "write", "0", stdin=data)
            yield name, uri
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _supervised(file: Path) -> Iterator[None]:
    """The cluster of a cluster.yaml runs, as our child: it is stopped at the end, and stops when we are killed."""
    words = _command("memcluster", "-f", str(file), "up")
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=partial(end_with, os.getpid(), signal.SIGTERM),  # noqa: PLW1509 - the progress's thread holds no lock
    ) as supervisor:  # fmt: skip
        assert supervisor.stdout is not None
        assert supervisor.stderr is not None
        try:
            if not any(line.startswith(b"ready in") for line in supervisor.stdout):
                raise Failure(supervisor.stderr.read().decode(errors="replace").strip() or "the cluster did not start")
            yield
        finally:
            supervisor.terminate()
            supervisor.communicate()


def _measure(name: str, uri: str, workload: Workload, options: Options) -> dict[str, Any]:
    words = [workload.mode, "--block", str(workload.block), "--depth", str(workload.depth)]
    words += ["--offset", "0", "--length", str(options.memory), "--runtime", f"{options.seconds:g}s", "--json"]
    before = _counters(name)
    found = json.loads(_run(CLIENT, "--uri", uri, "bench", *words))
    after = _counters(name)
    done = found[workload.mode.lstrip("-")]
    latency = done["latency_us"]
    return {
        "block": workload.block,
        "depth": workload.depth,
        "requests": done["requests"],
        "iops": done["iops"],
        "bytes_per_second": done["bytes_per_second"],
        "latency_us": {"p50": latency["p50"], "p99": latency["p99"]},
        "processes": [
            {"name": node, "role": values["role"]}
            | {
                key: (values[key] - before[node][key]) / done["requests"]
                for key in (*COUNTERS, "cpu_us")
            }
            for node, values in after.items()
        ],
    }


def _counters(name: str) -> dict[str, dict[str, Any]]:
    """What every server has done since it began, by name."""
    status = ask(RunDirectory(name).control, {"do": "status"}, ANSWER_WITHIN)
    found = {}
    for node in status["nodes"]:
        if node["role"] != "logger":
            times = psutil.Process(node["pid"]).cpu_times()
            used = {key: node[key] for key in COUNTERS}
            found[node["name"]] = {"role": node["role"], "cpu_us": (times.user + times.system) * 1e6, **used}
    return found


def _command(module: str, *words: str) -> list[str]:
    return [sys.executable, "-P", "-m", module, *words]  # -P: what lies in the working directory is not ours to run


def _run(module: str, *words: str, stdin: bytes = b"") -> bytes:
    """What a command of ours printed. Raises Failure with what it complained of."""
    done = subprocess.run(_command(module, *words), input=stdin, capture_output=True, check=False)
    if done.returncode:
        raise Failure(done.stderr.decode(errors="replace").strip() or f"{module} {words[0]} failed")
    return done.stdout
