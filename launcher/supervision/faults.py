"""Faults on purpose: `memcluster fault` pauses, kills, slows, hangs and partitions nodes, and heals them again.

A target is a node (server1), a role (such as secondary), `server` or `logger` for all of these, `all`, or
`owner:OFFSET`, the server that holds a byte of the memory; and `host:NAME`, another host, of which the guardian can be
killed and the way there cut. What is done to a node's inside (slow, hang, a cut link) is told to it over its control
channel; nothing here needs root or touches the network of the machine.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from memcluster.client.units import parse_size
from memcluster.launcher.supervision.faultkind import FaultKind
from memcluster.launcher.supervision.makeup import Makeup
from memcluster.launcher.supervision.orders import Fault
from memcluster.launcher.supervision.process import Elsewhere, Process
from memcluster.node.log.record import LOGGER, subject_of
from memcluster.node.transport.loop import Loop, Timer

HANG = 3600.0
"""Seconds a node hangs when nobody says how long; its supervisor will have ended it before."""
HOST = "host:"
"""Before the name of a host, in a target."""
EVENTS = {"pause": "paused", "kill": "killed", "hang": "hanging"}
FAULTS_TOLD = {*EVENTS.values(), "slowed", "partitioned", "resumed", "healed"}
"""What faults note of themselves."""


class FaultError(Exception):
    """The fault cannot be done; says why."""


class Cluster(Protocol):
    """What faults need of the supervisor."""

    loop: Loop
    makeup: Makeup
    hosts: Elsewhere | None

    def child(self, name: str) -> Process | None: ...
    def hold(self, name: str, seconds: float) -> None: ...
    def release(self, name: str) -> None: ...
    def note(self, event: str, about: str, value: int) -> None: ...


@dataclass
class InForce:
    """A fault that has not healed: `until` is when it will by itself, on the monotonic clock, if somebody said so. With
    a host cut off `nodes` are its target, and then its nodes."""

    kind: FaultKind
    nodes: tuple[str, ...]
    until: float | None
    delay: float
    timer: Timer | None = None
    seen: bool = False
    """A paused node has been seen to stand still: a signal may take its time."""

    def to_head(self) -> dict[str, Any]:
        """As `status --json` shows it."""
        left = None if self.until is None else round(max(0.0, self.until - time.monotonic()), 3)
        head: dict[str, Any] = {"kind": self.kind, "nodes": list(self.nodes), "left_s": left, "delay_s": self.delay}
        if self.nodes[0].startswith(HOST):
            head |= {"nodes": list(self.nodes[1:]), "host": self.nodes[0].removeprefix(HOST)}
        return head


class Faults:
    """What is broken on purpose now. Every fault heals at its time, or by `resume`."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._force: dict[tuple[FaultKind, tuple[str, ...]], InForce] = {}

    def apply(self, order: Fault) -> list[str]:
        """Do it; returns the names of the nodes it was done to. Raises FaultError."""
        if order.kind in ("kill", "partition") and order.targets[0].startswith(HOST):
            return self._break_host(order)
        if order.kind == "partition":
            pair = self._pair(order.targets)
            self._partition(pair, order.seconds)
            return pair
        names = self.meant(order.targets)
        if order.kind != "resume":  # all or nothing
            dead = [name for name in names if self._cluster.child(name) is None]
            if dead:
                raise FaultError(f"{' and '.join(dead)} {'is' if len(dead) == 1 else 'are'} not alive")
        for name in names:
            self._break(order.kind, name, order.seconds, order.delay)
        return names

    def in_force(self) -> list[dict[str, Any]]:
        """Every fault that has not healed, the oldest first."""
        now = time.monotonic()
        for fault in tuple(self._force.values()):
            over = fault.until is not None and fault.until <= now and fault.timer is None
            stopped = fault.kind == "pause" and self._stopped(fault.nodes[0])
            if over or (fault.seen and not stopped):  # somebody else let it go on
                self._forget(fault.kind, fault.nodes)
            fault.seen = stopped
        return [fault.to_head() for fault in self._force.values()]

    def restarted(self, name: str) -> None:
        """A node has begun a new life, or has none for a while: what is wrong with its links and its pace is told to it
        again; whatever was done to its old process is over."""
        for fault in tuple(self._force.values()):
            if name not in fault.nodes:
                continue
            if fault.kind == "slow":
                self._tell(name, {"kind": "slow", "delay": fault.delay})
            elif fault.nodes[0].startswith(HOST):
                for one, other in self._over(fault.nodes[0]):
                    if name in (one, other):
                        self._tell(name, {"kind": "cut", "peer": other if name == one else one, "cut": True})
            elif fault.kind == "partition":
                [peer] = set(fault.nodes) - {name}
                self._tell(name, {"kind": "cut", "peer": peer, "cut": True})
            else:
                self._forget(fault.kind, fault.nodes)

    def heal(self) -> None:
        """End every fault of every node, and let go on what was stopped by others."""
        for name in self._cluster.makeup.roles:
            self._resume(name)

    # -- one fault each ----------------------------------------------------------------------------------------------

    def _break(self, kind: FaultKind, name: str, seconds: float | None, delay: float) -> None:
        if kind == "pause":
            self._note(kind, name, seconds)
            self._signal(name, signal.SIGSTOP)
            self._hold(kind, (name,), seconds, heal=lambda: self._continue(name))
        elif kind == "resume":
            self._resume(name)
            self._cluster.release(name)
        elif kind == "kill":
            if seconds is not None:
                self._cluster.hold(name, seconds)
                self._hold(kind, (name,), seconds)
            self._note(kind, name, seconds)
            self._signal(name, signal.SIGKILL)
        elif kind == "slow":
            if not delay:
                self._full_speed(name)
                return
            self._cluster.note("slowed", name, round(delay * 1000))
            self._tell(name, {"kind": "slow", "delay": delay})
            self._hold(kind, (name,), seconds, delay=delay, heal=lambda: self._full_speed(name))
        elif kind == "hang":
            self._note(kind, name, seconds)
            self._tell(name, {"kind": "hang", "seconds": HANG if seconds is None else seconds})
            self._hold(kind, (name,), seconds)

    def _hold(
        self,
        kind: FaultKind,
        nodes: tuple[str, ...],
        seconds: float | None,
        *,
        delay: float = 0.0,
        heal: Callable[[], None] | None = None,
    ) -> None:
        """The fault is in force, in the place of one of the same kind; `heal` is called when its time is over."""
        self._forget(kind, nodes)
        until = None if seconds is None else time.monotonic() + seconds
        timer = None if seconds is None or heal is None else self._cluster.loop.after(seconds, heal)
        self._force[kind, nodes] = InForce(kind, nodes, until, delay, timer)

    def _forget(self, kind: FaultKind, nodes: tuple[str, ...]) -> bool:
        """The fault is over; false if it was not in force."""
        fault = self._force.pop((kind, nodes), None)
        if fault is not None and fault.timer is not None:
            fault.timer.cancel()
        return fault is not None

    def _resume(self, name: str) -> None:
        """End every fault of a node that lives with it; one that is killed or hangs has an end of its own."""
        self._continue(name)
        self._full_speed(name)
        for kind, nodes in tuple(self._force):
            if kind == "partition" and name in nodes:
                self._join(nodes)
            elif kind == "kill" and name in nodes:
                self._forget(kind, nodes)

    def _stopped(self, name: str) -> bool:
        child = self._cluster.child(name)
        return child is not None and child.stopped

    def _continue(self, name: str) -> None:
        if self._forget("pause", (name,)) or self._stopped(name):
            self._signal(name, signal.SIGCONT)
            self._cluster.note("resumed", name, 0)

    def _signal(self, name: str, signum: int) -> None:
        child = self._cluster.child(name)
        if child is not None:
            child.signal(signum)

    def _full_speed(self, name: str) -> None:
        if self._forget("slow", (name,)):
            self._cluster.note("healed", name, 0)
            self._tell(name, {"kind": "slow", "delay": 0.0})

    def _partition(self, pair: list[str], seconds: float | None) -> None:
        nodes = pair[0], pair[1]
        if ("partition", nodes) not in self._force:
            self._cut(nodes, True)
        self._hold("partition", nodes, seconds, heal=lambda: self._join(nodes))

    def _join(self, nodes: tuple[str, ...]) -> None:
        self._forget("partition", nodes)
        links = [nodes]
        if nodes[0].startswith(HOST):
            assert self._cluster.hosts is not None
            self._cluster.hosts.cut(nodes[0].removeprefix(HOST), False)
            links = [*self._over(nodes[0])]
        for link in links:
            self._cut(link, False)

    def _cut(self, nodes: tuple[str, ...], cut: bool) -> None:
        for name, peer in (nodes, nodes[::-1]):
            self._tell(name, {"kind": "cut", "peer": peer, "cut": cut})
        self._cluster.note("partitioned" if cut else "healed", nodes[0], subject_of(nodes[1]) % LOGGER)

    def _break_host(self, order: Fault) -> list[str]:
        """Kill the guardian of a host, or cut the way there."""
        target = order.targets[0]
        names = self._on_host(target)
        hosts, host = self._cluster.hosts, target.removeprefix(HOST)
        assert hosts is not None
        if order.kind == "kill":
            for name in names:
                if (child := self._cluster.child(name)) is not None and child.away:
                    raise FaultError(child.away)
            for name in names:
                if order.seconds is not None:
                    self._cluster.hold(name, order.seconds)
                    self._hold("kill", (name,), order.seconds)
                self._note("kill", name, order.seconds)
            hosts.kill(host)
            return names
        nodes = target, *names
        if ("partition", nodes) not in self._force:
            for link in self._over(target):
                self._cut(link, True)
            hosts.cut(host, True)
        self._hold("partition", nodes, order.seconds, heal=lambda: self._join(nodes))
        return names

    def _on_host(self, target: str) -> list[str]:
        """The nodes there. Raises FaultError."""
        specs = self._cluster.makeup.specs
        names = [name for name, spec in specs.items() if spec.host and HOST + spec.host == target]
        if not names:
            known = ", ".join(self._hosts()) or "none"
            raise FaultError(f"{target!r} is no other host; there are {known}")
        return names

    def _hosts(self) -> list[str]:
        """The other hosts, as targets."""
        return list(dict.fromkeys(HOST + spec.host for spec in self._cluster.makeup.specs.values() if spec.host))

    def _over(self, target: str) -> list[tuple[str, str]]:
        """The links between a host and others."""
        there = self._on_host(target)
        return [link for link in self._cluster.makeup.links() if (link[0] in there) != (link[1] in there)]

    def _tell(self, name: str, head: dict[str, Any]) -> None:
        child = self._cluster.child(name)
        if child is not None:
            child.tell({"do": "fault", **head})

    def _note(self, kind: str, name: str, seconds: float | None) -> None:
        self._cluster.note(EVENTS[kind], name, round((seconds or 0) * 1000))

    # -- who is meant ------------------------------------------------------------------------------------------------

    def meant(self, targets: list[str]) -> list[str]:
        """The nodes of these targets, each once. Raises FaultError."""
        return list(dict.fromkeys(name for target in targets for name in self._resolve(target)))

    def _resolve(self, target: str) -> list[str]:
        names = self._cluster.makeup.roles
        if target in names:
            return [target]
        if target.startswith(HOST):
            return self._on_host(target)
        if target.startswith("owner:"):
            return [f"server{self._owner(target.removeprefix('owner:'))}"]
        if target == "all":
            return list(names)
        if target == "server":
            return [name for name, role in names.items() if role != "logger"]
        found = [name for name, role in names.items() if role == target]
        if not found:
            words = ", ".join(dict.fromkeys((*names, *names.values(), "server", *self._hosts(), "all")))
            raise FaultError(f"{target!r} is no node here; say one of {words} or owner:OFFSET")
        return found

    def _owner(self, text: str) -> int:
        try:
            offset = parse_size(text)
        except ValueError as error:
            raise FaultError(f"owner:{text}: {error}") from error
        if offset >= self._cluster.makeup.layout.size:
            raise FaultError(f"offset {offset} is beyond the memory of {self._cluster.makeup.layout.size} bytes")
        return self._cluster.makeup.layout.owner(offset)

    def _pair(self, targets: list[str]) -> list[str]:
        """The two ends of a link, the one that connects first."""
        pair = {name for target in targets for name in self._resolve(target)}
        links = self._cluster.makeup.links()
        found = next((link for link in links if set(link) == pair), None)
        if found is None:
            known = ", ".join(f"{one}-{other}" for one, other in links) or "none"
            raise FaultError(f"there is no link between {' and '.join(targets)}; there are {known}")
        return list(found)
