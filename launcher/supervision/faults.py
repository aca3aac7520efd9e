"""Faults on purpose: `memcluster fault` pauses, kills, slows, hangs and partitions nodes, and heals them again.

A target is a node (server1), a role (primary, secondary, server, logger) or `owner:OFFSET`, the server that holds a
byte of the memory. What is done to a node's inside (slow, hang, a cut link) is told to it over its control channel;
nothing here needs root or touches the network of the machine.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any, Protocol

from memcluster.client.units import parse_size
from memcluster.launcher.supervision.child import Child
from memcluster.launcher.supervision.faultkind import FaultKind
from memcluster.launcher.supervision.orders import Fault
from memcluster.node.layout import Layout
from memcluster.node.log.record import LOGGER, subject_of
from memcluster.node.transport.loop import Loop, Timer

HANG = 3600.0
"""Seconds a node hangs when nobody says how long; its supervisor will have ended it before."""
EVENTS = {"pause": "paused", "kill": "killed", "hang": "hanging"}


class FaultError(Exception):
    """The fault cannot be done; says why."""


class Cluster(Protocol):
    """What faults need of the supervisor."""

    loop: Loop
    layout: Layout

    def child(self, name: str) -> Child | None: ...
    def names(self) -> dict[str, str]: ...
    def links(self) -> list[tuple[str, str]]: ...
    def hold(self, name: str, seconds: float) -> None: ...
    def release(self, name: str) -> None: ...
    def note(self, event: str, about: str, value: int) -> None: ...


class Faults:
    """What is broken on purpose now. Every fault heals at its time, or by `resume`."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._slow: dict[str, float] = {}
        self._cut: set[frozenset[str]] = set()
        self._heal: dict[tuple[str, str], Timer] = {}

    def apply(self, order: Fault) -> list[str]:
        """Do it; returns the names of the nodes it was done to. Raises FaultError."""
        if order.kind == "partition":
            pair = self._pair(order.targets)
            self._partition(pair, True)
            self._heal_after("partition", "|".join(pair), order.seconds, lambda: self._partition(pair, False))
            return pair
        names = [name for target in order.targets for name in self._resolve(target)]
        if order.kind != "resume":  # all or nothing
            dead = [name for name in names if self._cluster.child(name) is None]
            if dead:
                raise FaultError(f"{' and '.join(dead)} {'is' if len(dead) == 1 else 'are'} not alive")
        for name in names:
            self._break(order.kind, name, order.seconds, order.delay)
        return names

    def restarted(self, name: str) -> None:
        """A node has begun a new life: what is wrong with its links and its pace is told to it again."""
        if name in self._slow:
            self._tell(name, {"kind": "slow", "delay": self._slow[name]})
        for pair in self._cut:
            if name in pair:
                [peer] = pair - {name}
                self._tell(name, {"kind": "cut", "peer": peer, "cut": True})

    def heal(self) -> None:
        """End every fault of every node, and let go on what was stopped by others."""
        for name in self._cluster.names():
            self._resume(name)

    # -- one fault each ----------------------------------------------------------------------------------------------

    def _break(self, kind: FaultKind, name: str, seconds: float | None, delay: float) -> None:
        if kind == "pause":
            self._note(kind, name, seconds)
            self._signal(name, signal.SIGSTOP)
            self._heal_after(kind, name, seconds, lambda: self._continue(name))
        elif kind == "resume":
            self._resume(name)
            self._cluster.release(name)
        elif kind == "kill":
            if seconds is not None:
                self._cluster.hold(name, seconds)
            self._note(kind, name, seconds)
            self._signal(name, signal.SIGKILL)
        elif kind == "slow":
            self._set_pace(name, delay)
            self._heal_after(kind, name, seconds, lambda: self._set_pace(name, 0.0))
        elif kind == "hang":
            self._note(kind, name, seconds)
            self._tell(name, {"kind": "hang", "seconds": HANG if seconds is None else seconds})

    def _resume(self, name: str) -> None:
        """End every fault of a node that lives with it."""
        self._continue(name)
        if name in self._slow:
            self._set_pace(name, 0.0)
        for pair in [sorted(pair) for pair in self._cut if name in pair]:
            self._partition(pair, False)
        for key in [key for key in self._heal if name in key[1].split("|")]:
            self._heal.pop(key).cancel()

    def _continue(self, name: str) -> None:
        child = self._cluster.child(name)
        if child is not None and child.identity.stopped:
            child.signal(signal.SIGCONT)
            self._cluster.note("resumed", name, 0)

    def _signal(self, name: str, signum: int) -> None:
        child = self._cluster.child(name)
        if child is not None:
            child.signal(signum)

    def _set_pace(self, name: str, delay: float) -> None:
        if delay:
            self._slow[name] = delay
            self._cluster.note("slowed", name, round(delay * 1000))
        elif self._slow.pop(name, None) is not None:
            self._cluster.note("healed", name, 0)
        self._tell(name, {"kind": "slow", "delay": delay})

    def _partition(self, pair: list[str], cut: bool) -> None:
        if cut == (frozenset(pair) in self._cut):
            return
        self._cut ^= {frozenset(pair)}
        for name, peer in (pair, pair[::-1]):
            self._tell(name, {"kind": "cut", "peer": peer, "cut": cut})
        self._cluster.note("partitioned" if cut else "healed", pair[0], subject_of(pair[1]) % LOGGER)

    def _tell(self, name: str, head: dict[str, Any]) -> None:
        child = self._cluster.child(name)
        if child is not None:
            child.tell({"do": "fault", **head})

    def _note(self, kind: str, name: str, seconds: float | None) -> None:
        self._cluster.note(EVENTS[kind], name, round((seconds or 0) * 1000))

    def _heal_after(self, kind: str, name: str, seconds: float | None, heal: Callable[[], None]) -> None:
        earlier = self._heal.pop((kind, name), None)
        if earlier is not None:
            earlier.cancel()
        if seconds is not None:
            self._heal[kind, name] = self._cluster.loop.after(seconds, heal)

    # -- who is meant ------------------------------------------------------------------------------------------------

    def _resolve(self, target: str) -> list[str]:
        names = self._cluster.names()
        if target in names:
            return [target]
        if target.startswith("owner:"):
            return [f"server{self._owner(target.removeprefix('owner:'))}"]
        if target == "server":
            return [name for name, role in names.items() if role != "logger"]
        found = [name for name, role in names.items() if role == target]
        if not found:
            roles = ", ".join(dict.fromkeys(names.values()))
            raise FaultError(f"{target!r} is no node here; say one of {', '.join(names)}, {roles} or owner:OFFSET")
        return found

    def _owner(self, text: str) -> int:
        try:
            offset = parse_size(text)
        except ValueError as error:
            raise FaultError(f"owner:{text}: {error}") from error
        if offset >= self._cluster.layout.size:
            raise FaultError(f"offset {offset} is beyond the memory of {self._cluster.layout.size} bytes")
        return self._cluster.layout.owner(offset)

    def _pair(self, targets: list[str]) -> list[str]:
        """The two ends of a link, the one that connects first."""
        pair = {name for target in targets for name in self._resolve(target)}
        links = self._cluster.links()
        found = next((link for link in links if set(link) == pair), None)
        if found is None:
            known = ", ".join(f"{one}-{other}" for one, other in links) or "none"
            raise FaultError(f"there is no link between {' and '.join(targets)}; there are {known}")
        return list(found)
