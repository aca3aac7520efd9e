"""What it costs to give a memory another shape: `python -m bench.reshape [BYTES] [TOPOLOGY] [TURNS]`.

From 3 to 5 servers and back, in turns; every byte is in use. Idle it is held against nbdcopy between two memory servers
of nbdkit in the same sitting; under load, 4 KiB at random places, as many reads as writes, 32 in flight, what is left
of that while bytes move is held against what there was just before. fio loses its connection in the pause, and ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import yaml

import memcluster
from bench.cluster import Cluster
from bench.peers import nbdkit_memory
from bench.processes import Service, fill, need, run, running
from memcluster.launcher.run.control import ask
from memcluster.launcher.run.directory import RunDirectory

TURNS = 3
BEFORE = 2.0
"""Seconds in which the load is measured before bytes move."""
LOADED = ((3, ()), (5, ("--rate", "200MiB")), (3, ("--rate", "100MiB")))
"""To so many servers, with these words."""


class Reader(threading.Thread):
    """A client that reads a page again and again; `pause` is the longest time between two answers."""

    def __init__(self, uri: str) -> None:
        super().__init__()
        self._uri = uri
        self._over = False
        self.pause = 0.0

    def run(self) -> None:
        with memcluster.connect(self._uri) as memory:
            before = time.perf_counter()
            while not self._over:
                memory.pread(4096, 0)
                now = time.perf_counter()
                self.pause, before = max(self.pause, now - before), now

    def stop(self) -> float:
        self._over = True
        self.join()
        return self.pause


def apply(cluster: Cluster, servers: int) -> tuple[float, float]:
    """(seconds of the command, seconds that a client waited)"""
    file = cluster.folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"servers": servers}))
    reader = Reader(cluster.status()["uri"])
    reader.start()
    began = time.perf_counter()
    cluster.command("apply", "--yes")
    took = time.perf_counter() - began
    return took, reader.stop()


def load_left(cluster: Cluster, size: int, servers: int, *words: str) -> tuple[float, float, float]:
    """(requests a second of fio before, and while bytes are copied; seconds that this took)"""
    status = cluster.status()
    control = RunDirectory(status["cluster"]).control

    def look() -> tuple[float, int, bool]:
        status = ask(control, {"do": "status"}, 30.0)
        requests = status["nodes"][0]["requests"] if status["nodes"] else 0
        return time.perf_counter(), requests, status["state"] == "running" and bool(status["applying"])

    command = [need("fio"), "--name=load", "--ioengine=nbd", f"--uri={status['uri']}", "--rw=randrw", "--bs=4k",
               "--iodepth=32", f"--size={size}", "--time_based", "--runtime=600", "--randrepeat=0"]  # fmt: skip
    file = cluster.folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"servers": servers}))
    with running(command, stderr=subprocess.DEVNULL):
        while not look()[1]:
            time.sleep(0.05)
        first = look()
        time.sleep(BEFORE)
        last = look()
        with running([sys.executable, "-m", "memcluster", "apply", "--yes", *words], cwd=cluster.folder) as applying:
            while not (moving := look())[2] and applying.poll() is None:
                time.sleep(0.01)
            later = moving
            while (seen := look())[2]:
                later = seen
                time.sleep(0.02)
            applying.wait(600)
    before, during = ((b[1] - a[1]) / max(b[0] - a[0], 1e-9) for a, b in ((first, last), (moving, later)))
    return before, during, later[0] - moving[0]


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
            turns = [(apply(cluster, 5 if turn % 2 == 0 else 3), copy(size)) for turn in range(count)]
            loads = []
            if topology != "client-routed":  # fio does not route
                loads = [(words, load_left(cluster, size, servers, *words)) for servers, words in LOADED]
        finally:
            cluster.down()
    for (took, pause), copied in turns:
        print(f"apply {took:.2f} s, a client waited {pause:.2f} s; nbdcopy {copied:.2f} s; ratio {took / copied:.2f}")
    longest = max(pause for (_, pause), _ in turns)
    took, pause, copied = (median(column) for column in zip(*((a, b, c) for (a, b), c in turns), strict=True))
    for words, (before, during, seconds) in loads:
        how = " ".join(words) or "as fast as it can"
        print(f"under load, {how}: {before:,.0f} requests a second, {during:,.0f} in the {seconds:.1f} s while bytes "
              f"move: {during / before:.2f} of it")  # fmt: skip
    load = os.getloadavg()[0]
    print(f"median: apply {took:.2f} s, pause {pause:.2f} s ({longest:.2f} at most), nbdcopy {copied:.2f} s; "
          f"load average {load:.1f}")  # fmt: skip


if __name__ == "__main__":
    main(*(int(word) if word.isdecimal() else word for word in sys.argv[1:]))  # type: ignore[arg-type]
