"""primary-secondary: the primary takes the clients' requests, serves what falls in its own shard, asks the secondaries
for the rest, and answers. A secondary is for the primary alone: who does not know the run's secret is turned away."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any, ClassVar, Final

from memcluster.node.forwarding.fanout import Fanout, PassedOn
from memcluster.node.forwarding.link import Link
from memcluster.node.layout import Linear, Piece
from memcluster.node.log.record import PROBE, REPEATED, Kind
from memcluster.node.native import mypyc_attr
from memcluster.node.nbd.negotiation import Export
from memcluster.node.nbd.server import RECEIVE_BUFFER, Request
from memcluster.node.nbd.wire import Command, Error
from memcluster.node.serving.admission import Admission
from memcluster.node.serving.connection import Connection, Route
from memcluster.node.serving.door import Door
from memcluster.node.serving.server import MEMORY_FLAGS, Report, Server
from memcluster.node.spec import NodeSpec
from memcluster.node.topology import Topology
from memcluster.node.transport.address import Address
from memcluster.node.transport.loop import Loop

PIECE: Final = int(Kind.PIECE)
FLUSH: Final = int(Command.FLUSH)
WRITE: Final = int(Command.WRITE)
LINK: Final = "link"
"""The export that the primary opens on a secondary."""
LINKS: Final = 8
"""Places at a secondary: for the link, and for those before it of which something is still under way."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Primary(Door):
    """Holds a link to each secondary; pieces travel as NBD requests whose cookie is the identifier of the request."""

    def __init__(self, loop: Loop, spec: NodeSpec, listeners: Sequence[socket.socket], report: Report) -> None:
        super().__init__(loop, spec, listeners, report)
        cluster = spec.cluster
        # Below this offset every byte is in this server's shard, at the same offset there.
        alone = isinstance(self.layout, Linear) or len(cluster.servers) == 1
        self._own_end = self.shard.size if alone else 0
        self._everywhere = [Piece(index, 0, 0, ()) for index in range(len(cluster.servers))]
        scratch = memoryview(bytearray(RECEIVE_BUFFER))
        self._links = {
            index: Link(
                loop,
                Address.parse(server.address),
                LINK,
                spec.bounds.retry_timeout,
                scratch,
                lambda _: self._check_links(),
                self.pool,
                self.now,
                key=spec.pass_to(f"server{index}"),
                extended=server.memory > 0xFFFFFFFF,
            )
            for index, server in enumerate(cluster.servers)
            if index != spec.index
        }
        self._starting = False

    def place(self, connection: Connection, request: Request, first: bool) -> memoryview | None:
        if connection.holder is not None:
            holder, offset = connection.holder, request.offset
        elif request.offset + request.length <= self._own_end or self.stopping:
            return self.place_here(connection, request, request.offset, first)
        else:
            holder, offset = self.layout.holder(request.offset, request.length)
        if holder == self.spec.index:
            return self.place_here(connection, request, offset, first)
        return self.pool.take(request.length)

    def parts(self) -> Sequence[Export]:
        return [self.part(index) for index, server in enumerate(self.spec.cluster.servers) if server.memory]

    def route(self, connection: Connection, export: Export) -> Route:
        ordinary = super().route(connection, export)
        return ordinary if connection.holder is None else self._on_part

    def start(self) -> None:
        """Ready means that every secondary answers, when all are started; later on requests wait for who is away."""
        if self.spec.first:
            self._starting = True
            self._check_links()
        else:
            super().start()

    def status(self) -> dict[str, Any]:
        waiting = [f"server{index}: {link.trouble}" for index, link in self._links.items() if not link.ready]
        return super().status() | {"waiting_for": waiting}

    def settle_on(self, spec: NodeSpec, page: socket.socket | None) -> None:
        super().settle_on(spec, page)
        for link in self._links.values():
            link.give_up_after(spec.bounds.retry_timeout)

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

    def request(self, connection: Connection, request: Request, start: int) -> None:
        self._identifier = identifier = self._identifier + 1  # next_identifier(), without the call: 40 ns
        offset, length = request.offset, request.length
        if request.command == FLUSH:
            pieces = self._everywhere
        elif offset + length <= self._own_end:
            self.carry_out(connection, request, start, identifier, offset)
            return
        elif not length:
            self.complete(connection, request, start, identifier)
            return
        else:
            holder, there = self.layout.holder(offset, length)
            if holder == self.spec.index:
                self.carry_out(connection, request, start, identifier, there)
                return
            if holder >= 0:
                self._links[holder].submit(PassedOn(self, connection, request, start, identifier, holder, there))
                return
            pieces = self.layout.split(offset, length, spans=request.command <= WRITE)
        serial = self.spec.cluster.fan_out == "serial"
        Fanout(self, self._links, connection, request, start, identifier).begin(pieces, serial=serial)


    def _on_part(self, connection: Connection, request: Request, start: int) -> None:
        """A request on the export of one server's shard."""
        holder, identifier = connection.holder, self.next_identifier()
        assert holder is not None
        if holder == self.spec.index:
            self.carry_out(connection, request, start, identifier, request.offset)
        elif request.length or request.command == FLUSH:
            self._links[holder].submit(PassedOn(self, connection, request, start, identifier, holder, request.offset))
        else:
            self.complete(connection, request, start, identifier)


@mypyc_attr(allow_interpreted_subclasses=True)
class Secondary(Server):
    """Every request is a piece: the cookie is the identifier."""

    private: ClassVar[bool] = True

    def __init__(self, loop: Loop, spec: NodeSpec, listeners: Sequence[socket.socket], report: Report) -> None:
        super().__init__(loop, spec, listeners, report)
        self.admission = Admission(LINKS)
        self._link: Connection | None = None

    def tune_process(self) -> None:
        super().tune_process()
        if self.crowded and os.sched_getscheduler(0) == os.SCHED_OTHER:
            # Do not interrupt the primary, which is still asking: more pieces wait then, and are done in one go. On 2
            # processors, 4 servers: 103,000 reads of 4 KiB a second instead of 85,000.
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

    def exports(self) -> Sequence[Export]:
        description = f"shard {self.spec.index} of the memory, for the primary alone"
        return [Export(LINK, self.shard.size, MEMORY_FLAGS, description, own_flags=REPEATED | PROBE)]

    def route(self, connection: Connection, export: Export) -> Route:  # noqa: ARG002
        """What is left of a link that the primary has lost ends here: it may bring writes that were given up since."""
        if self._link is not None:
            self._link.cut_off("")
        self.take_slot(connection)
        self._link = connection
        return self._piece

    def place(self, connection: Connection, request: Request, first: bool) -> memoryview | None:
        return self.place_here(connection, request, request.offset, first)

    def turn_away(self, connection: Connection, request: Request, start: int) -> None:
        """A link repeats what was shut out, so that is not in the log: the piece has not been done yet."""
        if request.error == Error.ESHUTDOWN:
            connection.session.reply_error(request, request.error, request.message)
        else:
            self.complete(connection, request, start, request.cookie, kind=PIECE)

    def _piece(self, connection: Connection, request: Request, start: int) -> None:
        self.carry_out(connection, request, start, request.cookie, request.offset, PIECE)


TOPOLOGY = Topology(
    roles={"primary": Primary, "secondary": Secondary}, links=lambda count: [(0, server) for server in range(1, count)]
)
