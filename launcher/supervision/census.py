"""The census: asks every node how it is and makes the object of `memcluster status` of the answers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Protocol

from memcluster.launcher.supervision.lifecycle import Lifecycle
from memcluster.launcher.supervision.makeup import Makeup
from memcluster.launcher.supervision.nodelife import State
from memcluster.launcher.supervision.process import Process
from memcluster.launcher.supervision.usage import Usage
from memcluster.node.transport.loop import Loop

ANSWER_WITHIN = 1.0
"""Seconds a node has to answer; one that does not is shown without its counters."""

NOTHING = {"rss_bytes": 0, "cpu_percent": 0.0}
"""What a process that is not there takes."""
Answer = dict[str, Any]


class Cluster(Protocol):
    """What a census needs of the supervisor."""

    loop: Loop
    makeup: Makeup
    lifecycle: Lifecycle
    children: dict[str, Process]

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
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._usage = Usage()

    def take(self, answer: Callable[[Answer], None]) -> None:
        """Ask all nodes at once, but not those that are paused or unreachable; answer when the last has, or when time
        is up."""
        cluster = self._cluster
        counters: dict[str, Answer] = {}
        nodes = cluster.lifecycle.nodes.items()
        asked = [
            name
            for name, node in nodes
            if node.alive and not (cluster.children[name].stopped or cluster.children[name].away)
        ]
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
        self._usage.forget_all_but({child.pid for child in cluster.children.values()})
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
        state = str(node.state)
        if child is not None and (child.away or child.stopped):
            state = "unreachable" if child.away else "paused"
        ready = state == State.READY and "clients" in counters
        silent = state == State.READY and not ready
        reason = child.away if child is not None and child.away else node.reason
        usage = self._usage.of(child.pid) if child is not None and not spec.host else NOTHING
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
            **usage,
            "reason": f"no answer in {ANSWER_WITHIN:g} s" if silent else reason,
            **({"host": spec.host or os.uname().nodename} if cluster.makeup.config.hosts else {}),
            **{key: value for key, value in counters.items() if key not in ("answer", "error")},
        }
