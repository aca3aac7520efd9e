"""The server's session of NBD, to which any client comes, with TLS and without."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from bench.fuzz.target import parts, poured
from memcluster.node.nbd import wire
from memcluster.node.nbd.errors import ProtocolError, Refused
from memcluster.node.nbd.negotiation import MAX_OPTIONS, Export
from memcluster.node.nbd.replies import ZEROES
from memcluster.node.nbd.server import Request, ServerSession
from memcluster.node.nbd.wire import Command, Error, Option, Rep, Status, TransmissionFlag

SIZE = 1 << 20
BUDGET = 1 << 16
"""Of a turn: small, so that requests are parked."""
FLAGS = (
    TransmissionFlag.HAS_FLAGS
    | TransmissionFlag.SEND_FLUSH
    | TransmissionFlag.SEND_FUA
    | TransmissionFlag.SEND_TRIM
    | TransmissionFlag.SEND_WRITE_ZEROES
    | TransmissionFlag.SEND_CACHE
)
SPARED = "opened without TLS by who knows its name"
EXPORTS = (
    Export("", SIZE, FLAGS, "the memory"),
    Export("readonly", SIZE, FLAGS | TransmissionFlag.READ_ONLY),
    Export("cluster.json", 500, TransmissionFlag.HAS_FLAGS | TransmissionFlag.READ_ONLY, contexts=()),
    Export(SPARED, SIZE, TransmissionFlag.HAS_FLAGS, listed=False),
)
WRITES = (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES)
OPTION_BYTES = 6000
"""The answer to one option, at most."""

TAKEN = memoryview(bytearray(1 << 17))
_kept = memoryview(bytearray(SIZE))


class Rooms:
    """The Exports of a session."""

    def names(self) -> Sequence[Export]:
        return [export for export in EXPORTS if export.listed]

    def find(self, name: str) -> Export:
        for export in EXPORTS:
            if export.name == name:
                return export
        raise Refused(Rep.ERR_UNKNOWN, f"there is no export {name!r} here")

    def contexts(self, _export: Export) -> Sequence[str]:
        return ("x-memcluster:part/1",)

    open = find


class Door:
    """The Security of a session."""

    def __init__(self, required: bool, full: bool) -> None:
        self.required = required
        self.full = full
        self.begun = False

    def begin(self) -> None:
        if self.full:
            raise Refused(Rep.ERR_POLICY, "too many shake hands already; try again")
        assert not self.begun, "TLS begins twice"
        self.begun = True

    def spares(self, name: str) -> bool:
        return name == SPARED

    def turn_away(self) -> None:
        pass


def serve(data: bytes) -> None:
    """The first byte says what TLS there is; the others are a client's."""
    mode = data[0] if data else 0
    door = Door(required=bool(mode & 1), full=mode & 6 == 4) if mode & 3 else None
    session = ServerSession(Rooms(), place, TAKEN, door)
    handshake = bytearray()
    secured = False
    count = 0
    try:
        for part in parts(data[1:]):
            for requests in receive(session, part):
                check_tls(session, door)
                if door is not None and door.begun and not secured:
                    secured = True
                    check_begun(session)
                count += len(requests)
                for request in requests:
                    check_request(session, request)
                handshake += _answer(session, requests)
    except ProtocolError as error:
        assert str(error).isprintable()
        check_tls(session, door)
    handshake += b"".join(session.outgoing)
    check_handshake(bytes(handshake), session, door)
    assert count <= sum(map(len, parts(data[1:]))) // wire.REQUEST.size, "more requests than were sent"


def receive(session: ServerSession, part: memoryview) -> Iterator[list[Request]]:
    """What a server that reads as much as there is room for makes of it."""
    for count in poured(session, part):
        yield session.received(count, BUDGET)
        while session.waiting:
            yield session.resume(BUDGET)


def place(request: Request, _first: bool) -> memoryview | None:
    assert request.command == Command.WRITE
    assert not request.error
    assert request.offset + request.length <= SIZE, "room is asked for bytes beyond the end"
    return _kept[: request.length]


def check_tls(session: ServerSession, door: Door | None) -> None:
    """Nobody is in who had to have TLS and has it not."""
    if door is not None and door.required and session.export is not None:
        assert door.begun or session.export.name == SPARED, "let in without TLS"


def check_begun(session: ServerSession) -> None:
    """TLS begins: nothing that came before, in the same receive even, is taken for said through it."""
    assert bytes(session.outgoing[-1]) == _BEGUN, "something behind STARTTLS was answered"
    assert not session._rest, "plain bytes behind STARTTLS are kept"


def check_request(session: ServerSession, request: Request) -> None:
    """What is to be carried out may be; what is refused says why."""
    export = session.export
    assert export is not None, "a request before an export"
    if request.error:
        assert request.error in Error.__members__.values()
        assert request.message
        assert request.message.isprintable()
        return
    assert request.offset + request.length <= export.size, "beyond the end"
    assert request.command in Command.__members__.values()
    assert request.command != Command.DISC
    if export.flags & TransmissionFlag.READ_ONLY:
        assert request.command not in WRITES, "a write to what is read-only"
    assert (request.payload is not None) == (request.command == Command.WRITE)
    if request.payload is not None:
        assert len(request.payload) == request.length
        assert request.length <= wire.MAX_PAYLOAD
    elif request.command in (Command.READ, Command.BLOCK_STATUS):
        assert request.length or request.command == Command.READ


def _answer(session: ServerSession, requests: list[Request]) -> bytes:
    """Answer them all; returns what was said in the handshake, and holds the rest against its own lengths."""
    if session.export is None or not requests:
        said = b"".join(session.outgoing)
        session.outgoing.clear()
        return said
    said = b"".join(session.outgoing)
    session.outgoing.clear()
    for request in requests:
        if request.error:
            session.reply_error(request, request.error, request.message)
        elif request.command == Command.READ and request.length:
            half = request.length // 2
            session.reply_data(request, [ZEROES[:half], _kept[half : request.length]])
        elif request.command == Command.BLOCK_STATUS:
            told = {context: [(request.length, int(Status.DATA))] for context in session.terms.contexts}
            session.reply_extents(request, told or {1: [(request.length, 0)]})
        else:
            session.reply(request)
        assert session.outgoing, "no answer"
        session.outgoing.clear()
    return said


def check_handshake(said: bytes, session: ServerSession, door: Door | None) -> None:
    """It is NBD to the last byte, and so much and no more; without TLS, where that is required, there is no answer but
    to STARTTLS and ABORT; and what was agreed on before TLS does not hold behind it."""
    assert wire.GREETING.unpack_from(said) == (wire.NBDMAGIC, wire.IHAVEOPT, 3)
    at = wire.GREETING.size
    assert len(said) <= at + MAX_OPTIONS * OPTION_BYTES, "more is said than is asked"
    secured = agreed = extended = False
    while at < len(said):
        if said.startswith(_OPTION_REPLY, at):
            _, option, kind, length = wire.OPTION_REPLY.unpack_from(said, at)
            at += wire.OPTION_REPLY.size + length
            assert kind in Rep.__members__.values()
            if kind & wire.REP_ERROR:
                said[at - length : at].decode()
            if door is not None and door.required and not secured:
                spared = option == Option.GO and session.export is not None and session.export.name == SPARED
                mute = kind == Rep.ERR_TLS_REQD or option in (Option.STARTTLS, Option.ABORT)
                assert mute or spared, f"option {option} is answered {kind:#x} without TLS"
            if (option, kind) == (Option.STARTTLS, Rep.ACK):
                assert door is not None, "TLS where there is none"
                assert not secured
                secured, agreed, extended = True, False, False
            agreed |= kind == Rep.ACK and option in (Option.STRUCTURED_REPLY, Option.EXTENDED_HEADERS)
            extended |= kind == Rep.ACK and option == Option.EXTENDED_HEADERS
        else:
            size, flags = wire.EXPORT_NAME_REPLY.unpack_from(said, at)
            at += wire.EXPORT_NAME_REPLY.size
            assert session.export is not None
            assert size == session.export.size
            assert flags & TransmissionFlag.HAS_FLAGS
            assert len(said) - at in (0, wire.EXPORT_NAME_PADDING)
            at = len(said)
    assert at == len(said), "an answer ends before its end"
    assert secured == (door is not None and door.begun)
    if session.export is not None:
        assert (session.structured, session.extended) == (agreed, extended), "other terms than were agreed on"


_OPTION_REPLY = struct.pack(">Q", wire.OPTION_REPLY_MAGIC)
_BEGUN = wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, Option.STARTTLS, Rep.ACK, 0)


# -- behind the handshake --------------------------------------------------------------------------------------------

OPENED: list[ServerSession] = []
"""Behind their handshake: made once and copied for each input, as that takes longer than what comes then."""


def again(opened: ServerSession) -> ServerSession:
    """Another one in the same state. A class that is compiled has no dictionary, and no copy."""
    session = ServerSession(Rooms(), place, TAKEN)
    for name in getattr(ServerSession, "__mypyc_attrs__", ()) or vars(opened):
        setattr(session, name, getattr(opened, name))
    session.outgoing = []
    return session


def take_requests(data: bytes) -> None:
    """The first byte says what was agreed on; the others are a client's requests."""
    session = again(OPENED[(data[0] if data else 0) % len(OPENED)])
    count = 0
    try:
        for part in parts(data[1:]):
            for requests in receive(session, part):
                count += len(requests)
                for request in requests:
                    check_request(session, request)
                _answer(session, requests)
    except ProtocolError as error:
        assert str(error).isprintable()
    assert count <= sum(map(len, parts(data[1:]))) // wire.REQUEST.size, "more requests than were sent"
