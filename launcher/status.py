"""`memcluster status`: what the supervisor says, or, when it is dead, what was recorded held against the system."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from client.console import EXIT_DEGRADED, EXIT_NOT_RUNNING
from client.discover import NotRunning, check_folder, command
from launcher.clusterfile.settings import ClusterConfig
from launcher.run.control import NoAnswer, ask
from launcher.run.directory import NodeRecord, RunDirectory, RunRecord
from node.transport.address import Address
from node.transport.frames import Frame

ANSWER_WITHIN = 5.0
"""Seconds a living supervisor has to answer."""
GREETING_WITHIN = 0.3
"""Seconds a node has to say its first word to somebody who asks it directly."""


def read_status(config: ClusterConfig) -> dict[str, Any]:
    """The object that `status --json` prints."""
    try:
        check_folder(config.name, config.file)
    except NotRunning as another:
        return _status(config, "stopped", str(another))
    run = RunDirectory(config.name)
    if not run.locked:
        return _recorded(config, run, "")
    record = run.record()
    supervisor = record.supervisor if record else None
    if supervisor and supervisor.stopped:
        return _recorded(config, run, f"the supervisor is paused; `kill -CONT {supervisor.pid}` lets it go on")
    try:
        return ask(run.control, {"do": "status"}, ANSWER_WITHIN)
    except NoAnswer as problem:
        if supervisor and supervisor.alive:
            remedy = f"`{command(config.file, 'down')}` ends it"
            return _recorded(config, run, f"the supervisor does not answer ({problem}); {remedy}")
        return _recorded(config, run, "it is being started or stopped right now")


def exit_code(status: dict[str, Any]) -> int:
    """0 running, 3 not running, 4 anything between."""
    return {"running": 0, "stopped": EXIT_NOT_RUNNING}.get(status["state"], EXIT_DEGRADED)


def _recorded(config: ClusterConfig, run: RunDirectory, problem: str) -> dict[str, Any]:
    """The status without the supervisor's help; it is dead if there is no `problem` with it."""
    record = run.record()
    state = "degraded" if problem else "stopped"
    nodes = [_recorded_node(node, "running" if problem else "orphaned") for node in record.nodes] if record else []
    if not problem and run.path.exists():
        if alive := [node["name"] for node in nodes if node["pid"]]:
            state = "degraded"
            remedy = f"`{command(config.file, 'down')}` cleans up"
            problem = f"the supervisor is dead; it left {', '.join(alive)}; {remedy}"
        else:
            problem = "the supervisor is dead; its processes are gone, the memory is kept; "
            problem += f"`{command(config.file, 'up')}` starts it again"
    return _status(config, state, problem, record, nodes)


def _status(
    config: ClusterConfig,
    state: str,
    problem: str,
    record: RunRecord | None = None,
    nodes: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    return {
        "cluster": config.name,
        "state": state,
        "uri": record.uri if record else None,
        "topology": config.topology,
        "memory": config.memory,
        "file": str(config.file),
        "supervisor": record.supervisor.pid if record and record.supervisor.alive else None,
        "problem": problem,
        "nodes": list(nodes),
    }


def _recorded_node(node: NodeRecord, state: str) -> dict[str, Any]:
    """`state` is that of a process that lives and was not stopped."""
    alive = node.identity.alive
    answers = alive and not node.identity.stopped and _answers(node)
    return {
        "name": node.name,
        "role": node.role,
        "state": ("paused" if node.identity.stopped else state) if alive else "exited",
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


def _answers(node: NodeRecord) -> bool:
    """A server greets whoever connects, as NBD servers do; a logger answers a question, even one it does not know."""
    parsed = Address.parse(node.address)
    with socket.socket(parsed.family, socket.SOCK_STREAM) as sock:
        sock.settimeout(GREETING_WITHIN)
        try:
            sock.connect(parsed.sockaddr)
            if node.role == "logger":
                sock.sendall(Frame({"ask": "status"}).encode())
            return bool(sock.recv(1))
        except OSError:
            return False
