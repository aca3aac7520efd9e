"""What it costs to give a memory another shape: `python -m bench.reshape [BYTES] [TOPOLOGY] [TURNS]`.

From 3 to 5 servers and back, in turns; every byte is in use. Idle it is held against nbdcopy between two memory servers
of nbdkit in the same sitting, and a client that reads a page again and again says how long it waited. Under load, fio's
4 KiB at random places, as many reads as writes, 32 in flight, over one connection, what is left of that while bytes
move is held against what there was just before, and each request says how long it took.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import yaml

import memcluster
from bench.cluster import Cluster
from bench.peers import nbdkit_memory
from bench.processes import Service, fill, need, run, running
from memcluster.launcher.run.control import ask, connect
from memcluster.launcher.run.directory import RunDirectory

TURNS = 3
BEFORE = 2.0
"""Seconds in which the load is measured before bytes move."""
LOADED = ((5, ()), (3, ("--rate", "200MiB")), (5, ("--rate", "100MiB")))
"""To so many servers, with these words."""
TIMEOUT = 600.0


class Waits(NamedTuple):
    """Of requests, in seconds: p99.9 and the longest."""

    most: float
    longest: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Waits:
        ranked = sorted(seconds)
        return cls(ranked[int(len(ranked) * 0.999)], ranked[-1])

    def __str__(self) -> str:
        return f"{self.most * 1e3:.1f} ms (p99.9), {self.longest * 1e3:.0f} ms at most"


class Reader(threading.Thread):
    """A client that reads a page again and again."""

    def __init__(self, uri: str) -> None:
        super().__init__()
        self._uri = uri
        self._over = False
        self._waits: list[float] = []

    def run(self) -> None:
        with memcluster.connect(self._uri) as memory:
            while not self._over:
                began = time.perf_counter()
                memory.pread(4096, 0)
                self._waits.append(time.perf_counter() - began)

    def stop(self) -> Waits:
        self._over = True
        self.join()
        return Waits.of(self._waits)


class Watcher(threading.Thread):
    """Hears what happens to a cluster; `times` has when each was heard first, in seconds since 1970."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.times: dict[str, float] = {}
        self._stream = connect(RunDirectory(name).control)
        self._stream.send({"do": "watch"})

    def run(self) -> None:
        for happening in self._stream.frames(time.monotonic() + TIMEOUT):
            name = happening["text"] if happening["event"] == "noted" else happening["event"]
            self.times.setdefault(name, time.time())
            if name == "applied":
                break
        self._stream.close()


def write(cluster: Cluster, servers: int) -> None:
    file = cluster.folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"servers": servers}))


def apply(cluster: Cluster, servers: int) -> tuple[float, Waits]:
    """Seconds of the command, and what a client waited."""
    write(cluster, servers)
    reader = Reader(cluster.status()["uri"])
    reader.start()
    began = time.perf_counter()
    cluster.command("apply", "--yes")
    took = time.perf_counter() - began
    return took, reader.stop()


class Load(NamedTuple):
    """Requests a second before bytes move, and in so many seconds while they do; what one waited from then until the
    other cluster ran."""

    before: float
    during: float
    seconds: float
    waits: Waits

    def __str__(self) -> str:
        return (f"{self.before:,.0f} requests a second, {self.during:,.0f} in the {self.seconds:.2f} s while bytes "
                f"move: {self.during / self.before:.2f} of it; a request took {self.waits}")  # fmt: skip


def loaded(cluster: Cluster, size: int, servers: int, *words: str) -> Load:
    """What becomes of fio's load while the cluster gets so many servers."""
    status = cluster.status()
    with tempfile.TemporaryDirectory(prefix="memcluster-fio-") as folder:
        command = [need("fio"), "--name=load", "--ioengine=nbd", f"--uri={status['uri']}", "--rw=randrw", "--bs=4k",
                   "--iodepth=32", f"--size={size}", "--time_based", f"--runtime={TIMEOUT:.0f}", "--randrepeat=0",
                   "--write_lat_log=fio", "--log_unix_epoch=1"]  # fmt: skip
        write(cluster, servers)
        with running(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder) as fio:
            control = RunDirectory(status["cluster"]).control
            while not ask(control, {"do": "status"}, TIMEOUT)["nodes"][0]["requests"]:
                time.sleep(0.05)
            time.sleep(2 * BEFORE)
            watcher = Watcher(status["cluster"])
            watcher.start()
            cluster.command("apply", "--yes", *words)
            watcher.join()
            fio.send_signal(signal.SIGINT)
            fio.wait()
        lines = [line.split(",") for line in (Path(folder) / "fio_lat.1.log").read_text().splitlines()]
    done = sorted((int(line[0]) / 1e3, int(line[1]) / 1e9) for line in lines)
    begun, switched, applied = (watcher.times[name] for name in ("move_begun", "move_switched", "applied"))

    def between(start: float, end: float) -> list[float]:
        first, last = bisect_left(done, (start,)), bisect_left(done, (end,))
        return [seconds for _, seconds in done[first:last]]

    before, during = len(between(begun - BEFORE, begun)) / BEFORE, between(begun, switched)
    seconds = switched - begun
    return Load(before, len(during) / seconds, seconds, Waits.of(between(begun, applied + 1.0)))


def copy(size: int) -> float:
    """Seconds that nbdcopy takes from one memory server to another."""
    with nbdkit_memory(size) as one, nbdkit_memory(size, filled=False) as other:
        began = time.perf_counter()
        run(need("nbdcopy"), one.uri, other.uri)
        return time.perf_counter() - began


def main(size: int = 1 << 30, topology: str = "primary-secondary", count: int = TURNS) -> None:
    with tempfile.TemporaryDirectory(prefix="memcluster-bench-") as folder:
        cluster = Cluster(Path(folder), memory=size, servers=3, topology=topology)
        cluster.up()
        try:
            status = cluster.status()
            fill(Service(status["uri"], status["nodes"][0]["pid"]), size)
            turns = []
            for turn in range(count):
                took, waits = apply(cluster, 3 if turn % 2 else 5)
                copied = copy(size)
                turns.append((took, waits.longest, copied))
                print(f"apply {took:.2f} s, a request took {waits}; nbdcopy {copied:.2f} s; ratio {took / copied:.2f}")
            if topology != "client-routed":  # fio does not route
                for servers, words in LOADED if count % 2 == 0 else [(8 - servers, words) for servers, words in LOADED]:
                    how = " ".join(words) or "as fast as it can"
                    print(f"under load, {how}: {loaded(cluster, size, servers, *words)}")
        finally:
            cluster.down()
    took, longest, copied = (median(column) for column in zip(*turns, strict=True))
    load = os.getloadavg()[0]
    print(f"median: apply {took:.2f} s, pause {longest * 1e3:.0f} ms ({max(turn[1] for turn in turns) * 1e3:.0f} at "
          f"most), nbdcopy {copied:.2f} s; load average {load:.1f}")  # fmt: skip


if __name__ == "__main__":
    main(*(int(word) if word.isdecimal() else word for word in sys.argv[1:]))  # type: ignore[arg-type]
