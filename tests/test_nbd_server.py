"""node/nbd/server.py: what a client may send, whole and in bits, and what it gets."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcluster.node.nbd import wire
from memcluster.node.nbd.errors import NBDError, ProtocolError, Refused
from memcluster.node.nbd.negotiation import MAX_OPTIONS, MAX_SKIP, OPTIONS_A_TURN, Export
from memcluster.node.nbd.server import Request, ServerSession
from memcluster.node.nbd.wire import Command, CommandFlag, Error, Info, Option, Rep, TransmissionFlag
from memcluster.node.nbd.zeroes import ZEROES

FLAGS = (
    TransmissionFlag.HAS_FLAGS | TransmissionFlag.SEND_FLUSH | TransmissionFlag.SEND_FUA | TransmissionFlag.SEND_TRIM
    | TransmissionFlag.SEND_WRITE_ZEROES | TransmissionFlag.SEND_CACHE | TransmissionFlag.SEND_FAST_ZERO
)  # fmt: skip
SIZE = 1 << 26
BUDGET = 1 << 40
TURN = 1 << 20


class Exports:
    """Two exports, and a door that can be shut."""

    def __init__(self) -> None:
        self.all = [Export("", SIZE, FLAGS, "memory"), Export("ro", 100, FLAGS | TransmissionFlag.READ_ONLY)]
        self.shut: Refused | None = None

    def names(self):
        return self.all

    def contexts(self, _export):
        return ()

    def find(self, name):
        for export in self.all:
            if export.name == name:
                return export
        raise Refused(Rep.ERR_UNKNOWN, f"no export {name!r}")

    def open(self, name):
        if self.shut:
            raise self.shut
        return self.find(name)


def make(place=lambda request, _: memoryview(bytearray(request.length)), exports=None):
    return ServerSession(exports or Exports(), place)


def feed(session: ServerSession, data: bytes, step: int = 1 << 30, budget: int = BUDGET) -> list[Request]:
    """Give `data` in bits of at most `step` bytes."""
    requests = []
    position = 0
    while position < len(data) and not session.finished:
        buffer = session.receive_buffer()
        count = min(step, len(buffer), len(data) - position)
        buffer[:count] = data[position : position + count]
        for request in session.received(count, budget):
            if request.payload is not None and not request.owned:
                request.payload = memoryview(bytes(request.payload))
            requests.append(request)
        position += count
    return requests


def sent(session: ServerSession) -> bytes:
    data = b"".join(session.outgoing)
    session.outgoing.clear()
    return data


def option(number: int, data: bytes = b"") -> bytes:
    return wire.OPTION.pack(wire.IHAVEOPT, number, len(data)) + data


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack(">I", len(data)) + data


def go(name: str = "", *infos: int) -> bytes:
    return option(Option.GO, string(name) + struct.pack(f">H{len(infos)}H", len(infos), *infos))


def meta(number: int, name: str, *queries: str) -> bytes:
    return option(number, string(name) + struct.pack(">I", len(queries)) + b"".join(map(string, queries)))


HELLO = wire.CLIENT_FLAGS.pack(3)
OPEN = HELLO + go()
OPEN_STRUCTURED = HELLO + option(Option.STRUCTURED_REPLY) + meta(Option.SET_META_CONTEXT, "", "base:allocation") + go()


def request(
    command: int, offset: int = 0, length: int = 0, flags: int = 0, cookie: int = 7, payload: bytes = b""
) -> bytes:
    return wire.REQUEST.pack(wire.REQUEST_MAGIC, flags, command, cookie, offset, length) + payload


def opened(data: bytes = OPEN, **options) -> ServerSession:
    session = make(**options)
    feed(session, data)
    assert session.export is not None
    session.outgoing.clear()
    return session


def option_replies(data: bytes) -> list[tuple[int, int, bytes]]:
    """(option, reply type, data) of each reply."""
    replies = []
    while data:
        magic, number, kind, length = wire.OPTION_REPLY.unpack_from(data)
        assert magic == wire.OPTION_REPLY_MAGIC
        replies.append((number, kind, data[20 : 20 + length]))
        data = data[20 + length :]
    return replies


def negotiate(*options: bytes) -> list[tuple[int, int, bytes]]:
    """The replies to options sent one after another."""
    session = make()
    feed(session, HELLO)
    assert sent(session)[:16] == struct.pack(">QQ", wire.NBDMAGIC, wire.IHAVEOPT)
    feed(session, b"".join(options))
    return option_replies(sent(session))


# -- handshake -----------------------------------------------------------------------------------------------------


def test_go_tells_size_flags_and_block_sizes():
    """GO answers with the export, what was asked for, and an ACK."""
    replies = negotiate(go("", Info.BLOCK_SIZE, Info.DESCRIPTION, Info.NAME))
    assert (Option.GO, Rep.INFO, struct.pack(">HQH", 0, SIZE, FLAGS)) in replies
    assert (Option.GO, Rep.INFO, struct.pack(">HIII", 3, 1, 4096, 32 << 20)) in replies
    assert (Option.GO, Rep.INFO, b"\0\2memory") in replies
    assert replies[-1] == (Option.GO, Rep.ACK, b"")


def test_info_stays_in_the_handshake():
    """INFO describes and enters nothing."""
    session = make()
    feed(session, HELLO + option(Option.INFO, string("ro") + b"\0\0"))
    assert session.export is None


@pytest.mark.parametrize("flags", [0, 1, 2, 3])
def test_export_name_pads_unless_told_not_to(flags):
    """EXPORT_NAME answers without a reply header, with 124 zeroes unless the client said NO_ZEROES."""
    session = make()
    feed(session, wire.CLIENT_FLAGS.pack(flags))
    sent(session)
    feed(session, option(Option.EXPORT_NAME, b"ro"))
    padding = b"" if flags & 2 else bytes(124)
    assert sent(session) == struct.pack(">QH", 100, FLAGS | TransmissionFlag.READ_ONLY) + padding


@pytest.mark.parametrize(
    ("data", "reply"),
    [
        (option(Option.STARTTLS), Rep.ERR_UNSUP),
        (option(99), Rep.ERR_UNSUP),
        (option(4711, b"data of an unknown option"), Rep.ERR_UNSUP),
        (option(Option.LIST, b"x"), Rep.ERR_INVALID),
        (option(Option.STRUCTURED_REPLY, b"x"), Rep.ERR_INVALID),
        (go("nothing"), Rep.ERR_UNKNOWN),
        (option(Option.GO, b""), Rep.ERR_INVALID),
        (option(Option.GO, string("x") + b"\0"), Rep.ERR_INVALID),
        (option(Option.GO, string("") + b"\0\2\0\3"), Rep.ERR_INVALID),
        (option(Option.GO, struct.pack(">I", 1 << 31) + b"\0\0"), Rep.ERR_INVALID),
        (option(Option.INFO, string(b"\xff\xfe") + b"\0\0"), Rep.ERR_INVALID),
        (go("x" * 4097), Rep.ERR_TOO_BIG),
        (option(Option.LIST, bytes(1 << 20)), Rep.ERR_TOO_BIG),
        (meta(Option.SET_META_CONTEXT, "", "base:allocation"), Rep.ERR_INVALID),
        (meta(Option.LIST_META_CONTEXT, ""), Rep.ERR_INVALID),
    ],
)
def test_a_wrong_option_gets_an_error_and_the_handshake_goes_on(data, reply):
    """Each error of the specification where it belongs, with a readable text; the next option is understood."""
    replies = negotiate(data, option(Option.LIST))
    assert replies[0][1] == reply
    assert replies[0][2].decode()
    assert [kind for _, kind, _ in replies[1:]] == [Rep.SERVER, Rep.SERVER, Rep.ACK]


def test_list_names_every_export():
    """LIST gives a SERVER reply an export, then ACK."""
    assert negotiate(option(Option.LIST)) == [
        (Option.LIST, Rep.SERVER, string("") + b"memory"),
        (Option.LIST, Rep.SERVER, string("ro")),
        (Option.LIST, Rep.ACK, b""),
    ]


def test_abort_is_acknowledged_and_ends_the_session():
    """ABORT: ACK, then nothing more is read."""
    session = make()
    feed(session, HELLO)
    sent(session)
    feed(session, option(Option.ABORT))
    assert option_replies(sent(session)) == [(Option.ABORT, Rep.ACK, b"")]
    assert session.finished


@pytest.mark.parametrize(
    ("queries", "contexts"),
    [(["base:allocation"], 1), (["base:"], 0), ([], 0), (["qemu:dirty-bitmap:x", "base:allocation"], 1), (["x"], 0)],
)
def test_set_meta_context_selects_what_is_named_exactly(queries, contexts):
    """SET takes no wildcards, ignores what it does not know."""
    replies = negotiate(option(Option.STRUCTURED_REPLY), meta(Option.SET_META_CONTEXT, "", *queries))
    assert [kind for _, kind, _ in replies[1:]] == [Rep.META_CONTEXT] * contexts + [Rep.ACK]


@pytest.mark.parametrize(("queries", "contexts"), [([], 1), (["base:"], 1), (["base:allocation"], 1), (["x:"], 0)])
def test_list_meta_context_understands_wildcards(queries, contexts):
    """LIST without queries, or with a namespace, shows all there is."""
    replies = negotiate(option(Option.STRUCTURED_REPLY), meta(Option.LIST_META_CONTEXT, "", *queries))
    assert [kind for _, kind, _ in replies[1:]] == [Rep.META_CONTEXT] * contexts + [Rep.ACK]


def test_contexts_count_only_for_the_export_that_go_takes():
    """A selection for another export does not allow BLOCK_STATUS."""
    chosen = HELLO + option(Option.STRUCTURED_REPLY) + meta(Option.SET_META_CONTEXT, "ro", "base:allocation")
    [refused] = feed(opened(chosen + go("")), request(Command.BLOCK_STATUS, 0, 512))
    assert refused.error == Error.EINVAL
    [allowed] = feed(opened(chosen + go("ro")), request(Command.BLOCK_STATUS, 0, 100))
    assert not allowed.error


def test_a_failed_selection_voids_an_earlier_one():
    """After a second SET that fails, nothing is selected."""
    data = HELLO + option(Option.STRUCTURED_REPLY) + meta(Option.SET_META_CONTEXT, "", "base:allocation")
    data += meta(Option.SET_META_CONTEXT, "nothing", "base:allocation") + go()
    [refused] = feed(opened(data), request(Command.BLOCK_STATUS, 0, 512))
    assert refused.error == Error.EINVAL


def test_a_refused_go_shows_its_reason_and_a_later_one_may_succeed():
    """A soft refusal leaves the client in the handshake."""
    exports = Exports()
    session = make(exports=exports)
    feed(session, HELLO)
    sent(session)
    exports.shut = Refused(Rep.ERR_POLICY, "all 64 slots are taken")
    feed(session, go())
    assert option_replies(sent(session)) == [(Option.GO, Rep.ERR_POLICY, b"all 64 slots are taken")]
    exports.shut = None
    feed(session, go())
    assert session.export is not None


@pytest.mark.parametrize(
    "data",
    [
        wire.CLIENT_FLAGS.pack(4),
        wire.CLIENT_FLAGS.pack(3) + bytes(16),
        HELLO + wire.OPTION.pack(wire.IHAVEOPT, Option.LIST, 0xFFFFFFFF),
        HELLO + option(Option.EXPORT_NAME, b"nothing"),
        OPEN + bytes(28),
        OPEN + request(Command.WRITE, 0, MAX_SKIP + 1),
    ],
)
def test_what_cannot_be_understood_ends_the_connection(data):
    """Unknown flags, wrong magic, absurd lengths: ProtocolError."""
    with pytest.raises(ProtocolError):
        feed(make(), data)


# -- transmission ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (request(Command.READ, SIZE, 1), Error.EINVAL),
        (request(Command.READ, SIZE - 1, 2), Error.EINVAL),
        (request(Command.READ, (1 << 64) - 1, 2), Error.EINVAL),
        (request(Command.READ, 0, (32 << 20) + 1), Error.EINVAL),
        (request(Command.WRITE, SIZE, 1, payload=b"x"), Error.ENOSPC),
        (request(Command.WRITE, (1 << 64) - 1, 4, payload=b"abcd"), Error.ENOSPC),
        (request(Command.WRITE, 0, (32 << 20) + 1, payload=bytes((32 << 20) + 1)), Error.EINVAL),
        (request(Command.WRITE_ZEROES, SIZE, 1), Error.ENOSPC),
        (request(Command.TRIM, SIZE, 1), Error.EINVAL),
        (request(Command.CACHE, SIZE, 1), Error.EINVAL),
        (request(Command.READ, 0, 1, CommandFlag.DF), Error.EINVAL),
        (request(Command.READ, 0, 1, CommandFlag.NO_HOLE), Error.EINVAL),
        (request(Command.TRIM, 0, 1, CommandFlag.FAST_ZERO), Error.EINVAL),
        (request(Command.WRITE, 0, 1, 1 << 15, payload=b"x"), Error.EINVAL),
        (request(Command.BLOCK_STATUS, 0, 1), Error.EINVAL),
        (request(Command.RESIZE, 0, 1), Error.EINVAL),
        (request(99, 0, 1), Error.EINVAL),
    ],
)
def test_a_request_that_is_not_allowed_is_refused_and_the_stream_stays_in_step(data, error):
    """The payload of a refused WRITE is read away; the request behind it is understood."""
    first, second = feed(opened(), data + request(Command.READ, 4, 5, cookie=8))
    assert first.error == error
    assert first.message
    assert (second.command, second.offset, second.length, second.error) == (Command.READ, 4, 5, 0)


@pytest.mark.parametrize("command", [Command.WRITE, Command.TRIM, Command.WRITE_ZEROES])
def test_writing_to_a_read_only_export_is_eperm(command):
    """EPERM, and the payload of the WRITE is gone."""
    payload = bytes(10) if command == Command.WRITE else b""
    data = request(command, 0, 10, payload=payload) + request(Command.READ, 0, 1)
    first, second = feed(opened(HELLO + go("ro")), data)
    assert first.error == Error.EPERM
    assert not second.error


def test_the_last_byte_can_be_read_and_an_empty_request_at_the_end_too():
    """The end of the export is exclusive."""
    data = request(Command.READ, SIZE - 1, 1) + request(Command.READ, SIZE, 0) + request(Command.WRITE, SIZE, 0)
    assert [found.error for found in feed(opened(), data)] == [0, 0, 0]


def test_block_status_of_nothing_is_einval():
    """The specification leaves no answer to it."""
    [refused] = feed(opened(OPEN_STRUCTURED), request(Command.BLOCK_STATUS, 0, 0))
    assert refused.error == Error.EINVAL


def test_disc_ends_the_session_and_what_follows_is_not_looked_at():
    """DISC with any fields; no reply."""
    session = opened()
    found = feed(session, request(Command.READ, 0, 1) + request(Command.DISC, 1 << 60, 5, 9) + b"rubbish" * 10)
    assert [item.command for item in found] == [Command.READ]
    assert session.finished
    assert sent(session) == b""


def test_simple_replies():
    """Without STRUCTURED_REPLY: 16 bytes, then a READ's data."""
    session = opened()
    read, write = feed(session, request(Command.READ, 0, 3) + request(Command.WRITE, 0, 1, cookie=8, payload=b"x"))
    session.reply(write)
    session.reply_data(read, [b"ab", b"c"])
    session.reply_error(read, Error.EIO, "lost")
    head = struct.pack(">I", wire.SIMPLE_REPLY_MAGIC)
    assert sent(session) == (
        head + struct.pack(">IQ", 0, 8) + head + struct.pack(">IQ", 0, 7) + b"abc" + head + struct.pack(">IQ", 5, 7)
    )


def test_structured_replies():
    """With it: READ in chunks, errors with their message, extents under the context's identifier."""
    session = opened(OPEN_STRUCTURED)
    [read, status] = feed(session, request(Command.READ, 10, 3) + request(Command.BLOCK_STATUS, 0, 8192, cookie=8))
    session.reply_data(read, [b"abc"])
    assert sent(session) == struct.pack(">IHHQIQ", wire.CHUNK_MAGIC, 1, 1, 7, 11, 10) + b"abc"
    session.reply_error(read, Error.EIO, "lost")
    assert sent(session) == struct.pack(">IHHQIIH", wire.CHUNK_MAGIC, 1, 32769, 7, 10, 5, 4) + b"lost"
    session.reply_extents(status, {1: [(4096, 0), (4096, 3)]})
    assert sent(session) == struct.pack(">IHHQIIIIII", wire.CHUNK_MAGIC, 1, 5, 8, 20, 1, 4096, 0, 4096, 3)
    session.reply_extents(status, {1: [(4096, 3)], 2: [(8192, 7)]})
    first = struct.pack(">IHHQIIII", wire.CHUNK_MAGIC, 0, 5, 8, 12, 1, 4096, 3)
    assert sent(session) == first + struct.pack(">IHHQIIII", wire.CHUNK_MAGIC, 1, 5, 8, 12, 2, 8192, 7)


def test_holes_are_told_of_and_not_sent():
    """A READ of what reads as zeroes is answered with its length; with data beside it in chunks of both kinds, unless
    the client wants one (DF), or has no structured replies."""
    session = opened(OPEN_STRUCTURED)
    read, whole = feed(session, request(Command.READ, 10, 7) + request(Command.READ, 10, 7, CommandFlag.DF))
    hole = struct.pack(">IHHQIQI", wire.CHUNK_MAGIC, 1, 2, 7, 12, 10, 7)
    for one in read, whole:
        session.reply_data(one, [ZEROES[:7]])
        assert sent(session) == hole
    session.reply_data(read, [b"ab", ZEROES[:2], ZEROES[:1], b"cd"])
    assert sent(session) == (
        struct.pack(">IHHQIQ", wire.CHUNK_MAGIC, 0, 1, 7, 10, 10) + b"ab"
        + struct.pack(">IHHQIQI", wire.CHUNK_MAGIC, 0, 2, 7, 12, 12, 3)
        + struct.pack(">IHHQIQ", wire.CHUNK_MAGIC, 1, 1, 7, 10, 15) + b"cd"
    )  # fmt: skip
    session.reply_data(whole, [b"ab", ZEROES[:3], b"cd"])
    assert sent(session) == struct.pack(">IHHQIQ", wire.CHUNK_MAGIC, 1, 1, 7, 15, 10) + b"ab\0\0\0cd"
    session = opened()
    [read] = feed(session, request(Command.READ, 10, 7))
    session.reply_data(read, [ZEROES[:7]])
    assert sent(session) == struct.pack(">IIQ", wire.SIMPLE_REPLY_MAGIC, 0, 7) + bytes(7)


OPEN_EXTENDED = HELLO + option(Option.EXTENDED_HEADERS) + meta(Option.SET_META_CONTEXT, "", "base:allocation") + go()
PAYLOAD = int(CommandFlag.PAYLOAD_LEN)


def long_request(
    command: int, offset: int = 0, length: int = 0, flags: int = 0, cookie: int = 7, payload: bytes = b""
) -> bytes:
    return wire.EXTENDED_REQUEST.pack(wire.EXTENDED_REQUEST_MAGIC, flags, command, cookie, offset, length) + payload


def test_extended_headers_are_agreed_on_once_and_include_structured_replies():
    """What asks for either again is refused, contexts may be chosen, and the old way in is shut."""
    asked = option(Option.EXTENDED_HEADERS)
    replies = negotiate(option(Option.EXTENDED_HEADERS, b"x"), asked, asked, option(Option.STRUCTURED_REPLY))
    assert [kind for _, kind, _ in replies] == [Rep.ERR_INVALID, Rep.ACK, Rep.ERR_INVALID, Rep.ERR_EXT_HEADER_REQD]
    replies = negotiate(asked, meta(Option.SET_META_CONTEXT, "", "base:allocation"))
    assert [kind for _, kind, _ in replies] == [Rep.ACK, Rep.META_CONTEXT, Rep.ACK]
    with pytest.raises(ProtocolError, match="EXPORT_NAME"):
        feed(make(), HELLO + asked + option(Option.EXPORT_NAME))


def test_extended_replies():
    """Every reply is a chunk of 32 bytes and what belongs to it; its header has the request's offset."""
    session = opened(OPEN_EXTENDED)
    asked = long_request(Command.READ, 10, 3) + long_request(Command.BLOCK_STATUS, 0, 8192, cookie=8)
    read, status = feed(session, asked + long_request(Command.TRIM, 5, 1 << 20, cookie=9))[:2]

    def chunk(kind: int, cookie: int, offset: int, body: bytes = b"", done: int = 1) -> bytes:
        return struct.pack(">IHHQQQ", wire.EXTENDED_CHUNK_MAGIC, done, kind, cookie, offset, len(body)) + body

    session.reply(read)
    session.reply_data(read, [b"abc"])
    session.reply_data(read, [ZEROES[:3]])
    session.reply_data(read, [b"a", ZEROES[:2]])
    session.reply_error(read, Error.EIO, "lost")
    session.reply_extents(status, {1: [(1 << 33, 3), (1, 0)], 2: [(5, 1 << 40)]})
    data = struct.pack(">Q", 10)
    assert sent(session) == (
        chunk(0, 7, 10) + chunk(1, 7, 10, data + b"abc") + chunk(2, 7, 10, struct.pack(">QI", 10, 3))
        + chunk(1, 7, 10, data + b"a", 0) + chunk(2, 7, 10, struct.pack(">QI", 11, 2))
        + chunk(32769, 7, 10, struct.pack(">IH", 5, 4) + b"lost")
        + chunk(6, 8, 0, struct.pack(">IIQQQQ", 1, 2, 1 << 33, 3, 1, 0), 0)
        + chunk(6, 8, 0, struct.pack(">IIQQ", 2, 1, 5, 1 << 40))
    )  # fmt: skip


@given(step=st.integers(1, 100))
def test_extended_requests_however_they_are_cut(step):
    """A payload follows a WRITE, whether PAYLOAD_LEN says so or not (qemu 11 does not), and whatever else says so; that
    is EINVAL, and the stream stays in step."""
    session = opened(OPEN_EXTENDED)
    found = feed(
        session,
        long_request(Command.WRITE, 1, 3, PAYLOAD | CommandFlag.FUA, 1, b"abc")
        + long_request(Command.WRITE, 1, 3, 0, 2, b"def")
        + long_request(Command.READ, 1, 3, PAYLOAD, 3, b"abc")
        + long_request(Command.BLOCK_STATUS, 0, 16, PAYLOAD, 4, bytes(16))
        + long_request(Command.TRIM, 0, 1 << 63, 0, 5)
        + long_request(Command.WRITE, SIZE, 1, PAYLOAD, 6, b"x")
        + long_request(Command.READ, 0, 1 << 40, 0, 7)
        + long_request(Command.WRITE_ZEROES, 0, SIZE, 0, 8)
        + long_request(Command.DISC, 0, 5, PAYLOAD, 9),
        step,
    )
    assert [(one.cookie, one.error) for one in found] == [
        (1, 0), (2, 0), (3, Error.EINVAL), (4, Error.EINVAL), (5, Error.EINVAL), (6, Error.ENOSPC),
        (7, Error.EINVAL), (8, 0),
    ]  # fmt: skip
    assert [bytes(one.payload) for one in found[:2]] == [b"abc", b"def"]
    assert found[0].flags == CommandFlag.FUA
    assert session.finished


@pytest.mark.parametrize(
    "data",
    [
        request(Command.READ, 0, 1) + bytes(4),
        long_request(Command.WRITE, 0, MAX_SKIP + 1, PAYLOAD),
        long_request(Command.CACHE, 0, 1 << 63, PAYLOAD),
    ],
    ids=["compact", "write", "cache"],
)
def test_an_extended_request_that_cannot_be_understood_ends_the_connection(data):
    """A header of the other form, and payloads that are too long to be read away."""
    with pytest.raises(ProtocolError):
        feed(opened(OPEN_EXTENDED), data)


def test_an_empty_read_gets_no_data_chunk():
    """A chunk of no data is forbidden: NONE with DONE."""
    session = opened(OPEN_STRUCTURED)
    [read] = feed(session, request(Command.READ, 10, 0))
    session.reply(read)
    assert sent(session) == struct.pack(">IHHQI", wire.CHUNK_MAGIC, 1, 0, 7, 0)


def test_a_large_payload_is_received_where_place_says():
    """The bytes go to their place without lying in the receive buffer as a whole."""
    room = bytearray(1 << 20)
    session = opened(place=lambda *_: memoryview(room))
    data = bytes(range(256)) * 4096
    [found] = feed(session, request(Command.WRITE, 0, len(data), payload=data), step=100_000)
    assert found.owned
    assert room == data


def test_a_payload_for_which_there_is_no_place_is_read_away():
    """`place` may refuse; the connection goes on."""

    def no_place(found, _):
        found.refuse(Error.ENOSPC, "full")

    data = request(Command.WRITE, 0, 1 << 20, payload=bytes(1 << 20)) + request(Command.READ, 0, 1)
    first, second = feed(opened(place=no_place), data, step=50_000)
    assert first.error == Error.ENOSPC
    assert second.command == Command.READ


def test_a_budget_leaves_requests_for_later_and_loses_none():
    """What is beyond the budget waits, even when the shared buffer was used by others meanwhile."""
    session = opened()
    data = b"".join(request(Command.READ, index, 4096, cookie=index) for index in range(100))
    found = feed(session, data, budget=50_000)
    assert session.waiting
    while session.waiting:
        session._scratch[:] = bytes(len(session._scratch))
        more = session.resume(50_000)
        assert more
        found += more
    assert [item.cookie for item in found] == list(range(100))


requests = st.one_of(
    st.builds(request, st.sampled_from([0, 3, 4, 5, 6, 7, 9]), st.integers(0, SIZE), st.integers(0, 1 << 32 - 1),
              st.integers(0, 31), st.integers(0, 2**64 - 1)),
    st.binary(max_size=3000).map(lambda data: request(Command.WRITE, 5, len(data), payload=data)),
    st.just(request(Command.WRITE, 0, 70_000, payload=bytes(70_000))),
)  # fmt: skip


@given(st.lists(requests, max_size=6), st.integers(20, 5000))
def test_however_the_bytes_are_cut_the_requests_are_the_same(parts, step):
    """One receive or many: the same requests with the same payloads."""

    def seen(step: int):
        return [
            (item.command, item.flags, item.cookie, item.offset, item.length, item.error, bytes(item.payload or b""))
            for item in feed(opened(OPEN_STRUCTURED), b"".join(parts), step)
        ]

    assert seen(step) == seen(1 << 30)


@given(st.lists(st.binary(max_size=200) | st.sampled_from([HELLO, OPEN, OPEN_STRUCTURED, go("ro")]) | requests))
def test_arbitrary_bytes_raise_nothing_but_the_codecs_own_error(parts):
    """Whatever comes, the session answers, waits or gives up."""
    try:
        feed(make(), b"".join(parts))
    except NBDError:
        pass


def test_a_handshake_byte_by_byte():
    """The whole handshake in the smallest bits."""
    session = make()
    feed(session, OPEN_STRUCTURED, step=1)
    assert session.export is not None
    assert session.structured


def test_asking_twice_where_bytes_belong_loses_none():
    """A socket that was said to be readable may have nothing after all: then the same is asked again."""
    session = ServerSession(Exports(), lambda _: None)
    for byte in (0).to_bytes(4, "big") + wire.OPTION.pack(wire.IHAVEOPT, Option.ABORT, 0):
        session.receive_buffer()
        session.receive_buffer()[0] = byte
        session.received(1, 1 << 20)
    assert session.finished


# -- what a turn may cost --------------------------------------------------------------------------------------------


def test_options_are_answered_a_few_at_a_time_and_not_without_end():
    """They are free for whoever asks. Those that are parked are answered in the next turns; the 65th ends it."""
    session = make()
    feed(session, HELLO)
    sent(session)
    lists = option(Option.LIST) * MAX_OPTIONS
    feed(session, lists)
    turns = 1
    while session.waiting:
        session.resume(BUDGET)
        turns += 1
    assert turns == MAX_OPTIONS // OPTIONS_A_TURN
    assert len(option_replies(sent(session))) == MAX_OPTIONS * 3  # two exports, and the ACK
    with pytest.raises(ProtocolError, match="more than 64 options"):
        feed(session, option(Option.LIST))


@pytest.mark.parametrize(
    ("command", "flags", "length", "most"),
    [
        (Command.BLOCK_STATUS, 0, SIZE, 1),
        (Command.WRITE_ZEROES, CommandFlag.NO_HOLE, SIZE, 1),
        (Command.WRITE_ZEROES, 0, SIZE, 4),
        (Command.TRIM, 0, SIZE, 4),
        (Command.FLUSH, 0, 0, 17),
        (Command.CACHE, CommandFlag.FUA, 512, 17),
    ],
)
def test_a_turn_takes_requests_by_what_they_cost(command, flags, length, most):
    """28 bytes can ask for 14 ms of work: a thousand of them in one turn were a server that is taken for hung."""
    session = opened(OPEN_STRUCTURED)
    requests = wire.REQUEST.pack(wire.REQUEST_MAGIC, flags, command, 1, 0, length) * 1000
    buffer = session.receive_buffer()
    buffer[: len(requests)] = requests
    assert 1 <= len(session.received(len(requests), TURN)) <= most
    assert session.waiting
