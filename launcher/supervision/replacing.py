"""One cluster takes the place of another under the same supervisor: bytes that have to go elsewhere are copied there
while the one serves on; it stops, the memory gets the shape of the other, the other starts. Until the memory has that
shape there is a way back."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from memcluster.launcher.supervision import sockets
from memcluster.launcher.supervision.applying import Applying
from memcluster.launcher.supervision.changeover import Changeover
from memcluster.launcher.supervision.moving import Cluster as MovesBytes
from memcluster.launcher.supervision.moving import Move
from memcluster.launcher.supervision.sockets import Listeners
from memcluster.launcher.supervision.succession import Succession

if TYPE_CHECKING:

    from memcluster.launcher.clusterfile.settings import ClusterConfig
    from memcluster.launcher.run.memory import Shape
    from memcluster.launcher.supervision.places import Place

CALLED_OFF = "called off by `apply --abort`"


class Cluster(MovesBytes, Protocol):
    """What is asked of the supervisor."""

    def stop_for_another(self, kept: Collection[str]) -> None:
        """Stop every node, or have those that are `kept` rest with their clients, and call `go_on` then."""

    def abandoned(self) -> None:
        """No node was stopped, and none will be."""

    def start_as(
        self, config: ClusterConfig, places: Sequence[Place], listeners: Listeners, shape: Shape
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
        self._coming: Succession | None = None  # while bytes are copied before that
        self.move: Move | None = None
        self._changeover: Changeover | None = None
        self._called_off = ""
        self._leftover: Iterator[None] = iter(())  # removes it, a file at a time

    def begin(self, succession: Succession, *, live: bool, rate: int | None) -> None:
        """Stop everything for this, at once, or (`live`) when bytes have been copied, at most `rate` a second. Raises
        OSError, MemoryMismatch."""
        self._called_off = ""
        if not live:
            self._stop_for(succession)
            return
        self.move = Move(
            self._cluster,
            succession.shape,
            rate=rate,
            tell=self._applying.tell,
            ready=lambda: self._stop_for(succession),
            failed=self._not_now,
        )
        self._coming = succession
        try:
            self.move.start()
        except Exception:
            self.move = self._coming = None
            raise

    def _stop_for(self, succession: Succession) -> None:
        self.wanted, self._coming = succession, None
        self._cluster.stop_for_another(succession.kept)

    def _not_now(self, why: str) -> None:
        """Bytes cannot be copied: nothing has stopped."""
        assert self._coming is not None
        self._coming.call_off()
        self.move = self._coming = None
        self._cluster.note("move_aborted", "server0", 0)
        self._cluster.abandoned()
        self._applying.called_off(f"{why}\nnothing was changed")

    def word(self, mode: str) -> str:
        """What a node is told that is to stop: who is connected may come back to the other cluster."""
        return self.wanted.word if self.wanted is not None and mode == "now" else mode

    def told(self) -> dict[str, Any]:
        """How far the bytes are moved."""
        if self._changeover is not None:
            return self._changeover.told()
        return {} if self.move is None else self.move.told()

    @property
    def live(self) -> bool:
        """Bytes are copied, and every server serves."""
        return self._coming is not None

    def abort(self) -> bool:
        """Go back, if that is possible."""
        if self.move is not None and self._coming is not None:
            self._not_now(f"{CALLED_OFF}{self.move.drop()}")
            return True
        if self.wanted is None:
            return False
        if self._changeover is not None:
            return self._changeover.abort(CALLED_OFF)
        self._called_off = CALLED_OFF
        return True

    def cancel(self) -> None:
        """The stop is for good; a change of the memory that is under way is left to the next `up`."""
        for succession in (self.wanted, self._coming):
            if succession is not None:
                succession.call_off()
        self.wanted = self._coming = None
        if self.move is not None:
            self.move.cancel()
            self.move = None
        if self._changeover is not None:
            self._changeover.cancel()
        self._leftover = iter(())

    def go_on(self) -> None:
        """Everything has stopped: have the memory ready for the other one."""
        cluster = self._cluster
        assert self.wanted is not None
        move, self.move = self.move, None
        if self._called_off:
            self._done(self._called_off + (move.drop() if move is not None else ""))
            return
        self._changeover = Changeover(
            cluster.loop,
            cluster.makeup.shards[0].parent,
            self.wanted.shape,
            discard=self._applying.discards,
            tell=self._applying.tell,
            done=self._done,
            stuck=cluster.stuck,
            begun=None if move is None else move.finish(),
        )
        self._changeover.start()

    def _done(self, problem: str) -> None:
        """Be the other cluster; or, if there is a problem, what this one was."""
        cluster, to, changeover = self._cluster, self.wanted, self._changeover
        assert to is not None
        self.wanted = self._changeover = None
        if problem:
            to.call_off()
            self._applying.going_back(problem)
            old = cluster.makeup
            cluster.start_as(old.config, old.places, old.listeners, old.shape)
            cluster.note("move_aborted", "server0", 0)
        else:
            sockets.release_all(to.retired)
            to.let_in()
            assert changeover is not None
            assert changeover.reshape is not None
            self._leftover = changeover.reshape.clean_up()
            cluster.start_as(to.config, to.places, to.listeners, to.shape)

    def running(self) -> None:
        """The other cluster runs, or this one again: remove what is left over, for which nobody need wait before."""
        try:
            next(self._leftover)
        except (StopIteration, OSError):  # what could not be removed goes with the next apply or up
            self._applying.running()
        else:
            self._cluster.loop.soon(self.running)
