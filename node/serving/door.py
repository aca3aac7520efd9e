"""A server where clients come in: it exports what there is for them as "" and, to be looked at only, as `readonly`; and
the cluster's map as cluster.json.

A topology derives from it and says where a request on the memory goes (`request`), where a large payload is received,
and whether there are more exports (`parts`).
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from functools import partial
from typing import Final

from memcluster.node.log.record import PROBE, Kind
from memcluster.node.native import mypyc_attr
from memcluster.node.nbd.negotiation import Export
from memcluster.node.nbd.server import Request
from memcluster.node.nbd.wire import BASE_ALLOCATION, OWNER, Command, Status, TransmissionFlag
from memcluster.node.serving.connection import Connection, Route
from memcluster.node.serving.server import MEMORY_FLAGS, REQUEST, Report, Server
from memcluster.node.spec import NodeSpec
from memcluster.node.transport.loop import Loop

MAP: Final = int(Kind.MAP)
MAP_EXPORT: Final = "cluster.json"
READ_ONLY_EXPORT: Final = "readonly"
CONTEXTS: Final = (BASE_ALLOCATION, OWNER)
READ_ONLY: Final = (
    TransmissionFlag.HAS_FLAGS
    | TransmissionFlag.READ_ONLY
    | TransmissionFlag.CAN_MULTI_CONN
    | TransmissionFlag.SEND_CACHE
)


@mypyc_attr(allow_interpreted_subclasses=True)
class Door(Server):
    """`layout` is the whole memory's; `size` and `description` are what clients see of the export ""."""

    def __init__(self, loop: Loop, spec: NodeSpec, listeners: Sequence[socket.socket], report: Report) -> None:
        super().__init__(loop, spec, listeners, report)
        self.layout = spec.cluster.layout
        self.holders: dict[str, int] = {}
        """The exports that one server holds each, and which."""
        self._set_out()
        if spec.tls is not None:
            from memcluster.node.serving.security import Security  # late: it loads OpenSSL

            self.security = Security(loop, self, spec.tls, spec.probe)

    def settle_on(self, spec: NodeSpec, page: socket.socket | None) -> None:
        super().settle_on(spec, page)
        self._set_out()

    def _set_out(self) -> None:
        """Make what clients find here; who has opened something goes on with that."""
        spec = self.spec
        self._map = memoryview(spec.cluster.to_json())
        self._exports: tuple[Export, ...] = (
            Export("", self.size, MEMORY_FLAGS, self.description, contexts=CONTEXTS),
            Export(READ_ONLY_EXPORT, self.size, READ_ONLY, f"{self.description}, to be read", contexts=CONTEXTS),
            *self.parts(),
            Export(MAP_EXPORT, len(self._map), READ_ONLY, f"the map of {spec.cluster.name}"),
            Export(spec.probe, self.size, MEMORY_FLAGS, "the same, for `up` to look", own_flags=PROBE, listed=False),
        )

    @property
    def size(self) -> int:
        """Bytes that a client sees."""
        return self.spec.cluster.memory

    @property
    def description(self) -> str:
        cluster = self.spec.cluster
        owners = sum(server.memory > 0 for server in cluster.servers)
        return f"the memory of {cluster.name}: {cluster.memory} bytes over {owners} server{'s' * (owners > 1)}"

    def request(self, connection: Connection, request: Request, start: int) -> None:
        """Take a request on the memory that keeps to the protocol."""
        raise NotImplementedError

    def parts(self) -> Sequence[Export]:
        """Exports of less than the whole; those that one server holds stand in `holders`, too."""
        return ()

    def part(self, server: int) -> Export:
        """The export of one server's shard, under the server's name."""
        cluster, name = self.spec.cluster, f"server{server}"
        size = cluster.servers[server].memory
        self.holders[name] = server
        description = f"{name}'s part of the memory of {cluster.name}: {size} of {cluster.memory} bytes"
        return Export(name, size, MEMORY_FLAGS, description, contexts=CONTEXTS)

    def exports(self) -> Sequence[Export]:
        return self._exports

    def route(self, connection: Connection, export: Export) -> Route:
        self.take_slot(connection)
        connection.holder = self.holders.get(export.name)
        return partial(self._read_map, self._map) if export.name == MAP_EXPORT else self.request

    def turn_away(self, connection: Connection, request: Request, start: int) -> None:
        opened = connection.session.export
        kind = MAP if opened is not None and opened.name == MAP_EXPORT else REQUEST
        self.complete(connection, request, start, self.next_identifier(), kind=kind)

    def _read_map(self, content: memoryview, connection: Connection, request: Request, start: int) -> None:
        end = request.offset + request.length
        data = [content[request.offset : end]] if request.command == Command.READ and request.length else None
        extents = [(request.length, int(Status.DATA))] if request.command == Command.BLOCK_STATUS else None
        self.complete(connection, request, start, self.next_identifier(), data, extents, MAP)
