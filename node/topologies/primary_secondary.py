"""primary-secondary: the primary takes the clients' requests, serves what falls in its own shard, asks the secondaries
for the rest, and answers. A secondary is for the primary alone: who does not know the run's secret is turned away."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any, ClassVar, Final

from memcluster.node.forwarding.fanout import Fanout, PassedOn
from memcluster.node.forwarding.link import Link
from memcluster.node.forwarding.staging import IN_PLACE, LEAST, Staged, Staging, agreement
from memcluster.node.forwarding.window import Window
from memcluster.node.layout import Linear, Piece
from memcluster.node.log.record import PROBE, REPEATED, Kind
from memcluster.node.native import mypyc_attr
from memcluster.node.nbd.buffer import fresh_buffer
from memcluster.node.nbd.negotiation import Export
from memcluster.node.nbd.server import Request
from memcluster.node.nbd.wire import Command, CommandFlag, Error
from memcluster.node.serving.admission import Admission
from memcluster.node.serving.connection import Connection, Route
from memcluster.node.serving.door import Door
from memcluster.node.serving.server import MEMORY_FLAGS, Report, Server
from memcluster.node.spec import NodeSpec
from memcluster.node.topology import Topology
from memcluster.node.transport.address import Address
from memcluster.node.transport.loop import Loop

PIECE: Final = int(Kind.PIECE)
READ: Final = int(Command.READ)
WRITE: Final = int(Command.WRITE)
FLUSH: Final = int(Command.FLUSH)
FUA: Final = int(CommandFlag.FUA)
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
        self._staging, self._no_staging = _make_staging(spec.staging) if spec.staging else (None, "")
        scratch = fresh_buffer()
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
                window=self._window_on(index),
            )
            for index, server in enumerate(cluster.servers)
            if index != spec.index
        }
        self._starting = False

    def _window_on(self, index: int) -> Window | None:
        memory = self.spec.cluster.servers[index].memory
        if self._staging is None or not memory:
            return None
        return Window(self.spec.shards[index], memory, self._staging)

    def place(self, connection: Connection, request: Request, first: bool) -> memoryview | None:
        if connection.holder is not None:
            holder, offset = connection.holder, request.offset
        elif request.offset + request.length <= self._own_end or self.stopping:
            return self.place_here(connection, request, request.offset, first)
        else:
            holder, offset = self.layout.holder(request.offset, request.length)
        if holder == self.spec.index:
            return self.place_here(connection, request, offset, first)
        if self._staging is not None:
            taken = self._staging.take(request.length)
            if taken is not None:
                room, request.at = taken
                return room
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
        status = super().status() | {"waiting_for": waiting}
        if self.spec.staging:
            status["links"] = {f"server{index}": self._kind_of(link) for index, link in self._links.items()}
        return status

    def lost(self, connection: Connection, reason: str) -> None:
        for link in self._links.values():
            if link.window is not None:
                link.window.readers.discard(connection)
        super().lost(connection, reason)

    def _kind_of(self, link: Link) -> str:
        """shared; or copy, and why."""
        window = link.window
        if window is None:
            return f"copy: {self._no_staging or 'no memory there'}"
        return "shared" if window.agreed else f"copy: {window.trouble}"

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
        if self._staging is not None:
            self._staging.close()

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
            if self._staging is not None and length >= LEAST and request.command == WRITE and not request.owned:
                self._staging.stow(request)
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
            if self._staging is not None and request.length >= LEAST and request.command == WRITE and not request.owned:
                self._staging.stow(request)
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
        self._staged: Staged | None = None  # what the link may speak of
        self._offered: dict[int, Staged] = {}  # by who has not come in yet

    def tune_process(self) -> None:
        super().tune_process()
        if self.crowded and os.sched_getscheduler(0) == os.SCHED_OTHER:
            # Do not interrupt the primary, which is still asking: more pieces wait then, and are done in one go. On 2
            # processors, 4 servers: 103,000 reads of 4 KiB a second instead of 85,000.
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

    def exports(self) -> Sequence[Export]:
        description = f"shard {self.spec.index} of the memory, for the primary alone"
        own_flags = REPEATED | PROBE | (IN_PLACE if self.spec.staging else 0)
        return [Export(LINK, self.shard.size, MEMORY_FLAGS, description, own_flags=own_flags)]

    def contexts(self, connection: Connection, export: Export) -> Sequence[str]:  # noqa: ARG002
        """What shows a primary that both have the same memory."""
        if not self.spec.staging:
            return ()
        try:
            staged = Staged(self.spec.staging)
        except OSError:  # the primary has none, or runs elsewhere
            return ()
        self._offered[connection.number] = staged
        return (agreement(staged.token, self.shard.identity),)

    def take_slot(self, connection: Connection) -> None:
        """What is left of a link that the primary has lost ends here: it may bring writes that were given up since."""
        if self._link is not None:
            self._link.cut_off("")
        super().take_slot(connection)
        self._link = connection

    def route(self, connection: Connection, export: Export) -> Route:  # noqa: ARG002
        self._staged = self._offered.pop(connection.number, None)
        return self._piece

    def lost(self, connection: Connection, reason: str) -> None:
        self._offered.pop(connection.number, None)
        super().lost(connection, reason)

    def place(self, connection: Connection, request: Request, first: bool) -> memoryview | None:
        if request.flags & IN_PLACE:  # these are spans
            return self.pool.take(request.length)
        return self.place_here(connection, request, request.offset, first)

    def turn_away(self, connection: Connection, request: Request, start: int) -> None:
        """A link repeats what was shut out, so that is not in the log: the piece has not been done yet."""
        if request.error == Error.ESHUTDOWN:
            connection.session.reply_error(request, request.error, request.message)
        else:
            self.complete(connection, request, start, request.cookie, kind=PIECE)

    def _piece(self, connection: Connection, request: Request, start: int) -> None:
        if request.flags & IN_PLACE:
            request.flags &= ~IN_PLACE
            if request.command == WRITE:
                self._write_staged(request)
                self.complete(connection, request, start, request.cookie, None, None, PIECE)
                return
            if request.command == READ and request.length and self.shard.is_data(request.offset, request.length):
                self.complete(connection, request, start, request.cookie, None, None, PIECE)
                return
        self.carry_out(connection, request, start, request.cookie, request.offset, PIECE)

    def _write_staged(self, request: Request) -> None:
        """Carry out a WRITE whose payload is the spans of the real one: all of it, or nothing if there is no room."""
        assert request.payload is not None
        shard, offset = self.shard, request.offset
        try:
            if self._staged is None:
                raise ValueError("no memory is shared over this link")
            parts, length = self._staged.find(request.payload)
            request.length = length
            if offset + length > shard.size:
                raise ValueError(f"{length} bytes at {offset} are beyond the end, {shard.size}")
        except ValueError as error:
            request.refuse(Error.EINVAL, f"{self.spec.name}: {error}")
            return
        try:
            if len(parts) > 1:
                shard.room(offset, length)
            for part in parts:
                shard.write(offset, part)
                offset += len(part)
            if self.under_way:
                self.overtake(request.offset, length)
            if request.flags & FUA:
                shard.sync(request.offset, length)
        except OSError as error:
            self.refuse(request, error)


def _make_staging(path: str) -> tuple[Staging | None, str]:
    """The area, or why there is none."""
    try:
        return Staging(path), ""
    except OSError as error:
        return None, f"{path}: {error.strerror}"


TOPOLOGY = Topology(
    roles={"primary": Primary, "secondary": Secondary},
    links=lambda count: [(0, server) for server in range(1, count)],
    shares=True,
)
