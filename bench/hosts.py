"""What several hosts cost: how long `up` takes with each engine, and the memory that a host needs beside its servers.

    python -m bench.hosts [--rounds N]

Takes root and the test extra: the hosts are those of the tests' lab, with no delay and one machine's processors.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from hostlab import Host, Lab, lab
from slurmlab import SlurmLab

ENGINES: dict[str, type[Lab]] = {"ssh": Lab, "slurm": SlurmLab}
TARGETS = {"ssh": 1.0, "slurm": 1.5}
"""Seconds for `up` of three hosts."""
MOST = 35
"""MiB of a host beside its servers."""
ENGINE = re.compile("sshd:|slurmstepd")
"""The processes of an engine that are there for a guardian."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.hosts", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        labs = {}
        for name, kind in ENGINES.items():
            (Path(folder) / name).mkdir()
            labs[name] = stack.enter_context(lab(Path(folder) / name, kind=kind))
        figures = list(measured(labs, rounds))
    print(f"`up -d` of 3 servers, the median of {rounds} (from the fastest to the slowest), s; MiB of a host:")
    for name, seconds, memory in figures:
        line = f"{name:9} {median(seconds):5.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
        if memory:
            ours, files, engine = memory
            line += f"  guardian, fork server, logger {ours:.1f}, files {files:.1f}, its engine's part {engine:.1f}"
            line += f"  (targets: {TARGETS[name]:g} s, {MOST} MiB)"
        print(line)


def measured(labs: dict[str, Lab], rounds: int) -> Iterator[tuple[str, list[float], list[float]]]:
    """Name, times, and own_cost; the engines and one host alone take turns."""
    cases: list[tuple[str, Lab, dict[str, Any]]] = [("one host", labs["ssh"], {"hosts": None, "engine": None})]
    cases += [(name, each, {}) for name, each in labs.items()]
    times: dict[str, list[float]] = {name: [] for name, _, _ in cases}
    memory: dict[str, list[tuple[float, float, float]]] = {name: [] for name, _, _ in cases}
    for _ in range(rounds):
        for name, each, keys in cases:
            each.describe(**keys)
            began = time.perf_counter()
            each.command("up", "-d")
            times[name].append(time.perf_counter() - began)
            each.wait_until_running()
            if not keys:
                memory[name] += [own_cost(host) for host in each.hosts.values()]
            each.command("down")
    for name, _, _ in cases:
        yield name, times[name], [median(part) for part in zip(*memory[name], strict=True)]


def own_cost(host: Host) -> tuple[float, float, float]:
    """MiB of what is no server: ours, the files that ours map, and the engine's with its files."""
    lines = host.run("ps", "-eo", "pid=,args=").stdout.decode().splitlines()
    processes = dict(line.split(maxsplit=1) for line in lines)
    ours = [pid for pid, words in processes.items() if words.startswith("memcluster") and ": server" not in words]
    engines = [pid for pid, words in processes.items() if ENGINE.match(words)]
    return *resident(host, ours), sum(resident(host, engines))


def resident(host: Host, pids: list[str]) -> tuple[float, float]:
    """MiB that the processes have for themselves, with their part of what they share with those that they were forked
    from; and of mapped files, those of the process that has most."""
    files = [f"/proc/{pid}/smaps_rollup" for pid in pids]
    text = host.run("cat", *files).stdout.decode()
    anonymous = sum(map(int, re.findall(r"^Pss_Anon: +(\d+)", text, re.MULTILINE)))
    status = host.run("cat", *(f"/proc/{pid}/status" for pid in pids)).stdout.decode()
    return anonymous / 1024, max(map(int, re.findall(r"^RssFile:\s+(\d+)", status, re.MULTILINE))) / 1024


if __name__ == "__main__":
    main()
