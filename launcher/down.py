"""`memcluster down`: ask the supervisor to stop, or clean up after one that is dead."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

from memcluster.client.console import EXIT_TIMEOUT, Failure
from memcluster.launcher.run import leftovers
from memcluster.launcher.run.control import NoAnswer, connect
from memcluster.launcher.run.directory import NameInUse, RunDirectory, RunRecord
from memcluster.launcher.supervision.patience import LAST_STAGES

Tell = Callable[[dict[str, Any]], None]
SLACK = 5.0
"""Seconds beyond all its own deadlines that a supervisor has before it is killed."""


class NotRunning(Exception):
    """There is nothing to stop."""


class Busy(Exception):
    """Somebody else is starting the cluster, or cleaning up after it, at this moment."""


def down(name: str, *, timeout: float | None, drain: bool, tell: Tell, paths: Callable[[], Sequence[str]]) -> int:
    """Stop the cluster; returns the exit code when every process is gone. Raises NotRunning, Busy, and Failure
    where the supervisor does not understand.

    What runs is known from its record, so cluster.yaml may have changed since, and need not be read (which would take
    half the time of a stop). `paths` tells the unix sockets that cluster.yaml names, where there is no record.
    """
    run = RunDirectory(name)
    record = run.record()
    if not run.locked:
        if not run.path.exists():
            raise NotRunning
        return _clean_up(run, record, paths, tell)
    deadline = None
    if record is not None and not (drain and timeout is None):
        limit = record.stop_timeout if timeout is None else timeout
        deadline = time.monotonic() + limit + (record.stop_timeout if drain else 0) + LAST_STAGES + SLACK
    code, gone = 0, False
    try:
        with closing(connect(run.control)) as stream:
            if record is not None:  # a paused supervisor cannot stop
                record.supervisor.signal(signal.SIGCONT)
            stream.send({"do": "down", "drain": drain, "timeout": timeout})
            for happening in stream.frames(deadline):
                if "event" not in happening:  # it has not understood the order, and does nothing
                    raise Failure(happening["error"])
                tell(happening)
                gone = gone or happening["event"] == "gone"
                if happening["event"] == "late":
                    code = EXIT_TIMEOUT
    except NoAnswer as problem:
        if record is None or not record.supervisor.alive:  # who holds the lock has not come so far yet
            raise Busy from problem
        tell({"event": "unresponsive", "text": str(problem)})
        record.supervisor.signal(signal.SIGKILL)
        leftovers.wait_gone([record.supervisor], leftovers.PATIENCE)
        _clean_up(run, record, paths, tell)
        return EXIT_TIMEOUT
    if record is not None and not leftovers.wait_gone([record.supervisor, *record.helpers], leftovers.PATIENCE):
        leftovers.end(record)
    if not gone:  # it died on the way
        _clean_up(run, record, paths, tell)
    return code


def _clean_up(run: RunDirectory, record: RunRecord | None, paths: Callable[[], Sequence[str]], tell: Tell) -> int:
    """The supervisor is dead: end what is left, and remove the files. Nobody may start it meanwhile."""
    from memcluster.launcher.supervision import sockets

    try:
        run.acquire()
    except NameInUse:
        raise Busy from None
    record = run.record() or record
    tell({"event": "supervisor-dead"})
    if record is not None:
        for name in leftovers.end(record):
            tell({"event": "leftover", "name": name})
    addresses = [f"unix:{path}" for path in paths()] if record is None else [node.address for node in record.nodes]
    for address in addresses:
        if address.startswith("unix:"):
            sockets.remove_stale(address.removeprefix("unix:"))
    run.remove()
    tell({"event": "gone"})
    return 0
