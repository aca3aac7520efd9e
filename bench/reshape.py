"""What it costs to give a memory another shape, beside nbdcopy between two memory servers of nbdkit in the same
sitting: `python -m bench.reshape [BYTES]`. From 3 to 5 servers and back, in turns; every byte is in use."""

from __future__ import annotations

import os
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
from bench.processes import Service, fill, need, run

TURNS = 3


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


def copy(size: int) -> float:
    """Seconds that nbdcopy takes from one memory server to another."""
    with nbdkit_memory(size) as one, nbdkit_memory(size, filled=False) as other:
        began = time.perf_counter()
        run(need("nbdcopy"), one.uri, other.uri)
        return time.perf_counter() - began


def main(size: int) -> None:
    with tempfile.TemporaryDirectory(prefix="memcluster-bench-") as folder:
        cluster = Cluster(Path(folder), memory=size, servers=3)
        cluster.up()
        try:
            status = cluster.status()
            fill(Service(status["uri"], status["nodes"][0]["pid"]), size)
            turns = [(apply(cluster, 5 if turn % 2 == 0 else 3), copy(size)) for turn in range(TURNS)]
        finally:
            cluster.down()
    for (took, pause), copied in turns:
        print(f"apply {took:.2f} s, a client waited {pause:.2f} s; nbdcopy {copied:.2f} s; ratio {took / copied:.2f}")
    took, pause, copied = (median(column) for column in zip(*((a, b, c) for (a, b), c in turns), strict=True))
    load = os.getloadavg()[0]
    print(f"median: apply {took:.2f} s, pause {pause:.2f} s, nbdcopy {copied:.2f} s, load average {load:.1f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1 << 30)
