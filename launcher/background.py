"""`memcluster up -d`: the supervisor goes on in the background, and the command waits until the cluster is ready."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from client.console import EXIT_ERROR
from launcher.run.control import FrameStream, NoAnswer
from launcher.run.identity import Identity
from node.transport.frames import Frame

Tell = Callable[[dict[str, Any]], None]


def in_background(supervise: Callable[[Tell, Callable[[Path], None]], int], tell: Tell) -> int:
    """Fork the supervisor and pass on what it tells until the cluster is ready or gone; returns the exit code.

    `supervise(tell, leave)` runs in the child, which is the command itself, and may print, until it calls `leave`
    with the file for its output from then on: what goes wrong before that is said as it is in the foreground.
    """
    ours, theirs = socket.socketpair()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        ours.close()
        os.setsid()
        starter = _Starter(theirs)
        code = supervise(starter.tell, starter.leave)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    theirs.close()
    return _wait(pid, FrameStream(ours), tell)


def _wait(pid: int, stream: FrameStream, tell: Tell) -> int:
    identity = Identity.of(pid)
    output = ""
    told_why = False
    while True:
        try:
            for happening in stream.frames(None):
                tell(happening)
                told_why = told_why or happening["event"] in ("gave-up", "gone")
                if happening["event"] == "left":
                    output = happening["text"]
                elif happening["event"] == "running":
                    return 0
            break
        except KeyboardInterrupt:  # the start is called off
            if identity is not None:
                identity.signal(signal.SIGTERM)
        except NoAnswer:
            break
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code >= 0 and not output:
        return code  # it has said why
    if code < 0 or not told_why:
        place = f"; what it said is in {output}" if output else ""
        tell({"event": "gave-up", "text": f"the supervisor died{place}"})
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

    def leave(self, path: Path) -> None:
        """Have nothing to do with the terminal any more; output goes to a file."""
        output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        sys.stdout.flush()
        sys.stderr.flush()
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        os.close(output)
        os.close(nothing)
        self.tell({"event": "left", "text": str(path)})
