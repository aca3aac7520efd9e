"""Where the time goes: how busy a server's process is, in the kernel and outside, its system calls, its functions."""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psutil

from bench.cluster import cluster
from bench.fio import LOADS, Load, measure
from bench.pairs import Plan
from bench.peers import nbdkit_memory, nbdkit_proxy
from bench.processes import ROOT, Service, need, run
from bench.results import Found

Progress = Callable[[str], object]
OURS: dict[str, Callable[[], AbstractContextManager[Service]]] = {
    "1 server": cluster,
    "primary of 4": lambda: cluster(servers=4),
}
ALL = OURS | {"nbdkit memory": nbdkit_memory, "nbdkit proxy": nbdkit_proxy}
MOST = 6
"""Functions shown for a load."""
WAITS = "node/serving/waiting.py"
KINDS = ("program", "copying", "memory pages", "network", "calls and switches")
"""What the time goes into, by the symbol that a sample fell in: copying and memory pages wherever they are done, else
the program outside the kernel (the interpreter, for us); inside it the network, or system calls and switches."""
OUTSIDE = ((1, r"mem(move|cpy)"), (2, "memset"), (0, ""))
INSIDE = (
    (1, r"copy_(from|to)_iter|copy_user|mem(move|cpy)|rep_movs|copy_page"),
    (2, r"fault|clear_page|unmap|zap_|folio|anon_|lru_|pte_|pmd|pages|page_|mmap"),
    (3, r"tcp|skb|ip_|inet|sock|softirq|unix_|dev_|sk_|nf_|loopback|net_|napi|qdisc|csum|backlog"),
)
"""(number of the kind, pattern of the symbols), the first that fits."""
_SAMPLE = re.compile(r"^\s*([\d.]+)%\s+(\S+)\s+\[[k.]\]\s+(\S+)", re.MULTILINE)
_FRAME = re.compile(r"^(.+) \((.+?)(?::\d+)?\)$")
_CALLS = re.compile(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", re.MULTILINE)


def busy(plan: Plan, progress: Progress) -> Found:
    """The processor's time that the serving process takes, of one core."""
    columns = ("process", "load", "requests/s:", "busy:", "in the kernel:", "µs a request:", "fio busy:")
    for name, start in ALL.items():
        rows: list[list[Any]] = []
        with start() as service:
            for what, load in LOADS.items():
                progress(f"{name}, {what}")
                process = psutil.Process(service.pid)
                before, began = process.cpu_times(), time.perf_counter()
                figures = measure(service.uri, load, plan.runtime)
                after, passed = process.cpu_times(), time.perf_counter() - began
                kernel = after.system - before.system
                total = max(kernel + after.user - before.user, 1e-9)
                requests = max(figures.iops * plan.runtime, 1.0)
                # fio's start and end, in which nothing is asked, are no part of the load.
                share = total / min(passed, plan.runtime)
                rows.append(
                    [name, what, figures.iops, f"{share:.0%}", f"{kernel / total:.0%}", total / requests * 1e6,
                     f"{figures.cpu / 100:.0%}"]
                )  # fmt: skip
        yield name, {"columns": columns, "rows": rows}


def kinds(plan: Plan, progress: Progress) -> Found:
    """What the serving process does with its time, sampled by perf, in the kernel and outside."""
    columns = ("process", "load", *(f"{kind}:" for kind in KINDS))
    perf = need("perf")
    for name, start in ALL.items():
        rows: list[list[Any]] = []
        with start() as service, tempfile.TemporaryDirectory(prefix="memcluster-bench-") as folder:
            data = f"--output={folder}/data"
            for what, load in LOADS.items():
                progress(f"{name}, {what}")
                command = [perf, "record", "-q", "-e", "cpu-clock", "-F", "997", data, "-p", str(service.pid)]
                with subprocess.Popen(
                    [*command, "--", "sleep", str(plan.runtime)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                ) as recording:
                    measure(service.uri, load, plan.runtime)
                    recording.wait()
                printed = run(perf, "report", f"--input={folder}/data", "--stdio", "-q", "--sort=dso,symbol")
                shares = _shares(printed)
                rows.append([name, what, *(f"{share:.0%}" for share in shares)])
        yield name, {"columns": columns, "rows": rows}


def _shares(printed: str) -> list[float]:
    """The share of each of KINDS in what perf reports."""
    found = [0.0] * len(KINDS)
    for percent, file, symbol in _SAMPLE.findall(printed):
        patterns = OUTSIDE if "kernel" not in file else INSIDE
        number = next((number for number, pattern in patterns if re.search(pattern, symbol)), len(KINDS) - 1)
        found[number] += float(percent)
    total = sum(found) or 1.0
    return [share / total for share in found]


def calls(plan: Plan, progress: Progress) -> Found:
    """System calls for each request, counted by strace (which slows everything down: these are no times)."""
    columns = ("process", "load", "system calls for each request")
    strace = need("strace")
    for name, start in OURS.items():
        rows = []
        with start() as service:
            for what, load in LOADS.items():
                progress(f"{name}, {what}")
                with tempfile.NamedTemporaryFile() as output:
                    command = [strace, "-c", "-f", "-q", "-o", output.name, "-p", str(service.pid)]
                    with _attached(command, service.pid):
                        figures = measure(service.uri, load, plan.runtime)
                    counted = _CALLS.findall(output.read().decode())
                requests = max(figures.iops * plan.runtime, 1.0)
                most = sorted(((int(count) / requests, call) for count, call in counted), reverse=True)[:4]
                said = ", ".join(f"{call} {each:.2g}" for each, call in most if call != "total" and each >= 0.005)
                rows.append([name, what, said])
        yield name, {"columns": columns, "rows": rows}


def functions(plan: Plan, progress: Progress) -> Found:
    """The functions in which server 0 is found outside its wait for something to do, sampled by py-spy; calls into the
    kernel count for the function that makes them. (The wait is left out because py-spy needs a processor, too, and on
    a full machine gets it when the server waits.)"""
    columns = ("process", "load", "share:", "function")
    py_spy = need("py-spy")
    for name, start in OURS.items():
        rows: list[list[Any]] = []
        with start() as service:
            for what, load in LOADS.items():
                progress(f"{name}, {what}")
                found = _sample(py_spy, service, load, plan.runtime)
                total = max(found.total(), 1)
                rows += [[name, what, f"{count / total:.0%}", where] for where, count in found.most_common(MOST)]
        yield name, {"columns": columns, "rows": rows}


def _sample(py_spy: str, service: Service, load: Load, runtime: float) -> Counter[str]:
    """Samples by function."""
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="memcluster-bench-") as folder:
        output = Path(folder) / "stacks"
        command = [py_spy, "record", "--format=raw", "--function", "--rate=250", f"--pid={service.pid}"]
        command += ["--full-filenames", f"--duration={max(1, round(runtime))}", f"--output={output}"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as sampling:
            measure(service.uri, load, max(1.0, runtime) + 0.5)
            sampling.wait()
        for line in output.read_text().splitlines() if output.exists() else ():
            stack, _, count = line.rpartition(" ")
            frame = _FRAME.sub(_name, stack.split(";")[-1])
            if WAITS not in frame:
                found[frame] += int(count)
    return found


def _name(frame: re.Match[str]) -> str:
    """`Stream.flush (node/transport/stream.py)`: the file as the repository names it."""
    function, file = frame.groups()
    path = Path(file)
    return f"{function} ({path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name})"


@contextmanager
def _attached(command: list[str], pid: int) -> Iterator[None]:
    """A tracer on a process for as long as the block lasts."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as tracer:
        try:
            deadline = time.monotonic() + 5
            while not _traced(pid) and time.monotonic() < deadline:
                time.sleep(0.01)
            yield
        finally:
            tracer.send_signal(signal.SIGINT)


def _traced(pid: int) -> bool:
    return "TracerPid:\t0" not in Path(f"/proc/{pid}/status").read_text()


SECTIONS: dict[str, Callable[[Plan, Progress], Found]] = {
    "profiles": busy,
    "kinds": kinds,
    "calls": calls,
    "functions": functions,
}
