"""What a figure depends on and may be told: processors, kernel, versions. No names and no paths."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import version
from timeit import repeat
from typing import Any

from bench.processes import ROOT, Failed, Missing, need, run


def facts(plan: str) -> dict[str, Any]:
    """Of this machine and of the programs that take part, and how thorough the run is."""
    return {
        "measured": plan,
        "processors": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30), 1),
        "kernel": platform.release(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "an_object_and_a_call": f"{_call():.0f} ns in this Python",
        "memcluster": f"{version('memcluster')} {_commit()}".strip(),
        "nbdkit": _version("nbdkit"),
        "fio": _version("fio"),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        found = re.search(r"^model name\s*:\s*(.+)$", file.read(), re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _version(command: str) -> str:
    """The first number that `--version` prints."""
    try:
        found = re.search(r"\d+(\.\d+)+", run(need(command), "--version"))
    except (Missing, Failed):
        return ""
    return found[0] if found else ""


class _Thing:
    __slots__ = ("one", "two")

    def __init__(self, one: int, two: int) -> None:
        self.one = one
        self.two = two

    def both(self) -> int:
        return self.one + self.two


def _call() -> float:
    """ns to make an object and call it, which is what a data path in Python does: one version of it takes 110 or 190 on
    one machine, by how it was compiled."""
    return min(repeat(lambda: _Thing(1, 2).both(), number=10_000, repeat=50)) * 1e5


def _commit() -> str:
    """What was measured: a commit, with a + if files have been changed since."""
    try:
        commit = run("git", "rev-parse", "--short", "HEAD", cwd=ROOT).strip()
        measured = "node", "launcher", "client"
        return commit + "+" * bool(run("git", "status", "--porcelain", "--", *measured, cwd=ROOT).strip())
    except (Failed, OSError):
        return ""
