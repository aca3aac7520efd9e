"""The client's side of the handshake, without I/O: from the greeting to an opened export, or to what was asked of it.

A generator says how many bytes it needs next. All options are sent at once after the greeting, and their replies read
in order: an open costs two round trips whatever was asked for.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from struct import Struct
from typing import Final

from memcluster.node.native import mypyc_attr
from memcluster.node.nbd import wire
from memcluster.node.nbd.errors import ProtocolError, Refused
from memcluster.node.nbd.printable import printable
from memcluster.node.nbd.wire import Buffer, HandshakeFlag, Info, Option, Rep, TransmissionFlag

MAX_OPTION_REPLY: Final = 1 << 14
"""Bytes of an option's reply, at most."""
MAX_EXPORTS: Final = 10_000
"""Exports that a server may list."""
MAX_OFFERED: Final = 100
"""Contexts that are looked at."""

_U16: Final = Struct(">H")
_U32: Final = Struct(">I")
_BLOCKS: Final = Struct(">III")


@mypyc_attr(allow_interpreted_subclasses=True)
class Opening:
    """With the goal GO it ends up `ready`. With INFO or LIST it ends up `finished`, having learnt what the server says
    of the export or which `exports` there are, and an ABORT is in `outgoing`."""

    def __init__(
        self,
        export: str,
        *,
        structured: bool,
        extended: bool,
        contexts: Sequence[str],
        goal: Option,
        namespace: str,
        tls: bool = False,
    ) -> None:
        self.outgoing: list[Buffer] = []
        self.securing = False
        """The server is ready for TLS: nothing goes on before the owner says `secured`."""
        self.export = export
        self.ready = False
        """The transmission phase is reached."""
        self.finished = False
        """What INFO or LIST asked for is known."""
        self.size = 0
        self.flags = TransmissionFlag(0)
        self.minimum, self.preferred, self.maximum = 1, wire.PREFERRED_BLOCK, wire.MAX_PAYLOAD
        """Bytes of a block; `maximum` bounds the length of a READ and a WRITE."""
        self.description = ""
        self.structured = False
        self.extended = False
        """Headers are extended: lengths have 64 bits, and every reply is a chunk."""
        self.contexts: dict[int, str] = {}
        self.offered: list[str] = []
        """The contexts of `namespace` that the server lists for the export."""
        self.exports: list[tuple[str, str]] = []
        """(name, description), from LIST."""
        self._structured_wanted, self._extended_wanted = structured, extended
        self._contexts_wanted = contexts if structured else ()
        self._namespace = namespace if structured else ""
        self._opening = ""  # the name for which EXPORT_NAME was sent: it has no error reply
        self._tls = tls
        self._steps = self._negotiate(goal)
        self._needs = next(self._steps)

    def take(self, received: memoryview, end: int) -> int:
        """Go on with what has come, up to `end`; returns the position reached. Raises ProtocolError when the connection
        cannot go on, Refused when the server does not let this client in."""
        position = 0
        while not (self.ready or self.finished) and end - position >= self._needs:
            data = bytes(received[position : position + self._needs])
            position += self._needs
            try:
                self._needs = self._steps.send(data)
            except StopIteration:
                break
            if self.securing:
                if position < end:
                    raise ProtocolError("plain bytes behind the answer to STARTTLS")
                break
        return position

    def secured(self) -> None:
        """TLS has begun: what comes from now on came through it, and what is outgoing goes through it."""
        self.securing = False
        self._needs = self._steps.send(b"")

    def cut_short(self) -> None:
        """The server closed before the end. Raises ProtocolError, or Refused if that was how it said no."""
        if self._opening:
            message = f"it closed the connection instead of opening the export {self._opening!r}"
            raise Refused(Rep.ERR_UNKNOWN, message)
        raise ProtocolError("the server closed the connection in the handshake")

    def _negotiate(self, goal: Option) -> Generator[int, bytes, None]:
        magic, version, offered = wire.GREETING.unpack((yield wire.GREETING.size))
        if magic != wire.NBDMAGIC or version != wire.IHAVEOPT or not offered & HandshakeFlag.FIXED_NEWSTYLE:
            raise ProtocolError("this is not an NBD server of the fixed newstyle kind")
        flags = offered & (HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)
        self.outgoing.append(wire.CLIENT_FLAGS.pack(flags))
        if self._tls:
            yield from self._start_tls()
        if goal == Option.LIST:
            self.outgoing.append(_option(Option.LIST))
            yield from self._take_list()
        else:
            self.outgoing.append(self._options(goal))
            yield from self._take_features()
            known = yield from self._take_infos(goal)
            if not known:
                yield from self._export_name(padded=not flags & HandshakeFlag.NO_ZEROES)
            if goal == Option.GO:
                self.ready = True
                return
        self.outgoing.append(_option(Option.ABORT))
        self.finished = True

    def _start_tls(self) -> Generator[int, bytes, None]:
        self.outgoing.append(_option(Option.STARTTLS))
        kind, data = yield from self._option_reply(Option.STARTTLS)
        if kind & wire.REP_ERROR:
            raise Refused(kind, _words(data) or "TLS")
        if kind != Rep.ACK:
            raise ProtocolError(f"a reply of type {kind:#x} to STARTTLS")
        self.securing = True
        yield 0

    def _options(self, goal: Option) -> bytes:
        """All options at once; the order matters: contexts count only after STRUCTURED_REPLY and before GO. A server
        that agrees to extended headers refuses structured replies, which they include."""
        name = _string(self.export)
        words = _option(Option.EXTENDED_HEADERS) if self._extended_wanted else b""
        if self._structured_wanted:
            words += _option(Option.STRUCTURED_REPLY)
        if self._contexts_wanted:
            queries = [_string(context) for context in self._contexts_wanted]
            words += _option(Option.SET_META_CONTEXT, name + _U32.pack(len(queries)) + b"".join(queries))
        if self._namespace:
            words += _option(Option.LIST_META_CONTEXT, name + _U32.pack(1) + _string(self._namespace))
        infos = (Info.BLOCK_SIZE, Info.DESCRIPTION)
        wanted = _U16.pack(len(infos)) + b"".join(map(_U16.pack, infos))
        return words + _option(goal, name + wanted)

    def _take_features(self) -> Generator[int, bytes, None]:
        """The replies to what comes before GO; a refusal of any only means to do without."""
        if self._extended_wanted:
            kind, _ = yield from self._option_reply(Option.EXTENDED_HEADERS)
            self.structured = self.extended = kind == Rep.ACK
        if self._structured_wanted:
            kind, _ = yield from self._option_reply(Option.STRUCTURED_REPLY)
            self.structured = self.extended or kind == Rep.ACK
        if self._contexts_wanted:
            chosen = {}
            kind, data = yield from self._option_reply(Option.SET_META_CONTEXT)
            while kind == Rep.META_CONTEXT:
                name = data[4:].decode(errors="replace")
                if len(data) < 4 or name not in self._contexts_wanted:
                    raise ProtocolError(f"a context that was not asked for: {name!r}")
                (identifier,) = _U32.unpack_from(data)
                chosen[identifier] = name
                kind, data = yield from self._option_reply(Option.SET_META_CONTEXT)
            if kind == Rep.ACK and self.structured:
                self.contexts = chosen
        if self._namespace:
            kind, data = yield from self._option_reply(Option.LIST_META_CONTEXT)
            while kind == Rep.META_CONTEXT:
                if len(self.offered) < MAX_OFFERED:
                    self.offered.append(data[4:].decode(errors="replace"))
                kind, data = yield from self._option_reply(Option.LIST_META_CONTEXT)

    def _take_infos(self, goal: Option) -> Generator[int, bytes, bool]:
        """The replies to GO or INFO; false if the server is too old to know GO."""
        told = False
        while True:
            kind, data = yield from self._option_reply(goal)
            if kind == Rep.INFO:
                told |= self._take_info(data)
            elif kind == Rep.ACK and told:
                return True
            elif kind == Rep.ERR_UNSUP and goal == Option.GO:
                return False
            elif kind & wire.REP_ERROR:
                raise Refused(kind, _words(data))
            else:
                raise ProtocolError(f"a reply of type {kind:#x} to option {goal}; size and flags told: {told}")

    def _take_info(self, data: bytes) -> bool:
        """True if it was the export's size and flags."""
        kind = _U16.unpack_from(data)[0] if len(data) >= 2 else -1
        if kind == Info.EXPORT and len(data) == wire.INFO_EXPORT.size:
            _, self.size, flags = wire.INFO_EXPORT.unpack(data)
            self.flags = TransmissionFlag(flags)
            return True
        if kind == Info.BLOCK_SIZE and len(data) == wire.INFO_BLOCK_SIZE.size:
            self.minimum, self.preferred, self.maximum = _BLOCKS.unpack_from(data, 2)
            if not 0 < self.minimum <= self.maximum:
                raise ProtocolError(f"block sizes from {self.minimum} to {self.maximum}")
        elif kind == Info.DESCRIPTION:
            self.description = _words(data[2:])
        elif kind in (-1, Info.EXPORT, Info.BLOCK_SIZE):
            raise ProtocolError(f"an information reply of {len(data)} bytes")
        return False

    def _export_name(self, *, padded: bool) -> Generator[int, bytes, None]:
        """The old way in: no information but size and flags, and no error but a closed connection."""
        self.outgoing.append(_option(Option.EXPORT_NAME, self.export.encode()))
        self._opening = self.export or "(default)"
        self.size, flags = wire.EXPORT_NAME_REPLY.unpack((yield wire.EXPORT_NAME_REPLY.size))
        self.flags = TransmissionFlag(flags)
        self._opening = ""
        if padded:
            yield wire.EXPORT_NAME_PADDING

    def _take_list(self) -> Generator[int, bytes, None]:
        while True:
            kind, data = yield from self._option_reply(Option.LIST)
            if kind == Rep.ACK:
                return
            if kind & wire.REP_ERROR:
                raise Refused(kind, _words(data))
            length = _U32.unpack_from(data)[0] if len(data) >= 4 else len(data)
            if kind != Rep.SERVER or length > len(data) - 4 or len(self.exports) >= MAX_EXPORTS:
                raise ProtocolError(f"a reply of type {kind:#x} to LIST, after {len(self.exports)} exports")
            words = data[4 : 4 + length], data[4 + length :]
            self.exports.append((words[0].decode(errors="replace"), _words(words[1])))

    def _option_reply(self, wanted: int) -> Generator[int, bytes, tuple[int, bytes]]:
        """(type, data) of the next reply, which must be to the option `wanted`."""
        magic, option, kind, length = wire.OPTION_REPLY.unpack((yield wire.OPTION_REPLY.size))
        if magic != wire.OPTION_REPLY_MAGIC or option != wanted or length > MAX_OPTION_REPLY:
            raise ProtocolError(f"not a reply to option {wanted}: magic {magic:#x}, option {option}, {length} bytes")
        return kind, (yield length) if length else b""


def _option(option: Option, data: bytes = b"") -> bytes:
    return wire.OPTION.pack(wire.IHAVEOPT, option, len(data)) + data


def _words(data: bytes) -> str:
    """What a server says to people; whoever it is."""
    return printable(data.decode(errors="replace"))


def _string(text: str) -> bytes:
    data = text.encode()
    return _U32.pack(len(data)) + data
