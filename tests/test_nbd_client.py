"""The client's session: the handshake, replies in every shape, and servers that cannot be trusted."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcluster.node.nbd import wire
from memcluster.node.nbd.client import MAX_CHUNK, ClientSession
from memcluster.node.nbd.errors import NBDError, ProtocolError, Refused
from memcluster.node.nbd.negotiation import Export
from memcluster.node.nbd.opening import MAX_OPTION_REPLY
from memcluster.node.nbd.server import ServerSession
from memcluster.node.nbd.wire import (
    BASE_ALLOCATION,
    Chunk,
    Command,
    Error,
    HandshakeFlag,
    Info,
    Option,
    Rep,
    TransmissionFlag,
)
from memcluster.node.nbd.zeroes import ZEROES

SIZE = 1 << 20
FLAGS = TransmissionFlag.HAS_FLAGS | TransmissionFlag.SEND_FLUSH
CONTEXT = 1


# -- what a server says --------------------------------------------------------------------------------------------


def greeting(flags: int = 3) -> bytes:
    return wire.GREETING.pack(wire.NBDMAGIC, wire.IHAVEOPT, flags)


def answer(option: int, kind: int, data: bytes = b"") -> bytes:
    return wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, option, kind, len(data)) + data


EXPORT = struct.pack(">HQH", Info.EXPORT, SIZE, FLAGS)
STRUCTURED = answer(Option.STRUCTURED_REPLY, Rep.ACK)
CONTEXTS = answer(Option.SET_META_CONTEXT, Rep.META_CONTEXT, struct.pack(">I", CONTEXT) + BASE_ALLOCATION.encode())
CONTEXTS += answer(Option.SET_META_CONTEXT, Rep.ACK)
GO = (
    answer(Option.GO, Rep.INFO, EXPORT)
    + answer(Option.GO, Rep.INFO, struct.pack(">HIII", Info.BLOCK_SIZE, 1, 4096, 65536))
    + answer(Option.GO, Rep.INFO, struct.pack(">H", Info.DESCRIPTION) + b"a memory")
    + answer(Option.GO, Rep.ACK)
)
WELCOME = greeting() + STRUCTURED + CONTEXTS + GO
PLAIN = greeting() + answer(Option.GO, Rep.INFO, EXPORT) + answer(Option.GO, Rep.ACK)


def simple(cookie: int, error: int = 0, data: bytes = b"") -> bytes:
    return wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, error, cookie) + data


def chunk(kind: int, cookie: int, body: bytes = b"", done: bool = True) -> bytes:
    return wire.CHUNK.pack(wire.CHUNK_MAGIC, int(done), kind, cookie, len(body)) + body


def data_chunk(cookie: int, offset: int, data: bytes, done: bool = True) -> bytes:
    return chunk(Chunk.OFFSET_DATA, cookie, struct.pack(">Q", offset) + data, done)


def hole(cookie: int, offset: int, length: int, done: bool = True) -> bytes:
    return chunk(Chunk.OFFSET_HOLE, cookie, wire.HOLE.pack(offset, length), done)


def status(cookie: int, *extents: tuple[int, int], context: int = CONTEXT, done: bool = True) -> bytes:
    body = struct.pack(">I", context) + b"".join(wire.EXTENT.pack(*extent) for extent in extents)
    return chunk(Chunk.BLOCK_STATUS, cookie, body, done)


def error_chunk(cookie: int, error: int, text: str = "", kind: int = Chunk.ERROR, done: bool = True) -> bytes:
    tail = bytes(8) if kind == Chunk.ERROR_OFFSET else b""
    return chunk(kind, cookie, wire.ERROR.pack(error, len(text)) + text.encode() + tail, done)


# -- a session that is fed -----------------------------------------------------------------------------------------


def feed(session: ClientSession, data: bytes, step: int = 1 << 30) -> list:
    """Let the session receive `data`, at most `step` bytes at a time; what it does not own is spoiled in between."""
    replies = []
    view = memoryview(data)
    while view:
        buffer = session.receive_buffer()
        count = min(len(buffer), len(view), step)
        buffer[:count] = view[:count]
        view = view[count:]
        replies += session.received(count)
        session._scratch[:64] = b"\xaa" * 64  # another session of the loop received meanwhile
    return replies


def sent(session: ClientSession) -> bytes:
    data = b"".join(session.outgoing)
    session.outgoing.clear()
    return data


def ready(welcome: bytes = WELCOME, **options) -> ClientSession:
    options = {"scratch": memoryview(bytearray(MAX_OPTION_REPLY)), **options}
    session = ClientSession(**options)
    assert feed(session, welcome) == []
    assert session.ready
    sent(session)
    return session


def plain() -> ClientSession:
    return ready(PLAIN, structured=False)


def ask(session: ClientSession, command: int, cookie: int, offset: int = 0, length: int = 8, **options) -> None:
    session.submit(command, cookie, offset, length, **options)


# -- handshake -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1 << 30, 1, 7])
def test_a_handshake_ends_ready_and_knows_the_export(step):
    """Whole, byte by byte, and in pieces: the same knowledge of the export."""
    session = ClientSession("disk")
    assert not session.ready
    feed(session, WELCOME, step)
    assert session.ready
    assert (session.size, session.flags, session.description) == (SIZE, FLAGS, "a memory")
    assert (session.minimum, session.preferred, session.maximum) == (1, 4096, 65536)
    assert session.structured
    assert session.contexts == {CONTEXT: BASE_ALLOCATION}


def test_all_options_go_out_at_once_after_the_greeting():
    """Two round trips open an export: nothing waits for the reply to an option before it."""
    session = ClientSession("disk")
    feed(session, greeting())
    words = sent(session)
    assert words[:4] == struct.pack(">I", 3)
    options, position = [], 4
    while position < len(words):
        magic, option, length = wire.OPTION.unpack_from(words, position)
        assert magic == wire.IHAVEOPT
        options.append((option, words[position + 16 : position + 16 + length]))
        position += 16 + length
    name = struct.pack(">I", 4) + b"disk"
    assert options == [
        (Option.STRUCTURED_REPLY, b""),
        (Option.SET_META_CONTEXT, name + struct.pack(">II", 1, 15) + b"base:allocation"),
        (Option.GO, name + struct.pack(">HHH", 2, Info.BLOCK_SIZE, Info.DESCRIPTION)),
    ]


def test_replies_may_follow_the_handshake_in_the_same_receive():
    """What comes behind the last option reply is not lost."""
    session = ready()
    ask(session, Command.WRITE, 5)
    [reply] = feed(session, simple(5))
    assert (reply.cookie, reply.error) == (5, 0)


@pytest.mark.parametrize(
    ("structured", "contexts"),
    [(STRUCTURED, answer(Option.SET_META_CONTEXT, Rep.ERR_UNSUP)),
     (STRUCTURED, answer(Option.SET_META_CONTEXT, Rep.ACK)),
     (STRUCTURED, CONTEXTS[:-20] + answer(Option.SET_META_CONTEXT, Rep.ERR_TOO_BIG)),
     (answer(Option.STRUCTURED_REPLY, Rep.ERR_UNSUP), answer(Option.SET_META_CONTEXT, Rep.ERR_INVALID, b"no"))],
)  # fmt: skip
def test_a_server_without_structured_replies_or_contexts_is_done_without(structured, contexts):
    """A refusal of these options is no failure."""
    session = ready(greeting() + structured + contexts + GO)
    assert session.structured == (structured == STRUCTURED)
    assert session.contexts == {}


@pytest.mark.parametrize("flags", [HandshakeFlag.FIXED_NEWSTYLE, 3])
def test_a_server_without_go_is_opened_with_export_name(flags):
    """The old way in, with 124 zero bytes unless both sides said NO_ZEROES."""
    session = ClientSession("old", structured=False)
    feed(session, greeting(flags) + answer(Option.GO, Rep.ERR_UNSUP))
    assert sent(session).endswith(wire.OPTION.pack(wire.IHAVEOPT, Option.EXPORT_NAME, 3) + b"old")
    padding = bytes(0 if flags & HandshakeFlag.NO_ZEROES else 124)
    feed(session, wire.EXPORT_NAME_REPLY.pack(SIZE, FLAGS) + padding, 10)
    assert session.ready
    assert (session.size, session.flags) == (SIZE, FLAGS)


def test_an_export_that_export_name_does_not_find_is_refused():
    """That option has no error reply but a closed connection."""
    session = ClientSession("old", structured=False)
    feed(session, greeting() + answer(Option.GO, Rep.ERR_UNSUP))
    with pytest.raises(Refused, match="'old'"):
        session.receive_eof()


@pytest.mark.parametrize("kind", [Rep.ERR_UNKNOWN, Rep.ERR_POLICY, Rep.ERR_SHUTDOWN, 0x80001234])
def test_a_refusal_carries_the_servers_reason(kind):
    """Refused: the type of the reply and the text, in a sentence."""
    session = ClientSession()
    with pytest.raises(Refused) as refused:
        feed(session, greeting() + STRUCTURED + CONTEXTS + answer(Option.GO, kind, b"all 64 slots are taken"))
    assert refused.value.reply == kind
    assert refused.value.message == "all 64 slots are taken"
    assert "all 64 slots are taken" in str(refused.value)


def test_list_tells_the_exports_and_says_goodbye():
    """LIST: name and description of each; ABORT is queued and nothing more is read."""
    session = ClientSession(goal=Option.LIST)
    replies = [(b"", b"memory"), (b"cluster.json", b"")]
    items = [answer(Option.LIST, Rep.SERVER, struct.pack(">I", len(name)) + name + text) for name, text in replies]
    feed(session, greeting() + b"".join(items) + answer(Option.LIST, Rep.ACK))
    assert session.finished
    assert not session.ready
    assert session.exports == [("", "memory"), ("cluster.json", "")]
    assert sent(session).endswith(wire.OPTION.pack(wire.IHAVEOPT, Option.ABORT, 0))
    assert feed(session, answer(Option.ABORT, Rep.ACK)) == []
    session.receive_eof()


def test_info_tells_of_an_export_without_opening_it():
    """INFO: the same knowledge as GO, then ABORT."""
    session = ClientSession(goal=Option.INFO, structured=False)
    feed(session, greeting() + answer(Option.INFO, Rep.INFO, EXPORT) + answer(Option.INFO, Rep.ACK))
    assert session.finished
    assert session.size == SIZE


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        greeting(0),
        wire.GREETING.pack(wire.NBDMAGIC, 0x420281861253, 3),
        greeting() + answer(Option.GO, Rep.ACK),
        greeting() + STRUCTURED + answer(Option.SET_META_CONTEXT, Rep.META_CONTEXT, b"\0\0"),
        greeting() + STRUCTURED + answer(Option.SET_META_CONTEXT, Rep.META_CONTEXT, bytes(4) + b"x:y"),
        greeting() + STRUCTURED + CONTEXTS + answer(Option.GO, Rep.ACK),
        greeting() + STRUCTURED + CONTEXTS + answer(Option.GO, Rep.SERVER),
        greeting() + STRUCTURED + CONTEXTS + answer(Option.GO, Rep.INFO, b"\0"),
        greeting() + STRUCTURED + CONTEXTS + answer(Option.GO, Rep.INFO, EXPORT[:-1]),
        greeting() + STRUCTURED + CONTEXTS + answer(Option.GO, Rep.INFO, struct.pack(">HIII", 3, 0, 1, 1)),
        greeting() + STRUCTURED + CONTEXTS + answer(Option.GO, Rep.INFO, struct.pack(">HIII", 3, 512, 512, 1)),
        greeting() + wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, Option.STRUCTURED_REPLY, Rep.ACK, 1 << 31),
        greeting() + wire.OPTION_REPLY.pack(1, Option.STRUCTURED_REPLY, Rep.ACK, 0),
    ],
)
def test_a_handshake_that_breaks_the_protocol_ends_the_connection(data):
    """Other services, old styles, replies out of turn, nonsense in them: ProtocolError."""
    with pytest.raises(ProtocolError):
        feed(ClientSession(), data)


def test_a_close_in_the_handshake_is_the_servers_fault():
    """End of file before the transmission phase: ProtocolError."""
    session = ClientSession()
    feed(session, WELCOME[:-1])
    with pytest.raises(ProtocolError, match="handshake"):
        session.receive_eof()


# -- requests ------------------------------------------------------------------------------------------------------


def test_a_request_is_its_header_and_its_payload_as_it_is():
    """The payload is queued, not copied."""
    session = ready()
    payload = bytearray(b"abcd")
    session.submit(Command.WRITE, 7, 100, 4, wire.CommandFlag.FUA, (memoryview(payload),))
    payload[:] = b"wxyz"
    assert sent(session) == struct.pack(">IHHQQI", wire.REQUEST_MAGIC, 1, Command.WRITE, 7, 100, 4) + b"wxyz"


def test_a_cookie_in_flight_cannot_be_used_again():
    """ValueError; after the reply it can."""
    session = ready()
    ask(session, Command.FLUSH, 1, 0, 0)
    with pytest.raises(ValueError, match="in flight"):
        ask(session, Command.FLUSH, 1, 0, 0)
    feed(session, simple(1))
    ask(session, Command.FLUSH, 1, 0, 0)


def test_disconnect_says_goodbye():
    """DISC, which has no reply."""
    session = ready()
    session.disconnect()
    assert wire.REQUEST.unpack(sent(session))[2] == Command.DISC
    session.receive_eof()


# -- replies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1 << 30, 1, 5])
def test_simple_replies_in_any_order_with_a_tail(step):
    """Each reply finds its request by its cookie; half a reply behind them waits for the rest."""
    session = plain()
    ask(session, Command.READ, 1, 0, 3)
    ask(session, Command.WRITE, 2)
    ask(session, Command.READ, 3, 0, 4)
    tail = simple(3, data=b"wxyz")
    replies = feed(session, simple(2, Error.ENOSPC) + simple(1, data=b"abc") + tail[:-1], step)
    assert [(reply.cookie, reply.error, reply.data) for reply in replies] == [(2, Error.ENOSPC, None), (1, 0, b"abc")]
    with pytest.raises(ProtocolError, match="middle"):
        session.receive_eof()
    [last] = feed(session, tail[-1:], step)
    assert last.data == b"wxyz"
    session.receive_eof()


def test_a_read_without_structured_replies_may_fail():
    """No data follows an error."""
    session = plain()
    ask(session, Command.READ, 1)
    ask(session, Command.READ, 2, 0, 1)
    replies = feed(session, simple(1, Error.EIO) + simple(2, data=b"x"))
    assert [(reply.error, reply.data) for reply in replies] == [(Error.EIO, None), (0, b"x")]


@pytest.mark.parametrize(
    "data",
    [
        data_chunk(1, 100, b"abcdefgh"),
        data_chunk(1, 100, b"abcd", False) + data_chunk(1, 104, b"efgh"),
        data_chunk(1, 104, b"efgh", False) + data_chunk(1, 100, b"abcd"),
        data_chunk(1, 104, b"ef", False) + data_chunk(1, 106, b"gh", False) + data_chunk(1, 100, b"abcd"),
        data_chunk(1, 106, b"gh", False) + data_chunk(1, 103, b"def", False) + data_chunk(1, 100, b"abc"),
        data_chunk(1, 100, b"abcdefgh", False) + chunk(Chunk.NONE, 1),
    ],
)
@pytest.mark.parametrize("step", [1 << 30, 1])
@pytest.mark.parametrize("own", [True, False])
def test_a_read_is_the_same_in_whatever_chunks_it_comes(data, step, own):
    """One chunk or several, in order or not; into the caller's memory or the session's."""
    session = ready()
    destination = None if own else memoryview(bytearray(8))
    ask(session, Command.READ, 1, 100, 8, destination=destination)
    [reply] = feed(session, data, step)
    assert not reply.error
    assert reply.data == b"abcdefgh"
    assert own or destination == b"abcdefgh"


def test_a_hole_is_zeroes_also_over_what_the_destination_held():
    """OFFSET_HOLE fills with zeroes."""
    session = ready()
    destination = memoryview(bytearray(b"\xff" * 8))
    ask(session, Command.READ, 1, 100, 8, destination=destination)
    [reply] = feed(session, hole(1, 100, 6, False) + data_chunk(1, 106, b"gh"))
    assert bytes(reply.data) == bytes(destination) == bytes(6) + b"gh"


def test_whoever_passes_a_read_on_hears_of_its_holes():
    """The bytes as buffers in order, with views of ZEROES where the server told of a hole."""
    session = ready()
    ask(session, Command.READ, 1, 0, 10)
    [reply] = feed(session, data_chunk(1, 6, b"cd", False) + hole(1, 8, 2, False) + data_chunk(1, 0, b"ab", False)
                   + hole(1, 2, 4))  # fmt: skip
    assert reply.data == b"ab" + bytes(4) + b"cd" + bytes(2)
    assert [(bytes(buffer), buffer.obj is ZEROES.obj) for buffer in reply.buffers()] == [
        (b"ab", False), (bytes(4), True), (b"cd", False), (bytes(2), True),
    ]  # fmt: skip


def test_chunks_of_several_requests_interleave():
    """Chunks find their requests by their cookies; each request is complete with its own last chunk."""
    session = ready()
    ask(session, Command.READ, 1, 0, 4)
    ask(session, Command.READ, 2, 10, 4)
    ask(session, Command.BLOCK_STATUS, 3, 0, 100)
    first = feed(session, data_chunk(1, 0, b"ab", False) + data_chunk(2, 12, b"yz", False) + hole(1, 2, 2))
    second = feed(session, status(3, (60, 0), (60, 3), done=False) + data_chunk(2, 10, b"wx") + chunk(Chunk.NONE, 3))
    assert [(reply.cookie, reply.data) for reply in first] == [(1, b"ab\0\0")]
    assert [reply.cookie for reply in second] == [2, 3]
    assert second[0].data == b"wxyz"
    assert second[1].extents == [(60, 0), (60, 3)]


@pytest.mark.parametrize("kind", [Chunk.ERROR, Chunk.ERROR_OFFSET, 0xBEEF])
def test_an_error_chunk_fails_the_request_also_after_data(kind):
    """Errors of every type, known or not, win over data that has come; the message is kept."""
    session = ready()
    ask(session, Command.READ, 1)
    ask(session, Command.WRITE, 2)
    replies = feed(
        session,
        data_chunk(1, 0, b"abc", False) + error_chunk(1, Error.EIO, "disk on fire", kind, False) + chunk(Chunk.NONE, 1)
        + error_chunk(2, Error.ENOSPC, "full", kind),
    )  # fmt: skip
    assert [(reply.error, reply.message, reply.data) for reply in replies] == [
        (Error.EIO, "disk on fire", None),
        (Error.ENOSPC, "full", None),
    ]


def test_the_first_of_several_errors_is_kept():
    """What follows from it explains less."""
    session = ready()
    ask(session, Command.READ, 1)
    [reply] = feed(session, error_chunk(1, Error.EIO, "cause", done=False) + error_chunk(1, Error.EINVAL, "effect"))
    assert (reply.error, reply.message) == (Error.EIO, "cause")


def test_a_read_of_nothing_succeeds_with_nothing():
    """Zero bytes come as NONE, or as a simple reply where there are no chunks."""
    session = ready()
    ask(session, Command.READ, 1, 0, 0)
    [reply] = feed(session, chunk(Chunk.NONE, 1))
    assert reply.data == b""
    session = plain()
    ask(session, Command.READ, 1, 0, 0)
    [reply] = feed(session, simple(1))
    assert reply.data == b""


@pytest.mark.parametrize(
    "data",
    [
        b"\x12\x34\x56\x78" + bytes(12),
        simple(99),
        chunk(Chunk.NONE, 99),
        simple(1, data=b"abcdefgh"),
        simple(1, Error.EIO),
        simple(3),
        chunk(Chunk.NONE, 1),
        chunk(Chunk.NONE, 2, b"x"),
        chunk(Chunk.NONE, 2, done=False),
        chunk(Chunk.NONE, 3),
        chunk(7, 1),
        data_chunk(1, 0, b""),
        data_chunk(1, 0, b"abc"),
        data_chunk(1, 1, b"abcdefgh"),
        data_chunk(1, 0, b"abcdefghi"),
        data_chunk(1, (1 << 64) - 1, b"abcdefgh"),
        data_chunk(1, 0, b"abcd", False) + data_chunk(1, 0, b"abcd"),
        data_chunk(1, 0, b"abcdef", False) + data_chunk(1, 4, b"abcd"),
        data_chunk(1, 4, b"ab", False) + data_chunk(1, 4, b"cd", False) + data_chunk(1, 0, b"abcd"),
        data_chunk(1, 6, b"gh", False) + data_chunk(1, 5, b"fg", False) + data_chunk(1, 0, b"abcd"),
        data_chunk(1, 4, b"x", False) * 9,
        data_chunk(4, 98, b"ab", False),
        data_chunk(2, 0, b"abcdefgh"),
        chunk(Chunk.OFFSET_DATA, 1, b"1234"),
        hole(1, 0, 0),
        hole(1, 0, 9),
        hole(2, 0, 8),
        chunk(Chunk.OFFSET_HOLE, 1, bytes(11)),
        status(3),
        status(3, (0, 0)),
        status(3, (8, 0), context=2),
        status(1, (8, 0)),
        chunk(Chunk.BLOCK_STATUS, 3, bytes(13)),
        chunk(Chunk.ERROR, 1, b"abc"),
        chunk(Chunk.ERROR, 1, wire.ERROR.pack(5, 10) + b"short"),
        error_chunk(1, 0),
        wire.CHUNK.pack(wire.CHUNK_MAGIC, 1, Chunk.ERROR, 1, MAX_CHUNK + 1),
        wire.CHUNK.pack(wire.CHUNK_MAGIC, 1, Chunk.OFFSET_DATA, 1, 0xFFFFFFFF) + bytes(8),
    ],
)
@pytest.mark.parametrize("step", [1 << 30, 1])
def test_a_server_that_breaks_the_protocol_is_not_believed(data, step):
    """Replies to nobody, data that was not asked for or came twice or not at all, lengths that lie: ProtocolError."""
    session = ready()
    ask(session, Command.READ, 1)
    ask(session, Command.WRITE, 2)
    ask(session, Command.BLOCK_STATUS, 3)
    ask(session, Command.READ, 4, 100)
    with pytest.raises(ProtocolError):
        feed(session, data, step)


def test_chunks_that_were_not_agreed_on_are_not_believed():
    """Without STRUCTURED_REPLY there are only simple replies."""
    session = plain()
    ask(session, Command.READ, 1)
    with pytest.raises(ProtocolError):
        feed(session, data_chunk(1, 0, b"abcdefgh"))


def test_a_large_payload_is_received_in_its_place():
    """Once its header is read, the receive buffer is the destination itself: nothing is copied."""
    session = ready()
    destination = bytearray(100_000)
    ask(session, Command.READ, 1, 50, 100_000, destination=memoryview(destination))
    head = data_chunk(1, 50, b"x" * 100_000)[:28]
    assert feed(session, head + b"abc") == []
    buffer = session.receive_buffer()
    assert len(buffer) == 100_000 - 3
    assert buffer.obj is destination
    buffer[:] = b"y" * len(buffer)
    [reply] = session.received(len(buffer))
    assert reply.data == destination == b"abc" + b"y" * (100_000 - 3)


def test_a_chunk_that_is_larger_than_the_receive_buffer_is_understood():
    """A hundred thousand extents, and a reply behind them."""
    session = ready()
    extents = [(8, index % 2) for index in range(100_000)]
    ask(session, Command.BLOCK_STATUS, 1, 0, 800_000)
    ask(session, Command.FLUSH, 2, 0, 0)
    replies = feed(session, status(1, *extents) + simple(2), 100_001)
    assert [reply.cookie for reply in replies] == [1, 2]
    assert replies[0].extents == extents


@pytest.mark.parametrize("scratch", [memoryview(bytearray(100)), memoryview(bytearray(2 * MAX_OPTION_REPLY))[1:]])
def test_a_receive_buffer_is_all_of_its_memory_and_large_enough(scratch):
    with pytest.raises(ValueError, match="a receive buffer"):
        ready(scratch=scratch)


def test_two_sessions_share_one_receive_buffer():
    """What a session has not parsed yet survives the other's turn."""
    scratch = memoryview(bytearray(MAX_OPTION_REPLY))
    sessions = [ready(scratch=scratch), ready(scratch=scratch)]
    streams = [b"".join(data_chunk(n, 0, bytes([n + who]) * 8) for n in range(20)) for who in (0, 100)]
    for session in sessions:
        for cookie in range(20):
            ask(session, Command.READ, cookie)
    found: list[list] = [[], []]
    for start in range(0, len(streams[0]), 11):
        for index, session in enumerate(sessions):
            found[index] += feed(session, streams[index][start : start + 11])
    for who, replies in zip((0, 100), found, strict=True):
        assert [reply.data for reply in replies] == [bytes([n + who]) * 8 for n in range(20)]


# -- any stream ----------------------------------------------------------------------------------------------------


@st.composite
def conversations(draw):
    """(requests, the chunks of a valid stream that answers them, what the replies must be)."""
    requests, streams, expected = [], [], {}
    for cookie in range(draw(st.integers(1, 5))):
        command = draw(st.sampled_from([Command.READ, Command.READ, Command.WRITE, Command.BLOCK_STATUS]))
        offset = draw(st.integers(0, 1 << 40))
        length = draw(st.one_of(st.integers(1, 40), st.integers(1, 9000)))
        requests.append((command, cookie, offset, length))
        fails = draw(st.booleans()) and draw(st.booleans())
        parts, outcome = [], (0, None, None)
        if command == Command.READ:
            borders = sorted({0, length, *draw(st.lists(st.integers(0, length), max_size=4))})
            content, pieces = b"", []
            for start, end in itertools.pairwise(borders):
                if draw(st.booleans()):
                    data = bytes([1 + draw(st.integers(0, 254))]) * (end - start)
                    pieces.append(data_chunk(cookie, offset + start, data, False))
                else:
                    data = bytes(end - start)
                    pieces.append(hole(cookie, offset + start, end - start, False))
                content += data
            parts += draw(st.permutations(pieces))
            outcome = (0, content, None)
        elif command == Command.BLOCK_STATUS:
            extents = draw(st.lists(st.tuples(st.integers(1, 1 << 20), st.integers(0, 3)), min_size=1, max_size=4))
            parts.append(status(cookie, *extents, done=False))
            outcome = (0, None, extents)
        if fails:
            parts.insert(draw(st.integers(0, len(parts))), error_chunk(cookie, Error.EIO, "no", done=False))
            outcome = (Error.EIO, None, None)
        streams.append([*parts, chunk(Chunk.NONE, cookie)])
        expected[cookie] = outcome
    order = draw(st.permutations([index for index, parts in enumerate(streams) for _ in parts]))
    iterators = [iter(parts) for parts in streams]
    return requests, b"".join(next(iterators[index]) for index in order), expected


@given(conversations(), st.integers(1, 3000))
def test_however_the_bytes_are_cut_the_replies_are_the_same(conversation, step):
    """Any valid stream, whole or in pieces of any size, gives the replies that the model gives."""
    requests, stream, expected = conversation
    for size in (1 << 30, step):
        session = ready()
        for request in requests:
            ask(session, *request)
        replies = feed(session, stream, size)
        found = {
            reply.cookie: (reply.error, None if reply.data is None else bytes(reply.data), reply.extents)
            for reply in replies
        }
        assert len(replies) == len(found)
        assert found == expected
        session.receive_eof()


@given(st.lists(st.one_of(st.binary(max_size=60), st.sampled_from([greeting(), STRUCTURED, CONTEXTS, GO])), max_size=8))
def test_an_arbitrary_handshake_raises_nothing_but_the_codecs_own_errors(parts):
    """Whatever comes, the session waits, is ready or gives up."""
    try:
        feed(ClientSession(), b"".join(parts))
    except NBDError:
        pass


@given(conversations(), st.data())
def test_arbitrary_changes_to_a_stream_raise_nothing_but_the_codecs_own_errors(conversation, data):
    """Bytes changed, lost or added: the session goes on or gives up, and never writes beyond what it was given."""
    requests, stream, _ = conversation
    changed = bytearray(stream)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(changed)))
        changed[position : position + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    session = ready()
    for request in requests:
        ask(session, *request)
    try:
        feed(session, bytes(changed))
    except NBDError:
        pass


# -- both sides ----------------------------------------------------------------------------------------------------


class Memory:
    """The exports of a server that meets the client in memory."""

    def names(self):
        return [Export("", SIZE, FLAGS, "memory")]

    def contexts(self, _export):
        return ()

    def find(self, name):
        if name:
            raise Refused(Rep.ERR_UNKNOWN, f"no export {name!r}")
        return self.names()[0]

    open = find


def exchange(client: ClientSession, server: ServerSession, step: int = 1 << 30) -> tuple[list, list]:
    """Carry bytes both ways until neither has more to say; returns (requests, replies)."""
    requests, replies = [], []
    while client.outgoing or server.outgoing:
        data = sent(client)
        while data:
            buffer = server.receive_buffer()
            count = min(len(buffer), len(data), step)
            buffer[:count] = data[:count]
            data = data[count:]
            requests += server.received(count, 1 << 30)
        data = b"".join(server.outgoing)
        server.outgoing.clear()
        replies += feed(client, data, step)
    return requests, replies


@pytest.mark.parametrize("step", [1, 100, 1 << 30])
@pytest.mark.parametrize(("structured", "extended"), [(False, False), (True, False), (True, True)])
def test_client_and_server_meet_in_memory(step, structured, extended):
    """Handshake, a write, a read, extents and an error, with our own server's session on the other side."""
    client = ClientSession(structured=structured, extended=extended)
    server = ServerSession(Memory(), lambda request: memoryview(bytearray(request.length)))
    exchange(client, server, step)
    assert client.ready
    assert (client.structured, client.extended) == (structured, extended)
    assert client.size == SIZE
    client.submit(Command.WRITE, 1, 10, 5, payload=(b"hello",))
    client.submit(Command.READ, 2, 10, 5)
    client.submit(Command.READ, 3, SIZE, 1)
    write, read, beyond = exchange(client, server, step)[0]
    assert bytes(write.payload) == b"hello"
    server.reply(write)
    server.reply_data(read, [b"he", b"llo"])
    server.reply_error(beyond, beyond.error, beyond.message)
    _, replies = exchange(client, server, step)
    assert [(reply.cookie, reply.error, reply.data) for reply in replies] == [
        (1, 0, None),
        (2, 0, b"hello"),
        (3, Error.EINVAL, None),
    ]
    assert bool(replies[2].message) == structured
    if structured:
        client.submit(Command.BLOCK_STATUS, 4, 0, SIZE)
        client.submit(Command.READ, 5, 3, 20)
        client.submit(Command.READ, 6, 3, 300_000)
        status, read, large = exchange(client, server, step)[0]
        server.reply_extents(status, {1: [(1 << 31, 3), (5, 0)]})
        server.reply_data(read, [ZEROES[:20]])
        server.reply_data(large, [b"x" * 100_000, ZEROES[:100_000], b"y" * 100_000])
        _, replies = exchange(client, server, step)
        assert replies[0].extents == [(1 << 31, 3), (5, 0)]
        assert bytes(replies[1].data) == bytes(20)
        assert bytes(replies[2].data) == b"x" * 100_000 + bytes(100_000) + b"y" * 100_000
    client.disconnect()
    exchange(client, server, step)
    assert server.finished


def long_chunk(kind: int, cookie: int, offset: int = 0, body: bytes = b"", length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    return wire.EXTENDED_CHUNK.pack(wire.EXTENDED_CHUNK_MAGIC, 1, kind, cookie, offset, length) + body


@pytest.mark.parametrize(
    "data",
    [
        simple(1) + bytes(16),
        chunk(Chunk.NONE, 1) + bytes(16),
        long_chunk(Chunk.NONE, 2),
        long_chunk(Chunk.NONE, 1, 5),
        long_chunk(Chunk.NONE, 1, 0, b"x"),
        long_chunk(Chunk.BLOCK_STATUS_EXT, 1, 0, bytes(8)),
        long_chunk(Chunk.BLOCK_STATUS_EXT, 1, 0, struct.pack(">IIQQ", 1, 2, 5, 0)),
        long_chunk(Chunk.BLOCK_STATUS_EXT, 1, 0, struct.pack(">IIQQ", 9, 1, 5, 0)),
        long_chunk(Chunk.BLOCK_STATUS_EXT, 1, 0, struct.pack(">IIQQ", 1, 1, 0, 0)),
        long_chunk(Chunk.OFFSET_DATA, 1, 0, struct.pack(">Q", 0), 1 << 63),
        long_chunk(Chunk.BLOCK_STATUS_EXT, 1, 0, length=MAX_CHUNK + 1),
    ],
)
def test_a_server_that_breaks_the_extended_form_is_not_believed(data):
    """Headers of the other forms, another request's offset or cookie, and lengths that nobody asked for."""
    client = ClientSession(extended=True)
    exchange(client, ServerSession(Memory(), lambda *_: None))
    client.submit(Command.BLOCK_STATUS, 1, 0, 8)
    with pytest.raises(ProtocolError):
        feed(client, data)


def test_extents_of_the_newer_kind_are_not_believed_without_extended_headers():
    client = ready()
    ask(client, Command.BLOCK_STATUS, 1)
    with pytest.raises(ProtocolError):
        feed(client, chunk(Chunk.BLOCK_STATUS_EXT, 1, struct.pack(">IIQQ", 1, 1, 8, 0)))


def test_our_server_refuses_and_lists_for_our_client():
    """An unknown export, and what there is instead."""
    client = ClientSession("nothing")
    with pytest.raises(Refused, match="nothing"):
        exchange(client, ServerSession(Memory(), lambda _: None))
    client = ClientSession(goal=Option.LIST)
    exchange(client, ServerSession(Memory(), lambda _: None))
    assert client.exports == [("", "memory")]


def test_asking_twice_where_bytes_belong_loses_none():
    """A socket that was said to be readable may have nothing after all: then the same is asked again."""
    session = ClientSession("")
    for byte in b"NBDMAGIC" + b"IHAVEOPT" + b"\0\3":
        session.receive_buffer()
        session.receive_buffer()[0] = byte
        session.received(1)
    assert session.outgoing
