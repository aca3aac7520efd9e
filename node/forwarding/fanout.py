"""One client's request on its way to several servers: the pieces go out, the replies make one answer.

With fan_out: parallel all pieces are sent at once, with serial each after the reply to the one before. The identifier
of the request is the cookie of its pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from memcluster.node.forwarding.link import Link, Submission
from memcluster.node.forwarding.staging import MOST_SPANS, SPAN
from memcluster.node.forwarding.window import Window
from memcluster.node.layout import Extents, Piece, join_extents
from memcluster.node.nbd.server import Request
from memcluster.node.nbd.wire import Buffer, CommandFlag, Error
from memcluster.node.serving.connection import HUNG_UP, Connection
from memcluster.node.serving.keeper import BLOCK_STATUS, READ, REQ_ONE, WRITE, Parts
from memcluster.node.serving.server import Server

PASSED_ON: Final = 0xFFFF ^ int(CommandFlag.DF)
"""The flags of a request that its pieces carry: whether the answer is cut up is the client's affair."""


class Fanout:
    """Sends the pieces of `request` and completes it at `server` when every reply is there.

    Plain slots and no closures but one a piece: this is the data path.
    """

    __slots__ = (
        "_connection",
        "_extents",
        "_identifier",
        "_lenders",
        "_links",
        "_parts",
        "_pending",
        "_request",
        "_server",
        "_start",
        "_waiting",
    )

    def __init__(
        self,
        server: Server,
        links: dict[int, Link],
        connection: Connection,
        request: Request,
        start: int,
        identifier: int,
    ) -> None:
        self._server = server
        self._links = links
        self._connection = connection
        self._request = request
        self._start = start
        self._identifier = identifier

    def begin(self, pieces: list[Piece], *, serial: bool) -> None:
        """Send the pieces; a payload that lies in the receive buffer is copied, for it must outlive this turn."""
        request = self._request
        self._connection.begin(request)
        self._parts: Parts = []
        self._extents: dict[int, Extents] = {}
        self._lenders: list[Window] = []
        self._waiting: list[Piece] = []
        self._pending = len(pieces)
        if request.command == WRITE and not request.owned:
            assert request.payload is not None
            request.payload = memoryview(bytes(request.payload))
        if serial:
            self._waiting = pieces[::-1]
            self._send(self._waiting.pop())
        else:
            for piece in reversed(pieces):  # this server's own piece comes last: the others work meanwhile
                self._send(piece)

    def _send(self, piece: Piece) -> None:
        server, request = self._server, self._request
        payload = request.payload
        buffers = [payload[start:end] for start, end in piece.spans] if payload is not None else ()
        if piece.server == server.spec.index:
            began = server.now()
            server.carry_out_piece(
                request.command,
                request.flags,
                piece,
                buffers,
                lambda failure, parts, extents: self._carried_out(piece, began, failure, parts, extents),
                lambda: self._connection.open,
            )
        else:
            sent = _Sent(self, piece, request, self._identifier, buffers, self._start)
            if request.owned and request.at >= 0 and len(piece.spans) <= MOST_SPANS:
                sent.spans = b"".join([SPAN.pack(request.at + start, end - start) for start, end in piece.spans])
            self._links[piece.server].submit(sent)

    def _carried_out(
        self, piece: Piece, began: int, failure: OSError | None, parts: Parts, extents: Extents | None
    ) -> None:
        """This server's own piece is done: it stands in the log as the others' do."""
        server, request = self._server, self._request
        error = 0
        if failure is not None:
            server.refuse(request, failure)
            error = request.error
        self._parts += parts
        if extents is not None:
            self._extents[piece.server] = extents
        server.log_piece(began, self._identifier, piece, request.command, request.flags & PASSED_ON, error)
        self._one_done()

    def replied(self, piece: Piece, reply: Submission) -> None:
        """A server has done its piece, or could not."""
        request = self._request
        if reply.error:
            if not request.error:
                request.refuse(reply.error, reply.message or f"server{piece.server}: error {reply.error}")
        elif reply.data is not None:
            if reply.lender is not None:
                reply.lender.lend(self)
                self._lenders.append(reply.lender)
            if len(piece.spans) == 1:
                start = piece.spans[0][0]
                for buffer in (reply.data,) if reply.pieces is None else reply.buffers():
                    self._parts.append((start, buffer))
                    start += len(buffer)
            else:
                view, done = memoryview(reply.data), 0
                for start, end in piece.spans:
                    self._parts.append((start, view[done : done + end - start]))
                    done += end - start
        elif reply.extents:
            self._extents[piece.server] = reply.extents
        self._one_done()

    def _one_done(self) -> None:
        self._pending -= 1
        if not self._pending:
            self._complete()
        elif self._waiting:  # serial: what comes after a failure, or is left of a client that is gone, is not begun
            if not self._request.error and not self.wanted():
                self._request.refuse(Error.EIO, HUNG_UP)
            if self._request.error:
                self._complete()
            else:
                self._send(self._waiting.pop())

    def wanted(self) -> bool:
        """Whether more of it may be begun."""
        return self._connection.may_begin(self._request.command)

    def keep(self, lent: object) -> None:
        """While it waits for other pieces these bytes are about to change."""
        self._parts = [
            (at, part.tobytes() if isinstance(part, memoryview) and part.obj is lent else part)
            for at, part in self._parts
        ]

    def _complete(self) -> None:
        request = self._request
        data: list[Buffer] | None = None
        extents: Extents | None = None
        if not request.error:
            if request.command == READ:
                self._parts.sort(key=lambda part: part[0])
                data = [buffer for _, buffer in self._parts]
            elif request.command == BLOCK_STATUS:
                layout, one = self._server.spec.cluster.layout, bool(request.flags & REQ_ONE)
                extents = join_extents(layout, request.offset, request.length, self._extents, one=one)
        for lender in self._lenders:
            lender.pass_on(self, self._connection)
        self._server.complete(self._connection, request, self._start, self._identifier, data, extents)
        self._connection.end(request)


class _Sent(Submission):
    """A piece on its way."""

    __slots__ = ("fanout", "piece")

    def __init__(
        self, fanout: Fanout, piece: Piece, request: Request, identifier: int, payload: Sequence[Buffer], since: int
    ) -> None:
        flags = request.flags & PASSED_ON
        super().__init__(request.command, identifier, piece.offset, piece.length, flags, payload, since)
        self.fanout = fanout
        self.piece = piece

    def wanted(self) -> bool:
        return self.fanout.wanted()

    def answered(self) -> None:
        self.fanout.replied(self.piece, self)


class PassedOn(Submission):
    """A request that is one piece of another server's, as most small ones are: there is nothing to put together.

    Plain slots, all set here: this is the data path, and a call of what it derives from costs 0.2 µs.
    """

    __slots__ = ("connection", "request", "server", "to")

    def __init__(
        self,
        server: Server,
        connection: Connection,
        request: Request,
        start: int,
        identifier: int,
        to: int,
        offset: int,
    ) -> None:
        """The piece of server `to` lies at `offset` there."""
        self.command = request.command
        self.cookie = identifier
        self.offset = offset
        self.length = request.length
        self.flags = request.flags & PASSED_ON
        payload = request.payload  # if it lies in the receive buffer it must outlive this turn
        self.payload = () if payload is None else (payload,) if request.owned else (payload.tobytes(),)
        self.since = start
        self.destination = None
        self.error = 0
        self.message = ""
        self.data = None
        self.extents = None
        self.pieces = None
        self.in_place = False
        self.lender = None
        self.spans = SPAN.pack(request.at, request.length) if request.owned and request.at >= 0 else b""
        self.server = server
        self.connection = connection
        self.request = request
        self.to = to
        connection.begin(request)

    def wanted(self) -> bool:
        return self.connection.may_begin(self.command)

    def answered(self) -> None:
        request, extents = self.request, self.extents
        if self.error:
            request.refuse(self.error, self.message or f"server{self.to}: error {self.error}")
        elif extents and request.flags & REQ_ONE:
            extents = extents[:1]
        if self.lender is not None and self.connection.open:
            self.lender.lend(self.connection)
        data = None if self.data is None else (self.data,) if self.pieces is None else self.buffers()
        self.server.complete(self.connection, request, self.since, self.cookie, data, extents)
        self.connection.end(request)
