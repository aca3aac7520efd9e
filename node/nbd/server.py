"""The server's side of one NBD connection, without I/O: bytes in, requests out, replies to bytes.

The handshake is a generator that says how many bytes it needs next, so it reads top to bottom like the specification.
The transmission phase is the data path: one call parses all requests that a receive brought, and nothing is copied
but what must outlive the receive buffer.

It knows no sockets, no time and no memory: it asks its `Exports` which exports there are, and `place` where the
payload of a large write shall be received, and that is all.

Order of calls: `receive_buffer` says where the next bytes belong, `received` takes them and returns the requests they
complete, the `reply` methods append to `outgoing`. A request whose `error` is set was refused by the protocol and
only waits to be answered. The receive buffer may be shared by all sessions of a loop: a payload that lies in it (one
that is not `owned`) is gone when the next session receives.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Protocol

from node.nbd import wire
from node.nbd.errors import ProtocolError, Refused
from node.nbd.replies import CONTEXT_ID, Replies
from node.nbd.wire import Command, CommandFlag, Error, HandshakeFlag, Info, Option, Rep, TransmissionFlag

RECEIVE_BUFFER = 1 << 18
HEAD = 1 << 8
"""Bytes received at first behind a payload that was received in its place: the next is most likely as large, and what
of it lies in the receive buffer has to be copied out (up to a quarter of 1 MiB, 70 us)."""
REQUEST_COST = 1024
"""Bytes of a budget that a request takes up beside its data: bounds how many tiny ones are dealt with at once."""
MAX_OPTION = 1 << 16
"""Bytes of option data that are looked at; longer ones are read away up to MAX_SKIP, then the client is cut off."""
MAX_SKIP = 2 * wire.MAX_PAYLOAD
"""Bytes of a refused payload that are read away so that the connection can go on."""

_U16 = Struct(">H")
_U32 = Struct(">I")

# Plain numbers and bound methods for the data path: comparing with a member of an enum costs 90 ns (Python 3.11), of
# which there were five in each request.
_READ, _WRITE, _DISC, _BLOCK_STATUS = (
    int(command) for command in (Command.READ, Command.WRITE, Command.DISC, Command.BLOCK_STATUS)
)
_REQUEST_MAGIC, _HEADER, _unpack_request = wire.REQUEST_MAGIC, wire.REQUEST.size, wire.REQUEST.unpack_from


@dataclass(frozen=True)
class Export:
    """What a client may open: `flags` without those that depend on the negotiation (SEND_DF)."""

    name: str
    size: int
    flags: TransmissionFlag
    description: str = ""
    own_flags: int = 0
    """Flags that requests may carry beside the standard's: an agreement between the owner and its peers."""


class Exports(Protocol):
    """Who decides which exports there are. `find` and `open` raise Refused; `open` is the client's entry. `contexts`
    are those that are listed beside base:allocation and cannot be chosen: words to clients that know them."""

    def names(self) -> Sequence[Export]: ...
    def find(self, name: str) -> Export: ...
    def contexts(self, export: Export) -> Sequence[str]: ...
    def open(self, name: str) -> Export: ...


class Request:
    """One request. Plain slots: one is made for each of 100,000 a second.

    `error` is 0 for a request that keeps to the protocol. `owned` means that `payload` is not in the receive buffer
    but where `place` said.
    """

    __slots__ = ("command", "cookie", "error", "flags", "length", "message", "offset", "owned", "payload")

    def __init__(self, command: int, flags: int, cookie: int, offset: int, length: int) -> None:
        self.command = command
        self.flags = flags
        self.cookie = cookie
        self.offset = offset
        self.length = length
        self.payload: memoryview | None = None
        self.owned = False
        self.error = 0
        self.message = ""

    def refuse(self, error: int, message: str) -> None:
        """The request is to be answered with this error and not carried out."""
        self.error = error
        self.message = message

    def __repr__(self) -> str:
        name = Command(self.command).name if self.command in Command.__members__.values() else self.command
        return f"<Request {name} {self.offset:#x} +{self.length} cookie {self.cookie:#x}>"


class ServerSession(Replies):
    """The protocol's state for one client.

    `place(request)` is asked for the memory that shall receive a WRITE's payload which is not yet complete in the
    receive buffer; it returns `request.length` bytes, or None after `request.refuse(…)`.
    """

    def __init__(
        self, exports: Exports, place: Callable[[Request], memoryview | None], scratch: memoryview | None = None
    ) -> None:
        super().__init__()
        self.export: Export | None = None
        """Set once the client is in the transmission phase."""
        self.finished = False
        """The client said ABORT or DISC: nothing more is read; what is in flight is still answered."""
        self.waiting = False
        """Requests are parked for lack of budget: `resume` has something to return."""
        self._exports = exports
        self._place = place
        self._scratch = memoryview(bytearray(RECEIVE_BUFFER)) if scratch is None else scratch
        self._rest = b""  # received, not yet parsed, parked outside the shared buffer
        self._end = 0  # bytes of the receive buffer in use
        self.sink: memoryview | None = None
        """The payload that is being received in its place."""
        self._sunk = 0
        self._behind_sink = False
        self._receiving: Request | None = None
        self._skip = 0  # bytes of a refused payload still to be read away
        self._refused: Request | None = None  # whose payload that is; answered when it has been read away
        self._allowed: dict[int, int] = {}  # command -> the flags it may carry on this export
        self._context_of: str | None = None  # the export for which base:allocation was selected
        self._no_zeroes = False
        self._handshake: Generator[int, bytes, None] | None = self._negotiate()
        self._needs = next(self._handshake)

    def __repr__(self) -> str:
        phase = "handshake" if self.export is None else f"export {self.export.name!r}"
        return f"<ServerSession {phase}{' finished' if self.finished else ''}>"

    # -- receiving ---------------------------------------------------------------------------------------------------

    def receive_buffer(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        if self.sink is not None:
            return self.sink[self._sunk :]
        self._load()
        if self._behind_sink:
            self._behind_sink = False
            return self._scratch[self._end : self._end + HEAD]
        return self._scratch[self._end :] if self._end else self._scratch

    def received(self, count: int, budget: int) -> list[Request]:
        """Take `count` bytes that were put into `receive_buffer()`; return the requests that are complete.

        Stops when they are worth more than `budget` bytes: `waiting` is then true, and `resume` goes on. Raises
        ProtocolError when the connection cannot go on.
        """
        if self.sink is None:
            self._end += count
            return self._parse(budget)
        self._sunk += count
        if self._sunk < len(self.sink):
            return []
        assert self._receiving is not None
        request, self._receiving, self.sink = self._receiving, None, None
        self._behind_sink = True
        return [request]

    @property
    def missing(self) -> int:
        """Bytes that are still to come of the payload that is being received in its place."""
        return 0 if self.sink is None else len(self.sink) - self._sunk

    def resume(self, budget: int) -> list[Request]:
        """The requests that an earlier call left for lack of budget."""
        if not self.waiting:
            return []
        self._load()
        return self._parse(budget)

    def _load(self) -> None:
        rest = self._rest
        self._end = len(rest)
        if rest:
            self._scratch[: len(rest)] = rest

    def _parse(self, budget: int) -> list[Request]:
        self.waiting = False
        requests: list[Request] = []
        position = self._read_away(0, requests) if self._refused else 0
        if self._handshake is not None:
            position = self._feed(position)
        if self._handshake is None and not self.finished:
            position = self._parse_requests(position, budget, requests)
        self._rest = bytes(self._scratch[position : self._end]) if position < self._end and not self.finished else b""
        return requests

    def _read_away(self, position: int, requests: list[Request]) -> int:
        count = min(self._skip, self._end - position)
        self._skip -= count
        if self._refused and not self._skip:
            requests.append(self._refused)
            self._refused = None
        return position + count

    def _parse_requests(self, position: int, budget: int, requests: list[Request]) -> int:
        """Append the requests that lie in the receive buffer from `position` on; return where it stopped."""
        scratch, end, allowed = self._scratch, self._end, self._allowed
        assert self.export is not None
        size = self.export.size
        header = _HEADER
        while end - position >= header and budget > 0:
            magic, flags, command, cookie, offset, length = _unpack_request(scratch, position)
            if magic != _REQUEST_MAGIC:
                raise ProtocolError(f"request magic {magic:#010x}, not {_REQUEST_MAGIC:#010x}")
            request = Request(command, flags, cookie, offset, length)
            if command not in allowed or flags & ~allowed[command] or offset + length > size:
                self._refuse(request, size)
            if command <= _WRITE:
                if length > wire.MAX_PAYLOAD:
                    request.refuse(Error.EINVAL, f"{length} bytes in one request; the maximum is {wire.MAX_PAYLOAD}")
                if command == _WRITE:
                    start = position + header
                    if request.error:
                        position = self._refuse_payload(request, start, requests)
                        budget -= REQUEST_COST
                        continue
                    if length > end - start:
                        if length + header <= len(scratch) >> 2:
                            return position  # small: wait for the rest of it here
                        return self._receive_in_place(request, start, requests)
                    request.payload = scratch[start : start + length]
                    position = start + length
                else:
                    position += header
                budget -= length
            else:
                position += header
                if command == _DISC:
                    self.finished = True
                    return end
                if command == _BLOCK_STATUS and not length:
                    request.refuse(Error.EINVAL, "BLOCK_STATUS of no bytes")
            budget -= REQUEST_COST
            requests.append(request)
        self.waiting = end - position >= header
        return position

    def _refuse(self, request: Request, size: int) -> None:
        """Say why a request that is not allowed is not."""
        command, flags = request.command, request.flags
        name = Command(command).name if command in Command.__members__.values() else f"command {command}"
        assert self.export is not None
        if command == Command.DISC:
            return  # whatever its other fields are
        if command not in self._allowed:
            writes = (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES)
            if command in writes and self.export.flags & TransmissionFlag.READ_ONLY:
                request.refuse(Error.EPERM, f"the export {self.export.name!r} is read-only")
            else:
                request.refuse(Error.EINVAL, f"{name} is not served here")
        elif flags & ~self._allowed[command]:
            request.refuse(Error.EINVAL, f"flags {flags:#x} are not allowed with {name}")
        else:
            writing = command in (Command.WRITE, Command.WRITE_ZEROES)
            error = Error.ENOSPC if writing else Error.EINVAL
            request.refuse(error, f"{name} of {request.length} bytes at {request.offset} is beyond the end, {size}")

    def _refuse_payload(self, request: Request, start: int, requests: list[Request]) -> int:
        """Read the payload of a refused write away, or give up if it is absurd.

        The answer waits for its end: libnbd does not know a reply to a request that it is still sending.
        """
        if request.length > MAX_SKIP:
            raise ProtocolError(f"a write of {request.length} bytes is too long to be read away")
        self._skip, self._refused = request.length, request
        return self._read_away(start, requests)

    def _receive_in_place(self, request: Request, start: int, requests: list[Request]) -> int:
        """The payload is large and still arriving: let it be received where it belongs."""
        sink = self._place(request)
        if sink is None:
            return self._refuse_payload(request, start, requests)
        here = self._end - start
        sink[:here] = self._scratch[start : self._end]
        request.payload = sink
        request.owned = True
        self.sink, self._sunk, self._receiving = sink, here, request
        return self._end

    # -- the handshake -----------------------------------------------------------------------------------------------

    def _feed(self, position: int) -> int:
        """Give the handshake what it asks for, as long as there is enough; return the position reached."""
        while self._handshake is not None and self._end - position >= self._needs:
            data = bytes(self._scratch[position : position + self._needs])
            position += self._needs
            try:
                self._needs = self._handshake.send(data)
            except StopIteration:
                self._handshake = None
        return position

    def _negotiate(self) -> Generator[int, bytes, None]:
        ours = int(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)
        self.outgoing.append(wire.GREETING.pack(wire.NBDMAGIC, wire.IHAVEOPT, ours))
        (flags,) = wire.CLIENT_FLAGS.unpack((yield wire.CLIENT_FLAGS.size))
        if flags & ~ours:
            raise ProtocolError(f"unknown client flags {flags:#x}")
        self._no_zeroes = bool(flags & HandshakeFlag.NO_ZEROES)
        while self.export is None and not self.finished:
            magic, option, length = wire.OPTION.unpack((yield wire.OPTION.size))
            if magic != wire.IHAVEOPT:
                raise ProtocolError(f"option magic {magic:#018x}, not IHAVEOPT")
            if length > MAX_OPTION:
                yield from self._skip_option(option, length)
                continue
            data = (yield length) if length else b""
            answer = self._OPTIONS.get(option)
            if answer is None:
                self._option_error(option, Rep.ERR_UNSUP, f"option {option} is not served here")
                continue
            try:
                answer(self, option, data)
            except Refused as refused:
                self._option_error(option, refused.reply, refused.message)

    def _skip_option(self, option: int, length: int) -> Generator[int, bytes, None]:
        if length > MAX_SKIP or option == Option.EXPORT_NAME:
            raise ProtocolError(f"option {option} with {length} bytes of data")
        remaining = length
        while remaining:
            remaining -= len((yield min(remaining, wire.MAX_STRING)))
        self._option_error(option, Rep.ERR_TOO_BIG, f"{length} bytes of option data; the maximum is {MAX_OPTION}")

    def _option_reply(self, option: int, reply: int, data: bytes = b"") -> None:
        self.outgoing.append(wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, option, reply, len(data)) + data)

    def _option_error(self, option: int, reply: int, message: str) -> None:
        self._option_reply(option, reply, message.encode()[: wire.MAX_STRING])

    def _export_name(self, _option: int, data: bytes) -> None:
        try:
            export = self._exports.open(_text(data))
        except Refused as refused:
            raise ProtocolError(f"EXPORT_NAME refused: {refused.message}") from refused
        padding = b"" if self._no_zeroes else bytes(wire.EXPORT_NAME_PADDING)
        self.outgoing.append(wire.EXPORT_NAME_REPLY.pack(export.size, self._flags(export)) + padding)
        self._enter(export)

    def _abort(self, option: int, _data: bytes) -> None:
        self._option_reply(option, Rep.ACK)
        self.finished = True

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

    def _structured_reply(self, option: int, data: bytes) -> None:
        _expect_no_data(data)
        self.structured = True
        self._option_reply(option, Rep.ACK)

    def _meta_context(self, option: int, data: bytes) -> None:
        if not self.structured:
            raise Refused(Rep.ERR_INVALID, "metadata contexts need STRUCTURED_REPLY first")
        setting = option == Option.SET_META_CONTEXT
        if setting:
            self._context_of = None  # whatever happens now, an earlier selection is void
        name, queries = _meta_request(data)
        export = self._exports.find(name)
        if wire.BASE_ALLOCATION in queries or (not setting and (not queries or "base:" in queries)):
            self._option_reply(option, Rep.META_CONTEXT, _U32.pack(CONTEXT_ID) + wire.BASE_ALLOCATION.encode())
            if setting:
                self._context_of = export.name
        others = [query for query in queries if not query.startswith("base:")]
        for context in self._exports.contexts(export) if others and not setting else ():
            if context.startswith(tuple(others)):
                self._option_reply(option, Rep.META_CONTEXT, _U32.pack(0) + context.encode())
        self._option_reply(option, Rep.ACK)

    _OPTIONS: dict[int, Callable[[ServerSession, int, bytes], None]] = {  # noqa: RUF012 - a constant table
        Option.EXPORT_NAME: _export_name,
        Option.ABORT: _abort,
        Option.LIST: _list,
        Option.INFO: _info,
        Option.GO: _go,
        Option.STRUCTURED_REPLY: _structured_reply,
        Option.LIST_META_CONTEXT: _meta_context,
        Option.SET_META_CONTEXT: _meta_context,
    }

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
        if self._context_of == export.name:
            allowed[Command.BLOCK_STATUS] = fua | CommandFlag.REQ_ONE
        # Plain numbers: an IntFlag inverts within its known bits only, and is slow.
        self._allowed = {command: int(flags) | export.own_flags for command, flags in allowed.items()}


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
