"""How the figures move with one quantity: shards, requests in flight, bytes in a request, clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

from bench.cluster import cluster
from bench.fio import KIB, MIB, Figures, Load, measure
from bench.peers import nbdkit_memory, nbdkit_proxy
from bench.processes import Failed, Service
from memcluster.client.units import format_size

LIMIT = {"limit": 1100}
MANY = 32
"""Clients from which on each has a smaller part of the memory to itself: fio lays one map of it out per client."""
JOBS = 100
"""Clients from which on a load takes longer, in proportion: connecting them must not count for much."""

Start = Callable[[], AbstractContextManager[Service]]

ONE, FOUR = "1 server", "4 servers"
SUBJECTS: dict[str, Start] = {
    ONE: lambda: cluster(clients=LIMIT),
    FOUR: lambda: cluster(servers=4, clients=LIMIT),
    "nbdkit memory": nbdkit_memory,
    "nbdkit proxy": nbdkit_proxy,
}


@dataclass(frozen=True)
class Curve:
    """`load(x)` on each of `subjects` for each x; what is plotted is `figure` of it."""

    name: str
    title: str
    x_label: str
    y_label: str
    xs: tuple[int, ...]
    load: Callable[[int], Load]
    figure: Callable[[Figures], float]
    log_y: bool = False
    sizes: bool = False
    """x counts bytes."""

    def x_text(self, x: float) -> str:
        return format_size(int(x)) if self.sizes else f"{x:g}"


def _iops(figures: Figures) -> float:
    return figures.iops


def _megabytes(figures: Figures) -> float:
    return figures.bytes_per_second / 1e6


CURVES = (
    Curve(
        "depth",
        "4 KiB reads by requests in flight, one connection",
        "requests in flight",
        "IOPS",
        (1, 2, 4, 8, 16, 32, 64, 128, 256),
        lambda depth: Load("randread", 4 * KIB, depth),
        _iops,
    ),
    Curve(
        "block",
        "Reads by bytes in a request, 8 in flight",
        "bytes in a request",
        "MB/s",
        (1, 16, 256, KIB, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB),
        lambda block: Load("randread", block, 8),
        _megabytes,
        log_y=True,
        sizes=True,
    ),
    Curve(
        "clients",
        "4 KiB reads by clients, 1 request in flight each",
        "clients",
        "IOPS",
        (1, 3, 10, 30, 100, 300, 1000),
        lambda clients: Load("randread", 4 * KIB, 1, jobs=clients, size=MIB if clients > MANY else 64 * MIB),
        _iops,
    ),
)
SHARDS = (1, 2, 3, 4, 6, 8)
SHARD_LOADS = {
    "4 KiB reads": Load("randread", 4 * KIB, 32),
    "4 KiB writes": Load("randwrite", 4 * KIB, 32),
    "64 KiB reads": Load("randread", 64 * KIB, 32),
}


def measure_curve(curve: Curve, runtime: float, progress: Callable[[str], object]) -> dict[str, Any]:
    """Every subject at every x, the subjects in turn at each x: they have the same minute of a shared machine."""
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in SUBJECTS}
    with ExitStack() as stack:
        services = {name: stack.enter_context(start()) for name, start in SUBJECTS.items()}
        for x in curve.xs:
            for name, service in services.items():
                progress(f"{curve.x_text(x)}, {name}")
                load = curve.load(x)
                seconds = runtime * max(1.0, load.jobs / JOBS)
                try:
                    points[name].append((x, curve.figure(measure(service.uri, load, seconds))))
                except Failed:  # it does not serve so many: its line ends here
                    progress(f"{curve.x_text(x)}, {name}: failed")
    return {
        "title": curve.title,
        "x_label": curve.x_label,
        "y_label": curve.y_label,
        "x_is_size": curve.sizes,
        "log_y": curve.log_y,
        "series": points,
    }


def measure_shards(runtime: float, progress: Callable[[str], object]) -> dict[str, Any]:
    """The same loads on the same memory, spread over more and more servers."""
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in SHARD_LOADS}
    for shards in SHARDS:
        with cluster(servers=shards) as service:
            for name, load in SHARD_LOADS.items():
                progress(f"{shards} shards, {name}")
                points[name].append((shards, measure(service.uri, load, runtime).iops))
    return {
        "title": "One connection, 32 in flight, by shards",
        "x_label": "shards",
        "y_label": "IOPS",
        "x_is_size": False,
        "log_y": False,
        "series": points,
    }


def each_curve(runtime: float, progress: Callable[[str], object]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, figures) of all."""
    yield "shards", measure_shards(runtime, lambda text: progress(f"shards: {text}"))
    for curve in CURVES:
        yield curve.name, measure_curve(curve, runtime, lambda text, curve=curve: progress(f"{curve.name}: {text}"))  # type: ignore[misc]
