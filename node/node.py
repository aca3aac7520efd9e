"""One node: its role on its loop, and what its supervisor says to it and hears from it. How its process comes to be,
and what else may end it, is node/process.py's affair.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from memcluster.node import topology
from memcluster.node.logger.logger import Logger
from memcluster.node.spec import NodeSpec
from memcluster.node.transport.channel import Channel, HandedChannel
from memcluster.node.transport.frames import Frame
from memcluster.node.transport.loop import Loop, Timer

TURN_COMES = 60.0
"""Seconds after which a node that was sent a SIGTERM drains although its supervisor has not said so."""


class Role(Protocol):
    """What a process is there for."""

    def tune_process(self) -> None:
        """Make the process fit for this role; called where nothing else runs in it."""

    def start(self) -> None:
        """Begin to serve; reports {"event": "ready"} when it does."""

    def status(self) -> dict[str, Any]:
        """Counters, for people."""

    def drain(self, mode: str, done: Callable[[], None]) -> None:
        """Stop gracefully: mode "now", "again" for clients that will come back to another one, or "finish" to let
        present clients go on until they leave. With "hold", said to doors only, it keeps its clients when it has
        stopped, for the role that takes over."""

    def take_over(self, before: Role) -> None:
        """Go on with the clients of the one that this one takes the place of, from `start` on."""

    def command(self, head: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> None:
        """Carry out a word from the supervisor that only this role understands."""

    def settle_on(self, spec: NodeSpec, page: socket.socket | None) -> None:
        """Go on with other settings, from now on; logger 0 with another listening socket for its page, if one came."""

    def cut(self, peer: str, cut: bool) -> None:
        """Cut the link to another node, or give it back."""

    def close(self) -> None:
        """Give everything back."""


class Node:
    """Ties the loop, the role and the supervisor together; `control` is this end of the channel to the supervisor."""

    def __init__(
        self, loop: Loop, spec: NodeSpec, listeners: Sequence[socket.socket], control: socket.socket
    ) -> None:
        self.loop = loop
        self.spec = spec
        self.draining = ""
        self._listeners = listeners
        self._rests = False  # the role has stopped, and keeps its clients
        self._beating: Timer | None = None
        # Without a guardian on another host it is started again soon: clients are not told that the cluster stops.
        alone = "again" if spec.host else "now"
        self.control = HandedChannel(self.loop, control, self._told, lambda _: self._drain(alone))
        self.role = self._make_role()

    def start(self) -> None:
        """Begin to serve, and to tell the supervisor that the loop turns."""
        self._beat()
        self.role.start()

    def close(self) -> None:
        """The loop has stopped: give everything back."""
        if not self._rests:
            self.role.close()
        self.control.close()
        self.loop.close()

    def _make_role(self) -> Role:
        spec = self.spec
        try:
            kinds = topology.load(spec.cluster.topology).roles | {"logger": Logger}
            role: Role = kinds[spec.role](self.loop, spec, self._listeners, self.control.send)
        except Exception as error:
            self.control.send({"event": "failed", "reason": str(error)})
            raise
        return role

    def _beat(self) -> None:
        """Only a loop that turns gets here: the beat is progress, not mere life."""
        if self._beating is not None:
            self._beating.cancel()
        self.control.send({"event": "beat", "turns": self.loop.turns})
        self._beating = self.loop.after(self.spec.beat, self._beat)

    def terminated(self) -> None:
        """A SIGTERM has come. Whether the others go, too, the supervisor knows; one that says nothing keeps nobody."""
        self.control.send({"event": "terminated"})
        self.loop.after(TURN_COMES, lambda: self._drain("now"))

    def _drain(self, mode: str) -> None:
        if self._rests:
            self.loop.stop()
        elif self.draining != "now":
            self.draining = mode
            self.role.drain(mode, self.loop.stop)

    def _hold(self, head: dict[str, Any]) -> None:
        """Have the role stop, and keep its clients."""

        def done() -> None:
            self._rests = True
            self._answer(head, {})

        self.role.drain("hold", done)

    def _become(self, head: dict[str, Any]) -> None:
        """Be this node from now on, another cluster's perhaps, with the clients of the role that rests."""
        before, self.spec = self.role, NodeSpec.from_head(head["spec"])
        self.role = self._make_role()
        self._rests = False
        self.role.take_over(before)
        self.role.tune_process()
        self.start()

    def _told(self, _channel: Channel, frame: Frame) -> None:
        head = frame.head
        if head["do"] == "drain" and head["mode"] == "hold":
            self._hold(head)
        elif head["do"] == "drain":
            self._drain(head["mode"])
        elif head["do"] == "become":
            self._become(head)
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
        self._beat()
        self._answer(head, {})

    def _fault(self, kind: str, head: dict[str, Any]) -> None:
        """Do what `memcluster fault` asks of the inside of a node; its supervisor ends it again."""
        if kind == "slow":
            self.loop.slow(head["delay"])
        elif kind == "cut":
            self.role.cut(head["peer"], head["cut"])
        elif kind == "hang":
            until = self.loop.system.monotonic() + head["seconds"]
            while self.loop.system.monotonic() < until:
                pass

    def _answer(self, head: dict[str, Any], answer: dict[str, Any]) -> None:
        if "id" in head:
            self.control.send({"answer": head["id"], **answer})
