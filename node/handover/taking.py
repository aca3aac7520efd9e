"""Taking clients' requests that other servers answer: what dispatcher and chain have in common.

The taker reads from the clients, hands their sockets over, passes requests on as orders, and counts those in flight, so
that its connections are as bounded as if it answered itself. When a server that has orders dies, nobody knows how far
it came with the replies: the clients that wait for it lose their connection, and nobody else.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

from memcluster.node.handover.answering import end_stream
from memcluster.node.handover.gates import BrokenStream, Gates
from memcluster.node.handover.messages import ADOPT, DATA, DONE, DROP, DROPPED, LOST, ORDER, Order, decode_done
from memcluster.node.handover.passage import PassageLink
from memcluster.node.layout import Piece
from memcluster.node.native import mypyc_attr
from memcluster.node.nbd.buffer import fresh_buffer
from memcluster.node.nbd.negotiation import Exports
from memcluster.node.nbd.server import Request
from memcluster.node.nbd.wire import Buffer, Error
from memcluster.node.serving.budget import Budget
from memcluster.node.serving.connection import HUNG_UP, Connection
from memcluster.node.serving.door import Door
from memcluster.node.serving.server import Report, Server
from memcluster.node.spec import NodeSpec
from memcluster.node.transport.address import Address
from memcluster.node.transport.loop import Loop, Timer


@mypyc_attr(allow_interpreted_subclasses=True)
class HandedConnection(Connection):
    """A client whose socket other servers may write to, too: with `gates`, through the `gate`."""

    gates: Gates | None = None
    gate = 0
    adopted: set[int]
    """The servers that have the socket."""
    when_said: Callable[[], None] | None = None
    """Called once when the client has taken all that was said to it."""
    _has_gate = False

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        owner: Server,
        exports: Callable[[Connection], Exports],
        number: int,
        scratch: memoryview,
        budget: Budget,
    ) -> None:
        self.adopted = set()
        self._unsaid: list[Callable[[], None]] = []
        super().__init__(loop, sock, owner, exports, number, scratch, budget)

    def say(self, words: Callable[[], None]) -> None:
        """Call what queues a reply, or a part of one that others have a part in, when none of them writes; or when the
        connection is closed."""
        self._unsaid.append(words)
        if self.open:
            self.send_soon()
        else:
            self.loop.soon(self._say)

    def _say(self) -> None:
        unsaid, self._unsaid = self._unsaid, []
        for words in unsaid:
            words()

    def hand_to(self, link: PassageLink) -> bool:
        """Give a server the socket if it has not got it yet; if that cannot be, the connection is closed. From there on
        others may write, so nothing may be half said, except by who holds the gate: false if it is."""
        if link.number in self.adopted:
            return True
        assert link.passage is not None
        if self.gates is not None:
            self.adopted.add(link.number)
        self.flush()
        if self.gates is None:
            if self.queued:
                return False
            self.adopted.add(link.number)
        if self.open:
            try:
                descriptor = self.loop.system.duplicate(self.sock.fileno())
            except OSError as error:
                self.cut_off(f"its socket cannot be handed to server{link.number}: {error.strerror}")
                return True
            order = Order(ADOPT, client=self.number, ticket=self.gate, flags=self.session.terms.encode())
            link.passage.hand(order, descriptor)
        return True

    def flush(self) -> None:
        speaks = self.outgoing or self._unsaid
        if self.gates is not None and self.adopted and speaks and not self._has_gate and self.open:
            try:
                self._has_gate = self.gates.take(self.gate, self.flush)
            except BrokenStream as error:
                self._lost(str(error))
                return
            if not self._has_gate:
                self._flush_is_due = False
                self._account()
                return
        if self._unsaid:
            self._say()
        super().flush()

    def _flushed(self) -> None:
        if not self.queued:
            self._let_go()
            if self.when_said is not None:
                self.loop.soon(self.when_said)
                self.when_said = None
        super()._flushed()

    def rest(self) -> None:
        """Nobody else has the socket, or knows of the gate, when it goes on."""
        super().rest()
        self.adopted.clear()
        self.gates, self._has_gate = None, False

    def _let_go(self) -> None:
        if self._has_gate and self.gates is not None:
            self._has_gate = False
            self.gates.give_back(self.gate)

    def close(self) -> None:
        if self.open:
            if self.adopted:
                end_stream(self.sock)
            super().close()
            if self.gates is not None:
                self.gates.forget(self.gate)
            self._let_go()
            self.loop.soon(self._say)


class Taken:
    """A request in flight. Plain slots: this is the data path."""

    __slots__ = ("awaiting", "connection", "identifier", "later", "missed", "request", "returned", "start", "ticket")

    def __init__(self, connection: HandedConnection, request: Request, start: int, identifier: int) -> None:
        self.connection = connection
        self.request = request
        self.start = start
        self.missed = connection.loop.missed
        self.identifier = identifier
        self.awaiting = 0
        """Orders that are not done."""
        self.ticket = 0
        self.later: list[Piece] = []
        """What is to be passed on when what was passed on is done; the next one last."""
        self.returned: list[tuple[Piece, memoryview]] | None = None
        """What has come back, if the taker answers itself."""

    def may_go_on(self) -> bool:
        """Whether more of it may be begun."""
        return self.connection.may_begin(self.request.command)

    def order(self) -> Order:
        """What is said to those who answer."""
        request = self.request
        return Order(
            ORDER, request.command, request.flags, request.error, self.connection.number, self.ticket,
            self.identifier, request.cookie, request.offset, self.start, request.length,
        )  # fmt: skip


@mypyc_attr(allow_interpreted_subclasses=True)
class Taker(Door):
    """Passes requests on over `links`, by the number of the server there."""

    connection_type: ClassVar[type[Connection]] = HandedConnection

    def __init__(
        self, loop: Loop, spec: NodeSpec, listeners: Sequence[socket.socket], report: Report, to: Sequence[int]
    ) -> None:
        super().__init__(loop, spec, listeners, report)
        scratch = fresh_buffer()
        self._sent: dict[int, dict[int, Taken]] = {number: {} for number in to}
        self._waiting: dict[int, list[tuple[Taken, Order, Sequence[Buffer]]]] = {number: [] for number in to}
        self._expiry: Timer | None = None
        self._starting = False
        self.links = {
            number: PassageLink(
                loop,
                number,
                Address.parse(spec.cluster.servers[number].address),
                spec.index,
                scratch,
                spec.pass_to(f"server{number}"),
                joined=self._joined,
                answered=self._answered,
                lost=self.link_lost,
                lender=self.shard,
            )
            for number in to
        }

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Ready means that orders can be passed on to everybody, when all are started; later on they wait for who is
        away."""
        if self.spec.first:
            self._starting = True
            self._check_links()
        else:
            super().start()

    def status(self) -> dict[str, Any]:
        waiting = [f"server{link.number}: {link.trouble}" for link in self.links.values() if link.passage is None]
        return super().status() | {"waiting_for": waiting}

    def settle_on(self, spec: NodeSpec, page: socket.socket | None) -> None:
        super().settle_on(spec, page)
        if self._expiry is not None:
            self._expiry.cancel()
            self._expire()

    def cut(self, peer: str, cut: bool) -> None:
        for link in self.links.values():
            if peer == f"server{link.number}":
                link.cut(cut)

    def close(self) -> None:
        super().close()
        if self._expiry is not None:
            self._expiry.cancel()
        for link in self.links.values():
            link.close()

    def lost(self, connection: Connection, reason: str) -> None:
        assert isinstance(connection, HandedConnection)
        for number in connection.adopted:
            passage = self.links[number].passage
            if passage is not None:
                passage.send(Order(DROP, client=connection.number))
        super().lost(connection, reason)

    def _check_links(self) -> None:
        if self._starting and all(link.passage is not None for link in self.links.values()):
            self._starting = False
            super().start()

    def place(self, connection: Connection, request: Request, first: bool) -> memoryview | None:  # noqa: ARG002
        if self.stopping:
            request.refuse(Error.ESHUTDOWN, "the cluster is shutting down")
            return None
        return self.pool.take(request.length)

    # -- passing on --------------------------------------------------------------------------------------------------

    def take(self, connection: Connection, request: Request, start: int) -> Taken:
        """Begin a request that others will answer; a payload that lies in the receive buffer is copied."""
        assert isinstance(connection, HandedConnection)
        connection.begin(request)
        if request.payload is not None and not request.owned:
            request.payload = memoryview(bytes(request.payload))
        return Taken(connection, request, start, self.next_identifier())

    def pass_on(self, taken: Taken, number: int, order: Order, buffers: Sequence[Buffer]) -> None:
        """Send an order to a server, or keep it until the server is back."""
        taken.awaiting += 1
        if self.links[number].passage is None:
            self._wait(taken, number, order, buffers)
        else:
            self._send(taken, number, order, buffers)

    def _wait(self, taken: Taken, number: int, order: Order, buffers: Sequence[Buffer]) -> None:
        self._waiting[number].append((taken, order, buffers))
        if self._expiry is None:  # not now: more of it may be about to be passed on
            self._expiry = self.loop.after(self.spec.bounds.retry_timeout / 10, self._expire)

    def _send_waiting(self, number: int) -> None:
        """The server is back, or a client has taken what was said to it."""
        if self.links[number].passage is None:
            return
        waiting, self._waiting[number] = self._waiting[number], []
        for taken, order, buffers in waiting:
            if taken.connection.open and not taken.may_go_on():
                self.give_up(taken, Error.EIO, HUNG_UP)
            else:
                self._send(taken, number, order, buffers)

    def _send(self, taken: Taken, number: int, order: Order, buffers: Sequence[Buffer]) -> None:
        """Send an order, or have it wait if a reply to its client is half said, or an earlier order waits for that."""
        link, connection = self.links[number], taken.connection
        assert link.passage is not None
        waiting = self._waiting[number]
        overtakes = waiting and any(other.connection is connection for other, _, _ in waiting)
        if connection.open and (overtakes or not connection.hand_to(link)):
            connection.when_said = partial(self._send_waiting, number)
            self._wait(taken, number, order, buffers)
            return
        if not connection.open:
            self.loop.soon(lambda: self.one_done(taken))  # not now: more of it may be about to be passed on
            return
        self._sent[number][taken.identifier] = taken
        link.passage.send(order, buffers)

    def one_done(self, taken: Taken) -> None:
        """Something that was passed on is done, or will never be."""
        taken.awaiting -= 1
        if not taken.awaiting and not self.go_on(taken):
            self.all_done(taken)
            taken.connection.end(taken.request)

    def go_on(self, taken: Taken) -> bool:  # noqa: ARG002
        """Everything that was passed on is done: pass on what had to wait for that; false if nothing had."""
        return False

    def all_done(self, taken: Taken) -> None:
        """Everything that was passed on is done, or will never be."""

    # -- what the servers say ----------------------------------------------------------------------------------------

    def _joined(self, link: PassageLink) -> None:
        """Nothing of what the server had before is under its hands any more."""
        lost, self._sent[link.number] = self._sent[link.number], {}
        for taken in lost.values():
            self.one_done(taken)
        self._send_waiting(link.number)
        self._check_links()

    def _answered(self, link: PassageLink, orders: list[Order]) -> None:
        sent = self._sent[link.number]
        for order in orders:
            if order.kind == DONE:
                for identifier in decode_done(order):
                    if (taken := sent.pop(identifier, None)) is not None:
                        self.one_done(taken)
            elif order.kind == DATA:
                if (taken := sent.pop(order.identifier, None)) is not None:
                    self.came_back(taken, link.number, order)
                    self.one_done(taken)
            elif order.kind == DROPPED:
                self.dropped(link.number, order.client)
            elif order.kind == LOST and (connection := self.connections.get(order.client)) is not None:
                connection.cut_off(f"server{link.number} cannot send it anything")

    def came_back(self, taken: Taken, number: int, order: Order) -> None:
        """A server has sent back what was read."""

    def dropped(self, number: int, client: int) -> None:
        """A server has let go of a client that is gone."""

    def link_lost(self, link: PassageLink) -> None:
        """The server is dead, or cut off: who waits for it cannot know how far its reply has come. If it is only cut
        off it may still be at work, so what it has counts as done when it is back, and not before."""
        sent = self._sent[link.number].values()
        victims = {taken.connection for taken in sent}
        for connection in list(self.connections.values()):
            assert isinstance(connection, HandedConnection)
            if link.number in connection.adopted:
                connection.adopted.discard(link.number)
                if connection in victims:
                    self.notice(f"client {connection.number} loses its connection: server{link.number} is gone")
                    end_stream(connection.sock)
                    connection._lost("")
        for taken in sent:
            taken.request.payload = None

    def _expire(self) -> None:
        """Give up what has waited for its server too long; asked now and then as long as something waits."""
        limit = self.now() - self.loop.missed - int(self.spec.bounds.retry_timeout * 1e9)
        for number, waiting in self._waiting.items():
            late = [entry for entry in waiting if entry[0].start - entry[0].missed <= limit]
            self._waiting[number] = [entry for entry in waiting if entry[0].start - entry[0].missed > limit]
            for taken, _, _ in late:
                text = f"no answer from server{number} for {self.spec.bounds.retry_timeout:g} s (retry_timeout)"
                self.give_up(taken, Error.EIO, text)
        self._expiry = None
        if any(self._waiting.values()):
            self._expiry = self.loop.after(self.spec.bounds.retry_timeout / 10, self._expire)

    def give_up(self, taken: Taken, error: int, text: str) -> None:
        """What was to be passed on will not be: the client is told."""
        if taken.connection.open:
            taken.request.refuse(error, text)
            if taken.returned is None:  # else the taker answers when all is done
                self.complete(taken.connection, taken.request, taken.start, taken.identifier)
        self.one_done(taken)
