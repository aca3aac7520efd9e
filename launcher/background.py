"""`memcluster up -d`: the supervisor goes on in the background, and the command waits until the cluster is ready.

Until then the two share the work: the command checks cluster.yaml, while the supervisor takes the name, starts the fork
server and loads its own modules. So it is the command alone that needs pydantic.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from memcluster.client.console import EXIT_ERROR, EXIT_INTERRUPTED
from memcluster.launcher.run.control import FrameStream, NoAnswer
from memcluster.launcher.run.identity import Identity
from memcluster.launcher.speech import SPEECH
from memcluster.node.transport.frames import Frame

if TYPE_CHECKING:
    from memcluster.launcher.clusterfile.settings import ClusterConfig

Load = Callable[[], "ClusterConfig"]
Tell = Callable[[dict[str, Any]], None]
Leave = Callable[[Path], None]


class _CalledOff(Exception):
    """The command, which says why, does not want the supervisor any more."""


def _called_off(_signum: int, _frame: FrameType | None) -> None:
    raise _CalledOff


def in_background(load: Load, supervise: Callable[[Load, Tell, Leave], int], tell: Tell) -> int:
    """Fork the supervisor and pass on what it tells until the cluster is ready or gone; returns the exit code.

    `supervise(load, tell, leave)` runs in the child, which is the command itself, and may print, until it calls `leave`
    with the file for its output from then on: what goes wrong before that is said as it is in the foreground. The
    `load` that it gets waits for the cluster that ours has read.
    """
    gc.disable()  # loading makes much and no garbage
    ours, theirs = socket.socketpair()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        ours.close()
        os.setsid()
        starter = _Starter(theirs)
        signal.signal(signal.SIGTERM, _called_off)  # until the supervisor has its own way of taking it
        try:
            code = supervise(cache(starter.load), starter.tell, starter.leave)
        except _CalledOff:
            code = EXIT_ERROR
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    supervisor = Identity.of(pid)
    called_off = False

    def call_off(_signum: int, _frame: FrameType | None) -> None:
        nonlocal called_off
        called_off = True
        if supervisor is not None:
            supervisor.signal(signal.SIGTERM)

    signal.signal(signal.SIGINT, call_off)
    theirs.close()
    stream = FrameStream(ours)
    try:
        cluster = pickle.dumps(load())
    except BaseException:
        ours.shutdown(socket.SHUT_WR)
        _wait(pid, stream, tell)
        raise
    with suppress(OSError):  # it has not waited for it
        ours.sendall(cluster)
    code, gave_up = _wait(pid, stream, tell)
    if called_off and code:
        return EXIT_INTERRUPTED
    if gave_up:
        tell({"event": "gave-up", "text": gave_up})
    return code


def _wait(pid: int, stream: FrameStream, tell: Tell) -> tuple[int, str]:
    """The exit code, and what nobody has told yet of why it is not 0."""
    output = ""
    told_why = False
    try:
        for happening in stream.frames(None):
            tell(happening)
            told_why = told_why or happening["event"] in ("gave-up", "gone")
            if happening["event"] == "left":
                output = happening["text"]
            elif happening["event"] == "running":
                return 0, ""
    except NoAnswer:
        pass
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code >= 0 and not output:
        return code, ""  # it has said why
    place = f"; what it said is in {output}" if output else ""
    gave_up = f"the supervisor died{place}" if code < 0 or not told_why else ""
    return (code if code > 0 else EXIT_ERROR), gave_up


class _Starter:
    """The command that waits for the cluster: told until it has what it wants or is gone."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock: socket.socket | None = sock

    def load(self) -> ClusterConfig:
        """The cluster that the command has read. Raises _CalledOff."""
        assert self._sock is not None
        with self._sock.makefile("rb") as file:
            try:
                cluster: ClusterConfig = pickle.load(file)
            except (OSError, EOFError, pickle.UnpicklingError):
                raise _CalledOff from None
        return cluster

    def tell(self, happening: dict[str, Any]) -> None:
        if happening["event"] == "lost" and self._sock is None:
            SPEECH.say(happening["text"], sys.stderr)
        if self._sock is not None:
            try:
                self._sock.sendall(Frame(happening).encode())
            except OSError:
                self._sock = None
            if happening["event"] == "running" and self._sock is not None:
                self._sock.close()
                self._sock = None

    def leave(self, path: Path) -> None:
        """Have nothing to do with the terminal any more; output goes to a file."""
        # Loaded by now, and nothing that the command need wait for.
        from memcluster.node.zygote import open_output, redirect_output

        redirect_output(open_output(str(path)))
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        self.tell({"event": "left", "text": str(path)})
