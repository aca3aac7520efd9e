"""How long a cluster takes to come up and to go down, beside honcho with as many trivial servers.

All run by the same Python, and what they import is compiled. This project must not be installed with a finder of
editable packages (`make install` does without): each of honcho's servers would load it, too, for 9 ms.
"""

from __future__ import annotations

import compileall
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.cluster import Cluster
from bench.pairs import Measure, Plan
from bench.processes import ROOT, Failed, end, environment, need

SERVERS = 8
PROCESSES = 2 * SERVERS + 1
"""Servers, their loggers, and the supervisor."""
TRIVIAL = """\
import socket
listener = socket.create_server(("127.0.0.1", 0))
print("ready", flush=True)
while True:
    listener.accept()
"""


@contextmanager
def starting(_plan: Plan) -> Iterator[tuple[Measure, Measure]]:
    """Seconds until everything is ready."""
    with _folder() as folder:
        yield lambda: _cluster(folder)[0], lambda: _honcho(folder)[0]


@contextmanager
def stopping(_plan: Plan) -> Iterator[tuple[Measure, Measure]]:
    """Seconds until everything has gone."""
    with _folder() as folder:
        yield lambda: _cluster(folder)[1], lambda: _honcho(folder)[1]


@contextmanager
def _folder() -> Iterator[Path]:
    need("honcho")
    for package in ("client", "launcher", "node"):  # as pip does with what it installs, honcho among it
        compileall.compile_dir(ROOT / package, quiet=2)
    with tempfile.TemporaryDirectory(prefix="memcluster-bench-") as name:
        folder = Path(name)
        (folder / "trivial.py").write_text(TRIVIAL)
        lines = [f"server{number}: {sys.executable} trivial.py\n" for number in range(PROCESSES)]
        (folder / "Procfile").write_text("".join(lines))
        yield folder


def _cluster(folder: Path) -> tuple[float, float]:
    """(seconds to ready, seconds to stopped)"""
    cluster = Cluster(folder, servers=SERVERS)
    began = time.perf_counter()
    cluster.up()
    ready = time.perf_counter()
    cluster.down()
    return ready - began, time.perf_counter() - ready


def _honcho(folder: Path) -> tuple[float, float]:
    began = time.perf_counter()
    process = subprocess.Popen(
        [need("honcho"), "start"],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment() | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        left = PROCESSES
        while left:
            line = process.stdout.readline()
            if not line:
                raise Failed("honcho ended before its servers were ready")
            left -= line.rstrip().endswith(b"ready")
        ready = time.perf_counter()
        process.terminate()
        process.communicate(timeout=30)
        return ready - began, time.perf_counter() - ready
    finally:
        end(process)
