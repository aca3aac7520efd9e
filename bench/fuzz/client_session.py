"""The client's session of NBD, which may have come to any server."""

from __future__ import annotations

import copy
from typing import Any

from bench.fuzz.target import MOST_ZEROES, parts, poured
from memcluster.node.nbd import wire
from memcluster.node.nbd.client import MAX_CHUNK, ClientSession, Reply
from memcluster.node.nbd.errors import NBDError
from memcluster.node.nbd.opening import MAX_EXPORTS
from memcluster.node.nbd.wire import Command, Option

READ = 5000
"""Bytes of a read; a quarter of what is received at a time is less, so it is received in its place."""
ROOM = memoryview(bytearray(1 << 14))
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
    session = ClientSession("x", scratch=ROOM, room=untouched, **options_of(mode))
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
    for count in poured(session, part):
        for reply in session.received(count):
            check_reply(session, reply, wanted.pop(reply.cookie), sent)
        if session.securing:
            session.secured()


def untouched(length: int) -> memoryview:
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


# -- behind the handshake --------------------------------------------------------------------------------------------

OPENED: list[ClientSession] = []
"""Behind their handshake: made once and copied for each input, as that takes longer than what comes then."""


def take_replies(data: bytes) -> None:
    """The first byte says what was agreed on; the others are a server's replies."""
    session = copy.copy(OPENED[(data[0] if data else 0) % len(OPENED)])
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
