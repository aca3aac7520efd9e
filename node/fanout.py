"""One client's request on its way to several servers: the pieces go out, the replies make one answer.

With fan_out: parallel all pieces are sent at once, with serial each after the reply to the one before. The identifier
of the request is the cookie of its pieces.
"""

from __future__ import annotations

from collections.abc import Sequence

from node.connection import Connection
from node.layout import Extents, Piece, join_extents
from node.link import Link
from node.nbd.client import Reply
from node.nbd.server import Request
from node.nbd.wire import Buffer, Command, CommandFlag
from node.record import Kind
from node.server import Server

PASSED_ON = 0xFFFF ^ int(CommandFlag.DF)
"""The flags of a request that its pieces carry: whether the answer is cut up is the client's affair."""
PIECE = int(Kind.PIECE)
READ, WRITE, BLOCK_STATUS = int(Command.READ), int(Command.WRITE), int(Command.BLOCK_STATUS)
FUA, REQ_ONE = int(CommandFlag.FUA), int(CommandFlag.REQ_ONE)


class Fanout:
    """Sends the pieces of `request` and completes it at `server` when every reply is there.

    Plain slots and no closures but one a piece: this is the data path.
    """

    __slots__ = (
        "_connection",
        "_extents",
        "_identifier",
        "_links",
        "_parts",
        "_pending",
        "_piece",
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
        if len(pieces) == 1 and pieces[0].server != self._server.spec.index:
            self._pass_on(pieces[0])
            return
        self._parts: list[tuple[int, Buffer]] = []  # bytes read, by where they begin in the request
        self._extents: list[tuple[Piece, Extents]] = []
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

    def _pass_on(self, piece: Piece) -> None:
        """Another server's piece is the whole request, as with most small ones: there is nothing to put together,
        which saves a third of the time."""
        self._piece = piece
        request = self._request
        payload = request.payload
        self._links[piece.server].submit(
            request.command,
            self._identifier,
            piece.offset,
            piece.length,
            request.flags & PASSED_ON,
            () if payload is None else (payload,) if request.owned else (bytes(payload),),
            self._passed_on,
        )

    def _passed_on(self, reply: Reply) -> None:
        request = self._request
        data: Sequence[Buffer] | None = None
        extents: Extents | None = None
        if reply.error:
            request.refuse(reply.error, reply.message or f"server{self._piece.server}: error {reply.error}")
        elif reply.data is not None:
            data = (reply.data,)
        elif reply.extents:
            extents = reply.extents[:1] if request.flags & REQ_ONE else reply.extents
        self._server.complete(self._connection, request, self._start, self._identifier, data, extents)
        self._connection.end(request)

    def _send(self, piece: Piece) -> None:
        if piece.server == self._server.spec.index:
            self._carry_out(piece)
            return
        request = self._request
        payload = request.payload
        buffers = [payload[start:end] for start, end in piece.spans] if payload is not None else ()
        self._links[piece.server].submit(
            request.command,
            self._identifier,
            piece.offset,
            piece.length,
            request.flags & PASSED_ON,
            buffers,
            lambda reply: self._replied(piece, reply),
        )

    def _carry_out(self, piece: Piece) -> None:
        """This server's own piece."""
        request, shard = self._request, self._server.shard
        began = self._server.now()
        try:
            if request.command == READ:
                offset = piece.offset
                for start, end in piece.spans:
                    self._parts += [(start, view) for view in shard.read(offset, end - start)]
                    offset += end - start
            elif request.command == WRITE:
                assert request.payload is not None
                room, done = shard.room(piece.offset, piece.length), 0
                for start, end in piece.spans:
                    room[done : done + end - start] = request.payload[start:end]
                    done += end - start
                if request.flags & FUA:
                    shard.sync(piece.offset, piece.length)
            elif request.command == BLOCK_STATUS:
                self._extents.append((piece, shard.extents(piece.offset, piece.length)))
            else:
                self._server.change_in_slices(
                    request.command,
                    request.flags,
                    piece.offset,
                    piece.length,
                    lambda error: self._changed(piece, began, error),
                )
                return
        except OSError as error:
            self._changed(piece, began, error)
        else:
            self._changed(piece, began, None)

    def _changed(self, piece: Piece, began: int, error: OSError | None) -> None:
        """This server's own piece is done: it stands in the log as the others' do."""
        server, request = self._server, self._request
        if error is not None:
            server.refuse(request, error)
        server.log.append(
            began,
            server.now() - began,
            self._identifier,
            piece.offset,
            piece.length,
            0,
            PIECE,
            request.command,
            request.flags & PASSED_ON,
            request.error if error is not None else 0,
        )
        self._one_done()

    def _replied(self, piece: Piece, reply: Reply) -> None:
        request = self._request
        if reply.error:
            if not request.error:
                request.refuse(reply.error, reply.message or f"server{piece.server}: error {reply.error}")
        elif reply.data is not None:
            if len(piece.spans) == 1:
                self._parts.append((piece.spans[0][0], reply.data))
            else:
                view, done = memoryview(reply.data), 0
                for start, end in piece.spans:
                    self._parts.append((start, view[done : done + end - start]))
                    done += end - start
        elif reply.extents:
            self._extents.append((piece, reply.extents))
        self._one_done()

    def _one_done(self) -> None:
        self._pending -= 1
        if not self._pending:
            self._complete()
        elif self._waiting and not self._request.error:
            self._send(self._waiting.pop())
        elif self._waiting:
            self._complete()  # serial: what comes after a failure is not begun

    def _complete(self) -> None:
        request = self._request
        data: list[Buffer] | None = None
        extents: Extents | None = None
        if not request.error:
            if request.command == READ:
                self._parts.sort(key=lambda part: part[0])
                data = [buffer for _, buffer in self._parts]
            elif request.command == BLOCK_STATUS:
                extents = join_extents(self._extents, one=bool(request.flags & REQ_ONE))
        self._server.complete(self._connection, request, self._start, self._identifier, data, extents)
        self._connection.end(request)
