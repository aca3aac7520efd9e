"""chain: a request enters at the first server and passes along all of them; each adds or takes its part, and the last
one answers the client, on the socket that was handed along before.

Orders keep their order, but one that clears much takes turns with those behind it. So a server whose piece of it is
done asks whether it was overtaken by a change, and its client has gone meanwhile: then it goes no further.

What travels is one payload: of a read the pieces of the servers passed, in the order of the servers; of a write those
of the servers to come. Only the last server writes to the client. A break anywhere is a break of the whole chain: what
is under way is lost with the connections of the clients that wait for it, and the chain is made again from the head.
While there is no chain, nobody else writes to a client: then the head answers what it can answer alone.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from itertools import islice

from memcluster.node.handover.answering import Answerer
from memcluster.node.handover.messages import EXTENT, LOST, HandoverError, Order
from memcluster.node.handover.part import do_part, encode_result, join_parts, own_piece
from memcluster.node.handover.passage import Passage, PassageLink
from memcluster.node.handover.taking import Taker
from memcluster.node.layout import Extents, Piece, join_extents
from memcluster.node.native import mypyc_attr
from memcluster.node.nbd.buffer import fresh_buffer
from memcluster.node.nbd.server import Request
from memcluster.node.nbd.wire import Buffer, CommandFlag, Error
from memcluster.node.serving.connection import CHANGING, HUNG_UP, Connection
from memcluster.node.serving.keeper import BLOCK_STATUS, READ, WRITE, Parts
from memcluster.node.serving.server import Report, Server
from memcluster.node.spec import NodeSpec
from memcluster.node.topology import Topology
from memcluster.node.transport.address import Address
from memcluster.node.transport.loop import Loop


@mypyc_attr(allow_interpreted_subclasses=True)
class Head(Taker):
    """The first server: reads from the clients, and answers them only if it is the last one as well."""

    def __init__(self, loop: Loop, spec: NodeSpec, listeners: Sequence[socket.socket], report: Report) -> None:
        self._alone = len(spec.cluster.servers) == 1
        super().__init__(loop, spec, listeners, report, [] if self._alone else [1])

    def place(self, connection: Connection, request: Request, first: bool) -> memoryview | None:
        if self._alone:
            return self.place_here(connection, request, request.offset, first)
        return super().place(connection, request, first)

    def turn_away(self, connection: Connection, request: Request, start: int) -> None:
        """Even a refusal is said by the last server: nobody else writes to the client."""
        if self._answers(connection) or connection.route != self.request:
            super().turn_away(connection, request, start)
        else:
            self._begin(connection, request, start)

    def request(self, connection: Connection, request: Request, start: int) -> None:
        if self._alone:
            self.carry_out(connection, request, start, self.next_identifier(), request.offset)
        elif request.length and self._answers(connection) and (own := self._own(request)) is not None:
            self.carry_out(connection, request, start, self.next_identifier(), own)
        else:
            self._begin(connection, request, start)

    def _answers(self, connection: Connection) -> bool:
        """Nobody else may write to the client, whose socket was not handed along, or to a chain that is gone."""
        return self._alone or (self.links[1].passage is None and connection.open)

    def _own(self, request: Request) -> int | None:
        """Where a request lies in this server's shard, if it does as a whole."""
        holder, offset = self.layout.holder(request.offset, request.length)
        return offset if holder == self.spec.index else None

    def _begin(self, connection: Connection, request: Request, start: int) -> None:
        taken = self.take(connection, request, start)
        order = taken.order()
        pieces = [] if request.error or request.command != WRITE else self.layout.split(request.offset, request.length)
        ours, theirs = _cut(request, pieces, self.spec.index)
        piece = own_piece(self.layout, self.spec.index, order)

        def passed(order: Order, parts: Parts, extents: Extents | None) -> None:
            if connection.open and not order.error and not taken.may_go_on():
                order.fail(Error.EIO, HUNG_UP)
            self.pass_on(taken, 1, order, [*(theirs if not order.error else ()), *_added(self, order, parts, extents)])

        if request.error:
            order.message = request.message
        do_part(self, order, piece, passed, ours, lambda: connection.open)


@mypyc_attr(allow_interpreted_subclasses=True)
class Member(Answerer):
    """A server behind the first: takes or adds its part and passes on what is left, or answers if it is the last."""

    def __init__(self, loop: Loop, spec: NodeSpec, listeners: Sequence[socket.socket], report: Report) -> None:
        super().__init__(loop, spec, listeners, report)
        self._layout = spec.cluster.layout
        self._sockets: dict[int, socket.socket] = {}  # of the clients passed on: to know whether they are there
        self._newest = 0  # of the changes that have come, the last one's identifier
        self._next: PassageLink | None = None
        if spec.index + 1 < len(spec.cluster.servers):
            self._next = PassageLink(
                loop,
                spec.index + 1,
                Address.parse(spec.cluster.servers[spec.index + 1].address),
                spec.index,
                fresh_buffer(),
                spec.pass_to(f"server{spec.index + 1}"),
                joined=lambda _: self.welcome(),
                answered=self._answered,
                lost=lambda _: self._break(),
                lender=self.shard,
            )

    def cut(self, peer: str, cut: bool) -> None:
        if self._next is not None and peer == f"server{self._next.number}":
            self._next.cut(cut)

    def close(self) -> None:
        super().close()
        if self._next is not None:
            self._next.close()

    # -- the chain ---------------------------------------------------------------------------------------------------

    def welcome(self) -> None:
        """When the chain stands from here on."""
        if self.taker is not None and (self._next is None or self._next.passage is not None):
            super().welcome()

    def passage_gone(self, passage: Passage, reason: str) -> None:
        """A new chain before this server needs a new one behind it."""
        if passage is self.taker and self._next is not None:
            self._next.renew()
            while self._sockets:
                self._sockets.popitem()[1].close()
        super().passage_gone(passage, reason)

    def _break(self) -> None:
        """The chain behind is broken: so it is for all before."""
        if self.taker is not None:
            self.taker.lose("")

    def _answered(self, _link: PassageLink, orders: list[Order]) -> None:
        if self.taker is not None:
            for order in orders:
                self.taker.send_bytes(order.encode(len(order.payload)) + bytes(order.payload))

    # -- clients and orders ------------------------------------------------------------------------------------------

    def adopt(self, passage: Passage, order: Order) -> None:
        if self._next is None:
            super().adopt(passage, order)
        elif self._next.passage is None:
            passage.lose(f"{order!r} before the WELCOME")
        elif (descriptor := passage.take_descriptor()) is None:
            passage.send(Order(LOST, client=order.client))
        else:
            try:
                self._sockets[order.client] = self.loop.system.socket_of(self.loop.system.duplicate(descriptor))
            except OSError:  # no descriptor left
                self.loop.system.close(descriptor)
                passage.send(Order(LOST, client=order.client))
            else:
                self._next.passage.hand(order, descriptor)

    def drop(self, passage: Passage, order: Order) -> None:
        if self._next is None:
            super().drop(passage, order)
            return
        if (sock := self._sockets.pop(order.client, None)) is not None:
            sock.close()
        if self._next.passage is not None:
            self._next.passage.send(order)

    def carry(self, passage: Passage, order: Order) -> None:
        if order.error:
            order.read_message()
        payload = order.payload if order.owned else memoryview(bytes(order.payload))
        piece = own_piece(self._layout, self.spec.index, order)
        if not order.error and len(payload) != self._expected(order) and order.command != BLOCK_STATUS:
            raise HandoverError(f"{order!r} with {len(payload)} bytes")
        ours = None
        if order.command in CHANGING:
            self._newest = max(self._newest, order.identifier)
        if order.command == WRITE and piece is not None:
            ours, payload = payload[: piece.length], payload[piece.length :]

        def done(order: Order, parts: Parts, extents: Extents | None) -> None:
            if passage is not self.taker:
                return  # the chain that gave the order is gone, and a new one stands behind this server
            if self._next is None:
                self._answer(passage, order, payload, parts, extents)
            elif self._next.passage is not None:
                if not order.error and self._is_late(order):
                    order.fail(Error.EIO, HUNG_UP)
                before = (payload,) if len(payload) and not order.error else ()
                self._next.passage.send(order, [*before, *_added(self, order, parts, extents)])

        do_part(self, order, piece, done, ours, lambda: passage is self.taker)

    def _is_late(self, order: Order) -> bool:
        """It was overtaken here by another change, and its client has gone."""
        if order.command not in CHANGING or order.identifier == self._newest:
            return False
        sock = self._sockets.get(order.client)
        return sock is None or self.loop.system.is_gone(sock)

    def _expected(self, order: Order) -> int:
        """Bytes that come along with an order: of a read from those before, of a write for those from here on."""
        own = self.spec.index
        if order.command > WRITE:
            return 0
        pieces = self._layout.split(order.offset, order.length, spans=False)
        return sum(piece.length for piece in pieces if (piece.server < own) == (order.command == READ))

    def _answer(
        self, passage: Passage, order: Order, payload: memoryview, parts: Parts, extents: Extents | None
    ) -> None:
        """Everything is there: what the servers before have gathered, and what was done here."""
        if order.command == READ and not order.error:
            returned, done = [], 0
            for piece in self._layout.split(order.offset, order.length):
                if piece.server != self.spec.index:
                    returned.append((piece, payload[done : done + piece.length]))
                    done += piece.length
            parts = join_parts(returned, parts)
        elif order.command == BLOCK_STATUS and not order.error:
            found = _extents_by_server(payload)
            if extents is not None:
                found[self.spec.index] = extents
            if found.keys() != {piece.server for piece in self._layout.split(order.offset, order.length, spans=False)}:
                raise HandoverError(f"extents from servers {sorted(found)} for {order!r}")
            one = bool(order.flags & CommandFlag.REQ_ONE)
            extents = join_extents(self._layout, order.offset, order.length, found, one=one)
        self.answer(passage, order, parts, extents)


def _added(server: Server, order: Order, parts: Parts, extents: Extents | None) -> list[Buffer]:
    """What a server adds to the payload of an order; before extents stand its number and how many there are."""
    head: list[Buffer] = [] if extents is None else [EXTENT.pack(server.spec.index, len(extents))]
    return head + encode_result(order, parts, extents)


def _extents_by_server(payload: memoryview) -> dict[int, Extents]:
    if len(payload) % EXTENT.size:
        raise HandoverError(f"{len(payload)} bytes of extents")
    entries = EXTENT.iter_unpack(payload)
    return {server: list(islice(entries, count)) for server, count in entries}


def _cut(request: Request, pieces: Sequence[Piece], server: int) -> tuple[memoryview | None, list[Buffer]]:
    """The payload of a write: what this server takes, and what is for the others, in their order."""
    payload = request.payload
    if request.command != WRITE or request.error or payload is None:
        return None, []
    ours = [payload[start:end] for piece in pieces if piece.server == server for start, end in piece.spans]
    theirs: list[Buffer] = [
        payload[start:end] for piece in pieces if piece.server != server for start, end in piece.spans
    ]
    return (ours[0] if len(ours) == 1 else memoryview(b"".join(ours))), theirs


TOPOLOGY = Topology(
    roles={"head": Head, "middle": Member, "tail": Member},
    links=lambda count: [(server, server + 1) for server in range(count - 1)],
    hands_over=True,
    fans_out=False,
)
