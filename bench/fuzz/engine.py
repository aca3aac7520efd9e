"""Runs targets, one after another, and tells how many executions there were and what they found."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from bench.fuzz.blind import inputs
from bench.fuzz.target import ROOM, Target
from bench.processes import ROOT


@dataclass(frozen=True)
class Outcome:
    """Of one target: `edges` are pairs of places in the code of which one was reached from the other. By chance it is
    not known how many."""

    target: str
    executions: int
    seconds: float
    edges: int
    kept: int
    """Inputs that reached something new."""
    found: str
    """What broke a rule, and where that input lies; nothing ("") if nothing did."""

    @property
    def rate(self) -> float:
        return self.executions / self.seconds if self.seconds else 0.0


def by_chance(target: Target, count: int, seed: int, folder: Path) -> Outcome:
    """Without an engine."""
    begun = time.monotonic()
    done = 0
    for data in inputs(target, count, seed):
        done += 1
        if found := replay(target, data):
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"found-{target.name}-{seed}-{done}"
            path.write_bytes(data)
            return Outcome(target.name, done, time.monotonic() - begun, 0, 0, f"{found}\nthe input: {path}")
    return Outcome(target.name, done, time.monotonic() - begun, 0, 0, "")


def replay(target: Target, data: bytes) -> str:
    """What one input breaks, as a traceback; nothing ("") if it breaks nothing."""
    try:
        target.run(data)
    except Exception:
        return traceback.format_exc()
    return ""


_DONE = re.compile(r"^#\d+\s+DONE\s+cov: (\d+).*?corp: (\d+)/", re.MULTILINE)
_LAST = re.compile(r"^#\d+\s.*?cov: (\d+).*?corp: (\d+)/", re.MULTILINE)
_COUNT = re.compile(r"^stat::number_of_executed_units:\s+(\d+)", re.MULTILINE)


def guided(target: Target, count: int, seed: int, folder: Path) -> Outcome:
    """Under atheris (guided.py); what it finds lies in the folder."""
    words = [sys.executable, "-m", "bench.fuzz.guided", target.name, str(folder), str(count), str(seed)]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="memcluster-fuzz-", dir="/dev/shm") as room:
        done = subprocess.run(
            words,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), ROOM: room},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    taken = time.monotonic() - begun
    said = done.stdout + done.stderr
    (folder / "said.txt").write_text(said)
    places = _DONE.findall(said) or _LAST.findall(said)
    edges, kept = map(int, places[-1]) if places else (0, 0)
    executions = int(counted[1]) if (counted := _COUNT.search(said)) else 0
    failed = (done.returncode and "run interrupted" not in said) or not executions  # else somebody has ended it
    found = (done.stdout.strip() or done.stderr)[-6000:] if failed else ""
    return Outcome(target.name, executions, taken, edges, kept, found)
