"""Replies to bytes: what a server says to a request, in the form that was agreed on in the handshake. No I/O.

The forms are simple, structured, and structured with extended headers, where every reply is a chunk and lengths have 64
bits. Structured replies to a READ say of its holes only how long they are: those of its buffers that are views of
ZEROES.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final

from memcluster.node.native import mypyc_attr
from memcluster.node.nbd import wire
from memcluster.node.nbd.wire import Buffer, Chunk, ChunkFlag, Command, CommandFlag
from memcluster.node.nbd.zeroes import ZEROES

CONTEXTS: Final = {wire.BASE_ALLOCATION: 1, wire.OWNER: 2}
"""The identifiers under which this server speaks of the contexts that a client may choose."""
WORD: Final = 3
"""That of one that is a word to clients which know it, and says nothing of any byte: see Exports.contexts."""

Extents = Sequence[tuple[int, int]]
"""(length, status) of runs of like bytes, as a BLOCK_STATUS tells them."""

_ZEROES: Final = ZEROES.obj
_U32: Final = Struct(">I")
_U64: Final = Struct(">Q")
# Plain numbers and bound methods for the data path: comparing with a member of an enum costs 90 ns (Python 3.11).
_READ: Final = int(Command.READ)
_NONE: Final = int(Chunk.NONE)
_DONE: Final = int(ChunkFlag.DONE)
_DF: Final = int(CommandFlag.DF)
_CHUNK_MAGIC: Final = wire.CHUNK_MAGIC
_EXTENDED_MAGIC: Final = wire.EXTENDED_CHUNK_MAGIC
_pack_chunk: Final = wire.CHUNK.pack
_pack_extended: Final = wire.EXTENDED_CHUNK.pack
# What is said most begins with 8 bytes that never change: to copy them costs less than to pack three numbers.
_SUCCESS: Final = Struct(">II").pack(wire.SIMPLE_REPLY_MAGIC, 0)
_LAST_DATA: Final = Struct(">IHH").pack(wire.CHUNK_MAGIC, ChunkFlag.DONE, Chunk.OFFSET_DATA)
_EXTENDED_LAST_DATA: Final = Struct(">IHH").pack(wire.EXTENDED_CHUNK_MAGIC, ChunkFlag.DONE, Chunk.OFFSET_DATA)
_pack_success: Final = Struct(">8sQ").pack
_pack_data: Final = Struct(">8sQIQ").pack
_pack_extended_data: Final = Struct(">8sQQQQ").pack


@mypyc_attr(allow_interpreted_subclasses=True)
class Asked:
    """What a reply must know of its request: the base of those. Plain slots: this is the data path."""

    __slots__ = ("command", "cookie", "flags", "length", "offset")

    command: int
    flags: int
    cookie: int
    offset: int
    length: int


@dataclass(frozen=True)
class Terms:
    """What a client and a server have agreed on about replies."""

    structured: bool = False
    extended: bool = False
    """Extended headers; they include structured replies."""
    contexts: tuple[int, ...] = ()
    """The identifiers of those that were chosen, in order."""

    def encode(self) -> int:
        """In 16 bits, for another process that answers the client."""
        return self.structured | self.extended << 1 | sum(1 << 1 + identifier for identifier in self.contexts)

    @classmethod
    def decode(cls, bits: int) -> Terms:
        chosen = tuple(identifier for identifier in CONTEXTS.values() if bits >> 1 + identifier & 1)
        return cls(bool(bits & 1), bool(bits & 2), chosen)


class Replies:
    """Appends replies to `outgoing`."""

    def __init__(self, terms: Terms = Terms()) -> None:
        self.outgoing: list[Buffer] = []
        self.agree(terms)

    def agree(self, terms: Terms) -> None:
        """From here on these hold."""
        self.terms = terms
        self.structured, self.extended = terms.structured, terms.extended

    def reply(self, request: Asked) -> None:
        """Success without data."""
        if not self.structured:
            self.outgoing.append(_pack_success(_SUCCESS, request.cookie))
        elif self.extended:
            self.outgoing.append(_pack_extended(_EXTENDED_MAGIC, _DONE, _NONE, request.cookie, request.offset, 0))
        elif request.command == _READ:
            self.outgoing.append(_pack_chunk(_CHUNK_MAGIC, _DONE, _NONE, request.cookie, 0))
        else:
            self.outgoing.append(_pack_success(_SUCCESS, request.cookie))

    def reply_data(self, request: Asked, buffers: Sequence[Buffer]) -> None:
        """Success with the bytes of a READ, `request.length` in all and at least one. In a tuple are no holes."""
        outgoing = self.outgoing
        if not self.structured:
            outgoing.append(_pack_success(_SUCCESS, request.cookie))
        elif not isinstance(buffers, tuple) and self._are_sparse(buffers, request.flags):
            self._reply_sparse(request, buffers)
            return
        elif self.extended:
            offset = request.offset
            outgoing.append(
                _pack_extended_data(_EXTENDED_LAST_DATA, request.cookie, offset, request.length + 8, offset)
            )
        else:
            outgoing.append(_pack_data(_LAST_DATA, request.cookie, request.length + 8, request.offset))
        outgoing += buffers

    def _are_sparse(self, buffers: Sequence[Buffer], flags: int) -> bool:
        """Whether there are holes among them of which the answer may tell."""
        if len(buffers) == 1 or not flags & _DF:
            for buffer in buffers:
                if isinstance(buffer, memoryview) and buffer.obj is _ZEROES:
                    return True
        return False

    def _reply_sparse(self, request: Asked, buffers: Sequence[Buffer]) -> None:
        parts, start = [], 0
        for buffer in buffers:
            parts.append((start, buffer))
            start += len(buffer)
        self.reply_parts(request, parts, done=True)

    def reply_extents(self, request: Asked, told: Mapping[int, Extents]) -> None:
        """Success of a BLOCK_STATUS: by context, the extents from the request's offset on, at least one each."""
        last = len(told) - 1
        for at, (context, extents) in enumerate(told.items()):
            if self.extended:
                kind, head, pack = Chunk.BLOCK_STATUS_EXT, (context, len(extents)), wire.EXTENDED_EXTENT.pack
                body = wire.EXTENDED_EXTENTS.pack(*head) + b"".join([pack(*extent) for extent in extents])
            else:
                kind, pack = Chunk.BLOCK_STATUS, wire.EXTENT.pack
                body = _U32.pack(context) + b"".join([pack(*extent) for extent in extents])
            self.outgoing.append(self._head(request, kind, len(body), done=at == last) + body)

    def reply_error(self, request: Asked, error: int, message: str = "", *, done: bool = True) -> None:
        """Failure; the message reaches clients that have structured replies. More chunks follow if not `done`."""
        if self.structured:
            text = message.encode()[: wire.MAX_STRING]
            body = wire.ERROR.pack(error, len(text)) + text
            self.outgoing.append(self._head(request, Chunk.ERROR, len(body), done=done) + body)
        else:
            self.outgoing.append(wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, error, request.cookie))

    def reply_parts(self, request: Asked, parts: Sequence[tuple[int, Buffer]], *, done: bool) -> None:
        """Some of the bytes of a READ, as (where they begin in it, bytes) in order; others send the rest if not `done`.

        For clients with structured replies only. Parts that follow one another travel in one chunk.
        """
        runs: list[tuple[int, int, list[Buffer]]] = []  # begin, end, and what a hole has none of: bytes
        for start, buffer in parts:
            hole = buffer.__class__ is memoryview and buffer.obj is _ZEROES
            if not runs or runs[-1][1] != start or hole == bool(runs[-1][2]):
                runs.append((start, start, []))
            begin, end, buffers = runs[-1]
            runs[-1] = begin, end + len(buffer), buffers
            if not hole:
                buffers.append(buffer)
        outgoing = self.outgoing
        for begin, end, buffers in runs:
            last = done and end == runs[-1][1]
            at, length = request.offset + begin, end - begin
            if buffers:
                outgoing.append(self._head(request, Chunk.OFFSET_DATA, length + 8, done=last) + _U64.pack(at))
                outgoing += buffers
            else:
                head = self._head(request, Chunk.OFFSET_HOLE, wire.HOLE.size, done=last)
                outgoing.append(head + wire.HOLE.pack(at, length))

    def _head(self, request: Asked, kind: int, length: int, *, done: bool) -> bytes:
        """The header of a chunk with so many bytes behind it."""
        if self.extended:
            return _pack_extended(_EXTENDED_MAGIC, done, kind, request.cookie, request.offset, length)
        return _pack_chunk(_CHUNK_MAGIC, done, kind, request.cookie, length)
