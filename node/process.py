"""The life of one node: from the fork to the exit. Who it is, what ends it, and the word of its supervisor.

A node ends in three ways: told to by its supervisor, it drains and exits 0; when its supervisor is gone (end of file on
the control channel) it does the same by itself; and when the fork server, its parent, is gone, the kernel kills it
(PR_SET_PDEATHSIG), even if it hangs or is stopped. A SIGTERM is passed on to the supervisor, who has a node drain, but
in its turn if all are to go: systemd sends one to every process of a service at once.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import forkserver
from typing import Any, Protocol

from setproctitle import setproctitle

from memcluster.node import topology
from memcluster.node.files import make_folder
from memcluster.node.logger.logger import Logger
from memcluster.node.privileges import drop_capabilities
from memcluster.node.spec import NodeSpec
from memcluster.node.transport.channel import Channel, HandedChannel
from memcluster.node.transport.frames import Frame
from memcluster.node.transport.loop import Loop, Timer
from memcluster.node.zygote import end_with, open_output, raise_descriptor_limit, redirect_output

TURN_COMES = 60.0
"""Seconds after which a node that was sent a SIGTERM drains although its supervisor has not said so."""


class Role(Protocol):
    """What a process is there for."""

    def start(self) -> None:
        """Begin to serve; reports {"event": "ready"} when it does."""

    def status(self) -> dict[str, Any]:
        """Counters, for people."""

    def drain(self, mode: str, done: Callable[[], None]) -> None:
        """Stop gracefully: mode "now", or "finish" to let present clients go on until they leave."""

    def command(self, head: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> None:
        """Carry out a word from the supervisor that only this role understands."""

    def settle_on(self, spec: NodeSpec, page: socket.socket | None) -> None:
        """Go on with other settings, from now on; logger 0 with another listening socket for its page, if one came."""

    def cut(self, peer: str, cut: bool) -> None:
        """Cut the link to another node, or give it back."""

    def close(self) -> None:
        """Give everything back."""


def run_node(spec: NodeSpec, listeners: Sequence[socket.socket], control: socket.socket, fork_server: int) -> None:
    """Be the node until it is time to go. The target of the process; runs in a child of the fork server, whose pid
    is given."""
    gc.freeze()
    gc.enable()
    os.setsid()  # a terminal's Ctrl-C is for the supervisor alone
    end_with(fork_server)
    # The fork server ends when nobody holds this pipe: only the supervisor is to hold it, not the nodes.
    os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]
    setproctitle(f"memcluster {spec.cluster.name}: {spec.name} ({spec.role})")
    logs = os.path.dirname(spec.log_directory)
    with suppress(OSError):  # then its supervisor hears what it has to say; the memory is worth more than a log
        make_folder(logs)
        redirect_output(open_output(os.path.join(logs, f"{spec.name}.out")))
    raise_descriptor_limit()
    drop_capabilities([logs, os.path.dirname(spec.merged_log), os.path.dirname(spec.shard)])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.register(signal.SIGUSR1)  # a supervisor that finds it hung asks where it stands
    _Node(spec, listeners, control).run()


class _Node:
    """Ties the loop, the role and the supervisor together."""

    def __init__(self, spec: NodeSpec, listeners: Sequence[socket.socket], control: socket.socket) -> None:
        self.loop = Loop()
        self.spec = spec
        self.draining = ""
        self.loop.on_signal(signal.SIGTERM, self._terminated)
        self._beating: Timer | None = None
        self.control = HandedChannel(self.loop, control, self._told, lambda _: self._drain("now"))
        try:
            kinds = topology.load(spec.cluster.topology).roles | {"logger": Logger}
            self.role: Role = kinds[spec.role](self.loop, spec, listeners, self.control.send)
        except Exception as error:
            self.control.send({"event": "failed", "reason": str(error)})
            raise

    def run(self) -> None:
        self._beat()
        self.role.start()
        self.loop.run()
        self.role.close()
        self.control.close()
        self.loop.close()

    def _beat(self) -> None:
        """Only a loop that turns gets here: the beat is progress, not mere life."""
        self.control.send({"event": "beat", "turns": self.loop.turns})
        self._beating = self.loop.after(self.spec.beat, self._beat)

    def _terminated(self) -> None:
        """Whether the others go, too, the supervisor knows; one that says nothing does not keep us."""
        self.control.send({"event": "terminated"})
        self.loop.after(TURN_COMES, lambda: self._drain("now"))

    def _drain(self, mode: str) -> None:
        if self.draining != "now":
            self.draining = mode
            self.role.drain(mode, self.loop.stop)

    def _told(self, _channel: Channel, frame: Frame) -> None:
        head = frame.head
        if head["do"] == "drain":
            self._drain(head["mode"])
        elif head["do"] == "status":
            self._answer(head, self.role.status())
        elif head["do"] == "settings":
            self._settle_on(head)
        elif head["do"] == "fault":
            self._fault(head["kind"], head)
        else:
            self.role.command(head, lambda answer: self._answer(head, answer))

    def _settle_on(self, head: dict[str, Any]) -> None:
        """Beat at once, at the new pace: who waits for it counts in that from the answer on."""
        self.spec = self.spec.with_settings(head["settings"])
        self.role.settle_on(self.spec, self.control.take_socket() if head["hands"] else None)
        if self._beating is not None:
            self._beating.cancel()
        self._beat()
        self._answer(head, {})

    def _fault(self, kind: str, head: dict[str, Any]) -> None:
        """Do what `memcluster fault` asks of the inside of a node; its supervisor ends it again."""
        if kind == "slow":
            self.loop.slow(head["delay"])
        elif kind == "cut":
            self.role.cut(head["peer"], head["cut"])
        elif kind == "hang":
            until = time.monotonic() + head["seconds"]
            while time.monotonic() < until:
                pass

    def _answer(self, head: dict[str, Any], answer: dict[str, Any]) -> None:
        if "id" in head:
            self.control.send({"answer": head["id"], **answer})
