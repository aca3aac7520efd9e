"""`memcluster up`: check everything, take the name and the ports, become the supervisor or let one be forked."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from setproctitle import setproctitle

from client.console import EXIT_ERROR
from client.discover import command
from launcher import leftovers, sockets
from launcher.child import start_fork_server, stop_fork_server
from launcher.config import ClusterConfig
from launcher.control import FrameStream, NoAnswer
from launcher.identity import Identity
from launcher.places import Place, places
from launcher.rundir import MemoryMismatch, NameInUse, RunDirectory, RunRecord, claim_memory
from launcher.steps import step
from launcher.supervisor import Supervisor
from node import topology
from node.address import Address
from node.frames import Frame

Tell = Callable[[dict[str, Any]], None]


class AlreadyRunning(Exception):
    """The name is taken by a living supervisor; `record` is None while it has only just begun."""

    def __init__(self, record: RunRecord | None) -> None:
        self.record = record
        super().__init__(record)


class CannotStart(Exception):
    """The memory that lies there is not this cluster's, or the log cannot be kept; says what to do."""


def up(config: ClusterConfig, *, detach: bool, wait_timeout: float, tell: Tell) -> int:
    """Start the cluster and tell what happens. In the foreground returns when it has been stopped, detached when it is
    ready or has failed to become so; returns the exit code. Raises AlreadyRunning, CannotStart, sockets.AddressTaken.
    """
    run = RunDirectory(config.name)
    try:
        run.acquire()
    except NameInUse:
        raise AlreadyRunning(run.record()) from None
    step()
    found_memory = run.holds_memory
    try:
        _end_leftovers(run, tell)
        step()
        found = places(config, run)
        _prepare_directories(config, run, found)
        step()
        listeners = sockets.bind_all(_addresses(config, found))
        step()
    except Exception:
        if not found_memory:
            run.remove()
        raise

    def supervise(tell: Tell) -> int:
        setproctitle(f"memcluster {config.name}: supervisor")
        start_fork_server(run.path, topology.module(config.topology))
        step()
        try:
            supervisor = Supervisor(config, run, found, listeners, tell, keep_memory=found_memory)
            return supervisor.run(wait_timeout)
        finally:
            stop_fork_server()
            step()

    return _detach(config, run, listeners, supervise, tell) if detach else supervise(tell)


def _end_leftovers(run: RunDirectory, tell: Tell) -> None:
    record = run.record()
    if record is not None:
        for name in leftovers.end(record):
            tell({"event": "leftover", "name": name})
        run.forget()


def _prepare_directories(config: ClusterConfig, run: RunDirectory, found: Sequence[Place]) -> None:
    directory = config.storage or run.path
    try:
        directory.mkdir(parents=True, exist_ok=True)
        sizes = [place.memory for place in found]
        claim_memory(directory, config.name, sizes, config.stripe)
        (config.logs.directory / config.name).mkdir(parents=True, exist_ok=True)
    except MemoryMismatch as error:
        remedy = f"`{command(config.file, 'down')}` discards it"
        if config.storage:
            remedy = "put back what belongs there, or choose another directory"
        raise CannotStart(f"{error}; {remedy}") from error
    except OSError as error:
        raise CannotStart(f"{error.filename or directory}: {error.strerror}") from error


def _addresses(config: ClusterConfig, found: Sequence[Place]) -> list[Address]:
    """The servers' addresses, then one on loopback for each logger, then that of the metrics if there is one."""
    loggers = [Address("127.0.0.1", 0)] * len(found)
    return [place.listen for place in found] + loggers + ([config.metrics] if config.metrics else [])


def _detach(
    config: ClusterConfig,
    run: RunDirectory,
    listeners: Sequence[socket.socket],
    supervise: Callable[[Tell], int],
    tell: Tell,
) -> int:
    """Fork the supervisor and pass on what it says until the cluster is ready or gone."""
    ours, theirs = socket.socketpair()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        code = EXIT_ERROR
        try:
            ours.close()
            _leave_terminal(config)
            code = supervise(_Starter(theirs).tell)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            raise
        finally:
            sys.stderr.flush()
            os._exit(code)
    theirs.close()
    run.release()
    for sock in listeners:
        sock.close()
    identity = Identity.of(pid)
    stream = FrameStream(ours)
    told_why = False
    while True:
        try:
            for happening in stream.frames(None):
                tell(happening)
                told_why = told_why or happening["event"] in ("gave-up", "gone")
                if happening["event"] == "running":
                    return 0
            break
        except KeyboardInterrupt:  # the start is called off
            if identity is not None:
                identity.signal(signal.SIGTERM)
        except NoAnswer:
            break
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0 or not told_why:
        tell({"event": "gave-up", "text": f"the supervisor died; what it said is in {_output(config)}"})
    return code if code > 0 else EXIT_ERROR


class _Starter:
    """The command that waits for the cluster: told until it has what it wants or is gone."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock: socket.socket | None = sock

    def tell(self, happening: dict[str, Any]) -> None:
        if self._sock is not None:
            try:
                self._sock.sendall(Frame(happening).encode())
            except OSError:
                self._sock = None
            if happening["event"] == "running" and self._sock is not None:
                self._sock.close()
                self._sock = None


def _leave_terminal(config: ClusterConfig) -> None:
    """Become a process of its own session whose output goes to a file."""
    os.setsid()
    output = os.open(_output(config), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(output)
    os.close(nothing)


def _output(config: ClusterConfig) -> Path:
    return config.logs.directory / config.name / "supervisor.out"
