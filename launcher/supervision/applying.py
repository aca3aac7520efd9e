"""`memcluster apply`, the supervisor's side: the cluster that runs becomes the one that is written.

One at a time, and only where everything is well: a node that is down could not be asked, and what is wrong with it
might be made worse. Everything that can fail is tried before anything is changed. What a node is told is an order over
its control channel, which it acknowledges; before that its spec is changed, so a node that dies instead of answering
has taken the settings, too, when it is back.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Protocol

from memcluster.client.console import EXIT_DEGRADED, EXIT_ERROR, EXIT_IN_USE
from memcluster.launcher.clusterfile.difference import How, differences
from memcluster.launcher.clusterfile.settings import ClusterConfig
from memcluster.launcher.clusterfile.written import dump
from memcluster.launcher.supervision import sockets
from memcluster.launcher.supervision.child import Child
from memcluster.launcher.supervision.lifecycle import Lifecycle, Phase, State
from memcluster.launcher.supervision.makeup import Makeup
from memcluster.launcher.supervision.orders import Apply

Answer = Callable[[dict[str, Any]], None]


class Cluster(Protocol):
    """What is asked of the supervisor."""

    makeup: Makeup
    lifecycle: Lifecycle

    @property
    def problems(self) -> list[str]: ...
    def child(self, name: str) -> Child | None: ...
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

    def begin(self, order: Apply, answer: Answer) -> None:
        """Begin what the order asks for."""
        try:
            keys = self._check(order.config)
            if order.dry or not keys:
                answer({"applied": keys})
            else:
                self._settle(order, keys, answer)
        except CannotApply as error:
            answer({"error": str(error), "code": error.code})

    def _check(self, config: ClusterConfig) -> list[str]:
        """The keys that differ. Raises CannotApply."""
        cluster = self._cluster
        if self._waiting:
            names = ", ".join(sorted(self._waiting))
            sentence = f"another apply is under way: {names} has not answered yet"
            raise CannotApply(sentence, EXIT_IN_USE)
        phase = cluster.lifecycle.phase
        if phase is not Phase.RUNNING:
            words = "started" if phase is Phase.STARTING else "stopped"
            raise CannotApply(f"the cluster is being {words} right now", EXIT_IN_USE)
        if unwell := self._unwell():
            sentence = f"the cluster is degraded ({'; '.join(unwell)}): apply changes one where all is well"
            raise CannotApply(sentence, EXIT_DEGRADED)
        found = differences(dump(cluster.makeup.config), dump(config))
        if later := [change.key for change in found if change.how is How.NEXT_START]:
            raise CannotApply(f"{', '.join(later)}: cannot be changed while the cluster runs")
        return [change.key for change in found]

    def _unwell(self) -> list[str]:
        found = []
        for name, node in self._cluster.lifecycle.nodes.items():
            child = self._cluster.child(name)
            if node.state is not State.READY or child is None:
                found.append(f"{name} is {node.state}")
            elif child.identity.stopped:
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

    def _page(self, config: ClusterConfig) -> socket.socket:
        """A listening socket for the figures. Raises CannotApply."""
        assert config.metrics is not None
        access = sockets.Access(config.sockets.mode, config.sockets.group, network=config.insecure_network)
        try:
            return sockets.bind(config.metrics, access)
        except sockets.CannotListen as error:
            code = EXIT_IN_USE if isinstance(error, sockets.AddressTaken) else EXIT_ERROR
            raise CannotApply(f"{error}\nnothing was changed", code) from error
