"""The two sessions of NBD as targets. Their seeds are what the two say to each other in memory."""

from __future__ import annotations

import struct
from typing import Any

from bench.fuzz import client_session, server_session
from bench.fuzz.client_session import REQUESTS, ROOM, ask, options_of, take_replies, untouched
from bench.fuzz.server_session import SPARED, TAKEN, Door, Rooms, place, receive, serve, take_requests
from bench.fuzz.target import CUT, LONG, Target, joined
from memcluster.node.nbd import wire
from memcluster.node.nbd.client import ClientSession
from memcluster.node.nbd.server import ServerSession
from memcluster.node.nbd.wire import Chunk, Command, Error, HandshakeFlag, Option


def conversation(**options: Any) -> tuple[list[bytes], list[bytes]]:
    """What a client and a server say to each other, in turns, until the client says goodbye."""
    server = ServerSession(Rooms(), place, memoryview(bytearray(len(TAKEN))), Door(required=False, full=False))
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
        for requests in receive(server, memoryview(words)):
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
    server = ServerSession(Rooms(), place, TAKEN)
    client = ClientSession(export, scratch=ROOM, room=untouched, **options)
    while not client.ready:
        words = b"".join(server.outgoing)
        client.receive_buffer()[: len(words)] = words
        client.received(len(words))
        words = b"".join(client.outgoing)
        server.outgoing.clear()
        client.outgoing.clear()
        for _ in receive(server, memoryview(words)):
            pass
    return server, client


for _export, _options in (
    ("", {"structured": False, "contexts": ()}),
    ("", {}),
    ("", {"extended": True}),
    ("readonly", {}),
    ("cluster.json", {"structured": False, "contexts": ()}),
):
    _server, _client = peers(_export, **_options)
    server_session.OPENED.append(_server)
    client_session.OPENED.append(_client)
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
        share=17,
    ),
    Target(
        "client-session",
        "a server's bytes, from the greeting on, with and without STARTTLS",
        ask,
        _servers,
        [CUT, LONG, *MAGICS, *NAMES],
        share=10,
    ),
    Target(
        "requests",
        "a client's requests, behind the handshake, with simple and extended headers",
        take_requests,
        _requests,
        [CUT, LONG, *MAGICS],
        share=44,
    ),
    Target(
        "replies",
        "a server's replies, behind the handshake, simple, structured and extended",
        take_replies,
        _replies,
        [CUT, LONG, *MAGICS],
        share=15,
    ),
)
