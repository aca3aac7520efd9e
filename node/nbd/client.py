"""The client's side of one NBD connection, without I/O: requests to bytes, bytes in, replies out.

The same calls as the server's side (see server.py): `receive_buffer` says where the next bytes belong, `received`
takes them and returns the replies they complete, `submit` appends to `outgoing`. Links between nodes and the client
library are both built on it. The receive buffer may be shared by many sessions; what must outlive it is copied.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from struct import Struct

from node.nbd import wire
from node.nbd.errors import ProtocolError, Refused
from node.nbd.wire import Buffer, Chunk, Command, HandshakeFlag, Info, Option, Rep, TransmissionFlag

RECEIVE_BUFFER = 1 << 18
MAX_OPTION_REPLY = 1 << 16
MAX_STATUS = 1 << 22
"""Bytes of a BLOCK_STATUS or error chunk that a server may send."""

_U16 = Struct(">H")
_U32 = Struct(">I")
_U64 = Struct(">Q")
_SIZES = Struct(">III")


class Reply:
    """The outcome of one request. Plain slots: a link gets 100,000 a second.

    `error` is 0 or a wire.Error, with a `message` if the server gave one; `data` the bytes of a READ; `extents` the
    (length, Status) of a BLOCK_STATUS.
    """

    __slots__ = ("cookie", "data", "error", "extents", "message")

    def __init__(self, cookie: int, error: int = 0, message: str = "") -> None:
        self.cookie = cookie
        self.error = error
        self.message = message
        self.data: Buffer | None = None
        self.extents: list[tuple[int, int]] | None = None

    def __repr__(self) -> str:
        return f"<Reply to {self.cookie:#x}: {f'error {self.error} {self.message}' if self.error else 'ok'}>"


class _Pending:
    """A request whose reply is not complete."""

    __slots__ = ("command", "destination", "length", "offset", "received", "reply")

    def __init__(self, command: int, cookie: int, offset: int, length: int, destination: memoryview | None) -> None:
        self.command = command
        self.offset = offset
        self.length = length
        self.destination = destination
        self.received = 0
        self.reply = Reply(cookie)


class ClientSession:
    """The protocol's state for one connection to `export`."""

    def __init__(
        self,
        export: str = "",
        *,
        scratch: memoryview | None = None,
        structured: bool = True,
        contexts: Sequence[str] = (wire.BASE_ALLOCATION,),
    ) -> None:
        self.outgoing: list[Buffer] = []
        self.export = export
        self.ready = False
        """The transmission phase is reached."""
        self.size = 0
        self.flags = TransmissionFlag(0)
        self.minimum, self.preferred, self.maximum = 1, wire.PREFERRED_BLOCK, wire.MAX_PAYLOAD
        self.description = ""
        self.structured = False
        self.contexts: dict[int, str] = {}
        self._want_structured = structured
        self._want_contexts = contexts
        self._scratch = memoryview(bytearray(RECEIVE_BUFFER)) if scratch is None else scratch
        self._rest = b""
        self._end = 0
        self._pending: dict[int, _Pending] = {}
        self._sink: memoryview | None = None  # where the data being received belongs
        self._sunk = 0
        self._sinking: _Pending | None = None
        self._sink_ends = False  # the reply is complete when the sink is full
        self._handshake: Generator[int, bytes, None] | None = self._negotiate()
        self._needs = next(self._handshake)

    def __repr__(self) -> str:
        state = f"ready, {len(self._pending)} in flight" if self.ready else "handshake"
        return f"<ClientSession {self.export!r} {state}>"

    # -- requests ----------------------------------------------------------------------------------------------------

    def submit(
        self,
        command: int,
        cookie: int,
        offset: int,
        length: int,
        flags: int = 0,
        payload: Sequence[Buffer] = (),
        destination: memoryview | None = None,
    ) -> None:
        """Queue a request. The cookie must not be in flight; a READ's bytes go to `destination` if one is given."""
        if cookie in self._pending:
            raise ValueError(f"cookie {cookie:#x} is in flight already")
        self._pending[cookie] = _Pending(command, cookie, offset, length, destination)
        self.outgoing.append(wire.REQUEST.pack(wire.REQUEST_MAGIC, flags, command, cookie, offset, length))
        if payload:
            self.outgoing += payload

    def disconnect(self) -> None:
        """Queue the goodbye; the server answers what is in flight and closes."""
        self.outgoing.append(wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, Command.DISC, 0, 0, 0))

    # -- receiving ---------------------------------------------------------------------------------------------------

    def receive_buffer(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        if self._sink is not None:
            return self._sink[self._sunk :]
        rest = self._rest
        self._end = len(rest)
        if rest:
            self._scratch[: len(rest)] = rest
            self._rest = b""
        return self._scratch[self._end :]

    def received(self, count: int) -> list[Reply]:
        """Take `count` bytes that were put into `receive_buffer()`; return the replies that are complete.

        Raises ProtocolError when the connection cannot go on, Refused when the server does not let this client in.
        """
        replies: list[Reply] = []
        if self._sink is not None:
            self._sunk += count
            if self._sunk == len(self._sink):
                self._sink = None
                if self._sink_ends:
                    assert self._sinking is not None
                    self._finish(self._sinking, replies)
            return replies
        self._end += count
        position = 0
        if self._handshake is not None:
            position = self._feed()
        if self._handshake is None:
            position = self._parse_replies(position, replies)
        self._rest = bytes(self._scratch[position : self._end])
        return replies

    def receive_eof(self) -> None:
        """The server closed. Raises ProtocolError if that was in the middle of something."""
        if not self.ready:
            raise ProtocolError("the server closed the connection in the handshake")
        if self._rest or self._sink is not None:
            raise ProtocolError("the server closed the connection in the middle of a reply")

    def _parse_replies(self, position: int, replies: list[Reply]) -> int:
        """Append the replies that are complete from `position` on; return where it stopped."""
        scratch, end, pending = self._scratch, self._end, self._pending
        simple, chunk = wire.SIMPLE_REPLY, wire.CHUNK
        while end - position >= simple.size and self._sink is None:
            magic, word, cookie = simple.unpack_from(scratch, position)
            if magic == wire.CHUNK_MAGIC:
                if end - position < chunk.size:
                    break
                _, flags, kind, cookie, length = chunk.unpack_from(scratch, position)
                request = pending.get(cookie)
                if request is None:
                    raise ProtocolError(f"a chunk for cookie {cookie:#x}, which is not in flight")
                done = bool(flags & 1)
                start = position + chunk.size
                if kind == Chunk.OFFSET_DATA:
                    if end - start < 8:
                        break
                    (offset,) = _U64.unpack_from(scratch, start)
                    self._check_data(request, offset, length - 8)
                    position = self._take_data(request, start + 8, offset - request.offset, length - 8, done, replies)
                    continue
                if length > MAX_STATUS:
                    raise ProtocolError(f"a chunk of type {kind} with {length} bytes")
                if end - start < length:
                    if chunk.size + length > len(scratch):
                        raise ProtocolError(f"a chunk of type {kind} with {length} bytes")
                    break
                self._take_chunk(request, kind, bytes(scratch[start : start + length]))
                position = start + length
                if done:
                    self._finish(request, replies)
            elif magic == wire.SIMPLE_REPLY_MAGIC:
                request = pending.get(cookie)
                if request is None:
                    raise ProtocolError(f"a reply for cookie {cookie:#x}, which is not in flight")
                position += simple.size
                if request.command == Command.READ and self.structured:
                    raise ProtocolError("a simple reply to READ after structured replies were agreed on")
                if request.command == Command.READ and not word and request.length:
                    position = self._take_data(request, position, 0, request.length, True, replies)
                else:
                    request.reply.error = word
                    self._finish(request, replies)
            else:
                raise ProtocolError(f"reply magic {magic:#010x}")
        return position

    def _check_data(self, request: _Pending, offset: int, length: int) -> None:
        if request.command != Command.READ:
            raise ProtocolError(f"data in reply to command {request.command}")
        if length <= 0 or offset < request.offset or offset + length > request.offset + request.length:
            raise ProtocolError(f"{length} bytes at {offset}, which were not asked for")
        if request.received + length > request.length:
            raise ProtocolError("more data than was asked for")

    def _take_data(
        self, request: _Pending, position: int, at: int, length: int, done: bool, replies: list[Reply]
    ) -> int:
        """Bytes of a READ, `at` in its result: copy what is here, or let them be received where they belong."""
        request.received += length
        here = self._end - position
        if here >= length:
            if request.destination is None and length == request.length:
                request.reply.data = bytes(self._scratch[position : position + length])
            else:
                self._place(request)[at : at + length] = self._scratch[position : position + length]
            if done:
                self._finish(request, replies)
            return position + length
        sink = self._place(request)[at : at + length]
        sink[:here] = self._scratch[position : self._end]
        self._sink, self._sunk, self._sinking, self._sink_ends = sink, here, request, done
        return self._end

    def _place(self, request: _Pending) -> memoryview:
        if request.destination is None:
            request.destination = memoryview(bytearray(request.length))
        request.reply.data = request.destination
        return request.destination

    def _take_chunk(self, request: _Pending, kind: int, body: bytes) -> None:
        reply = request.reply
        if kind == Chunk.NONE:
            if body:
                raise ProtocolError("a NONE chunk with data")
        elif kind == Chunk.OFFSET_HOLE:
            if len(body) != wire.HOLE.size:
                raise ProtocolError(f"an OFFSET_HOLE chunk of {len(body)} bytes")
            offset, length = wire.HOLE.unpack(body)
            self._check_data(request, offset, length)
            request.received += length
            at = offset - request.offset
            self._place(request)[at : at + length] = bytes(length)
        elif kind == Chunk.BLOCK_STATUS:
            if request.command != Command.BLOCK_STATUS or len(body) < 12 or (len(body) - 4) % 8:
                raise ProtocolError(f"a BLOCK_STATUS chunk of {len(body)} bytes for command {request.command}")
            if _U32.unpack_from(body)[0] not in self.contexts:
                raise ProtocolError("a BLOCK_STATUS chunk for a context that was not chosen")
            reply.extents = [(length, status) for length, status in wire.EXTENT.iter_unpack(body[4:])]
        elif kind & wire.CHUNK_ERROR:
            if len(body) < wire.ERROR.size:
                raise ProtocolError(f"an error chunk of {len(body)} bytes")
            error, length = wire.ERROR.unpack_from(body)
            reply.error = error or wire.Error.EIO
            reply.message = body[wire.ERROR.size : wire.ERROR.size + length].decode(errors="replace")
        else:
            raise ProtocolError(f"a chunk of unknown type {kind}")

    def _finish(self, request: _Pending, replies: list[Reply]) -> None:
        reply = request.reply
        if request.command == Command.READ and not reply.error and request.received != request.length:
            raise ProtocolError(f"{request.received} bytes came for a READ of {request.length}")
        if reply.error:
            reply.data = None
        elif request.command == Command.READ and reply.data is None:
            reply.data = b""
        del self._pending[reply.cookie]
        replies.append(reply)

    # -- the handshake -----------------------------------------------------------------------------------------------

    def _feed(self) -> int:
        position = 0
        while self._handshake is not None and self._end - position >= self._needs:
            data = bytes(self._scratch[position : position + self._needs])
            position += self._needs
            try:
                self._needs = self._handshake.send(data)
            except StopIteration:
                self._handshake = None
                self.ready = True
        return position

    def _negotiate(self) -> Generator[int, bytes, None]:
        magic, version, flags = wire.GREETING.unpack((yield wire.GREETING.size))
        if magic != wire.NBDMAGIC or version != wire.IHAVEOPT or not flags & HandshakeFlag.FIXED_NEWSTYLE:
            raise ProtocolError("this is no NBD server of the fixed newstyle kind")
        no_zeroes = bool(flags & HandshakeFlag.NO_ZEROES)
        self.outgoing.append(wire.CLIENT_FLAGS.pack(3 if no_zeroes else 1))
        name = self.export.encode()
        if self._want_structured:
            self._option(Option.STRUCTURED_REPLY)
            _, kind, _ = yield from self._option_reply(Option.STRUCTURED_REPLY)
            self.structured = kind == Rep.ACK
        if self.structured and self._want_contexts:
            queries = [query.encode() for query in self._want_contexts]
            words = b"".join(_U32.pack(len(query)) + query for query in queries)
            self._option(Option.SET_META_CONTEXT, _U32.pack(len(name)) + name + _U32.pack(len(queries)) + words)
            while True:
                _, kind, data = yield from self._option_reply(Option.SET_META_CONTEXT)
                if kind != Rep.META_CONTEXT:
                    break
                self.contexts[_U32.unpack_from(data)[0]] = data[4:].decode(errors="replace")
        infos = (Info.BLOCK_SIZE, Info.DESCRIPTION)
        words = b"".join(_U16.pack(info) for info in infos)
        self._option(Option.GO, _U32.pack(len(name)) + name + _U16.pack(len(infos)) + words)
        while True:
            _, kind, data = yield from self._option_reply(Option.GO)
            if kind == Rep.ACK:
                return
            if kind == Rep.INFO:
                self._take_info(data)
            elif kind == Rep.ERR_UNSUP:
                break
            else:
                raise Refused(kind, data.decode(errors="replace"))
        self.outgoing.append(wire.OPTION.pack(wire.IHAVEOPT, Option.EXPORT_NAME, len(name)) + name)
        self.size, number = wire.EXPORT_NAME_REPLY.unpack((yield wire.EXPORT_NAME_REPLY.size))
        self.flags = TransmissionFlag(number)
        if not no_zeroes:
            yield wire.EXPORT_NAME_PADDING

    def _option(self, option: int, data: bytes = b"") -> None:
        self.outgoing.append(wire.OPTION.pack(wire.IHAVEOPT, option, len(data)) + data)

    def _option_reply(self, wanted: int) -> Generator[int, bytes, tuple[int, int, bytes]]:
        magic, option, kind, length = wire.OPTION_REPLY.unpack((yield wire.OPTION_REPLY.size))
        if magic != wire.OPTION_REPLY_MAGIC or option != wanted or length > MAX_OPTION_REPLY:
            raise ProtocolError(f"not a reply to option {wanted}: magic {magic:#x}, option {option}, {length} bytes")
        return option, kind, (yield length) if length else b""

    def _take_info(self, data: bytes) -> None:
        if len(data) < 2:
            raise ProtocolError("an empty INFO reply")
        (kind,) = _U16.unpack_from(data)
        if kind == Info.EXPORT and len(data) == wire.INFO_EXPORT.size:
            _, self.size, number = wire.INFO_EXPORT.unpack(data)
            self.flags = TransmissionFlag(number)
        elif kind == Info.BLOCK_SIZE and len(data) == wire.INFO_BLOCK_SIZE.size:
            self.minimum, self.preferred, self.maximum = _SIZES.unpack_from(data, 2)
        elif kind == Info.DESCRIPTION:
            self.description = data[2:].decode(errors="replace")
