"""fio as the load: its nbd engine is a client written by others, the same for every server."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.peers import MEMORY
from bench.processes import need, run

KIB, MIB = 1 << 10, 1 << 20
P50, P99, P999 = "50.000000", "99.000000", "99.900000"


@dataclass(frozen=True)
class Load:
    """One fio job: `rw` in fio's words (randread, randwrite, read, write), `jobs` connections, `depth` in flight on
    each."""

    rw: str
    block: int
    depth: int
    jobs: int = 1
    size: int = MEMORY


LOADS = {
    "4 KiB reads, depth 1": Load("randread", 4 * KIB, 1),
    "4 KiB reads, depth 32": Load("randread", 4 * KIB, 32),
    "4 KiB writes, depth 32": Load("randwrite", 4 * KIB, 32),
    "1 MiB reads, depth 8": Load("read", MIB, 8),
    "1 MiB writes, depth 8": Load("write", MIB, 8),
}
"""Small and large, either way."""


@dataclass(frozen=True)
class Figures:
    """What a load got: requests and bytes a second, completion latencies in seconds by percentile."""

    iops: float
    bytes_per_second: float
    p50: float
    p99: float
    p999: float
    cpu: float
    """Of one core, in per cent: fio's own part. Near 100 it is fio that is measured."""


def measure(uri: str, load: Load, runtime: float, prefix: Sequence[str] = ()) -> Figures:
    """Run a load for `runtime` seconds. Raises Failed, Missing."""
    return measure_all(uri, [load], runtime, prefix)[0]


def measure_all(uri: str, loads: Sequence[Load], runtime: float, prefix: Sequence[str] = ()) -> list[Figures]:
    """Several loads at the same time, each on connections of its own."""
    command = [
        *(*prefix, need("fio"), "--output-format=json", "--ioengine=nbd", f"--uri={uri}", "--thread"),
        *("--time_based", f"--runtime={max(1, round(runtime * 1000))}ms", "--group_reporting", "--randrepeat=0"),
    ]
    for number, load in enumerate(loads):
        command += [
            *(f"--name=load{number}", "--new_group", f"--rw={load.rw}", f"--bs={load.block}"),
            *(f"--iodepth={load.depth}", f"--numjobs={load.jobs}", f"--size={load.size}"),
        ]
    began = time.perf_counter()
    printed = run(*command, timeout=runtime + 120)
    passed = time.perf_counter() - began
    document = json.loads(printed[printed.index("{\n") :])  # before it, fio says that it is connected
    return [_figures(load, job, passed) for load, job in zip(loads, document["jobs"], strict=True)]


def _figures(load: Load, job: dict[str, Any], passed: float) -> Figures:
    """Of several connections fio adds up what each got in its own time. If these times are not the same, as with many
    more connections than processors, that is more than there was; so for these the whole time counts."""
    side = job["write" if load.rw.endswith("write") else "read"]
    if load.jobs > 1:
        side = side | {"iops": side["total_ios"] / passed, "bw_bytes": side["io_bytes"] / passed}
    latency = {key: value / 1e9 for key, value in side["clat_ns"].get("percentile", {}).items()}
    return Figures(
        iops=side["iops"],
        bytes_per_second=side["bw_bytes"],
        p50=latency.get(P50, 0.0),
        p99=latency.get(P99, 0.0),
        p999=latency.get(P999, 0.0),
        cpu=job["usr_cpu"] + job["sys_cpu"],
    )
