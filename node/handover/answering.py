"""Answering clients whose requests came through another server: their sockets are handed over, replies go straight out.

`Answers` is the writing end of one client's stream; `Answerer` the server that is handed it. A topology derives from
that and says what becomes of an order.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from memcluster.node.handover.gates import BrokenStream, Gates
from memcluster.node.handover.messages import (
    ADOPT,
    DROP,
    DROPPED,
    HELLO,
    LOST,
    ORDER,
    WELCOME,
    HandoverError,
    Order,
    encode_done,
)
from memcluster.node.handover.passage import Passage
from memcluster.node.layout import Extents
from memcluster.node.native import mypyc_attr
from memcluster.node.nbd.replies import Replies, Terms
from memcluster.node.serving.connection import TRICKLE, TURN_BUDGET
from memcluster.node.serving.keeper import READ, Parts
from memcluster.node.serving.server import Report, Server
from memcluster.node.serving.service import REQUEST
from memcluster.node.spec import NodeSpec
from memcluster.node.transport.loop import Loop
from memcluster.node.transport.stream import Lender, Line, Stream, parts
from memcluster.node.transport.traffic import TRAFFIC


class Answer:
    """What this server has to say to an order. Plain slots: this is the data path."""

    __slots__ = ("extents", "order", "parts")

    def __init__(self, order: Order, parts: Parts, extents: Extents | None) -> None:
        self.order = order
        self.parts = parts
        self.extents = extents


class Answers(Stream):
    """Answers one client's orders. With `gates` others write to the same stream, through the `gate`; else nobody does.

    `tell` says what the client hears of extents. `log(order)` is called before the last bytes of a reply can leave,
    `done(identifiers)` when they have left or when nobody waits for them any more, `lost(client)` if the stream cannot
    be used.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        client: int,
        *,
        terms: Terms,
        tell: Callable[[Terms, Order, Extents], Mapping[int, Extents]],
        log: Callable[[Order], None],
        done: Callable[[list[int]], None],
        lost: Callable[[int], None],
        gates: Gates | None = None,
        gate: int = 0,
        lender: Lender | None = None,
    ) -> None:
        self.replies = Replies(terms)
        super().__init__(loop, sock, self.replies.outgoing)
        self.client = client
        self.lender = lender
        self._tell = tell
        self._log = log
        self._done = done
        self._lost_it = lost
        self._gates = gates
        self._gate = gate
        self._has_gate = False
        self._unsaid: list[Answer] = []
        self._said: list[int] = []  # identifiers; told when the bytes are out
        self._seen: tuple[float, int] | None = None  # for `stalled`: when, bytes sent

    def __repr__(self) -> str:
        return f"<Answers to client {self.client}, {len(self._unsaid)} unsaid, {self.queued} bytes unsent>"

    @property
    def wants_read(self) -> bool:
        """What the client sends is for the server that took it."""
        return False

    def add(self, answer: Answer) -> None:
        """Answer at the end of this turn, or when the stream is free."""
        if self.open:
            self._unsaid.append(answer)
            self.send_soon()
        else:
            self._done([answer.order.identifier])

    def stalled(self, seconds: float) -> bool:
        """The client takes too little of what waits for it; to be asked at least twice in `seconds`."""
        if not self.queued:
            self._seen = None
            return False
        now = self.loop.awake()
        if self._seen is None or self.sent - self._seen[1] >= TRICKLE:
            self._seen = now, self.sent
        return now - self._seen[0] >= seconds

    def flush(self) -> None:
        self._flush_is_due = False
        if not self.open or not self._may_write():
            return
        unsaid, self._unsaid = self._unsaid, []
        for answer in unsaid:
            self._say(answer)
        super().flush()

    def _may_write(self) -> bool:
        if self._gates is not None and not self._has_gate and self._unsaid:
            try:
                self._has_gate = self._gates.take(self._gate, self.flush)
            except BrokenStream:
                self._lost("")
            return self._has_gate
        return True

    def _say(self, answer: Answer) -> None:
        """Log what is to be logged, and queue the reply, or this server's part of it."""
        order, replies = answer.order, self.replies
        self._said.append(order.identifier)
        last, failed = True, order.error
        if order.ticket:
            assert self._gates is not None
            last, failed = self._gates.count(order.ticket, order.error)
        TRAFFIC.messages_out += last or order.command == READ
        if last:
            error, order.error = order.error, failed
            self._log(order)
            order.error = error
        if order.ticket and order.command == READ and replies.structured:
            if order.error:
                replies.reply_error(order, order.error, order.message, done=last)
            else:
                replies.reply_parts(order, answer.parts, done=last)
        elif last:
            if failed:
                replies.reply_error(order, failed, order.message)
            elif answer.parts:
                replies.reply_data(order, [buffer for _, buffer in answer.parts])
            elif answer.extents:
                replies.reply_extents(order, self._tell(replies.terms, order, answer.extents))
            else:
                replies.reply(order)

    def _flushed(self) -> None:
        if not self.queued:
            self._let_go()
            said, self._said = self._said, []
            if said:
                self._done(said)

    def _let_go(self) -> None:
        if self._has_gate:
            self._has_gate = False
            assert self._gates is not None
            self._gates.give_back(self._gate)

    def close(self) -> None:
        """What was not answered counts as done: nobody waits for it any more."""
        if self.open:
            if self._has_gate and self.queued:
                end_stream(self.sock)  # before others may write behind half a reply
            super().close()
            if self._gates is not None:
                self._gates.forget(self._gate)
            self._let_go()
            said, self._said = self._said + [answer.order.identifier for answer in self._unsaid], []
            self._unsaid.clear()
            if said:
                self._done(said)

    def _failed(self, error: OSError) -> None:
        """A client that is gone, or has reset the connection, has done nothing wrong: the taker hears of it, too."""
        if isinstance(error, ConnectionError):
            end_stream(self.sock)
            self.close()
        else:
            super()._failed(error)

    def _lost(self, reason: str) -> None:  # noqa: ARG002 - the taker says which client it is
        if self.open:
            end_stream(self.sock)
            self.close()
            self._lost_it(self.client)


def end_stream(sock: socket.socket) -> None:
    """End the connection for all processes that hold the socket."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


@mypyc_attr(allow_interpreted_subclasses=True)
class Answerer(Server):
    """A server that clients do not connect to: orders come over passages, with the sockets to answer them on."""

    private: ClassVar[bool] = True
    gates: Gates | None = None
    """Where others write to the same streams."""

    def __init__(self, loop: Loop, spec: NodeSpec, listeners: Sequence[socket.socket], report: Report) -> None:
        super().__init__(loop, spec, listeners, report)
        self._memory = spec.cluster.memory
        self.taker: Passage | None = None
        """Whose orders are carried out: who said HELLO last."""
        self._adopted: dict[Passage, dict[int, Answers]] = {}

    # -- what a topology says ----------------------------------------------------------------------------------------

    def carry(self, passage: Passage, order: Order) -> None:
        """Do what the order asks for and see that it is answered. Raises HandoverError for one that makes no sense."""
        raise NotImplementedError

    def welcome(self) -> None:
        """Tell the taker that orders may come, and that nothing of an earlier one's is under way here."""
        assert self.taker is not None
        self.taker.send(Order(WELCOME))

    def adopt(self, passage: Passage, order: Order) -> None:
        """A client's socket has come."""
        descriptor = passage.take_descriptor()
        if descriptor is None:
            passage.send(Order(LOST, client=order.client))
            return
        self._adopted[passage][order.client] = Answers(
            self.loop,
            self.loop.system.socket_of(descriptor),
            order.client,
            terms=Terms.decode(order.flags),
            tell=self.tell,
            log=self._log_request,
            done=lambda identifiers: passage.send_bytes(encode_done(identifiers)),
            lost=lambda client: passage.send(Order(LOST, client=client)),
            gates=self.gates,
            gate=order.ticket,
            lender=self.shard,
        )

    def drop(self, passage: Passage, order: Order) -> None:
        """A client is gone."""
        answers = self._adopted[passage].pop(order.client, None)
        if answers is not None:
            answers.close()
        passage.send(Order(DROPPED, client=order.client))

    def passage_gone(self, passage: Passage, reason: str) -> None:
        """Who passed orders on is gone: let go of its clients. Who reads from them says which of them have to go."""
        if passage is self.taker:
            self.taker = None
        if reason:
            self.bad_input += 1
            self.notice(f"who passes orders on: {reason}")
        for answers in self._adopted.pop(passage).values():
            answers.close()

    # -- parts -------------------------------------------------------------------------------------------------------

    def answer(self, passage: Passage, order: Order, parts: Parts, extents: Extents | None) -> None:
        """Say to the client what this server has to say."""
        answers = self._adopted.get(passage, {}).get(order.client)
        if answers is not None:
            answers.add(Answer(order, parts, extents))
        else:  # it is gone meanwhile
            passage.send_bytes(encode_done([order.identifier]))

    def close(self) -> None:
        for passage in list(self._adopted):
            passage.lose("")
        super().close()

    def _accept(self, line: Line) -> None:
        sock, _ = parts(line)  # servers that hand sockets over are on one host
        passage = Passage(
            self.loop, sock, self.scratch, self._received, self.passage_gone, self.shard, self.pool.take, TURN_BUDGET
        )
        self._adopted[passage] = {}

    def _received(self, passage: Passage, orders: list[Order]) -> None:
        for order in orders:
            if not passage.open:
                return
            if passage is not self.taker:
                self._greet(passage, order)
            elif order.kind == ORDER and (order.error or order.offset + order.length <= self._memory):
                self.requests += 1
                try:
                    self.carry(passage, order)
                except HandoverError as error:
                    passage.lose(str(error))
            elif order.kind == ADOPT:
                self.adopt(passage, order)
            elif order.kind == DROP:
                self.drop(passage, order)
            else:
                passage.lose(f"{order!r} makes no sense")

    def _greet(self, passage: Passage, order: Order) -> None:
        """Somebody else wants to pass orders on."""
        if order.kind == HELLO:
            if self.taker is not None:
                self.taker.lose("")
            self.taker = passage
            self.welcome()
        else:
            passage.lose(f"{order!r} without a HELLO")

    def _end_stalled(self, limit: float) -> None:
        for clients in self._adopted.values():
            for answers in list(clients.values()):
                if answers.stalled(limit):
                    self.notice(f"client {answers.client} does not take its replies")
                    answers._lost("")

    def _log_request(self, order: Order) -> None:
        """The request of a client, logged by the one who answers it last."""
        self.log.append(
            order.start,
            max(0, self.now() - order.start),
            order.identifier,
            order.offset,
            order.length,
            order.client,
            REQUEST,
            order.command,
            order.flags,
            order.error,
        )
