"""`memcluster down`: ask the supervisor to stop, or clean up after one that is dead."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from memcluster.client.console import EXIT_TIMEOUT, Failure
from memcluster.launcher.clusterfile.settings import EngineConfig, HostConfig
from memcluster.launcher.run import leftovers
from memcluster.launcher.run.control import NoAnswer, connect
from memcluster.launcher.run.directory import NameInUse, RunDirectory, RunRecord
from memcluster.launcher.supervision.patience import HOSTS_LEAVE, LAST_STAGES

Tell = Callable[[dict[str, Any]], None]
SLACK = 5.0
"""Seconds beyond all its own deadlines that a supervisor has before it is killed."""


@dataclass(frozen=True)
class Hosts:
    """The other hosts of a cluster, and what reaches them."""

    hosts: Sequence[HostConfig]
    engine: EngineConfig
    lease: float
    encrypted: bool


class NotRunning(Exception):
    """There is nothing to stop."""


class Busy(Exception):
    """Somebody else is starting the cluster, or cleaning up after it, at this moment."""


def down(
    name: str,
    *,
    timeout: float | None,
    drain: bool,
    tell: Tell,
    paths: Callable[[], Sequence[str]],
    hosts: Callable[[], Hosts],
) -> int:
    """Stop the cluster; returns the exit code when every process is gone. Raises NotRunning, Busy, and Failure
    where the supervisor does not understand.

    What runs is known from its record, so cluster.yaml may have changed since, and need not be read (which would take
    half the time of a stop). `paths` tells the unix sockets that cluster.yaml names, and `hosts` the other hosts, where
    there is no record.
    """
    run = RunDirectory(name)
    record = run.record()
    if not run.locked:
        if not run.path.exists() and not _discard_elsewhere(run, hosts(), tell):
            raise NotRunning
        return _clean_up(run, record, paths, hosts, tell) if run.path.exists() else 0
    deadline = None
    if record is not None and not (drain and timeout is None):
        limit = record.stop_timeout if timeout is None else timeout
        limit += (record.stop_timeout if drain else 0) + (HOSTS_LEAVE if record.hosts else 0)
        deadline = time.monotonic() + limit + LAST_STAGES + SLACK
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
        _clean_up(run, record, paths, hosts, tell)
        return EXIT_TIMEOUT
    if record is not None and not leftovers.wait_gone([record.supervisor, *record.helpers], leftovers.PATIENCE):
        leftovers.end(record)
    if not gone:  # it died on the way
        code = _clean_up(run, record, paths, hosts, tell) or code
    return code


def _clean_up(
    run: RunDirectory,
    record: RunRecord | None,
    paths: Callable[[], Sequence[str]],
    hosts: Callable[[], Hosts],
    tell: Tell,
) -> int:
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
    known = hosts() if record is None else _hosts_of(record)
    if known.hosts:
        _, problems = _ask_hosts(run, known, tell)
        if problems:  # their part of the memory has the name that is kept here
            run.forget()
            return EXIT_TIMEOUT
    run.remove()
    tell({"event": "gone"})
    return 0


def _hosts_of(record: RunRecord) -> Hosts:
    named = [HostConfig(name, address) for name, address in record.hosts]
    return Hosts(named, EngineConfig(*record.engine), record.host_lease, record.host_encryption)


def _discard_elsewhere(run: RunDirectory, known: Hosts, tell: Tell) -> bool:
    """Nothing is known here of a run, but other hosts may still have what one has left; whether some had. Raises
    Busy."""
    if not known.hosts:
        return False
    try:
        run.acquire()
    except NameInUse:
        raise Busy from None
    try:
        held, problems = _ask_hosts(run, known, tell)
    finally:
        run.remove()
    return bool(held or problems)


def _ask_hosts(run: RunDirectory, known: Hosts, tell: Tell) -> tuple[list[str], list[str]]:
    """Have other hosts throw away what a run has left there: those that had something, and what went wrong."""
    from memcluster.launcher.hosts.hosts import discard

    held, problems = discard(run, known.hosts, known.engine, known.lease, encrypted=known.encrypted)
    for name in held:
        tell({"event": "discarded", "name": name})
    for problem in problems:
        tell({"event": "late", "name": "", "text": problem})
    return held, problems
