"""The server's side of one NBD connection, without I/O: bytes in, requests out, replies to bytes.

It begins with the handshake (see negotiation.py). What follows is the data path: one call parses all requests that a
receive brought, and nothing is copied but what must outlive the receive buffer. It knows no sockets, no time and no
memory: it asks `place` where the payload of a large write shall be received, and that is all.

Order of calls: `receive_buffer` says where the next bytes belong, `received` takes them and returns the requests they
complete, the `reply` methods append to `outgoing`. A request whose `error` is set was refused by the protocol and
only waits to be answered. The receive buffer may be shared by all sessions of a loop: a payload that lies in it (one
that is not `owned`) is gone when the next session receives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from memcluster.node.nbd import wire
from memcluster.node.nbd.buffer import fresh_buffer
from memcluster.node.nbd.errors import ProtocolError
from memcluster.node.nbd.negotiation import MAX_SKIP, Export, Exports, Negotiation, Security
from memcluster.node.nbd.replies import Asked, Replies
from memcluster.node.nbd.wire import Command, CommandFlag, Error, TransmissionFlag

HEAD: Final = 1 << 8
"""Bytes received at first behind a payload that was received in its place: the next is most likely as large, and what
of it lies in the receive buffer has to be copied out (up to a quarter of 1 MiB, 70 us)."""
REQUEST_COST: Final = 1024
"""Bytes of a budget that a request takes up beside its data: bounds how many tiny ones are dealt with at once."""
SYNC_COST: Final = 1 << 16
"""The same of one that may have to wait for a disk."""
STATUS_SHIFT: Final = 4
CLEAR_SHIFT: Final = 8
"""What a byte of a BLOCK_STATUS, and of a TRIM or WRITE_ZEROES, costs: a sixteenth and a 256th of one that is carried,
as a page has an extent of its own at worst, and is given back at once. Where room is kept (NO_HOLE): as one carried."""

# Plain numbers and bound methods for the data path: comparing with a member of an enum costs 90 ns (Python 3.11), of
# which there were five in each request.
_READ: Final = int(Command.READ)
_WRITE: Final = int(Command.WRITE)
_DISC: Final = int(Command.DISC)
_FLUSH: Final = int(Command.FLUSH)
_BLOCK_STATUS: Final = int(Command.BLOCK_STATUS)
_FUA: Final = int(CommandFlag.FUA)
_NO_HOLE: Final = int(CommandFlag.NO_HOLE)
_PAYLOAD_LEN: Final = int(CommandFlag.PAYLOAD_LEN)
_COMPACT: Final = wire.REQUEST_MAGIC, wire.REQUEST.size, wire.REQUEST.unpack_from
_EXTENDED: Final = wire.EXTENDED_REQUEST_MAGIC, wire.EXTENDED_REQUEST.size, wire.EXTENDED_REQUEST.unpack_from
_MAX_PAYLOAD: Final = wire.MAX_PAYLOAD
_NOWHERE: Final = memoryview(b"")


def cost_of(command: int, flags: int, length: int) -> int:
    """What a request takes of a turn's budget beside REQUEST_COST, in bytes that are carried."""
    if command <= _WRITE or flags & _NO_HOLE:
        return length
    if command == _FLUSH:
        return SYNC_COST
    return length >> (STATUS_SHIFT if command == _BLOCK_STATUS else CLEAR_SHIFT)


class Request(Asked):
    """One request. Plain slots: one is made for each of 100,000 a second.

    `error` is 0 for a request that keeps to the protocol; else there is a `message`. `owned` means that `payload` is
    not in the receive buffer but where `place` said; only then there are the two others. Who says where sets `placed`
    if the bytes are to stay there, and `at` if it is memory that others have, too: the place in that. It is -1 for all
    other memory.
    """

    __slots__ = ("at", "error", "message", "owned", "payload", "placed")

    message: str
    placed: bool
    at: int

    def __init__(self, command: int, flags: int, cookie: int, offset: int, length: int) -> None:
        self.command = command
        self.flags = flags
        self.cookie = cookie
        self.offset = offset
        self.length = length
        self.payload: memoryview | None = None
        self.owned = False
        self.error = 0

    def refuse(self, error: int, message: str) -> None:
        """The request is to be answered with this error and not carried out."""
        self.error = error
        self.message = message

    def __repr__(self) -> str:
        name = Command(self.command).name if self.command in Command.__members__.values() else self.command
        return f"<Request {name} {self.offset:#x} +{self.length} cookie {self.cookie:#x}>"


class ServerSession(Replies):
    """The protocol's state for one client.

    `place(request, first)` is asked for the memory that shall receive a WRITE's payload which is not yet complete in
    the receive buffer; it returns `request.length` bytes, or None after `request.refuse(…)`. `first` is false if other
    requests that came with it are not served yet.
    """

    def __init__(
        self,
        exports: Exports,
        place: Callable[[Request, bool], memoryview | None],
        scratch: memoryview | None = None,
        security: Security | None = None,
    ) -> None:
        super().__init__()
        self.export: Export | None = None
        """Set once the client is in the transmission phase."""
        self.finished = False
        """The client said ABORT or DISC: nothing more is read; what is in flight is still answered."""
        self.waiting = False
        """Requests, or options, are parked for lack of budget: `resume` goes on with them."""
        self.held = False
        """Requests are parked until it is false again, and `resume` is called."""
        self._place = place
        self._scratch = fresh_buffer() if scratch is None else scratch
        self._rest = b""  # received, not yet parsed, parked outside the shared buffer
        self._end = 0  # bytes of the receive buffer in use
        self.receiving: Request | None = None
        """The WRITE whose payload is being received in its place."""
        self.missing = 0
        """Bytes of it that are still to come."""
        self._sink = _NOWHERE  # where they belong
        self._behind_sink = False
        self._skip = 0  # bytes of a refused payload still to be read away
        self._refused: Request | None = None  # whose payload that is; answered when it has been read away
        self._allowed: dict[int, int] = {}  # command -> the flags it may carry on this export
        self._plain = _READ  # and those up to this one, READ and WRITE, with none need no other look
        self._header = _COMPACT
        self._negotiation: Negotiation | None = Negotiation(exports, self.outgoing, security)

    def __repr__(self) -> str:
        phase = "handshake" if self.export is None else f"export {self.export.name!r}"
        return f"<ServerSession {phase}{' finished' if self.finished else ''}>"

    def close(self) -> None:
        """Let go of what it holds: the client is gone."""
        self.receiving = self._refused = self._negotiation = None
        self.missing, self._sink = 0, _NOWHERE
        self._rest = b""
        self.waiting = False
        self._place = _nowhere
        self.outgoing.clear()

    # -- receiving ---------------------------------------------------------------------------------------------------

    def receive_buffer(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        if self.missing:
            return self._sink
        if self._rest:
            self._load()
        else:
            self._end = 0
        if self._behind_sink:
            self._behind_sink = False
            return self._scratch[self._end : self._end + HEAD]
        return self._scratch[self._end :] if self._end else self._scratch

    def received(self, count: int, budget: int) -> list[Request]:
        """Take `count` bytes that were put into `receive_buffer()`; return the requests that are complete.

        Stops when they are worth more than `budget` bytes: `waiting` is then true, and `resume` goes on. Raises
        ProtocolError when the connection cannot go on.
        """
        if self.missing:
            return self._receive_in_place(count)
        self._end += count
        self.waiting = False
        requests: list[Request] = []
        position = self._read_away(0, requests) if self._refused else 0
        if self._negotiation is not None:
            position = self._negotiate(self._negotiation, position)
            self.waiting = self._negotiation is not None and self._negotiation.waiting
        if self.held:
            self.waiting = True
        elif self._negotiation is None and not self.finished:
            position = self._parse_requests(position, budget, requests)
        self._rest = bytes(self._scratch[position : self._end]) if position < self._end and not self.finished else b""
        return requests

    def resume(self, budget: int) -> list[Request]:
        """The requests that an earlier call left for lack of budget."""
        if not self.waiting:
            return []
        self._load()
        return self.received(0, budget)

    def _load(self) -> None:
        rest = self._rest
        self._end = len(rest)
        self._scratch[: len(rest)] = rest

    def _negotiate(self, negotiation: Negotiation, position: int) -> int:
        """Go on with the handshake; once it is over, keep what was agreed on. Returns the position reached."""
        position = negotiation.take(self._scratch, position, self._end)
        if negotiation.over:
            self.export, self.finished = negotiation.export, negotiation.aborted
            self._allowed = negotiation.allowed
            self._plain = _WRITE if _WRITE in self._allowed else _READ
            self.agree(negotiation.terms)
            if self.extended:
                self._header = _EXTENDED
            self._negotiation = None
        return position

    def _read_away(self, position: int, requests: list[Request]) -> int:
        count = min(self._skip, self._end - position)
        self._skip -= count
        if self._refused and not self._skip:
            requests.append(self._refused)
            self._refused = None
        return position + count

    def _parse_requests(self, position: int, budget: int, requests: list[Request]) -> int:
        """Append the requests that lie in the receive buffer from `position` on; return where it stopped."""
        scratch, end, plain = self._scratch, self._end, self._plain
        assert self.export is not None
        size = self.export.size
        magic, header, unpack = self._header
        extended = self.extended
        while end - position >= header and budget > 0:
            fields: tuple[int, int, int, int, int, int] = unpack(scratch, position)
            said, flags, command, cookie, offset, length = fields
            if said != magic:
                raise ProtocolError(f"request magic {said:#010x}, not {magic:#010x}")
            position += header
            request = Request(command, flags, cookie, offset, length)
            if flags or command > plain or length > _MAX_PAYLOAD or offset + length > size:
                if command == _DISC:
                    self.finished = True
                    return end
                cost = self._examine(request, size)
                if request.error and (command == _WRITE or (extended and flags & _PAYLOAD_LEN)):
                    position = self._refuse_payload(request, position, requests)
                    budget -= REQUEST_COST
                    continue
            else:
                cost = length
            if command == _WRITE:
                after = position + length
                if after > end:
                    if length <= len(scratch) >> 2:
                        return position - header  # small: wait for the rest of it here
                    return self._begin_in_place(request, position, requests)
                request.payload = scratch[position:after]
                position = after
            budget -= cost + REQUEST_COST
            requests.append(request)
        self.waiting = end - position >= header
        return position

    def _examine(self, request: Request, size: int) -> int:
        """Refuse a request that is out of the ordinary, if need be, and say why; what it costs if it is carried out."""
        command = request.command
        if self.extended and request.flags & _PAYLOAD_LEN:
            if command != _WRITE:
                request.refuse(Error.EINVAL, f"command {command} takes no payload")
                return 0
            request.flags &= ~_PAYLOAD_LEN  # qemu 11 forgets it: a WRITE has a payload without, too
        self._check(request, size)
        if command <= _WRITE and request.length > _MAX_PAYLOAD:
            request.refuse(Error.EINVAL, f"{request.length} bytes in one request; the maximum is {_MAX_PAYLOAD}")
        elif command == _BLOCK_STATUS and not request.length:
            request.refuse(Error.EINVAL, "BLOCK_STATUS of no bytes")
        if request.error:
            return 0
        return cost_of(command, request.flags, request.length) + (SYNC_COST if request.flags & _FUA else 0)

    def _check(self, request: Request, size: int) -> None:
        """Refuse a request that is not allowed, and say why."""
        command, flags, allowed = request.command, request.flags, self._allowed
        beyond = request.offset + request.length > size
        if command == _DISC or (command in allowed and not flags & ~allowed[command] and not beyond):
            return  # a DISC is one whatever its other fields are
        name = Command(command).name if command in Command.__members__.values() else f"command {command}"
        assert self.export is not None
        if command not in allowed:
            writes = command in (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES)
            if writes and self.export.flags & TransmissionFlag.READ_ONLY:
                request.refuse(Error.EPERM, f"the export {self.export.name!r} is read-only")
            else:
                request.refuse(Error.EINVAL, f"{name} is not served here")
        elif flags & ~allowed[command]:
            request.refuse(Error.EINVAL, f"flags {flags:#x} are not allowed with {name}")
        else:
            error = Error.ENOSPC if command in (Command.WRITE, Command.WRITE_ZEROES) else Error.EINVAL
            request.refuse(error, f"{name} of {request.length} bytes at {request.offset} is beyond the end, {size}")

    def _refuse_payload(self, request: Request, start: int, requests: list[Request]) -> int:
        """Read the payload of a refused write away, or give up if it is absurd.

        The answer waits for its end: libnbd does not know a reply to a request that it is still sending.
        """
        if request.length > MAX_SKIP:
            raise ProtocolError(f"a payload of {request.length} bytes is too long to be read away")
        self._skip, self._refused = request.length, request
        return self._read_away(start, requests)

    def _begin_in_place(self, request: Request, start: int, requests: list[Request]) -> int:
        """The payload is large and still arriving: let it be received where it belongs."""
        request.placed, request.at = False, -1
        sink = self._place(request, not requests)
        if sink is None:
            return self._refuse_payload(request, start, requests)
        here = self._end - start
        sink[:here] = self._scratch[start : self._end]
        request.payload = sink
        request.owned = True
        self.receiving, self.missing, self._sink = request, request.length - here, sink[here:]
        return self._end

    def move(self, sink: memoryview) -> None:
        """Receive the rest of the payload elsewhere, with what there is of it: others may look at its place now."""
        assert self.receiving is not None
        assert self.receiving.payload is not None
        here = len(sink) - self.missing
        sink[:here] = self.receiving.payload[:here]
        self.receiving.payload, self.receiving.placed, self._sink = sink, False, sink[here:]

    def _receive_in_place(self, count: int) -> list[Request]:
        self.missing -= count
        if self.missing:
            self._sink = self._sink[count:]
            return []
        assert self.receiving is not None
        request, self.receiving, self._sink = self.receiving, None, _NOWHERE
        self._behind_sink = True
        return [request]


def _nowhere(_request: Request, _first: bool) -> memoryview | None:
    return None
