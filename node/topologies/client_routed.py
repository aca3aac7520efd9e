"""client-routed: every server lets clients in and exports its own shard; a client that reads the map routes by itself.

A standard client of a server sees that server's shard as "". A client that routes opens the export `part-…` on every
server: its name holds the map's identifier, so that one with an old map is refused and finds out. Its cookies are the
identifiers of its requests, so the parts of one stand in the log as one story; the server that such a client asks first
lends it a block of them, with the word that "" is only a part (in the name of a metadata context that it lists).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from memcluster.node.log.record import REPEATED
from memcluster.node.native import mypyc_attr
from memcluster.node.nbd.negotiation import Export
from memcluster.node.nbd.server import Request
from memcluster.node.serving.connection import Connection, Route
from memcluster.node.serving.door import MAP_EXPORT, Door
from memcluster.node.topology import Topology

PART = "part-"
"""The name of the export for clients that route begins so; the rest says by which map."""
BLOCK = 1 << 16
"""Identifiers that a client is lent at a time."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Part(Door):
    """Lets clients in to its own shard. The log has the addresses of the whole memory: there people look for them."""

    def _set_out(self) -> None:
        super()._set_out()
        name = f"{PART}{hashlib.sha256(self._map).hexdigest()[:16]}"
        self._part = replace(self._exports[0], name=name, own_flags=REPEATED)
        self._exports = (*self._exports, self._part)
        self.holders = {export.name: self.spec.index for export in self._exports if export.name != MAP_EXPORT}

    @property
    def size(self) -> int:
        return self.shard.size

    @property
    def description(self) -> str:
        return self.part(self.spec.index).description

    def parts(self) -> Sequence[Export]:
        return [self.part(self.spec.index)]

    def counterpart(self, before: Door, opened: Export) -> Export | None:
        """A client that routes may go on by an old map while that leads it to the same bytes, in the same way."""
        here = opened
        if opened.name.startswith(PART) and self.spec.cluster.fan_out == before.spec.cluster.fan_out:
            here = replace(opened, name=self._part.name)
        return super().counterpart(before, here)

    def contexts(self, connection: Connection, export: Export) -> Sequence[str]:  # noqa: ARG002
        """What a client that routes must know before it opens anything."""
        if export.name:
            return ()
        if self._identifier > self._enough:
            self.log.begin_incarnation()
        first = (self._identifier // BLOCK + 1) * BLOCK  # what comes before the last 16 bits is that client's alone
        self._identifier = first + BLOCK - 1
        return (f"x-memcluster:part/{first:x}",)

    def route(self, connection: Connection, export: Export) -> Route:
        ordinary = super().route(connection, export)
        return self._routed if export is self._part else ordinary

    def place(self, connection: Connection, request: Request, first: bool) -> memoryview | None:
        return self.place_here(connection, request, request.offset, first)

    def request(self, connection: Connection, request: Request, start: int) -> None:
        self.carry_out(connection, request, start, self.next_identifier(), request.offset)

    def _routed(self, connection: Connection, request: Request, start: int) -> None:
        self.carry_out(connection, request, start, request.cookie, request.offset)


TOPOLOGY = Topology(roles={"server": Part}, links=lambda _: (), every_server_is_a_door=True)
