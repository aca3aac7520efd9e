"""dispatcher: a process that owns no memory takes all requests and passes each on to the servers that hold its pieces;
they answer the client themselves. The bytes of a read never come to the dispatcher.

The servers have the client's own socket. A read that spans several is answered by each with chunks that say where their
bytes belong; every other request is answered by the one that is done last (see node/handover/gates.py for both). A
client that has no structured replies, or does not want its data cut up, cannot be answered by several: then, and only
then, the pieces of a read that spans servers come back to the dispatcher, which answers.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from pathlib import Path

from memcluster.node.handover.answering import Answerer
from memcluster.node.handover.gates import MAX_GATES, MAX_TICKETS, Gates
from memcluster.node.handover.messages import DATA, EXTENT, SEND_BACK, HandoverError, Order
from memcluster.node.handover.part import FLUSH, LOGGED, do_part, encode_result, join_parts, own_piece
from memcluster.node.handover.passage import Passage, PassageLink
from memcluster.node.handover.taking import HandedConnection, Taken, Taker
from memcluster.node.layout import Extents, Piece, join_extents
from memcluster.node.native import mypyc_attr
from memcluster.node.nbd.server import Request
from memcluster.node.nbd.wire import Buffer, CommandFlag, Error
from memcluster.node.serving.connection import HUNG_UP, Connection
from memcluster.node.serving.keeper import BLOCK_STATUS, READ, WRITE, Parts
from memcluster.node.serving.server import Report
from memcluster.node.serving.slots import SlotTable
from memcluster.node.spec import NodeSpec
from memcluster.node.topology import Topology
from memcluster.node.transport.address import Address
from memcluster.node.transport.loop import Loop


def gates_directory(spec: NodeSpec) -> Path:
    """Where the gates lie: beside the servers' sockets."""
    return Path(Address.parse(spec.cluster.servers[1].address).path).parent


@mypyc_attr(allow_interpreted_subclasses=True)
class Dispatcher(Taker):
    """Gives each client a gate when its socket is handed over, and each request that spans servers a ticket."""

    def __init__(self, loop: Loop, spec: NodeSpec, listeners: Sequence[socket.socket], report: Report) -> None:
        self._owners = range(1, len(spec.cluster.servers))
        self._nothing = Piece(spec.index, 0, 0, ())  # its own part of every request
        self._gates = Gates(loop, gates_directory(spec), spec.index, create=True)
        self._free_gates = SlotTable(MAX_GATES)
        self._free_tickets = SlotTable(MAX_TICKETS - 1)
        self._leaving: dict[int, tuple[int, set[int]]] = {}  # client -> its gate, the servers that still have it
        super().__init__(loop, spec, listeners, report, self._owners)

    def close(self) -> None:
        super().close()
        self._gates.close()

    def request(self, connection: Connection, request: Request, start: int) -> None:
        pieces = self._pieces(request)
        if not pieces:
            self.complete(connection, request, start, self.next_identifier())
            return
        taken = self.take(connection, request, start)
        try:
            self._give_gate(taken.connection)
            if len(pieces) > 1:
                if self._wants_one_reply(taken.connection, request):
                    taken.returned = []
                else:
                    taken.ticket = self._open_ticket(len(pieces))
        except OSError as error:
            self.refuse(request, error)
            self.complete(connection, request, start, taken.identifier)
            connection.end(request)
            return
        # It was here: that is in the log. Never before its request, whatever the clock says.
        began, flags = max(self.now(), start), request.flags & LOGGED
        self.log_piece(began, taken.identifier, self._nothing, request.command, flags, 0)
        if self.spec.cluster.fan_out == "serial":
            taken.later = pieces[::-1]
            self._pass_piece(taken, taken.later.pop())
        else:
            for piece in pieces:
                self._pass_piece(taken, piece)

    def _open_ticket(self, pieces: int) -> int:
        """Raises OSError if there is none."""
        ticket = self._free_tickets.take()
        if ticket is None:
            raise OSError(errno.ENOMEM, "too many requests in flight")
        try:
            self._gates.open_ticket(ticket + 1, pieces)
        except OSError:
            self._free_tickets.give_back(ticket)
            raise
        return ticket + 1

    def _pieces(self, request: Request) -> list[Piece]:
        if request.command == FLUSH:
            return [Piece(index, 0, 0, ()) for index in self._owners]
        return self.layout.split(request.offset, request.length, spans=request.command <= WRITE)

    @staticmethod
    def _wants_one_reply(connection: HandedConnection, request: Request) -> bool:
        """One chunk must tell all extents, and some clients want one with all bytes."""
        if request.command == READ:
            return not connection.session.structured or bool(request.flags & CommandFlag.DF)
        return request.command == BLOCK_STATUS

    def _pass_piece(self, taken: Taken, piece: Piece) -> None:
        order = taken.order()
        if taken.returned is not None:
            order.flags |= SEND_BACK
        payload = taken.request.payload
        buffers = [payload[start:end] for start, end in piece.spans] if payload is not None else ()
        self.pass_on(taken, piece.server, order, buffers)

    def came_back(self, taken: Taken, number: int, order: Order) -> None:
        if order.error:
            order.read_message()
            taken.request.refuse(order.error, order.message)
            return
        if taken.request.error:  # another part of it was given up meanwhile
            return
        assert taken.returned is not None
        piece = own_piece(self.layout, number, taken.order())
        assert piece is not None
        taken.returned.append((piece, order.payload if order.owned else memoryview(bytes(order.payload))))

    def go_on(self, taken: Taken) -> bool:
        """Serial: the next piece, if those before it went well."""
        if not taken.later or not taken.connection.open:
            return False
        if not taken.may_go_on():
            taken.awaiting += 1
            taken.later.pop()
            self.give_up(taken, Error.EIO, HUNG_UP)
            return True
        if taken.ticket and (error := self._gates.failed(taken.ticket)):
            taken.later.pop()
            taken.awaiting += 1
            self.give_up(taken, error, "a part of the request before this one failed")
        elif not taken.request.error:
            self._pass_piece(taken, taken.later.pop())
        else:
            return False
        return True

    def give_up(self, taken: Taken, error: int, text: str) -> None:
        """The servers that have a part in the answer count on a word for each of the others, too: here it is said for a
        piece that cannot be passed on, and for those that were to follow it."""
        pieces = 1 + len(taken.later)
        taken.later.clear()
        if not taken.ticket:
            super().give_up(taken, error, text)
        else:
            taken.connection.say(lambda: self._give_up(taken, pieces, error, text))

    def _give_up(self, taken: Taken, pieces: int, error: int, text: str) -> None:
        """With the client's gate held: as the servers say it in node/handover/answering.py."""
        connection, request = taken.connection, taken.request
        if connection.open:
            last, failed = self._gates.count(taken.ticket, error, pieces)
            request.refuse(failed, text)
            if last:
                self.complete(connection, request, taken.start, taken.identifier)
            elif request.command == READ:
                connection.session.reply_error(request, error, text, done=False)
        self.one_done(taken)

    def all_done(self, taken: Taken) -> None:
        if taken.ticket:
            self._free_tickets.give_back(taken.ticket - 1)
        if taken.returned is not None and taken.connection.open:
            data: list[Buffer] | None = None
            extents: Extents | None = None
            if taken.request.command == READ:
                data = [buffer for _, buffer in join_parts(taken.returned, [])]
            elif not taken.request.error:
                told = {piece.server: list(EXTENT.iter_unpack(payload)) for piece, payload in taken.returned}
                one = bool(taken.request.flags & CommandFlag.REQ_ONE)
                extents = join_extents(self.layout, taken.request.offset, taken.request.length, told, one=one)
            self.complete(taken.connection, taken.request, taken.start, taken.identifier, data, extents)

    # -- gates -------------------------------------------------------------------------------------------------------

    def _give_gate(self, connection: HandedConnection) -> None:
        if connection.gates is None:
            gate = self._free_gates.take()
            assert gate is not None, "more clients than gates"
            try:
                self._gates.reset(gate)
            except OSError:
                self._free_gates.give_back(gate)
                raise
            connection.gates, connection.gate = self._gates, gate

    def lost(self, connection: Connection, reason: str) -> None:
        assert isinstance(connection, HandedConnection)
        if connection.gates is not None:
            if connection.adopted:
                self._leaving[connection.number] = connection.gate, set(connection.adopted)
            else:
                self._free_gates.give_back(connection.gate)
        super().lost(connection, reason)

    def dropped(self, number: int, client: int) -> None:
        gate, servers = self._leaving.get(client, (0, set()))
        servers.discard(number)
        if client in self._leaving and not servers:
            del self._leaving[client]
            self._free_gates.give_back(gate)

    def link_lost(self, link: PassageLink) -> None:
        super().link_lost(link)
        for client in list(self._leaving):
            self.dropped(link.number, client)


@mypyc_attr(allow_interpreted_subclasses=True)
class Owner(Answerer):
    """Holds a shard, and answers the clients of the dispatcher for it."""

    def welcome(self) -> None:
        if self.gates is not None:  # those of a dispatcher that is dead
            self.gates.close()
        self.gates = Gates(self.loop, gates_directory(self.spec), self.spec.index, create=False)
        super().welcome()

    def close(self) -> None:
        super().close()
        if self.gates is not None:
            self.gates.close()

    def carry(self, passage: Passage, order: Order) -> None:
        piece = own_piece(self.spec.cluster.layout, self.spec.index, order)
        payload = order.payload if order.command == WRITE else None
        if not order.error and len(order.payload) != (piece.length if order.command == WRITE and piece else 0):
            raise HandoverError(f"{order!r} with {len(order.payload)} bytes")

        def carried(order: Order, parts: Parts, extents: Extents | None) -> None:
            self._carried(passage, order, parts, extents)

        do_part(self, order, piece, carried, payload, lambda: passage is self.taker)

    def _carried(self, passage: Passage, order: Order, parts: Parts, extents: Extents | None) -> None:
        if order.flags & SEND_BACK:
            back = Order(DATA, error=order.error, identifier=order.identifier)
            passage.send(back, encode_result(order, parts, extents))
        else:
            self.answer(passage, order, parts, extents)


TOPOLOGY = Topology(
    roles={"dispatcher": Dispatcher, "secondary": Owner},
    links=lambda count: [(0, server) for server in range(1, count)],
    hands_over=True,
    dispatches=True,
)
