"""One process under the supervisor: started by the fork server, known by pid and start time, watched by pidfd.

What starts a process sits behind this class: start, tell, signal, and one call when it is gone.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any

from memcluster.client.stdio import SHORT
from memcluster.launcher.run.identity import Identity, describe_exit, kill
from memcluster.launcher.run.leftovers import wait_gone
from memcluster.launcher.supervision.forkserver import CONTEXT, fork_server
from memcluster.node.spec import NodeSpec
from memcluster.node.transport.channel import Channel
from memcluster.node.transport.frames import Frame
from memcluster.node.transport.loop import READ, Loop
from memcluster.node.zygote import NO_ROOM, run_node

LOST_STATUS = 255
"""What multiprocessing takes for the exit status when the fork server, who knows it, is dead."""
LIMIT = "the limit of processes is reached (ulimit -u, or pids.max of the control group)"
DEATH_SHOWS = 0.2
"""Seconds after which a fork server that has hung up is seen to be dead, if it is."""
EXIT_STATUS_WAIT = 1.0
"""Seconds the fork server may take to tell the status of a process that is already gone."""


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
        self.place = ""
        """Where it stood, of one on another host that hung."""
        self.away = ""
        """Why nothing can be said of it, of one on another host."""
        self.short = False
        """It was not started because the system had no room for another process."""
        self._problem = ""
        self._parent: Identity | None = None
        ours, theirs = socket.socketpair()
        try:
            self._fork(listeners, theirs)
        except (OSError, EOFError) as error:  # the fork server died meanwhile, or the system has no room for more
            self._problem = f"could not be started: {str(error) or type(error).__name__}"
            self.short = isinstance(error, OSError) and error.errno in SHORT
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

    @property
    def stopped(self) -> bool:
        """It is there, and was stopped with a signal."""
        return self.identity.stopped

    def __repr__(self) -> str:
        return f"<Child {self.spec.name} {self.identity}>"

    @property
    def alive(self) -> bool:
        """It has not been seen to end."""
        return self._pidfd is not None

    def tell(self, head: dict[str, Any]) -> None:
        """Send a word that needs no answer."""
        self.channel.send(head)

    def ask(
        self,
        head: dict[str, Any],
        answered: Callable[[dict[str, Any]], None],
        handed: socket.socket | None = None,
    ) -> None:
        """Send a word, with a socket perhaps; `answered` gets the answer, or {"error": …} if the process ends before it
        gives one. One whose channel takes no socket does not turn any more, and is ended."""
        self._asked += 1
        self._answers[self._asked] = answered
        head = {**head, "id": self._asked}
        if handed is None:
            self.channel.send(head)
            return
        try:
            self.channel.hand(head, handed)
        except OSError:
            self.kill()

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

    def _fork(self, listeners: Sequence[socket.socket], control: socket.socket) -> None:
        """Raises OSError, EOFError. If the fork server dies before it has forked, at its load perhaps, the next one is
        asked."""
        for again in (True, False):
            parent = fork_server()
            self._parent = Identity.of(parent)
            arguments = self.spec, listeners, control, parent
            self._process = CONTEXT.Process(target=run_node, args=arguments, name=self.spec.name)
            try:
                self._process.start()
                if self._process.pid == NO_ROOM:
                    raise BlockingIOError(errno.EAGAIN, LIMIT)
                return
            except (ConnectionError, EOFError):
                if self._parent and not wait_gone([self._parent], DEATH_SHOWS):
                    raise BlockingIOError(errno.EAGAIN, LIMIT) from None  # it lives, and nobody reads what it was sent
                if not again:
                    raise

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
