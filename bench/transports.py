"""TCP beside what else could carry the bytes: unix sockets and UDP on one host, and TCP across a link with delay."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

from bench import fio, limits, netns
from bench.cluster import cluster
from bench.fio import KIB, LOADS, MIB, Load
from bench.pairs import Plan, Wire
from bench.peers import MEMORY, nbdkit_memory
from bench.processes import Service
from bench.results import Found

Progress = Callable[[str], object]

WIRES = {
    "4 KiB replies, depth 1": Wire(28, 16 + 4 * KIB, 1),
    "4 KiB replies, depth 32": Wire(28, 16 + 4 * KIB, 32),
    "1 MiB replies, depth 8": Wire(28, 16 + MIB, 8),
}
LINKS = ((0.0, 0.0), (0.001, 0.0), (0.001, 0.001), (0.001, 0.01), (0.010, 0.0))
"""(delay in seconds each way, share of the packets lost)"""
LINK_LOADS = {
    "4 KiB reads, depth 1": Load("randread", 4 * KIB, 1),
    "4 KiB reads, depth 32": Load("randread", 4 * KIB, 32),
    "4 KiB reads, depth 256": Load("randread", 4 * KIB, 256),
    "1 MiB reads, depth 8": Load("read", MIB, 8),
}
PACKET = 1448
"""Bytes of payload in a TCP segment on Ethernet."""


def _speed(service: Service, load: Load, runtime: float, prefix: tuple[str, ...] = ()) -> float:
    figures = fio.measure(service.uri, load, runtime, prefix)
    return figures.iops if load.block < MIB else figures.bytes_per_second / 1e9


def _unit(block: int) -> str:
    return "IOPS" if block < MIB else "GB/s"


def _on_unix(servers: int) -> list[dict[str, Any]]:
    return [{"memory": MEMORY // servers, "listen": f"unix:server{number}"} for number in range(servers)]


def transports(plan: Plan, progress: Progress) -> Found:
    """The same servers on TCP and on unix sockets, in alternating pairs; then two programs without any server."""
    columns = ("who", "load", "unit", "TCP:", "unix:", "unix over TCP:")
    subjects = {
        "1 server": (cluster(), cluster(servers=_on_unix(1), listen="unix:server0")),
        "4 servers": (cluster(servers=4), cluster(servers=_on_unix(4), listen="unix:server0")),
        "nbdkit memory": (nbdkit_memory(), nbdkit_memory(unix=True)),
    }
    for who, (over_tcp, over_unix) in subjects.items():
        rows = []
        with over_tcp as tcp, over_unix as unix:
            for what, load in LOADS.items():
                progress(f"{who}, {what}")
                pairs = [(_speed(tcp, load, plan.runtime), _speed(unix, load, plan.runtime)) for _ in range(plan.pairs)]
                rows.append([who, what, _unit(load.block), *_medians(pairs)])
        yield who, {"columns": columns, "rows": rows}
    rows = []
    for what, wire in WIRES.items():
        progress(f"no server, {what}")
        scale = 1.0 if wire.reply < MIB else wire.reply / 1e9
        pairs = [
            (
                scale * limits.wire(wire, plan.runtime / 2),
                scale * limits.wire(wire, plan.runtime / 2, "unix"),
            )
            for _ in range(plan.pairs)
        ]
        rows.append(["two C programs", what, _unit(wire.reply), *_medians(pairs)])
    yield "two C programs", {"columns": columns, "rows": rows}


def _medians(pairs: list[tuple[float, float]]) -> list[Any]:
    """[median of the first, of the second, of the ratios as text]"""
    first, second = zip(*pairs, strict=True)
    ratio = statistics.median(two / max(one, 1e-12) for one, two in pairs)
    return [statistics.median(first), statistics.median(second), f"{ratio:.2f}×"]


def datagrams(plan: Plan, progress: Progress) -> Found:
    """What UDP gives by itself: the round trip, and how many datagrams arrive when nobody slows the sender down."""
    columns = ("what", "unit", "TCP:", "UDP:")
    rows: list[list[Any]] = []
    for size in (64, 4 * KIB, 60_000):
        progress(f"round trips of {size} bytes")
        wire = Wire(28, size, 1)
        pairs = [
            (limits.wire(wire, plan.runtime / 2), limits.wire(wire, plan.runtime / 2, "udp")) for _ in range(plan.pairs)
        ]
        rows.append([f"round trips, {size} bytes back", "a second", *_medians(pairs)[:2]])
    for size in (1400, 4 * KIB, 60_000):
        progress(f"flood of {size} bytes")
        shares = [limits.flood(size, math.ceil((256 << 20) / size)) for _ in range(plan.pairs)]
        rows.append([f"of 256 MiB in datagrams of {size} bytes arrive", "", "all", f"{statistics.median(shares):.0%}"])
    yield "datagrams", {"columns": columns, "rows": rows}


def link(plan: Plan, progress: Progress) -> Found:
    """A cluster and its client at the two ends of a link with delay and loss."""
    columns = ("delay each way", "packets lost", "load", "unit", "memcluster:", "p99, ms:", "whole without repeats:")
    for delay, loss in LINKS:
        rows = []
        with (
            netns.link(delay, loss) as ends,
            cluster(listen=f"{netns.SERVER}:0", filled=False, prefix=ends.server) as service,
        ):
            for what, load in LINK_LOADS.items():
                progress(f"{delay * 1000:g} ms, {loss:.1%} lost, {what}")
                figures = fio.measure(service.uri, load, plan.runtime, ends.client)
                speed = figures.iops if load.block < MIB else figures.bytes_per_second / 1e9
                whole = (1 - loss) ** math.ceil(load.block / PACKET)
                rows.append(
                    [
                        *(f"{delay * 1000:g} ms", f"{loss:.1%}", what, _unit(load.block), speed),
                        *(figures.p99 * 1000, f"{whole:.1%}"),
                    ]
                )
        yield f"{delay * 1000:g} ms, {loss:.1%}", {"columns": columns, "rows": rows}


SECTIONS: dict[str, Callable[[Plan, Progress], Found]] = {
    "transports": transports,
    "datagrams": datagrams,
    "link": link,
}
