"""`memcluster apply`, the supervisor's side: the cluster that runs becomes the one that is written.

One at a time, and only where everything is well: a node that is down could not be asked, and what is wrong with it
might be made worse; but one that has failed can be removed. Everything that can fail is tried before anything is
changed.

What running nodes can be told is an order over their control channel, which they acknowledge; before that the specs are
changed, so a node that dies instead of answering has taken the settings, too, when it is back. The rest takes every
node a new start: the cluster stops as it always does, keeps its sockets and its memory, and starts as the other one;
where clients may stay (succession.py) the doors do so in the same processes. Bytes that have to go to other shards are
copied there before, while it serves, if there is room for both.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Protocol

from memcluster.client.console import EXIT_DEGRADED, EXIT_ERROR, EXIT_IN_USE
from memcluster.launcher.clusterfile.difference import Change, How, differences
from memcluster.launcher.clusterfile.settings import ClusterConfig
from memcluster.launcher.clusterfile.written import dump
from memcluster.launcher.run.directory import RunDirectory
from memcluster.launcher.run.memory import MemoryMismatch, Shape
from memcluster.launcher.supervision import sockets
from memcluster.launcher.supervision.changeover import lost_by
from memcluster.launcher.supervision.lifecycle import Lifecycle, Phase
from memcluster.launcher.supervision.makeup import Makeup
from memcluster.launcher.supervision.moving import no_room_for_both
from memcluster.launcher.supervision.nodelife import State
from memcluster.launcher.supervision.orders import Apply
from memcluster.launcher.supervision.places import listening, places
from memcluster.launcher.supervision.process import Process
from memcluster.launcher.supervision.succession import Succession, prepare

Answer = Callable[[dict[str, Any]], None]


class Cluster(Protocol):
    """What is asked of the supervisor."""

    makeup: Makeup
    lifecycle: Lifecycle
    run_directory: RunDirectory

    @property
    def problems(self) -> list[str]: ...
    def child(self, name: str) -> Process | None: ...
    def give_way(self, succession: Succession, *, live: bool, rate: int | None) -> None:
        """Stop, and start as the other cluster; `running` or `called_off` will be said of that. `live`: bytes are
        copied before, at most `rate` a second. Raises OSError, MemoryMismatch, and then nothing has changed."""

    def settled(self, stamp: str, keys: list[str]) -> None:
        """Every node goes by what the makeup has; these keys were others before."""


class CannotApply(Exception):
    """Nothing was changed; says why."""

    def __init__(self, sentence: str, code: int = EXIT_ERROR) -> None:
        super().__init__(sentence)
        self.code = code


class Applying:
    """Answers an order with {"applied": keys} when all nodes have taken it, or with {"error": …}."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._waiting: set[str] = set()  # nodes that have not answered
        self._order: Apply | None = None  # while every node is started anew
        self._keys: list[str] = []
        self._problem = ""  # why it goes back
        self._note: dict[str, str] = {}  # what else there is to say
        self._answer: Answer = lambda _: None

    def begin(self, order: Apply, answer: Answer) -> None:
        """Begin what the order asks for."""
        try:
            found = self._check(order.config)
            keys = [change.key for change in found]
            if any(change.how is not How.AT_ONCE for change in found):
                self._restart(order, keys, answer)
            elif order.dry or not keys:
                answer({"applied": keys})
            else:
                self._settle(order, keys, answer)
        except CannotApply as error:
            answer({"error": str(error), "code": error.code})

    @property
    def under_way(self) -> bool:
        """Every node is being started anew."""
        return self._order is not None

    @property
    def discards(self) -> bool:
        """What lies in the part of the memory that goes may be lost."""
        return self._order is not None and self._order.discard

    def tell(self, progress: dict[str, Any]) -> None:
        """How far the bytes are moved."""
        self._answer({"progress": progress})

    def going_back(self, why: str) -> None:
        """It will be the cluster that it was."""
        self._problem = why

    def running(self) -> None:
        """The other cluster runs, or this one again."""
        if self._order is None:
            return
        if self._problem:
            self.called_off(f"{self._problem}\nnothing was changed; every node was started anew")
            return
        order, self._order = self._order, None
        self._cluster.settled(order.stamp, self._keys)
        self._answer({"applied": self._keys} | self._note)

    def called_off(self, why: str) -> None:
        """It will not be the other cluster."""
        if self._order is not None:
            self._order = None
            self._answer({"error": why})

    def _check(self, config: ClusterConfig) -> list[Change]:
        """What differs. Raises CannotApply."""
        cluster = self._cluster
        if self._order is not None:
            raise CannotApply("another apply is under way: its bytes are moved, or nodes started anew", EXIT_IN_USE)
        if self._waiting:
            names = ", ".join(sorted(self._waiting))
            sentence = f"another apply is under way: {names} has not answered yet"
            raise CannotApply(sentence, EXIT_IN_USE)
        phase = cluster.lifecycle.phase
        if phase is not Phase.RUNNING:
            words = "started" if phase is Phase.STARTING else "stopped"
            raise CannotApply(f"the cluster is being {words} right now", EXIT_IN_USE)
        if unwell := self._unwell(len(places(config, cluster.run_directory))):
            sentence = f"the cluster is degraded ({'; '.join(unwell)}): apply changes one where all is well"
            raise CannotApply(f"{sentence}, or removes what has failed", EXIT_DEGRADED)
        found = differences(dump(cluster.makeup.config), dump(config))
        if later := [change.key for change in found if change.how is How.NEXT_START]:
            raise CannotApply(f"{', '.join(later)}: cannot be changed while the cluster runs")
        return found

    def _unwell(self, servers: int) -> list[str]:
        """What is not well of what stays: so many servers, the first ones, and their loggers. The bytes of one that has
        failed are in its shard."""
        found = []
        for name, node in self._cluster.lifecycle.nodes.items():
            child = self._cluster.child(name)
            if self._cluster.makeup.specs[name].index >= servers and node.state in (State.FAILED, State.STOPPED):
                continue
            if node.state is not State.READY or child is None:
                found.append(f"{name} is {node.state}")
            elif child.away:
                found.append(child.away)
            elif child.stopped:
                found.append(f"{name} is paused")
        return found + self._cluster.problems

    def _settle(self, order: Apply, keys: list[str], answer: Answer) -> None:
        """Tell every node. Raises CannotApply."""
        cluster, config = self._cluster, order.config
        page = self._page(config) if "metrics" in keys and config.metrics is not None else None
        cluster.makeup.tell_otherwise(config)  # first: it is what a node is told that begins another life meanwhile
        if "metrics" in keys:
            cluster.makeup.replace_page(page)
        self._waiting = set(cluster.makeup.specs)

        def taken(name: str) -> None:
            self._waiting.discard(name)
            if not self._waiting:
                cluster.makeup.settle_on(config)
                cluster.settled(order.stamp, keys)
                answer({"applied": keys})

        for name, spec in cluster.makeup.specs.items():
            child = cluster.child(name)
            assert child is not None
            handed = page if name == "logger0" else None
            head = {"do": "settings", "settings": spec.settings, "hands": handed is not None}
            child.ask(head, lambda _, name=name: taken(name), handed)  # type: ignore[misc]

    def _restart(self, order: Apply, keys: list[str], answer: Answer) -> None:
        """Start every node anew. Raises CannotApply."""
        cluster = self._cluster
        try:
            succession = prepare(cluster.makeup, cluster.run_directory, order.config)
        except sockets.CannotListen as error:
            code = EXIT_IN_USE if isinstance(error, sockets.AddressTaken) else EXIT_ERROR
            raise CannotApply(f"{error}\nnothing was changed", code) from error
        moves = cluster.makeup.shape.kept_in(succession.shape) is None
        short = self._no_room() if moves else ""
        note = {"note": f"{short}: the bytes are moved in one pause"} if short else {}
        problem = "" if order.discard else self._lost_by(succession.shape)
        if short and order.rate is not None:
            problem = f"{short}, so that they are moved in one pause, which a rate would only make longer"
        if problem or order.dry:
            succession.call_off()
        if problem:
            raise CannotApply(f"{problem}\nnothing was changed")
        if order.dry:
            answer({"applied": keys} | note)
            return
        self._order, self._keys, self._answer, self._problem, self._note = order, keys, answer, "", note
        try:
            cluster.give_way(succession, live=moves and not short, rate=order.rate)
        except (OSError, MemoryMismatch) as error:
            self._order = None
            succession.call_off()
            raise CannotApply(f"{error}\nnothing was changed") from error

    def _lost_by(self, shape: Shape) -> str:
        makeup = self._cluster.makeup
        try:
            return lost_by(makeup.shards[0].parent, makeup.shape, shape)
        except OSError as error:
            return f"{error.filename}: {error.strerror}"

    def _no_room(self) -> str:
        """For the bytes in both shapes."""
        makeup = self._cluster.makeup
        try:
            return no_room_for_both(makeup.shards, on_disk=makeup.config.storage is not None)
        except OSError as error:
            return f"{error.filename}: {error.strerror}"

    def _page(self, config: ClusterConfig) -> socket.socket:
        """A listening socket for the figures. Raises CannotApply."""
        assert config.metrics is not None
        try:
            wanted = listening(config, self._cluster.makeup.places)[-1]
            assert wanted is not None  # logger 0 is on this host
            return sockets.bind(*wanted)
        except sockets.CannotListen as error:
            code = EXIT_IN_USE if isinstance(error, sockets.AddressTaken) else EXIT_ERROR
            raise CannotApply(f"{error}\nnothing was changed", code) from error
