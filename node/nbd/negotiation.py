"""The server's side of the handshake, without I/O: options in, their replies out, until one opens an export.

It is a generator that says how many bytes it needs next, so it reads top to bottom like the specification. It asks its
`Exports` which exports there are.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Protocol

from memcluster.node.nbd import wire
from memcluster.node.nbd.errors import ProtocolError, Refused
from memcluster.node.nbd.replies import CONTEXTS, WORD, Terms
from memcluster.node.nbd.wire import Buffer, Command, CommandFlag, HandshakeFlag, Info, Option, Rep, TransmissionFlag

MAX_OPTION = 1 << 16
"""Bytes of option data that are looked at; longer ones are read away up to MAX_SKIP, then the client is cut off."""
MAX_OPTIONS = 64
"""Options of one client, at most: it is cut off then, as by nbdkit."""
OPTIONS_A_TURN = 4
"""Options that are answered in one go, at most: they are free for whoever asks, and each costs some 40 us."""
MAX_SKIP = 2 * wire.MAX_PAYLOAD
"""Bytes of a refused payload that are read away so that the connection can go on."""

_U16 = Struct(">H")
_U32 = Struct(">I")


@dataclass(frozen=True)
class Export:
    """What a client may open: `flags` without those that depend on the negotiation (SEND_DF)."""

    name: str
    size: int
    flags: TransmissionFlag
    description: str = ""
    own_flags: int = 0
    """Flags that requests may carry beside the standard's: an agreement between the owner and its peers."""
    listed: bool = True
    """LIST shows it."""
    contexts: tuple[str, ...] = (wire.BASE_ALLOCATION,)
    """Those that a client may choose, of replies.CONTEXTS."""


class Exports(Protocol):
    """Who decides which exports there are. `find` and `open` raise Refused; `open` is the client's entry. `contexts`
    are those that are listed beside the export's own, words to clients that know them: chosen, they say nothing."""

    def names(self) -> Sequence[Export]: ...
    def find(self, name: str) -> Export: ...
    def contexts(self, export: Export) -> Sequence[str]: ...
    def open(self, name: str) -> Export: ...


class Security(Protocol):
    """TLS for this client. `begin` is told that it asked, and raises Refused: what comes next must have come through
    TLS. `spares` says whether an export is opened without; `turn_away`, that something was refused for want of it."""

    required: bool

    def begin(self) -> None: ...
    def spares(self, name: str) -> bool: ...
    def turn_away(self) -> None: ...


class Negotiation:
    """What one client and the server agree on; replies are appended to `outgoing`. Without a `security` there is no
    TLS here."""

    def __init__(self, exports: Exports, outgoing: list[Buffer], security: Security | None = None) -> None:
        self.outgoing = outgoing
        self.over = False
        """The client has opened an export, or said ABORT."""
        self.waiting = False
        """There is more to answer than is answered in one go."""
        self._options = 0
        self.export: Export | None = None
        self.aborted = False
        self.allowed: dict[int, int] = {}
        """The commands that the client may give, and the flags that each may carry."""
        self._exports = exports
        self._security = security
        self.secured = self._begins_tls = False
        """The client has asked for TLS, and got it."""
        self._forget()
        self._no_zeroes = False
        self._steps = self._negotiate()
        self._needs = next(self._steps)

    def take(self, received: memoryview, position: int, end: int) -> int:
        """Take what is needed of the bytes from `position` on; return the position reached. Raises ProtocolError."""
        most = self._options + OPTIONS_A_TURN
        self.waiting = False
        while not self.over and end - position >= self._needs:
            if self._options == most:
                self.waiting = True
                break
            data = bytes(received[position : position + self._needs])
            position += self._needs
            try:
                self._needs = self._steps.send(data)
            except StopIteration:
                self.over = True
            if self._begins_tls:
                self._begins_tls = False
                if position < end:
                    raise ProtocolError("plain bytes behind STARTTLS")
        return position

    def _forget(self) -> None:
        """Nothing has been agreed on; what was agreed on without TLS somebody between may have agreed on."""
        self.structured = self.extended = False
        self._chosen: tuple[str, tuple[int, ...]] = "", ()  # an export, and the contexts selected for it

    def _negotiate(self) -> Generator[int, bytes, None]:
        ours = int(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)
        self.outgoing.append(wire.GREETING.pack(wire.NBDMAGIC, wire.IHAVEOPT, ours))
        (flags,) = wire.CLIENT_FLAGS.unpack((yield wire.CLIENT_FLAGS.size))
        if flags & ~ours:
            raise ProtocolError(f"unknown client flags {flags:#x}")
        self._no_zeroes = bool(flags & HandshakeFlag.NO_ZEROES)
        while self.export is None and not self.aborted:
            magic, option, length = wire.OPTION.unpack((yield wire.OPTION.size))
            if magic != wire.IHAVEOPT:
                raise ProtocolError(f"option magic {magic:#018x}, not IHAVEOPT")
            if self._options == MAX_OPTIONS:
                raise ProtocolError(f"more than {MAX_OPTIONS} options, and no export opened")
            data = b""
            if length > MAX_OPTION:
                yield from self._skip_option(option, length)
            elif length:
                data = yield length
            self._options += 1
            if self._wants_tls(option, data):
                continue
            if length > MAX_OPTION:
                self._option_error(
                    option, Rep.ERR_TOO_BIG, f"{length} bytes of option data; the maximum is {MAX_OPTION}"
                )
                continue
            answer = self._OPTIONS.get(option)
            if answer is None:
                self._option_error(option, Rep.ERR_UNSUP, f"option {option} is not served here")
                continue
            try:
                answer(self, option, data)
            except Refused as refused:
                self._option_error(option, refused.reply, refused.message)

    def _wants_tls(self, option: int, data: bytes) -> bool:
        """Whether the option was refused because TLS has to come first."""
        security = self._security
        if self.secured or security is None or not security.required or option in (Option.STARTTLS, Option.ABORT):
            return False
        if option == Option.GO and security.spares(_name_of(data)):
            return False
        security.turn_away()
        if option == Option.EXPORT_NAME:
            raise ProtocolError("EXPORT_NAME without TLS, which is required here")
        self._option_error(option, Rep.ERR_TLS_REQD, "this server speaks to nobody without TLS: use nbds://")
        return True

    def _skip_option(self, option: int, length: int) -> Generator[int, bytes, None]:
        if length > MAX_SKIP or option == Option.EXPORT_NAME:
            raise ProtocolError(f"option {option} with {length} bytes of data")
        remaining = length
        while remaining:
            remaining -= len((yield min(remaining, wire.MAX_STRING)))

    def _option_reply(self, option: int, reply: int, data: bytes = b"") -> None:
        self.outgoing.append(wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, option, reply, len(data)) + data)

    def _option_error(self, option: int, reply: int, message: str) -> None:
        self._option_reply(option, reply, message.encode()[: wire.MAX_STRING])

    def _export_name(self, _option: int, data: bytes) -> None:
        if self.extended:
            raise ProtocolError("EXPORT_NAME after extended headers were agreed on")
        try:
            export = self._exports.open(_text(data))
        except Refused as refused:
            raise ProtocolError(f"EXPORT_NAME refused: {refused.message}") from refused
        padding = b"" if self._no_zeroes else bytes(wire.EXPORT_NAME_PADDING)
        self.outgoing.append(wire.EXPORT_NAME_REPLY.pack(export.size, self._flags(export)) + padding)
        self._enter(export)

    def _abort(self, option: int, _data: bytes) -> None:
        self._option_reply(option, Rep.ACK)
        self.aborted = True

    def _list(self, option: int, data: bytes) -> None:
        _expect_no_data(data)
        for export in self._exports.names():
            name = export.name.encode()
            self._option_reply(option, Rep.SERVER, _U32.pack(len(name)) + name + export.description.encode())
        self._option_reply(option, Rep.ACK)

    def _info(self, option: int, data: bytes) -> None:
        name, wanted = _info_request(data)
        self._describe(option, self._exports.find(name), wanted)

    def _go(self, option: int, data: bytes) -> None:
        name, wanted = _info_request(data)
        export = self._exports.open(name)
        self._describe(option, export, wanted)
        self._enter(export)

    def _describe(self, option: int, export: Export, wanted: Sequence[int]) -> None:
        self._option_reply(option, Rep.INFO, wire.INFO_EXPORT.pack(Info.EXPORT, export.size, self._flags(export)))
        if Info.NAME in wanted:
            self._option_reply(option, Rep.INFO, _U16.pack(Info.NAME) + export.name.encode())
        if Info.DESCRIPTION in wanted:
            self._option_reply(option, Rep.INFO, _U16.pack(Info.DESCRIPTION) + export.description.encode())
        if Info.BLOCK_SIZE in wanted:
            sizes = wire.MIN_BLOCK, wire.PREFERRED_BLOCK, wire.MAX_PAYLOAD
            self._option_reply(option, Rep.INFO, wire.INFO_BLOCK_SIZE.pack(Info.BLOCK_SIZE, *sizes))
        self._option_reply(option, Rep.ACK)

    def _starttls(self, option: int, data: bytes) -> None:
        if self._security is None:
            raise Refused(Rep.ERR_UNSUP, "there is no TLS here")
        _expect_no_data(data)
        if self.secured:
            raise Refused(Rep.ERR_INVALID, "TLS has begun before")
        self._security.begin()
        self._forget()
        self.secured = self._begins_tls = True
        self._option_reply(option, Rep.ACK)

    def _structured_reply(self, option: int, data: bytes) -> None:
        _expect_no_data(data)
        if self.extended:
            raise Refused(Rep.ERR_EXT_HEADER_REQD, "extended headers, which were agreed on, include structured replies")
        self.structured = True
        self._option_reply(option, Rep.ACK)

    def _extended_headers(self, option: int, data: bytes) -> None:
        _expect_no_data(data)
        if self.extended:
            raise Refused(Rep.ERR_INVALID, "extended headers were agreed on before")
        self.structured = self.extended = True
        self._option_reply(option, Rep.ACK)

    def _meta_context(self, option: int, data: bytes) -> None:
        if not self.structured:
            raise Refused(Rep.ERR_INVALID, "metadata contexts need STRUCTURED_REPLY or EXTENDED_HEADERS first")
        setting = option == Option.SET_META_CONTEXT
        if setting:
            self._chosen = "", ()  # whatever happens now, an earlier selection is void
        name, queries = _meta_request(data)
        export = self._exports.find(name)
        chosen = []
        for context in export.contexts:
            namespace = context[: context.index(":") + 1]
            if context in queries or (not setting and (not queries or namespace in queries)):
                self._option_reply(option, Rep.META_CONTEXT, _U32.pack(CONTEXTS[context]) + context.encode())
                chosen.append(CONTEXTS[context])
        others = [query for query in queries if query not in export.contexts]
        for context in self._exports.contexts(export) if others else ():
            if context in others or (not setting and context.startswith(tuple(others))):
                self._option_reply(option, Rep.META_CONTEXT, _U32.pack(WORD) + context.encode())
                chosen.append(WORD)
        if setting:
            self._chosen = export.name, tuple(chosen)
        self._option_reply(option, Rep.ACK)

    _OPTIONS: dict[int, Callable[[Negotiation, int, bytes], None]] = {  # noqa: RUF012 - a constant table
        Option.EXPORT_NAME: _export_name,
        Option.ABORT: _abort,
        Option.LIST: _list,
        Option.STARTTLS: _starttls,
        Option.INFO: _info,
        Option.GO: _go,
        Option.STRUCTURED_REPLY: _structured_reply,
        Option.LIST_META_CONTEXT: _meta_context,
        Option.SET_META_CONTEXT: _meta_context,
        Option.EXTENDED_HEADERS: _extended_headers,
    }

    @property
    def terms(self) -> Terms:
        """What holds for replies."""
        chosen_for, contexts = self._chosen
        counts = self.export is not None and self.export.name == chosen_for
        return Terms(self.structured, self.extended, contexts if counts else ())

    def _flags(self, export: Export) -> int:
        return export.flags | (TransmissionFlag.SEND_DF if self.structured else 0)

    def _enter(self, export: Export) -> None:
        """The transmission phase begins: fix what each command may carry."""
        self.export = export
        flags = export.flags
        allowed = {int(Command.READ): int(CommandFlag.DF) if self.structured else 0, int(Command.DISC): 0xFFFF}
        fua = int(CommandFlag.FUA) if flags & TransmissionFlag.SEND_FUA else 0
        allowed[Command.READ] |= fua
        if flags & TransmissionFlag.SEND_FLUSH:
            allowed[Command.FLUSH] = fua
        if flags & TransmissionFlag.SEND_CACHE:
            allowed[Command.CACHE] = fua
        if not flags & TransmissionFlag.READ_ONLY:
            allowed[Command.WRITE] = fua
            if flags & TransmissionFlag.SEND_TRIM:
                allowed[Command.TRIM] = fua
            if flags & TransmissionFlag.SEND_WRITE_ZEROES:
                fast = int(CommandFlag.FAST_ZERO) if flags & TransmissionFlag.SEND_FAST_ZERO else 0
                allowed[Command.WRITE_ZEROES] = fua | CommandFlag.NO_HOLE | fast
        if self.terms.contexts:
            allowed[Command.BLOCK_STATUS] = fua | CommandFlag.REQ_ONE
        # Plain numbers: an IntFlag inverts within its known bits only, and is slow.
        self.allowed = {command: int(flags) | export.own_flags for command, flags in allowed.items()}


# -- parts of option data --------------------------------------------------------------------------------------------


def _text(data: bytes) -> str:
    if len(data) > wire.MAX_STRING:
        raise Refused(Rep.ERR_TOO_BIG, f"a string of {len(data)} bytes; the maximum is {wire.MAX_STRING}")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Refused(Rep.ERR_INVALID, f"a string is not UTF-8: {error}") from error


def _expect_no_data(data: bytes) -> None:
    if data:
        raise Refused(Rep.ERR_INVALID, f"this option takes no data, and {len(data)} bytes came with it")


def _take_string(data: bytes, position: int) -> tuple[str, int]:
    """A u32 length and the text; returns the text and the position behind it."""
    if len(data) - position < 4:
        raise Refused(Rep.ERR_INVALID, "option data ends within a length")
    (length,) = _U32.unpack_from(data, position)
    if length > len(data) - position - 4:
        raise Refused(Rep.ERR_INVALID, f"a string of {length} bytes does not fit the option's data")
    start = position + 4
    return _text(data[start : start + length]), start + length


def _info_request(data: bytes) -> tuple[str, tuple[int, ...]]:
    """(export name, information types) of INFO or GO."""
    name, position = _take_string(data, 0)
    if len(data) - position < 2:
        raise Refused(Rep.ERR_INVALID, "option data ends before the number of information requests")
    (count,) = _U16.unpack_from(data, position)
    if len(data) - position - 2 != 2 * count:
        raise Refused(Rep.ERR_INVALID, f"{count} information requests do not fit the option's data")
    return name, tuple(_U16.unpack_from(data, position + 2 + 2 * i)[0] for i in range(count))


def _name_of(data: bytes) -> str:
    """The export that a GO names; none ("") if it is not a GO's data."""
    try:
        return _info_request(data)[0]
    except Refused:
        return ""


def _meta_request(data: bytes) -> tuple[str, tuple[str, ...]]:
    """(export name, queries) of LIST_META_CONTEXT or SET_META_CONTEXT."""
    name, position = _take_string(data, 0)
    if len(data) - position < 4:
        raise Refused(Rep.ERR_INVALID, "option data ends before the number of queries")
    (count,) = _U32.unpack_from(data, position)
    position += 4
    queries = []
    for _ in range(count):
        query, position = _take_string(data, position)
        queries.append(query)
    if position != len(data):
        raise Refused(Rep.ERR_INVALID, f"{len(data) - position} bytes too many in the option's data")
    return name, tuple(queries)
