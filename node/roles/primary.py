"""The primary: takes the clients' requests, serves what falls in its own shard, asks the secondaries for the rest."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from node.address import Address
from node.connection import Connection
from node.fanout import Fanout
from node.layout import Linear, Piece
from node.link import Link
from node.loop import Loop
from node.nbd.server import RECEIVE_BUFFER, Export, Request
from node.nbd.wire import Command, Status, TransmissionFlag
from node.record import Kind
from node.server import MEMORY_FLAGS, REQUEST, Report, Route, Server
from node.spec import NodeSpec

MAP = int(Kind.MAP)


class Primary(Server):
    """Exports the whole memory as "" and the cluster's map as cluster.json."""

    def __init__(self, loop: Loop, spec: NodeSpec, listeners: Sequence[socket.socket], report: Report) -> None:
        super().__init__(loop, spec, listeners, report)
        cluster = spec.cluster
        self.layout = cluster.layout
        self.serial = cluster.fan_out == "serial"
        self._map = memoryview(cluster.to_json())
        size = f"{cluster.memory} bytes over {len(cluster.servers)} servers"
        self._exports = (
            Export("", self.layout.size, MEMORY_FLAGS, f"the memory of {cluster.name}: {size}"),
            Export(
                "cluster.json",
                len(self._map),
                TransmissionFlag.HAS_FLAGS | TransmissionFlag.READ_ONLY | TransmissionFlag.CAN_MULTI_CONN,
                f"the map of {cluster.name}",
            ),
        )
        # Below this offset every byte is in this server's shard, at the same offset there.
        alone = isinstance(self.layout, Linear) or len(cluster.servers) == 1
        self._own_end = self.shard.size if alone else 0
        self._everywhere = [Piece(index, 0, 0, ()) for index in range(len(cluster.servers))]
        scratch = memoryview(bytearray(RECEIVE_BUFFER))
        self._links = {
            index: Link(
                loop,
                Address.parse(server.address),
                "shard",
                spec.bounds.retry_timeout,
                scratch,
                lambda _: self._check_links(),
            )
            for index, server in enumerate(cluster.servers)
            if index != spec.index
        }
        self._starting = False

    def exports(self) -> Sequence[Export]:
        return self._exports

    def route(self, connection: Connection, export: Export) -> Route:
        self.take_slot(connection)
        return self._read_map if export.name else self._request

    def place(self, connection: Connection, request: Request) -> memoryview | None:  # noqa: ARG002
        if request.offset + request.length <= self._own_end or self.stopping:
            return self.place_here(request, request.offset)
        pieces = self.layout.split(request.offset, request.length)
        if len(pieces) == 1 and pieces[0].server == self.spec.index:
            return self.place_here(request, pieces[0].offset)
        return memoryview(bytearray(request.length))

    def start(self) -> None:
        """Ready means that every secondary answers."""
        self._starting = True
        self._check_links()

    def status(self) -> dict[str, Any]:
        waiting = [f"server{index}: {link.trouble}" for index, link in self._links.items() if not link.ready]
        return super().status() | {"waiting_for": waiting}

    def cut(self, peer: str, cut: bool) -> None:
        for index, link in self._links.items():
            if peer == f"server{index}":
                link.cut(cut)

    def close(self) -> None:
        super().close()
        for link in self._links.values():
            link.close()

    def _check_links(self) -> None:
        if self._starting and all(link.ready for link in self._links.values()):
            self._starting = False
            super().start()

    def turn_away(self, connection: Connection, request: Request, start: int) -> None:
        kind = MAP if connection.route == self._read_map else REQUEST
        self.complete(connection, request, start, self.next_identifier(), kind=kind)

    def _request(self, connection: Connection, request: Request, start: int) -> None:
        identifier = self.next_identifier()
        offset, length = request.offset, request.length
        if request.command == Command.FLUSH:
            pieces = self._everywhere
        elif offset + length <= self._own_end:
            self.carry_out(connection, request, start, identifier, offset)
            return
        else:
            pieces = self.layout.split(offset, length)
            if not pieces:
                self.complete(connection, request, start, identifier)
                return
            if len(pieces) == 1 and pieces[0].server == self.spec.index:
                self.carry_out(connection, request, start, identifier, pieces[0].offset)
                return
        Fanout(self, self._links, connection, request, start, identifier).begin(pieces, serial=self.serial)

    def _read_map(self, connection: Connection, request: Request, start: int) -> None:
        end = request.offset + request.length
        data = [self._map[request.offset : end]] if request.command == Command.READ and request.length else None
        extents = [(request.length, int(Status.DATA))] if request.command == Command.BLOCK_STATUS else None
        self.complete(connection, request, start, self.next_identifier(), data, extents, MAP)
