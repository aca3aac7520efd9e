"""`memcluster status`: what the supervisor says, or, when it is dead, what was recorded held against the system."""

from __future__ import annotations

import socket
from typing import Any

from client.console import EXIT_DEGRADED, EXIT_NOT_RUNNING
from launcher.config import ClusterConfig
from launcher.control import NoAnswer, ask
from launcher.rundir import NodeRecord, RunDirectory
from node.address import Address

ANSWER_WITHIN = 5.0
"""Seconds a living supervisor has to answer."""
GREETING_WITHIN = 0.3
"""Seconds an orphaned server has to greet a client."""


def read_status(config: ClusterConfig) -> dict[str, Any]:
    """The object that `status --json` prints."""
    run = RunDirectory(config.name)
    if run.locked:
        try:
            return ask(run.control, {"do": "status"}, ANSWER_WITHIN)
        except NoAnswer as problem:
            return _recorded(config, run, f"the supervisor does not answer ({problem})")
    return _recorded(config, run, "")


def exit_code(status: dict[str, Any]) -> int:
    """0 running, 3 not running, 4 anything between."""
    return {"running": 0, "stopped": EXIT_NOT_RUNNING}.get(status["state"], EXIT_DEGRADED)


def _recorded(config: ClusterConfig, run: RunDirectory, problem: str) -> dict[str, Any]:
    """The status without the supervisor's help."""
    record = run.record()
    if not problem and run.path.exists():
        problem = "the supervisor is dead"
    nodes = [_recorded_node(node) for node in record.nodes] if record else []
    alive = [node["name"] for node in nodes if node["pid"]]
    left = "its processes are gone, the memory is kept" if not alive else f"it left {', '.join(alive)}"
    if "dead" in problem:
        problem = f"{problem}; {left}"
    return {
        "cluster": config.name,
        "state": "degraded" if alive or "answer" in problem else "stopped",
        "uri": record.uri if record else None,
        "topology": config.topology,
        "memory": config.memory,
        "file": str(config.file),
        "supervisor": record.supervisor.pid if record and record.supervisor.alive else None,
        "problem": problem,
        "nodes": nodes,
    }


def _recorded_node(node: NodeRecord) -> dict[str, Any]:
    alive = node.identity.alive
    answers = alive and _greets(node.address)
    return {
        "name": node.name,
        "role": node.role,
        "state": ("paused" if node.identity.stopped else "orphaned") if alive else "exited",
        "ready": answers,
        "pid": node.pid if alive else None,
        "address": node.address,
        "range": node.range,
        "restarts": 0,
        "uptime_s": 0.0,
        "clients": 0,
        "requests": 0,
        "rss_bytes": 0,
        "cpu_percent": 0.0,
        "reason": "",
    }


def _greets(address: str) -> bool:
    """Somebody accepts there and says something first, as NBD servers do."""
    parsed = Address.parse(address)
    with socket.socket(parsed.family, socket.SOCK_STREAM) as sock:
        sock.settimeout(GREETING_WITHIN)
        try:
            sock.connect(parsed.sockaddr)
            return bool(sock.recv(1))
        except OSError:
            return False
