"""The control socket: there the command line asks the supervisor one thing after another and hears the answers, and, if
it watches, what happens.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from memcluster.launcher.clusterfile.written import dump
from memcluster.launcher.run.directory import RunDirectory
from memcluster.launcher.supervision import census, orders, sockets
from memcluster.launcher.supervision.applying import Applying
from memcluster.launcher.supervision.faults import FaultError, Faults
from memcluster.launcher.supervision.lifecycle import Phase
from memcluster.launcher.supervision.nodelife import State
from memcluster.launcher.supervision.replacing import Replacing
from memcluster.node.transport.address import Address
from memcluster.node.transport.channel import Channel
from memcluster.node.transport.frames import MAX_QUESTION, Frame
from memcluster.node.transport.listener import Listener


class Cluster(census.Cluster, Protocol):
    """What is asked of the supervisor."""

    run_directory: RunDirectory
    watchers: list[Callable[[dict[str, Any]], None]]

    def stop(self, mode: str, timeout: float | None) -> None: ...
    def kill(self) -> None: ...
    def carry_out(self, what: orders.Planned, names: Sequence[str]) -> None:
        """Stop or start these nodes on purpose."""


class Control:
    """The supervisor's side of it."""

    def __init__(self, cluster: Cluster, faults: Faults, applying: Applying, replacing: Replacing) -> None:
        self._cluster = cluster
        self._faults = faults
        self._applying = applying
        self._replacing = replacing
        self._census = census.Census(cluster)
        self._listener: Listener | None = None
        self._channels: set[Channel] = set()

    def listen(self) -> None:
        """Where the run directory has it, from now on."""
        self.stop()
        address = Address(path=str(self._cluster.run_directory.control))
        self._listener = Listener(self._cluster.loop, sockets.bind(address), self._accept)
        self._listener.start()

    def stop(self) -> None:
        """Nobody else is heard; who has connected is."""
        if self._listener is not None:
            self._listener.stop()

    def close(self) -> None:
        """Nobody is."""
        for channel in tuple(self._channels):
            channel.close()

    def _accept(self, sock: socket.socket) -> None:
        self._channels.add(Channel(self._cluster.loop, sock, self._asked, self._left, most=MAX_QUESTION))

    def _left(self, channel: Channel) -> None:
        self._channels.discard(channel)
        if channel.send in self._cluster.watchers:
            self._cluster.watchers.remove(channel.send)

    def _asked(self, channel: Channel, frame: Frame) -> None:
        try:
            order = orders.parse(frame.head)
        except orders.OrderError as error:
            channel.send({"error": f"the supervisor does not understand this: {error}"})
            return
        cluster = self._cluster
        match order:
            case orders.Status():
                self._census.take(channel.send)
            case orders.Config():
                channel.send({"config": dump(cluster.makeup.config)})
            case orders.Abort():
                words = "nothing is under way from which there is a way back"
                channel.send({"aborted": True} if self._replacing.abort() else {"error": words})
            case orders.Apply():
                self._applying.begin(order, channel.send)
            case orders.Watch():
                cluster.watchers.append(channel.send)
                channel.send({"event": "watched"})
            case orders.Down():
                cluster.watchers.append(channel.send)
                cluster.stop("finish" if order.drain else "now", order.timeout)
            case orders.Kill():
                cluster.kill()
            case orders.Fault():
                channel.send(self._break(order))
            case orders.Plan():
                channel.send(self._plan(order))

    def _break(self, order: orders.Fault) -> dict[str, Any]:
        try:
            return {"done": self._faults.apply(order)}
        except FaultError as error:
            return {"error": str(error)}

    def _plan(self, order: orders.Plan) -> dict[str, Any]:
        """The nodes, and those of them for which it is not done yet."""
        lifecycle = self._cluster.lifecycle
        if lifecycle.phase is not Phase.RUNNING:
            words = "started" if lifecycle.phase is Phase.STARTING else "stopped"
            return {"error": f"the cluster is being {words} right now"}
        try:
            names = self._faults.meant(order.nodes)
        except FaultError as error:
            return {"error": str(error)}
        self._cluster.carry_out(order.what, names)
        end = State.STOPPED if order.what == "stop" else State.READY
        return {"done": names, "waiting": [name for name in names if lifecycle.nodes[name].state is not end]}
