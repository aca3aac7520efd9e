"""What is done with a client's request: it is numbered, carried out on the shard or sent on by a role, written down in
the log and answered. How clients come and go is Server's affair (server.py), and how many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from operator import attrgetter
from typing import Final

from memcluster.node.layout import MAX_EXTENTS, Extents
from memcluster.node.log.record import Kind, first_identifier, last_identifier
from memcluster.node.native import mypyc_attr
from memcluster.node.nbd.buffer import fresh_buffer
from memcluster.node.nbd.replies import CONTEXTS, WORD, Asked, Terms
from memcluster.node.nbd.server import Request
from memcluster.node.nbd.wire import OWNER, Buffer, Error
from memcluster.node.serving.connection import Connection
from memcluster.node.serving.keeper import BLOCK_STATUS, FUA, READ, REQ_ONE, WRITE, ZEROING, Keeper
from memcluster.node.serving.landing import Landing
from memcluster.node.serving.memory import Shard
from memcluster.node.serving.pool import Pool
from memcluster.node.spec import NodeSpec
from memcluster.node.transport.loop import Loop
from memcluster.node.transport.traffic import TRAFFIC

REQUEST: Final = int(Kind.REQUEST)
PIECE: Final = int(Kind.PIECE)
OWNERS: Final = CONTEXTS[OWNER]
MAX_OWNERS: Final = 1 << 12
"""Extents of the context memcluster:owner in one answer, at most: 1 us each."""
RESERVE: Final = 1 << 21
"""Identifiers that a turn may use, at most: when no more are left, the next turn begins another incarnation."""

_command_of = attrgetter("command")


@mypyc_attr(allow_interpreted_subclasses=True)
class Service(Keeper):
    """Serves `connections`, of which each says by its `route` where its requests go; some end in `carry_out`, all in
    `complete`."""

    def __init__(self, loop: Loop, spec: NodeSpec) -> None:
        super().__init__(loop, spec)
        self.connections: dict[int, Connection] = {}
        self.scratch = fresh_buffer()
        self.pool = Pool()
        self.requests = 0
        self.changes = 0
        """Grows with every batch of a client's requests that may change something, where there are other clients."""
        self.stopping = False
        """New requests are answered ESHUTDOWN."""
        self._guests = 0  # clients with an export open
        self._landing = Landing(loop, self.pool.take)
        self.renumbered()

    @property
    def lender(self) -> Shard:
        """Whose bytes the clients are sent."""
        return self.shard

    def serve(self, connection: Connection, requests: list[Request]) -> None:
        """Answer the requests of one client and turn, or begin to."""
        now = self.epoch + self.monotonic_ns()
        route = connection.route
        self.requests += len(requests)
        TRAFFIC.messages_in += len(requests)
        if len(self.connections) > 1 and any(map(_command_of, requests)):
            self.changes += 1
        stopping = self.stopping
        if self._identifier > self._enough:
            self.log.begin_incarnation()
        for request in requests:
            if request.error or stopping:
                if not request.error:
                    request.refuse(Error.ESHUTDOWN, "the cluster is shutting down")
                self.turn_away(connection, request, now)
            else:
                route(connection, request, now)

    def turn_away(self, connection: Connection, request: Request, start: int) -> None:
        """Answer a request that is not carried out."""
        self.complete(connection, request, start, self.next_identifier())

    def renumbered(self) -> None:
        self._identifier = first_identifier(self.spec.index, self.log.incarnation) - 1
        self._enough = last_identifier(self.spec.index, self.log.incarnation) - RESERVE

    def next_identifier(self) -> int:
        self._identifier += 1
        return self._identifier

    def complete(
        self,
        connection: Connection,
        request: Request,
        start: int,
        identifier: int,
        data: Sequence[Buffer] | None = None,
        extents: Sequence[tuple[int, int]] | None = None,
        kind: int = REQUEST,
    ) -> None:
        """Log the request and answer it: with `request.error`, with `data` or `extents`, or plainly."""
        TRAFFIC.messages_out += 1
        error = request.error
        self.log.append(
            start,
            self.epoch + self.monotonic_ns() - start,
            identifier,
            request.offset if connection.holder is None or kind != REQUEST else self._address(connection, request),
            request.length,
            connection.number if kind != PIECE else 0,
            kind,
            request.command,
            request.flags,
            error,
        )
        session = connection.session
        if error:
            session.reply_error(request, error, request.message)
        elif data:
            session.reply_data(request, data)
        elif extents:
            session.reply_extents(request, self.tell(session.terms, request, extents, connection.holder))
        else:
            session.reply(request)

    def tell(
        self, terms: Terms, request: Asked, allocation: Extents, holder: int | None = None
    ) -> dict[int, Extents]:
        """What a client that asked with a BLOCK_STATUS hears in each context it chose. `holder` is the one server that
        holds its export, if there is one."""
        told = dict.fromkeys(terms.contexts, allocation)
        if WORD in told:
            told[WORD] = [(request.length, 0)]
        if OWNERS in told:
            layout, length = self.spec.cluster.layout, request.length
            runs = layout.owners(request.offset, length) if holder is None else ((length, holder),)
            told[OWNERS] = list(islice(runs, 1 if request.flags & REQ_ONE else MAX_OWNERS))
        return told

    def _address(self, connection: Connection, request: Request) -> int:
        """Where in the memory a request on one server's part of it lies: of that the log speaks."""
        holder, offset = connection.holder, request.offset
        assert holder is not None
        shard = self.spec.cluster.servers[holder].memory
        return self.spec.cluster.layout.address(holder, offset) if offset < shard else offset

    def carry_out(
        self,
        connection: Connection,
        request: Request,
        start: int,
        identifier: int,
        offset: int,
        kind: int = REQUEST,
    ) -> None:
        """Serve a request that falls in this server's shard as a whole, at `offset` there, and answer it."""
        data: Sequence[Buffer] | None = None
        extents: list[tuple[int, int]] | None = None
        command, length = request.command, request.length
        try:
            if command == READ:
                data = self.shard.read(offset, length) if length else None
            elif command == WRITE:
                if request.owned and request.placed:
                    self._landing.end()
                elif length:
                    assert request.payload is not None
                    self.shard.write(offset, request.payload)
                    if self.under_way:
                        self.overtake(offset, length)
                if request.flags & FUA:
                    self.shard.sync(offset, length)
            elif command == BLOCK_STATUS:
                extents = self.shard.extents(offset, length, 1 if request.flags & REQ_ONE else MAX_EXTENTS)
            elif command in ZEROING and length > self.slice_of(command, request.flags):
                self._carry_out_slowly(connection, request, start, identifier, offset, kind)
                return
            else:
                self.change(command, request.flags, offset, length)
        except OSError as error:
            self.refuse(request, error)
        self.complete(connection, request, start, identifier, data, extents, kind)

    def _carry_out_slowly(
        self, connection: Connection, request: Request, start: int, identifier: int, offset: int, kind: int
    ) -> None:
        connection.begin(request)

        def wanted() -> bool:
            return connection.open  # a link that is gone has asked again, or has given it up

        def changed(error: OSError | None) -> None:
            if error is not None:
                self.refuse(request, error)
            if wanted():
                self.complete(connection, request, start, identifier, kind=kind)
            connection.end(request)

        self.change_in_slices(request.command, request.flags, offset, request.length, changed, wanted)

    def refuse(self, request: Request, error: OSError) -> None:
        """The system could not do it: say so to the client."""
        request.refuse(self.wire_error(error), self.reason(error))

    def place_here(self, connection: Connection, request: Request, offset: int, first: bool) -> memoryview | None:
        """Room for a payload that belongs in the shard; refuses the request if there is none. It is received there
        straight away if nobody can look before it is complete, and nothing else of this client is under way; else in
        memory of its own, so that the write is carried out whole."""
        if self.stopping:
            request.refuse(Error.ESHUTDOWN, "the cluster is shutting down")
            return None
        if not first or self._guests > 1 or connection.in_flight or connection.outgoing:
            return self.pool.take(request.length)
        try:
            room = self.shard.room(offset, request.length)
        except OSError as error:
            self.refuse(request, error)
            return None
        request.placed = True
        self._landing.begin(connection, offset, request.length)
        return room
