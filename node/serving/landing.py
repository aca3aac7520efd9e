"""The one payload that is being received straight into the shard, and the clients that come meanwhile.

A payload lands so while nobody else can look. Who comes in before it is complete waits for it, or would see a part of a
write; but not for long, as its sender may be slow, or stand still: then what is there is moved out of the way.
"""

from __future__ import annotations

from collections.abc import Callable

from memcluster.node.serving.connection import Connection
from memcluster.node.transport.loop import Loop, Timer

PATIENCE = 1.0
"""Seconds that a newcomer waits for a payload under way."""


class Landing:
    """`take` gives memory for a payload that is moved."""

    def __init__(self, loop: Loop, take: Callable[[int], memoryview]) -> None:
        self._loop = loop
        self._take = take
        self._sender: Connection | None = None
        self.place = (0, 0)
        """Where in the shard what is being received goes, and its bytes: none while nothing is."""
        self._held: list[Connection] = []
        self._timer: Timer | None = None

    def __repr__(self) -> str:
        return f"<Landing of {self._sender}, {len(self._held)} wait>"

    def begin(self, sender: Connection, offset: int, length: int) -> None:
        """This client's payload is being received straight into the shard from now on."""
        self._sender = sender
        self.place = offset, length

    def came_in(self, newcomer: Connection) -> None:
        """The client may look at the memory from now on."""
        if self._sender is None:
            return
        newcomer.hold()
        self._held.append(newcomer)
        if self._timer is None:
            self._timer = self._loop.after(PATIENCE, self._make_way)

    def lost(self, connection: Connection) -> None:
        """The client is gone."""
        if connection is self._sender:
            self.end()

    def end(self) -> None:
        """The payload is where it belongs, or is given up."""
        self._sender = None
        self.place = 0, 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        held, self._held = self._held, []
        for newcomer in held:
            self._loop.soon(newcomer.let_go)  # not amid a request of another

    def _make_way(self) -> None:
        if self._sender is not None:
            self._sender.make_way(self._take)
        self.end()
