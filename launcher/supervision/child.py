"""One process under the supervisor: started by the fork server, known by pid and start time, watched by pidfd.

What starts a process sits behind this class: start, tell, signal, and one call when it is gone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import types
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from client.console import silence
from launcher.run.identity import Identity, kill
from node.spec import NodeSpec
from node.transport.channel import Channel
from node.transport.frames import Frame
from node.transport.loop import READ, Loop
from node.zygote import OUTPUT, SUPERVISOR, run_node

NEEDED = ("multiprocessing.popen_forkserver",)
"""What every node would load by itself to read what it is to run: 1 ms of each."""
LOST_STATUS = 255
"""What multiprocessing takes for the exit status when the fork server, who knows it, is dead."""
_context = multiprocessing.get_context("forkserver")
_output = open(os.memfd_create("fork server's output"), "r+b")  # noqa: SIM115 - as long as this process
"""What the fork server says, and a node before it has a file of its own; passed on when it has died or is stopped."""
EXIT_STATUS_WAIT = 1.0
"""Seconds the fork server may take to tell the status of a process that is already gone."""


def start_fork_server(directory: Path, *modules: str) -> None:
    """Start the process from which all nodes are forked, with the nodes' modules and these loaded. The command line's
    own modules are not for the nodes, so the main module is hidden from it. Its socket lies in `directory`: in a
    temporary one of its own it would stay for ever after a kill -9. No node has what multiprocessing's resource
    tracker looks after (semaphores, shared memory), so what it would be told goes nowhere: a process less."""
    resource_tracker._resource_tracker._fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)  # type: ignore[attr-defined]
    multiprocessing.current_process()._config["tempdir"] = str(directory)  # type: ignore[attr-defined]
    sys.modules["__main__"] = types.ModuleType("__main__")
    _context.set_forkserver_preload(["node.zygote", "node.process", *modules, *NEEDED])
    _fork_server_pid()


def _fork_server_pid() -> int:
    """The fork server, woken if it was stopped, for it is waited for; started again if it has died, which is told: the
    next one may die of the same."""
    died = _death()
    os.environ |= {SUPERVISOR: str(os.getpid()), OUTPUT: f"/proc/{os.getpid()}/fd/{_output.fileno()}"}
    forkserver.ensure_running()
    del os.environ[SUPERVISOR], os.environ[OUTPUT]
    pid: int = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    os.kill(pid, signal.SIGCONT)  # a child of this process that has not been waited for: nobody else has the pid
    if died:
        _tell(f"{_words()}the fork server {died}; it was started again, as pid {pid}\n")
    return pid


def _death() -> str:
    """How the fork server has ended, if it has."""
    pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    if pid is None:
        return ""
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if found is None:
        return ""
    return describe_exit(found.si_status if found.si_code == os.CLD_EXITED else -found.si_status)


def _words() -> str:
    """What has come from the fork server since this was last asked."""
    return _output.read().decode(errors="replace")


def _tell(text: str) -> None:
    """To the terminal, or into supervisor.out; a cluster does not depend on who reads about it."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        silence(sys.stderr)


def helpers() -> tuple[Identity, ...]:
    """The fork server, if it lives."""
    pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    found = Identity.of(pid) if pid else None
    return () if found is None else (found,)


def stop_fork_server() -> None:
    """End the fork server and wait for it. It would go by itself when this process is gone, but `down` promises that
    nothing is left when it returns; hence the standard library's own test hook. It has nothing to do any more, and
    one that is stopped would be waited for in vain: SIGKILL."""
    for helper in helpers():
        helper.signal(signal.SIGKILL)
    _tell(_words())
    try:
        forkserver._forkserver._stop()  # type: ignore[attr-defined]
    except FileNotFoundError:
        pass  # its socket went with the run directory; removing it is the last that _stop does


class Child:
    """A running node. `told(child, head)` is called for what it says, `gone(child, how)` once when it has ended."""

    def __init__(
        self,
        loop: Loop,
        spec: NodeSpec,
        listeners: Sequence[socket.socket],
        told: Callable[[Child, dict[str, Any]], None],
        gone: Callable[[Child, str], None],
    ) -> None:
        self.loop = loop
        self.spec = spec
        self._told = told
        self._gone = gone
        self._answers: dict[int, Callable[[dict[str, Any]], None]] = {}
        self._asked = 0
        self.ready = False
        """It has said so: it has come far enough to take signals gracefully."""
        self.status: int | None = None
        """Its exit status, or minus the signal that ended it; None while it lives and where it is not known."""
        self._problem = ""
        self._parent: Identity | None = None
        ours, theirs = socket.socketpair()
        try:
            parent = _fork_server_pid()
            self._parent = Identity.of(parent)
            arguments = spec, listeners, theirs, parent
            self._process = _context.Process(target=run_node, args=arguments, name=spec.name)
            self._process.start()
        except (OSError, EOFError) as error:  # the fork server died meanwhile, or the system has no room for more
            self._problem = f"could not be started: {error or type(error).__name__}"
        theirs.close()
        self.pid = 0 if self._problem else self._process.pid or 0
        identity = Identity.of(self.pid) if self.pid else None
        self._pidfd = identity.open() if identity else None
        self.identity = identity or Identity(self.pid, 0)
        self.channel = Channel(loop, ours, self._received)
        if self._pidfd is None:
            loop.soon(self._ended)
        else:
            loop.watch(self._pidfd, READ, lambda _: self._ended())

    def __repr__(self) -> str:
        return f"<Child {self.spec.name} {self.identity}>"

    def tell(self, head: dict[str, Any]) -> None:
        """Send a word that needs no answer."""
        self.channel.send(head)

    def ask(self, head: dict[str, Any], answered: Callable[[dict[str, Any]], None]) -> None:
        """Send a word; `answered` gets the answer, or {"error": …} if the process ends before it gives one."""
        self._asked += 1
        self._answers[self._asked] = answered
        self.channel.send({**head, "id": self._asked})

    def signal(self, *signums: int) -> None:
        """Send signals to this very process, if it is still there."""
        if self._pidfd is not None:
            for signum in signums:
                try:
                    signal.pidfd_send_signal(self._pidfd, signum)
                except ProcessLookupError:
                    return

    def kill(self) -> None:
        """End it, and whatever runs in its group: a node leads one of its own."""
        if self._pidfd is not None:
            with suppress(ProcessLookupError):
                kill(self._pidfd)

    def _received(self, _channel: Channel, frame: Frame) -> None:
        self.ready = self.ready or frame.head.get("event") == "ready"
        answered = self._answers.pop(frame.head.get("answer", 0), None)
        if answered is not None:
            answered(frame.head)
        else:
            self._told(self, frame.head)

    def _ended(self) -> None:
        """The process is gone: take its last words, then its exit status."""
        if self._pidfd is not None:
            self.loop.unwatch(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        while self.channel.open and wait([self.channel.sock], 0):
            self.channel._readable()
        self.channel.close()
        how = self._problem or self._exit_status()
        for answered in self._answers.values():
            answered({"error": f"{self.spec.name} ended"})
        self._answers.clear()
        self._gone(self, how)

    def _exit_status(self) -> str:
        """How the process ended, in words; the fork server, its parent, tells it soon, unless it is dead or late."""
        if self._parent is not None:
            self._parent.signal(signal.SIGCONT)
        wait([self._process.sentinel], EXIT_STATUS_WAIT)
        status = self._process.exitcode
        if status is not None:
            self._process.close()
        if status == LOST_STATUS and not (self._parent and self._parent.alive):
            return "died with the fork server"
        self.status = status
        return describe_exit(status)


def describe_exit(status: int | None) -> str:
    """An exit status in words."""
    if status is None:
        return "is gone; its exit status is not known"
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exited with status {status}"
