"""One cluster takes the place of another under the same supervisor: the one stops, the memory gets the shape of the
other, the other starts. Until the memory has that shape there is a way back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from memcluster.launcher.supervision import sockets
from memcluster.launcher.supervision.applying import Applying
from memcluster.launcher.supervision.changeover import Changeover
from memcluster.launcher.supervision.makeup import Makeup
from memcluster.launcher.supervision.succession import Succession
from memcluster.node.transport.loop import Loop

if TYPE_CHECKING:
    import socket

    from memcluster.launcher.clusterfile.settings import ClusterConfig
    from memcluster.launcher.run.memory import Shape
    from memcluster.launcher.supervision.places import Place

CALLED_OFF = "called off by `apply --abort`"


class Cluster(Protocol):
    """What is asked of the supervisor, whose nodes have all stopped."""

    loop: Loop
    makeup: Makeup

    def start_as(
        self, config: ClusterConfig, places: Sequence[Place], listeners: Sequence[socket.socket], shape: Shape
    ) -> None:
        """Be this cluster from now on, and start."""

    def stuck(self, problem: str) -> None:
        """The memory has neither shape; end, and leave it to the next `up`."""


class Replacing:
    """`wanted` is what is to come when everything has stopped, if anything is."""

    def __init__(self, cluster: Cluster, applying: Applying) -> None:
        self._cluster = cluster
        self._applying = applying
        self.wanted: Succession | None = None
        self._changeover: Changeover | None = None
        self._called_off = ""

    def begin(self, succession: Succession) -> None:
        """Everything is about to stop for this."""
        self.wanted, self._called_off = succession, ""

    def word(self, mode: str) -> str:
        """What a node is told that is to stop: who is connected may come back to the other cluster."""
        return self.wanted.word if self.wanted is not None and mode == "now" else mode

    def told(self) -> dict[str, Any]:
        """How far the bytes are moved."""
        return {} if self._changeover is None else self._changeover.told()

    def abort(self) -> bool:
        """Go back, if that is possible."""
        if self.wanted is None:
            return False
        if self._changeover is not None:
            return self._changeover.abort(CALLED_OFF)
        self._called_off = CALLED_OFF
        return True

    def cancel(self) -> None:
        """The stop is for good; a change of the memory that is under way is left to the next `up`."""
        if self.wanted is not None:
            self.wanted.call_off()
            self.wanted = None
        if self._changeover is not None:
            self._changeover.cancel()

    def go_on(self) -> None:
        """Everything has stopped: have the memory ready for the other one."""
        cluster = self._cluster
        assert self.wanted is not None
        if self._called_off:
            self._done(self._called_off)
            return
        self._changeover = Changeover(
            cluster.loop,
            cluster.makeup.shards[0].parent,
            self.wanted.shape,
            discard=self._applying.discards,
            tell=self._applying.tell,
            done=self._done,
            stuck=cluster.stuck,
        )
        self._changeover.start()

    def _done(self, problem: str) -> None:
        """Be the other cluster; or, if there is a problem, what this one was."""
        cluster, to = self._cluster, self.wanted
        assert to is not None
        self.wanted = self._changeover = None
        if problem:
            to.call_off()
            self._applying.going_back(problem)
            old = cluster.makeup
            cluster.start_as(old.config, old.places, old.listeners, old.shape)
        else:
            for sock in to.retired:
                sockets.release(sock)
            to.let_in()
            cluster.start_as(to.config, to.places, to.listeners, to.shape)
