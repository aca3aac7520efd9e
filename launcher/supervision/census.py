"""The census: asks every node how it is and makes the object of `memcluster status` of the answers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from memcluster.launcher.supervision.child import Child
from memcluster.launcher.supervision.lifecycle import Lifecycle, State
from memcluster.launcher.supervision.makeup import Makeup
from memcluster.node.transport.loop import Loop

if TYPE_CHECKING:
    import psutil

ANSWER_WITHIN = 1.0
"""Seconds a node has to answer; one that does not is shown without its counters."""

Answer = dict[str, Any]


class Cluster(Protocol):
    """What a census needs of the supervisor."""

    loop: Loop
    makeup: Makeup
    lifecycle: Lifecycle
    children: dict[str, Child]

    @property
    def applying(self) -> dict[str, Any] | None:
        """How far the bytes are moved, until every node has been started anew."""

    @property
    def moves_live(self) -> bool:
        """Every server serves meanwhile."""

    def faults(self) -> list[dict[str, Any]]: ...

    @property
    def problems(self) -> list[str]:
        """What is missing of what the run has in the file system."""


class Census:
    """Knows the processes it has seen before, so that CPU% is that of the time since the last census."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._seen: dict[int, psutil.Process] = {}

    def take(self, answer: Callable[[Answer], None]) -> None:
        """Ask all nodes at once, but not those that are paused; answer when the last has, or when time is up."""
        cluster = self._cluster
        counters: dict[str, Answer] = {}
        nodes = cluster.lifecycle.nodes.items()
        asked = [name for name, node in nodes if node.alive and not cluster.children[name].identity.stopped]
        done = False

        def finish() -> None:
            nonlocal done
            if not done:
                done = True
                timer.cancel()
                answer(self._report(counters))

        def collect(name: str, reply: Answer) -> None:
            counters[name] = reply
            if len(counters) == len(asked):
                finish()

        timer = cluster.loop.after(ANSWER_WITHIN, finish)
        for name in asked:
            cluster.children[name].ask({"do": "status"}, lambda reply, name=name: collect(name, reply))  # type: ignore[misc]
        if not asked:
            finish()

    def _report(self, counters: dict[str, Answer]) -> Answer:
        cluster, config = self._cluster, self._cluster.makeup.config
        pids = {child.pid for child in cluster.children.values()}
        self._seen = {pid: process for pid, process in self._seen.items() if pid in pids}
        nodes = [self._node(name, counters.get(name, {})) for name in cluster.lifecycle.nodes]
        state = cluster.lifecycle.health
        unwell = cluster.problems or not all(node["ready"] for node in nodes)  # the lifecycle asks nobody
        if cluster.applying is not None and not cluster.moves_live:
            state = "applying"
        elif state == "running" and unwell:
            state = "degraded"
        return {
            "cluster": config.name,
            "state": state,
            "uri": cluster.makeup.uri,
            "topology": config.topology,
            "memory": config.memory,
            "stripe": config.stripe,
            "file": str(config.file),
            "supervisor": os.getpid(),
            "faults": cluster.faults(),
            "missing": list(cluster.problems),
            "applying": cluster.applying,
            "exposed": list(cluster.makeup.exposed),
            "nodes": nodes,
        }

    def _node(self, name: str, counters: Answer) -> Answer:
        cluster = self._cluster
        node, spec = cluster.lifecycle.nodes[name], cluster.makeup.specs[name]
        child = cluster.children.get(name) if node.alive else None
        state = "paused" if child is not None and child.identity.stopped else str(node.state)
        ready = state == State.READY and "clients" in counters
        silent = state == State.READY and not ready
        rss, cpu = self._usage(child) if child is not None else (0, 0.0)
        return {
            "name": name,
            "role": spec.role,
            "state": state,
            "ready": ready,
            "pid": child.pid if child is not None else None,
            "address": cluster.makeup.address(name),
            "range": cluster.makeup.map.range(spec.role, spec.index),
            "memory": cluster.makeup.map.owned(spec.role, spec.index),
            "restarts": node.restarts,
            "uptime_s": round(time.monotonic() - node.started, 3) if child is not None else 0.0,
            "clients": 0,
            "requests": 0,
            "rss_bytes": rss,
            "cpu_percent": cpu,
            "reason": f"no answer in {ANSWER_WITHIN:g} s" if silent else node.reason,
            **{key: value for key, value in counters.items() if key not in ("answer", "error")},
        }

    def _usage(self, child: Child) -> tuple[int, float]:
        """(bytes in memory, per cent of a processor) of a process. (Imported late: `up` need not wait for it.)"""
        import psutil

        try:
            process = self._seen.get(child.pid) or self._seen.setdefault(child.pid, psutil.Process(child.pid))
            return process.memory_info().rss, process.cpu_percent()
        except psutil.Error:
            return 0, 0.0
