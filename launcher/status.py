"""`memcluster status`: what the supervisor says, or, when it is dead, what was recorded held against the system."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from memcluster.client.console import EXIT_DEGRADED, EXIT_NOT_RUNNING
from memcluster.client.discover import NotRunning, command
from memcluster.launcher.changed import note
from memcluster.launcher.checked import load, name_of
from memcluster.launcher.run.control import NoAnswer, ask
from memcluster.launcher.run.directory import NodeRecord, RunDirectory, RunRecord
from memcluster.node.transport.address import Address
from memcluster.node.transport.frames import Frame

ANSWER_WITHIN = 5.0
"""Seconds a living supervisor has to answer."""
GREETING_WITHIN = 0.3
"""Seconds a node has to say its first word to somebody who asks it directly."""


def read_status(file: Path) -> dict[str, Any]:
    """The object that `status --json` prints. Raises Failure."""
    try:
        name = name_of(file)
    except NotRunning as another:
        return _status(file, "stopped", str(another), None)
    run = RunDirectory(name)
    record = run.record()
    if not run.locked:
        return _left(file, run, record)
    supervisor = record.supervisor if record else None
    if supervisor and supervisor.stopped:
        problem = f"the supervisor is paused; `kill -CONT {supervisor.pid}` lets it go on"
        return _status(file, "degraded", problem, record)
    try:
        found = ask(run.control, {"do": "status"}, ANSWER_WITHIN)
    except NoAnswer as trouble:
        problem = "it is being started or stopped right now"
        if supervisor and supervisor.alive:
            problem = f"the supervisor does not answer ({trouble}); `{command(file, 'down')}` ends it"
        return _status(file, "degraded", problem, record)
    if record is not None and (changed := note(file, record)):
        found["changed"] = changed
    return found


def exit_code(status: dict[str, Any]) -> int:
    """0 running, 3 not running, 4 anything between."""
    return {"running": 0, "stopped": EXIT_NOT_RUNNING}.get(status["state"], EXIT_DEGRADED)


def _left(file: Path, run: RunDirectory, record: RunRecord | None) -> dict[str, Any]:
    """No supervisor lives: what one has left."""
    if not run.path.exists():
        return _status(file, "stopped", "", None)  # what the record told of has gone since
    if record and (alive := [node.name for node in record.nodes if node.identity.alive]):
        problem = f"the supervisor is dead; it left {', '.join(alive)}; `{command(file, 'down')}` cleans up"
        return _status(file, "degraded", problem, record, "orphaned")
    problem = "the supervisor is dead; its processes are gone, the memory is kept; "
    return _status(file, "stopped", f"{problem}`{command(file, 'up')}` starts it again", record)


def _status(
    file: Path, state: str, problem: str, record: RunRecord | None, alive: str = "running"
) -> dict[str, Any]:
    """The status without the supervisor's help; `alive` is the state of a node that lives and was not stopped."""
    known = record or load(file, room=False)
    return {
        "cluster": known.cluster if isinstance(known, RunRecord) else known.name,
        "state": state,
        "uri": record.uri if record else None,
        "topology": known.topology,
        "memory": known.memory,
        "stripe": known.stripe,
        "file": str(known.file),
        "supervisor": record.supervisor.pid if record and record.supervisor.alive else None,
        "problem": problem,
        "faults": [],
        "nodes": [_recorded_node(node, alive) for node in record.nodes] if record else [],
    }


def _recorded_node(node: NodeRecord, state: str) -> dict[str, Any]:
    """`state` is that of a process that lives and was not stopped."""
    if node.host:  # its pid is another machine's: only its own word tells whether it lives
        alive = answers = _answers(node)
        there = state if answers else "unreachable"
    else:
        alive = node.identity.alive
        answers = alive and not node.identity.stopped and _answers(node)
        there = ("paused" if node.identity.stopped else state) if alive else "exited"
    return {
        "name": node.name,
        "role": node.role,
        "state": there,
        "ready": answers,
        "pid": node.pid if alive else None,
        "address": node.address,
        "range": node.range,
        "memory": node.memory,
        "restarts": 0,
        "uptime_s": 0.0,
        "clients": 0,
        "requests": 0,
        "rss_bytes": 0,
        "cpu_percent": 0.0,
        "reason": "",
        **({"host": node.host} if node.host else {}),
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
