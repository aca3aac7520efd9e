"""The two sessions of NBD: the server's, to which any client comes, with TLS and without; and the client's, which may
have come to any server.

Their seeds are what the two say to each other in memory.
"""

from __future__ import annotations

import copy
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from bench.fuzz.target import CUT, LONG, MOST_ZEROES, Target, joined, parts
from memcluster.node.nbd import wire
from memcluster.node.nbd.client import MAX_CHUNK, ClientSession, Reply
from memcluster.node.nbd.errors import NBDError, ProtocolError, Refused
from memcluster.node.nbd.negotiation import MAX_OPTIONS, Export
from memcluster.node.nbd.opening import MAX_EXPORTS
from memcluster.node.nbd.replies import ZEROES
from memcluster.node.nbd.server import Request, ServerSession
from memcluster.node.nbd.wire import Chunk, Command, Error, HandshakeFlag, Option, Rep, Status, TransmissionFlag

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

_taken = memoryview(bytearray(1 << 17))
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


# -- the server's --------------------------------------------------------------------------------------------------


def serve(data: bytes) -> None:
    """The first byte says what TLS there is; the others are a client's."""
    mode = data[0] if data else 0
    door = Door(required=bool(mode & 1), full=mode & 6 == 4) if mode & 3 else None
    session = ServerSession(Rooms(), place, _taken, door)
    handshake = bytearray()
    secured = False
    count = 0
    try:
        for part in parts(data[1:]):
            for requests in _receive(session, part):
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


def _receive(session: ServerSession, part: memoryview) -> Iterator[list[Request]]:
    """What a server that reads as much as there is room for makes of it."""
    while part and not session.finished:
        room = session.receive_buffer()
        count = min(len(room), len(part))
        assert count, "no room to receive"
        room[:count] = part[:count]
        part = part[count:]
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


# -- the client's --------------------------------------------------------------------------------------------------

READ = 5000
"""Bytes of a read; a quarter of what is received at a time is less, so it is received in its place."""
_room = memoryview(bytearray(1 << 14))
UNTOUCHED = 0xA5
_unread = bytes([UNTOUCHED]) * READ
REQUESTS = [
    (Command.READ, 1, 4096, READ),
    (Command.READ, 2, 0, 100),
    (Command.READ, 3, 9, 1),
    (Command.WRITE, 4, 7, 20),
    (Command.BLOCK_STATUS, 5, 0, 1 << 16),
    (Command.FLUSH, 6, 0, 0),
    (Command.TRIM, 7, 0, 4096),
]
"""Command, cookie, offset, length of what the client has asked for."""


WANTED = {cookie: (command, offset, length) for command, cookie, offset, length in REQUESTS}


def options_of(mode: int) -> dict[str, Any]:
    """Those of a client's session, by a byte."""
    return {
        "structured": not mode & 1,
        "extended": bool(mode & 2),
        "tls": bool(mode & 4),
        "goal": (Option.GO, Option.GO, Option.INFO, Option.LIST)[mode >> 3 & 3],
        "namespace": "x-memcluster:" if mode & 32 else "",
        "contexts": () if mode & 64 else (wire.BASE_ALLOCATION, wire.OWNER),
    }


def ask(data: bytes) -> None:
    """The first byte says what the client wants; the others are a server's."""
    mode = data[0] if data else 0
    session = ClientSession("x", scratch=_room, room=_untouched, **options_of(mode))
    wanted = dict(WANTED)
    asked = False
    sent = data.count(UNTOUCHED)
    try:
        for part in parts(data[1:]):
            if session.ready and not asked:
                asked = True
                for command, cookie, offset, length in REQUESTS:
                    session.submit(command, cookie, offset, length)
            _hear(session, part, wanted, sent)
        session.receive_eof()
    except NBDError as error:
        assert str(error).isprintable()
    assert session.description.isprintable()
    assert sum(len(name) + len(words) for name, words in session.exports) <= 10 * len(data) + MOST_ZEROES
    assert len(session.exports) <= MAX_EXPORTS
    assert session.missing <= MAX_CHUNK


def _hear(session: ClientSession, part: memoryview, wanted: dict[int, tuple[int, int, int]], sent: int) -> None:
    """What a client that reads as much as there is room for makes of it."""
    while part and not session.finished:
        room = session.receive_buffer()
        count = min(len(room), len(part))
        assert count, "no room to receive"
        room[:count] = part[:count]
        part = part[count:]
        for reply in session.received(count):
            check_reply(session, reply, wanted.pop(reply.cookie), sent)
        if session.securing:
            session.secured()


def _untouched(length: int) -> memoryview:
    return memoryview(bytearray(_unread[:length]))


def check_reply(session: ClientSession, reply: Reply, asked: tuple[int, int, int], sent: int) -> None:
    """It is one to what was asked, once (`asked` was there), and a read that went well has all its bytes, of which
    none is what lay in its place before: of `sent` bytes of that kind it has no more."""
    command, _, length = asked
    assert reply.message.isprintable()
    if reply.error:
        assert reply.data is None
        assert reply.extents is None
    elif command == Command.READ:
        assert reply.data is not None
        assert len(reply.data) == length
        assert bytes(reply.data).count(UNTOUCHED) <= sent, "a read that went well lacks bytes"
    elif command == Command.BLOCK_STATUS:
        assert reply.extents
        assert all(run for run, _ in reply.extents)
    else:
        assert reply.data is None
    assert session.ready


# -- both, behind their handshake ------------------------------------------------------------------------------------

PEERS: list[tuple[ServerSession, ClientSession]] = []
"""Made once and copied for each input: a handshake takes longer than what comes then."""


def take_requests(data: bytes) -> None:
    """The first byte says what was agreed on; the others are a client's requests."""
    session = copy.copy(PEERS[(data[0] if data else 0) % len(PEERS)][0])
    session.outgoing = []
    count = 0
    try:
        for part in parts(data[1:]):
            for requests in _receive(session, part):
                count += len(requests)
                for request in requests:
                    check_request(session, request)
                _answer(session, requests)
    except ProtocolError as error:
        assert str(error).isprintable()
    assert count <= sum(map(len, parts(data[1:]))) // wire.REQUEST.size, "more requests than were sent"


def take_replies(data: bytes) -> None:
    """The first byte says what was agreed on; the others are a server's replies."""
    session = copy.copy(PEERS[(data[0] if data else 0) % len(PEERS)][1])
    session.outgoing, session._awaited = [], {}
    for command, cookie, offset, length in REQUESTS:
        session.submit(command, cookie, offset, length)
    wanted = dict(WANTED)
    sent = data.count(UNTOUCHED)
    try:
        for part in parts(data[1:]):
            _hear(session, part, wanted, sent)
        session.receive_eof()
    except NBDError as error:
        assert str(error).isprintable()
    assert session.missing <= MAX_CHUNK


# -- seeds ---------------------------------------------------------------------------------------------------------


def conversation(**options: Any) -> tuple[list[bytes], list[bytes]]:
    """What a client and a server say to each other, in turns, until the client says goodbye."""
    server = ServerSession(Rooms(), place, memoryview(bytearray(len(_taken))), Door(required=False, full=False))
    client = ClientSession("", **options)
    said: tuple[list[bytes], list[bytes]] = ([], [])
    asked = False
    while True:
        words = b"".join(server.outgoing)
        server.outgoing.clear()
        if words:
            said[1].append(words)
            client.receive_buffer()[: len(words)] = words
            client.received(len(words))
            if client.securing:
                client.secured()
        if client.ready and not asked:
            asked = True
            for command, cookie, offset, length in REQUESTS:
                payload = [bytes(length)] if command == Command.WRITE else []
                client.submit(command, cookie, offset, length, payload=payload)
        elif asked:
            client.disconnect()
        words = b"".join(client.outgoing)
        client.outgoing.clear()
        if not words:
            return said
        said[0].append(words)
        for requests in _receive(server, memoryview(words)):
            for request in requests:
                if request.error:
                    server.reply_error(request, request.error, request.message)
                elif request.command == Command.READ:
                    server.reply_data(request, [bytes(request.length)])
                elif request.command == Command.BLOCK_STATUS and server.terms.contexts:
                    server.reply_extents(request, {one: [(request.length, 0)] for one in server.terms.contexts})
                elif request.command == Command.BLOCK_STATUS:
                    server.reply_error(request, Error.EINVAL, "no context was chosen")
                else:
                    server.reply(request)
        if server.finished and not server.outgoing:
            return said


def peers(export: str, **options: Any) -> tuple[ServerSession, ClientSession]:
    """A server and a client that have come to an agreement about an export."""
    server = ServerSession(Rooms(), place, _taken)
    client = ClientSession(export, scratch=_room, room=_untouched, **options)
    while not client.ready:
        words = b"".join(server.outgoing)
        client.receive_buffer()[: len(words)] = words
        client.received(len(words))
        words = b"".join(client.outgoing)
        server.outgoing.clear()
        client.outgoing.clear()
        for _ in _receive(server, memoryview(words)):
            pass
    return server, client


PEERS += [
    peers("", structured=False, contexts=()),
    peers(""),
    peers("", extended=True),
    peers("readonly"),
    peers("cluster.json", structured=False, contexts=()),
]
MODES = (0, 1, 2, 4, 6, 16, 24, 28, 32, 64, 66)


def _seeds() -> tuple[list[bytes], ...]:
    clients, servers, requests, replies = [], [], [], []
    for mode in MODES:
        said = conversation(**options_of(mode))
        clients += [bytes([tls]) + joined(*said[0]) for tls in ((2, 1) if mode & 4 else (0, 1))]
        servers.append(bytes([mode]) + joined(*said[1]))
        if len(said[0]) > 3:
            which = bytes([2 if mode & 2 else 0 if mode & 1 else 1])
            requests += [which + joined(*said[0][-2:]), which + CUT.join(_each(said[0][-2], which[0]))]
            replies.append(which + said[1][-1])
    flags, go = wire.CLIENT_FLAGS.pack(3), wire.OPTION.pack(wire.IHAVEOPT, Option.GO, 6) + bytes(6)
    write = wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, Command.WRITE, 9, 0, 40_000)
    clients += [
        b"\0" + joined(flags + go + write, LONG + (40_000).to_bytes(2, "big") + write[:16]),
        b"\0" + flags + wire.OPTION.pack(wire.IHAVEOPT, Option.EXPORT_NAME, 8) + b"readonly" + write,
        b"\1"
        + flags
        + wire.OPTION.pack(wire.IHAVEOPT, Option.GO, 6 + len(SPARED))
        + struct.pack(">I", len(SPARED))
        + SPARED.encode()
        + b"\0\0"
        + write,
        b"\1" + flags + wire.OPTION.pack(wire.IHAVEOPT, Option.STARTTLS, 0) + go,
    ]
    opened = joined(*conversation(structured=False, contexts=())[1][:2])
    part = wire.CHUNK_DATA.pack(wire.CHUNK_MAGIC, 0, Chunk.OFFSET_DATA, 1, 8 + 2500, 4096)
    rest = wire.CHUNK_DATA.pack(wire.CHUNK_MAGIC, 0, Chunk.OFFSET_DATA, 1, 8 + 2500, 4096 + 2500)
    last = wire.CHUNK.pack(wire.CHUNK_MAGIC, 1, Chunk.NONE, 1, 0)
    structured = joined(*conversation()[1][:2])
    zeroes = LONG + (2500).to_bytes(2, "big")
    servers += [
        b"\1" + joined(opened, wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, 0, 1), zeroes, zeroes),
        b"\0" + joined(structured, part, zeroes, rest, zeroes, last),
        b"\0" + joined(structured, rest, zeroes, last),
        b"\0" + joined(structured, rest, zeroes, part, zeroes, last),
        b"\0" + joined(structured, _error(3, "no"), _hole(2)),
    ]
    replies += [
        b"\1" + joined(part, zeroes, rest, zeroes, last),
        b"\1" + joined(rest, zeroes, last),
        b"\1" + joined(rest, zeroes, part, zeroes, last),
        b"\1" + _error(3, "no") + _hole(2),
        b"\0" + joined(wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, 0, 1), zeroes, zeroes),
    ]
    requests += [b"\0" + joined(write, LONG + (40_000).to_bytes(2, "big") + write), b"\3" + write]
    return clients, servers, requests, replies


def _each(said: bytes, mode: int) -> list[bytes]:
    """Requests, cut in their middle."""
    size = wire.EXTENDED_REQUEST.size if mode == 2 else wire.REQUEST.size
    return [said[at : at + size] for at in range(size // 2, len(said), size)]


def _error(cookie: int, words: str) -> bytes:
    body = wire.ERROR.pack(Error.EIO, len(words)) + words.encode()
    return wire.CHUNK.pack(wire.CHUNK_MAGIC, 1, Chunk.ERROR, cookie, len(body)) + body


def _hole(cookie: int) -> bytes:
    return wire.CHUNK.pack(wire.CHUNK_MAGIC, 1, Chunk.OFFSET_HOLE, cookie, wire.HOLE.size) + wire.HOLE.pack(0, 100)


MAGICS = [struct.pack(">Q", number) for number in (wire.NBDMAGIC, wire.IHAVEOPT, wire.OPTION_REPLY_MAGIC)] + [
    struct.pack(">I", number)
    for number in (
        wire.REQUEST_MAGIC,
        wire.SIMPLE_REPLY_MAGIC,
        wire.CHUNK_MAGIC,
        wire.EXTENDED_REQUEST_MAGIC,
        wire.EXTENDED_CHUNK_MAGIC,
        int(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES),
    )
]
OPTIONS = [wire.OPTION.pack(wire.IHAVEOPT, option, 0) for option in Option]
NAMES = [text.encode() for text in ("readonly", "cluster.json", SPARED, wire.BASE_ALLOCATION, wire.OWNER, "base:")]
_clients, _servers, _requests, _replies = _seeds()
TARGETS = (
    Target(
        "server-session",
        "a client's bytes, from the greeting on, with and without STARTTLS",
        serve,
        _clients,
        [CUT, LONG, *MAGICS, *OPTIONS, *NAMES],
        share=20,
    ),
    Target(
        "client-session",
        "a server's bytes, from the greeting on, with and without STARTTLS",
        ask,
        _servers,
        [CUT, LONG, *MAGICS, *NAMES],
        share=20,
    ),
    Target(
        "requests",
        "a client's requests, behind the handshake, with simple and extended headers",
        take_requests,
        _requests,
        [CUT, LONG, *MAGICS],
        share=45,
    ),
    Target(
        "replies",
        "a server's replies, behind the handshake, simple, structured and extended",
        take_replies,
        _replies,
        [CUT, LONG, *MAGICS],
        share=30,
    ),
)
