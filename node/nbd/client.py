"""The client's side of one NBD connection, without I/O: requests to bytes, bytes in, replies out.

The same calls as the server's side (see server.py): `receive_buffer` says where the next bytes belong, `received`
takes them and returns the replies they complete, `submit` appends to `outgoing`. Links between nodes and the client
library are both built on it. It knows no sockets, no time and no second connection.

It begins with the handshake (see opening.py). In transmission the server is not trusted: every length, offset and
cookie is held against what was asked for, and a READ succeeds only if each of its bytes came exactly once. The receive
buffer may be shared by many sessions: what must outlive a call of `received` is copied, and large payloads are received
where they belong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from typing import Final, Protocol, cast

from memcluster.node.native import mypyc_attr
from memcluster.node.nbd import wire
from memcluster.node.nbd.buffer import fresh_buffer
from memcluster.node.nbd.errors import ProtocolError
from memcluster.node.nbd.opening import MAX_OPTION_REPLY, Opening
from memcluster.node.nbd.printable import printable
from memcluster.node.nbd.wire import Buffer, Chunk, ChunkFlag, Command, CommandFlag, Option
from memcluster.node.nbd.zeroes import ZEROES

HEAD: Final = 1 << 8
"""Bytes received at first behind a payload that was received in its place; see server.py."""
MAX_CHUNK: Final = 4 + 8 * (1 << 20)
"""Bytes of a chunk without data, at most: a million extents, which is what nbdkit sends at most."""

# Plain numbers for the data path: looking up a member of an enum costs 65 ns (Python 3.11).
_CHUNK_MAGIC: Final = wire.CHUNK_MAGIC
_SIMPLE_MAGIC: Final = wire.SIMPLE_REPLY_MAGIC
_REQUEST_MAGIC: Final = Struct(">I").pack(wire.REQUEST_MAGIC)
_EXTENDED_MAGIC: Final = wire.EXTENDED_CHUNK_MAGIC
_EXTENDED_REQUEST_MAGIC: Final = wire.EXTENDED_REQUEST_MAGIC
_CHUNK: Final = wire.CHUNK.size
_CHUNK_DATA: Final = wire.CHUNK_DATA.size
_SIMPLE: Final = wire.SIMPLE_REPLY.size
_EXTENDED: Final = wire.EXTENDED_CHUNK.size
_unpack_chunk: Final = wire.CHUNK.unpack_from
_unpack_simple: Final = wire.SIMPLE_REPLY.unpack_from
_unpack_data: Final = Struct(">IIQIQ").unpack_from
"""A chunk of data, up to the bytes: flags and type as one number."""
_unpack_longs: Final = Struct(">QQ").unpack_from
_pack_request: Final = Struct(">4sHHQQI").pack
_pack_extended: Final = wire.EXTENDED_REQUEST.pack
_PAYLOAD_LEN: Final = int(CommandFlag.PAYLOAD_LEN)
_NONE: Final = int(Chunk.NONE)
_DATA: Final = int(Chunk.OFFSET_DATA)
_DONE: Final = int(ChunkFlag.DONE)
_WHOLE: Final = _DONE << 16 | _DATA
"""Flags and type of a chunk of data that is the last."""
_NO_BYTES: Final = _DONE << 16 | _NONE
"""The same of one without data."""
_READ: Final = int(Command.READ)
_WRITE: Final = int(Command.WRITE)
_BLOCK_STATUS: Final = int(Command.BLOCK_STATUS)
_U32: Final = Struct(">I")
_U64: Final = Struct(">Q")
_NOWHERE: Final = memoryview(b"")


class Memory(Protocol):
    """What a receive buffer is a view of."""

    def __getitem__(self, part: slice, /) -> Buffer: ...
    def __len__(self) -> int: ...


@mypyc_attr(allow_interpreted_subclasses=True)
class Reply:
    """The outcome of one request. Plain slots: a link gets 100,000 a second.

    `error` is 0 or the server's error number (see wire.Error), with a `message` if the server gave one; `data` the
    bytes of a READ; `extents` the (length, Status) of a BLOCK_STATUS in the first context that was asked for, which may
    end before or behind the request.
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


class Pieces:
    """What has come of a READ that is answered in several chunks, or whose holes are told of."""

    __slots__ = ("arrived", "early", "holes", "reached")

    def __init__(self) -> None:
        self.arrived = 0  # bytes
        self.reached = 0  # those that came in order end here
        self.early: list[tuple[int, int]] = []  # (start, end) of those that did not
        self.holes: list[tuple[int, int]] = []  # (start, end) of those that are zeroes without having come


@mypyc_attr(allow_interpreted_subclasses=True)
class Awaited(Reply):
    """A request whose reply is not complete, and which becomes its reply: one object for both.

    A READ's bytes go to `destination` (writable, `length` bytes) if there is one, and until the reply it belongs to the
    session; else the reply brings bytes, or a view of memory of its own. With `in_place` it may bring nothing and
    succeed: the owner knows where the bytes are.
    """

    __slots__ = ("command", "destination", "in_place", "length", "offset", "pieces")

    def __init__(self, command: int, cookie: int, offset: int, length: int, destination: memoryview | None) -> None:
        self.cookie = cookie
        self.error = 0
        self.message = ""
        self.data = None
        self.extents = None
        self.command = command
        self.offset = offset
        self.length = length
        self.destination = destination
        self.in_place = False
        self.pieces: Pieces | None = None  # what has come of a READ, unless that is all of it at once

    def reset(self) -> None:
        """Forget what has come, for the request is to be repeated."""
        self.error, self.message, self.data, self.extents, self.pieces = 0, "", None, None, None

    def buffers(self) -> list[Buffer]:
        """The bytes of a READ that came in `pieces`, in order, its holes as views of ZEROES, for who passes them on."""
        assert self.data is not None
        assert self.pieces is not None
        view, done, found = memoryview(self.data), 0, list[Buffer]()
        for start, end in sorted(self.pieces.holes):
            if done < start:
                found.append(view[done:start])
            found.append(ZEROES[: end - start])
            done = end
        return [*found, view[done:]] if done < len(view) else found


@mypyc_attr(allow_interpreted_subclasses=True)
class ClientSession(Opening):
    """The protocol's state for one connection to `export`: the handshake with a `goal`, then requests and replies."""

    def __init__(
        self,
        export: str = "",
        *,
        scratch: memoryview | None = None,
        structured: bool = True,
        extended: bool = False,
        contexts: Sequence[str] = (wire.BASE_ALLOCATION,),
        goal: Option = Option.GO,
        namespace: str = "",
        room: Callable[[int], memoryview] | None = None,
        awaited: dict[int, Awaited] | None = None,
        tls: bool = False,
    ) -> None:
        """`scratch` is a view of all of a buffer; `room(length)` gives the memory for a large READ that names no
        destination; `awaited` is the table of the requests in flight, by cookie, for an owner who repeats them on
        another connection when this one is lost. Raises ValueError."""
        super().__init__(
            export,
            structured=structured,
            extended=extended,
            contexts=contexts,
            goal=goal,
            namespace=namespace,
            tls=tls,
        )
        self._scratch = fresh_buffer() if scratch is None else scratch
        if len(self._scratch) < MAX_OPTION_REPLY:
            raise ValueError(f"a receive buffer of {len(self._scratch)} bytes; {MAX_OPTION_REPLY} are needed")
        self._memory = cast(Memory, self._scratch.obj)  # a copy of a part is made there without a view: 150 ns less
        if len(self._scratch) != len(self._memory):
            raise ValueError("a receive buffer is a view of all of its memory")
        self._room = room or _fresh
        self._rest = b""  # received, not yet parsed, parked outside the shared buffer
        self._end = 0  # bytes of the receive buffer in use
        self._awaited = {} if awaited is None else awaited
        self.missing = 0
        """Bytes that are still to come of what is being received in its place, instead of in the buffer."""
        self._sink = _NOWHERE  # where they belong
        self._behind_sink = False
        # Of what is received so: whose it is, all of it, the chunk's type, whether it is the last.
        self._receiving: tuple[Awaited, memoryview, int, bool] | None = None

    def __repr__(self) -> str:
        phase = "finished" if self.finished else "ready" if self.ready else "handshake"
        return f"<ClientSession {self.export!r} {phase}, {len(self._awaited)} in flight>"

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
        """Queue a request. The cookie must not be in flight; `payload` must stay as it is until it is sent."""
        if cookie in self._awaited:
            raise ValueError(f"cookie {cookie:#x} is in flight already")
        self._awaited[cookie] = request = Awaited(command, cookie, offset, length, destination)
        self.send(request, flags, payload)

    def send(self, request: Awaited, flags: int, payload: Sequence[Buffer]) -> None:
        """Queue a request that stands in the table of those in flight already."""
        outgoing = self.outgoing
        if self.extended:
            outgoing.append(
                _pack_extended(
                    _EXTENDED_REQUEST_MAGIC, flags | _PAYLOAD_LEN if request.command == _WRITE else flags,
                    request.command, request.cookie, request.offset, request.length,
                )
            )  # fmt: skip
        else:
            outgoing.append(
                _pack_request(
                    _REQUEST_MAGIC, flags, request.command, request.cookie, request.offset, request.length
                )
            )
        if payload:
            outgoing += payload

    def announce(self, request: Awaited, flags: int, where: bytes) -> None:
        """As `send`, of a WRITE whose payload the server has already: what it is told is where."""
        command, cookie, offset, length = request.command, request.cookie, request.offset, len(where)
        if self.extended:
            flags |= _PAYLOAD_LEN
            head = _pack_extended(_EXTENDED_REQUEST_MAGIC, flags, command, cookie, offset, length)
        else:
            head = _pack_request(_REQUEST_MAGIC, flags, command, cookie, offset, length)
        self.outgoing.append(head + where)

    def disconnect(self) -> None:
        """Queue the goodbye; the server answers what is in flight and closes."""
        self.send(Awaited(Command.DISC, 0, 0, 0, None), 0, ())

    # -- receiving ---------------------------------------------------------------------------------------------------

    def receive_buffer(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        if self.missing:
            return self._sink
        rest = self._rest
        self._end = len(rest)
        if rest:
            self._scratch[: len(rest)] = rest  # and kept: who finds nothing to receive asks again
        if self._behind_sink:
            self._behind_sink = False
            return self._scratch[self._end : self._end + HEAD]
        return self._scratch[self._end :] if rest else self._scratch

    def received(self, count: int) -> list[Reply]:
        """Take `count` bytes that were put into `receive_buffer()`; return the replies that are complete.

        Raises ProtocolError when the connection cannot go on, Refused when the server does not let this client in.
        """
        replies: list[Reply] = []
        if self.missing:
            self.missing -= count
            if self.missing:
                self._sink = self._sink[count:]
            else:
                self._sink_is_full(replies)
            return replies
        self._end += count
        position = 0 if self.ready else self.take(self._scratch, self._end)
        if self.ready:
            position = self._parse_replies(position, replies)
        self._rest = bytes(self._scratch[position : self._end]) if position < self._end and not self.finished else b""
        return replies

    def receive_eof(self) -> None:
        """The server closed. Raises ProtocolError if that was in the middle of something, Refused if it said no so."""
        if not self.ready and not self.finished:
            self.cut_short()
        if self._rest or self.missing:
            raise ProtocolError("the server closed the connection in the middle of a reply")

    def _parse_replies(self, position: int, replies: list[Reply]) -> int:
        """Append the replies that are complete from `position` on; return where it stopped."""
        scratch, end, awaited = self._scratch, self._end, self._awaited
        extended, shortest = self.extended, _EXTENDED if self.extended else _SIMPLE
        likely = self.structured and not extended  # that what comes is what nearly all replies are, a READ's bytes
        while end - position >= shortest:
            if likely and end - position >= _CHUNK_DATA:
                chunk: tuple[int, int, int, int, int] = _unpack_data(scratch, position)
                magic, word, cookie, length, offset = chunk
                request = awaited.get(cookie)
                likely = word == _WHOLE
                # All of them in one chunk, and nothing yet of them before.
                if likely and magic == _CHUNK_MAGIC and request is not None:
                    start = position + _CHUNK_DATA
                    stop = start + request.length
                    if (
                        stop <= end
                        and length == request.length + 8
                        and offset == request.offset
                        and request.command == _READ
                        and request.destination is None
                        and request.data is None
                        and not request.error
                    ):
                        request.data = self._memory[start:stop]
                        del awaited[cookie]
                        replies.append(request)
                        position = stop
                        continue
            head: tuple[int, int, int] = _unpack_simple(scratch, position)
            magic, word, cookie = head
            request = awaited.get(cookie)
            # A WRITE's success.
            if magic == _SIMPLE_MAGIC and not (word or extended) and request is not None and request.command == _WRITE:
                request.error = 0
                del awaited[cookie]
                replies.append(request)
                position += _SIMPLE
                continue
            # And what they are where memory is shared: the bytes are in their place.
            if word == _NO_BYTES and magic == _CHUNK_MAGIC and request is not None and request.in_place:
                if end - position < _CHUNK:
                    break
                if not _unpack_chunk(scratch, position)[4] and request.data is None and not request.error:
                    del awaited[cookie]
                    replies.append(request)
                    position += _CHUNK
                    continue
            if extended:
                if magic != _EXTENDED_MAGIC or request is None:
                    raise ProtocolError(f"an extended chunk with magic {magic:#010x} for cookie {cookie:#x}")
                offset, length = _unpack_longs(scratch, position + _SIMPLE)
                if offset != request.offset:
                    raise ProtocolError(f"a chunk that says offset {offset}; cookie {cookie:#x} is of {request.offset}")
                kind, start, done = word & 0xFFFF, position + _EXTENDED, bool(word >> 16 & _DONE)
            elif magic == _SIMPLE_MAGIC:
                if request is None:
                    raise ProtocolError(f"a reply to cookie {cookie:#x}, which is not in flight")
                start, length, done, kind = position + _SIMPLE, 0, True, _NONE
                request.error = word
                if request.command == _READ:
                    if self.structured:
                        raise ProtocolError("a simple reply to READ, although structured replies were agreed on")
                    if not word and request.length:
                        length, kind = request.length, _DATA
            elif magic == _CHUNK_MAGIC:
                if end - position < _CHUNK:
                    break
                _, flags, kind, cookie, length = _unpack_chunk(scratch, position)
                if request is None or not self.structured:
                    raise ProtocolError(f"a chunk for cookie {cookie:#x}, which did not ask for one")
                start, done = position + _CHUNK, bool(flags & _DONE)
            else:
                raise ProtocolError(f"reply magic {magic:#010x}")

            if kind == _DATA:
                at = 0
                if magic != _SIMPLE_MAGIC:
                    if length <= 8:
                        raise ProtocolError(f"an OFFSET_DATA chunk of {length} bytes")
                    if end - start < 8:
                        break
                    at = _U64.unpack_from(scratch, start)[0] - request.offset
                    start += 8
                    length -= 8
                here = end - start
                if here < length and _EXTENDED + 8 + length <= len(scratch) >> 2:
                    break  # small: wait for the rest of it here
                if length != request.length or at or request.data is not None or request.command != _READ:
                    self._claim(request, at, length)  # else it is all of them, as small ones come
                if here < length:
                    self._begin_in_place(request, self._place(request)[at : at + length], start, kind, done)
                    return end
                if length == request.length and request.destination is None:
                    request.data = bytes(scratch[start : start + length])
                else:
                    self._place(request)[at : at + length] = scratch[start : start + length]
            elif magic != _SIMPLE_MAGIC and (length or kind != _NONE or not done):
                if length > MAX_CHUNK:
                    raise ProtocolError(f"a chunk of type {kind} with {length} bytes")
                here = end - start
                if here < length:
                    if _EXTENDED + length <= len(scratch) >> 2:
                        break
                    self._begin_in_place(request, memoryview(bytearray(length)), start, kind, done)
                    return end
                self._take_chunk(request, kind, bytes(scratch[start : start + length]), done)
            if done:
                self._finish(request, replies)
            position = start + length
        return position

    def _begin_in_place(self, request: Awaited, body: memoryview, start: int, kind: int, done: bool) -> None:
        """What is long and still arriving, from `start` on in the buffer, is received where it belongs."""
        here = self._end - start
        body[:here] = self._scratch[start : self._end]
        self.missing, self._sink, self._receiving = len(body) - here, body[here:], (request, body, kind, done)

    def _sink_is_full(self, replies: list[Reply]) -> None:
        assert self._receiving is not None
        request, body, kind, done = self._receiving
        self._receiving, self._sink = None, _NOWHERE
        self._behind_sink = True
        if kind != _DATA:
            self._take_chunk(request, kind, bytes(body), done)
        if done:
            self._finish(request, replies)

    def _claim(self, request: Awaited, at: int, length: int) -> Pieces:
        """Note that `length` bytes of a READ are here, `at` in its result."""
        if request.command != _READ:
            raise ProtocolError(f"data in reply to command {request.command}")
        end = at + length
        pieces = request.pieces
        if pieces is None:
            pieces = request.pieces = Pieces()
            pieces.arrived = 0 if request.data is None else request.length
        pieces.arrived += length
        if length <= 0 or at < 0 or end > request.length or pieces.arrived > request.length:
            raise ProtocolError(f"{length} bytes at {request.offset + at}, which were not asked for or came before")
        if at == pieces.reached:
            pieces.reached = end
        else:
            pieces.early.append((at, end))
        return pieces

    def _place(self, request: Awaited) -> memoryview:
        """Where the bytes of a READ belong."""
        if request.destination is None:
            request.destination = self._room(request.length)
        request.data = request.destination
        return request.destination

    def _take_chunk(self, request: Awaited, kind: int, body: bytes, done: bool) -> None:
        """Everything but data."""
        if kind == Chunk.NONE:
            if body or not done:
                raise ProtocolError("a chunk of type NONE that has data or is not the last")
        elif kind == Chunk.OFFSET_HOLE:
            if len(body) != wire.HOLE.size:
                raise ProtocolError(f"an OFFSET_HOLE chunk of {len(body)} bytes")
            offset, length = wire.HOLE.unpack(body)
            at = offset - request.offset
            self._claim(request, at, length).holes.append((at, at + length))
            if length == request.length <= len(ZEROES) and request.destination is None:
                request.data = ZEROES[:length]
            else:
                self._place(request)[at : at + length] = bytes(length)
        elif kind == Chunk.BLOCK_STATUS:
            if len(body) < 12 or len(body) % 8 != 4:
                raise ProtocolError(f"a BLOCK_STATUS chunk of {len(body)} bytes")
            (context,) = _U32.unpack_from(body)
            self._take_extents(request, context, list(wire.EXTENT.iter_unpack(memoryview(body)[4:])))
        elif kind == Chunk.BLOCK_STATUS_EXT and self.extended:
            if len(body) < 24 or len(body) % 16 != 8:
                raise ProtocolError(f"a BLOCK_STATUS_EXT chunk of {len(body)} bytes")
            context, count = wire.EXTENDED_EXTENTS.unpack_from(body)
            if count not in (0, len(body) // 16):
                raise ProtocolError(f"a BLOCK_STATUS_EXT chunk of {count} extents in {len(body)} bytes")
            self._take_extents(request, context, list(wire.EXTENDED_EXTENT.iter_unpack(memoryview(body)[8:])))
        elif kind & wire.CHUNK_ERROR:  # of the kinds that are not known, too
            if len(body) < wire.ERROR.size:
                raise ProtocolError(f"an error chunk of {len(body)} bytes")
            error, length = wire.ERROR.unpack_from(body)
            if wire.ERROR.size + length > len(body) or not error:
                raise ProtocolError(f"an error chunk of {len(body)} bytes with error {error} and {length} of message")
            if not request.error:  # the first reason is the reason
                request.error = error
                message = body[wire.ERROR.size : wire.ERROR.size + length]
                request.message = printable(message.decode(errors="replace"))
        else:
            raise ProtocolError(f"a chunk of type {kind}")

    def _take_extents(self, request: Awaited, context: int, extents: list[tuple[int, int]]) -> None:
        if request.command != _BLOCK_STATUS:
            raise ProtocolError(f"extents in reply to command {request.command}")
        if context not in self.contexts:
            raise ProtocolError(f"extents in context {context}, which was not chosen")
        if not all(length for length, _ in extents):
            raise ProtocolError("an extent of no bytes")
        if self.contexts[context] == self._contexts_wanted[0]:
            request.extents = extents

    def _finish(self, request: Awaited, replies: list[Reply]) -> None:
        """The reply is complete: hold it against what was asked for."""
        if request.error:
            request.data = request.extents = None
        elif request.command == _READ and (request.data is not None or not request.in_place):
            pieces = request.pieces
            if pieces is not None:
                self._join_early(request, pieces)
            elif request.data is None:
                if request.length:
                    raise ProtocolError(f"success, but none of {request.length} bytes at {request.offset} came")
                request.data = b"" if request.destination is None else request.destination
        elif request.command == _BLOCK_STATUS and request.extents is None:
            raise ProtocolError("success without extents in reply to BLOCK_STATUS")
        del self._awaited[request.cookie]
        replies.append(request)

    def _join_early(self, request: Awaited, pieces: Pieces) -> None:
        """However the bytes came, they must be all there, and none twice."""
        reached = pieces.reached
        for start, end in sorted(pieces.early):
            if start != reached:
                break
            reached = end
        if reached != request.length:
            raise ProtocolError(f"success, but not all {request.length} bytes at {request.offset} came")


def _fresh(length: int) -> memoryview:
    return memoryview(bytearray(length))
