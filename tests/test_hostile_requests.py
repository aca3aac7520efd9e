"""A stranger's handshake and requests: what is wrong with them is answered as the protocol says, or cut off."""

from __future__ import annotations

import struct

import pytest
from harness import TIMEOUT
from strangers import BORDER, DISC, FLAGS, GO, LIST, QUERY, SIZE, STRUCTURED, option, request, text

from memcluster.node.nbd import wire
from memcluster.node.nbd.negotiation import MAX_OPTION, MAX_OPTIONS, MAX_SKIP
from memcluster.node.nbd.wire import Chunk, Command, CommandFlag, Error, Option, Rep

HANDSHAKE_FATAL = {
    "unknown client flags": wire.CLIENT_FLAGS.pack(4),
    "all client flags": b"\xff" * 4,
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "TLS": bytes.fromhex("16030100a5010000a10303") + bytes(range(150)),
    "a wrong option magic": FLAGS + option(Option.GO, magic=wire.NBDMAGIC),
    "an absurd length": FLAGS + option(Option.INFO, length=0xFFFFFFFF),
    "a length just too absurd": FLAGS + option(Option.LIST, length=MAX_SKIP + 1),
    "an unknown option of absurd length": FLAGS + option(4711, length=0x80000000),
    "a very long export name": FLAGS + option(Option.EXPORT_NAME, b"x" * (MAX_OPTION + 1)),
    "a long export name": FLAGS + option(Option.EXPORT_NAME, b"x" * 4097),
    "an unknown export name": FLAGS + option(Option.EXPORT_NAME, b"nothing"),
    "an export name that is not UTF-8": FLAGS + option(Option.EXPORT_NAME, b"\xff\xfe"),
}


@pytest.mark.parametrize("case", HANDSHAKE_FATAL)
def test_what_cannot_go_on_is_cut_off(world, case):
    """No reply is possible or worth it: the server closes, by itself, and counts it."""
    before = world.bad_input
    with world.stranger() as stranger:
        stranger.send(HANDSHAKE_FATAL[case])
        said = stranger.until_closed()
        assert said[: wire.GREETING.size] in (wire.GREETING.pack(wire.NBDMAGIC, wire.IHAVEOPT, 3), b"")
        assert said[wire.GREETING.size :] == b""
    assert world.bad_input == before + 1


HANDSHAKE_REFUSED = {
    "STARTTLS": (option(Option.STARTTLS), None),
    "EXTENDED_HEADERS with data": (option(Option.EXTENDED_HEADERS, b"x"), Rep.ERR_INVALID),
    "an unknown option": (option(4711, b"data of it"), Rep.ERR_UNSUP),
    "option 0": (option(0), Rep.ERR_UNSUP),
    "LIST with data": (option(Option.LIST, b"x"), Rep.ERR_INVALID),
    "STRUCTURED_REPLY with data": (option(Option.STRUCTURED_REPLY, b"x"), Rep.ERR_INVALID),
    "GO without data": (option(Option.GO), Rep.ERR_INVALID),
    "GO without a count": (option(Option.GO, text(b"")), Rep.ERR_INVALID),
    "GO with a name longer than the option": (option(Option.GO, text(b"ab", 3)), Rep.ERR_INVALID),
    "GO with a name of 4 GiB": (option(Option.GO, text(b"ab", 0xFFFFFFFF)), Rep.ERR_INVALID),
    "GO with too many types": (option(Option.GO, text(b"") + struct.pack(">HH", 2, 3)), Rep.ERR_INVALID),
    "GO with too few types": (option(Option.GO, text(b"") + struct.pack(">HHH", 1, 3, 3)), Rep.ERR_INVALID),
    "GO to nowhere": (option(Option.GO, text(b"nowhere") + b"\0\0"), Rep.ERR_UNKNOWN),
    "INFO of nothing there": (option(Option.INFO, text(b"\xe2\x82\xac") + b"\0\0"), Rep.ERR_UNKNOWN),
    "INFO of a name that is not UTF-8": (option(Option.INFO, text(b"\xff") + b"\0\0"), Rep.ERR_INVALID),
    "INFO of a name too long": (option(Option.INFO, text(b"x" * 4097) + b"\0\0"), Rep.ERR_TOO_BIG),
    "contexts without structured replies": (option(Option.SET_META_CONTEXT, QUERY), Rep.ERR_INVALID),
    "an option too long": (option(Option.INFO, b"x" * (MAX_OPTION + 1)), Rep.ERR_TOO_BIG),
    "an unknown option too long": (option(4711, b"x" * 300_000), Rep.ERR_TOO_BIG),
}


@pytest.mark.parametrize("case", HANDSHAKE_REFUSED)
def test_what_is_refused_in_the_handshake_is_no_end(world, case):
    """One error reply with a sentence for people; then LIST and GO work on the same connection."""
    words, expected = HANDSHAKE_REFUSED[case]
    before = world.bad_input
    with world.stranger() as stranger:
        stranger.take(wire.GREETING.size)
        stranger.send(FLAGS + words + LIST + GO + DISC)
        number, reply, sentence = stranger.option_reply()
        assert (number, reply) == (wire.OPTION.unpack_from(words)[1], expected or world.starttls)
        assert len(sentence.decode()) > 10
        stranger.listed()
        assert stranger.option_reply()[:2] == (Option.GO, Rep.INFO)
        stranger.until_closed()
    assert world.bad_input == before


META_REFUSED = {
    "no data": b"",
    "no count": text(b""),
    "more queries than there are": text(b"") + struct.pack(">I", 2) + text(b"base:allocation"),
    "4 billion queries": text(b"") + struct.pack(">I", 0xFFFFFFFF),
    "a query longer than the option": text(b"") + struct.pack(">I", 1) + text(b"base:", 6),
    "bytes behind the queries": QUERY + b"x",
    "a query that is not UTF-8": text(b"") + struct.pack(">I", 1) + text(b"\x80"),
}


@pytest.mark.parametrize("case", META_REFUSED)
@pytest.mark.parametrize("number", [Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT])
def test_broken_metadata_queries_select_nothing(world, number, case):
    """ERR_INVALID; what SET had selected before is void, so BLOCK_STATUS is EINVAL; LIST changes nothing."""
    with world.stranger() as stranger:
        stranger.take(wire.GREETING.size)
        stranger.send(FLAGS + STRUCTURED + option(Option.SET_META_CONTEXT, QUERY) + option(number, META_REFUSED[case]))
        kinds = [stranger.option_reply()[:2] for _ in range(4)]
        assert kinds[-1] == (number, Rep.ERR_INVALID)
        stranger.send(GO + request(Command.BLOCK_STATUS, 0, 100, cookie=3))
        while stranger.option_reply()[1] != Rep.ACK:
            pass
        kind, cookie, data = stranger.chunk()
        assert cookie == 3
        if number == Option.SET_META_CONTEXT:
            assert (kind, data[:4]) == (Chunk.ERROR, struct.pack(">I", Error.EINVAL))
        else:
            assert kind == Chunk.BLOCK_STATUS


def test_options_may_come_again_and_again(world):
    """As many options on one connection as there may be: each is answered in its turn, then it is cut off."""
    with world.stranger() as stranger:
        stranger.take(wire.GREETING.size)
        stranger.send(FLAGS)
        stranger.send((LIST + STRUCTURED + option(4711)) * (MAX_OPTIONS // 3))
        for _ in range(MAX_OPTIONS // 3):
            stranger.listed()
            assert [stranger.option_reply()[1] for _ in range(2)] == [Rep.ACK, Rep.ERR_UNSUP]


EINVAL, ENOSPC = Error.EINVAL, Error.ENOSPC
READ, WRITE, TRIM, ZEROES = Command.READ, Command.WRITE, Command.TRIM, Command.WRITE_ZEROES
TOO_LONG = wire.MAX_PAYLOAD + 1
REQUESTS_REFUSED = {
    "RESIZE": (request(Command.RESIZE, 0, 100), EINVAL),
    "command 9": (request(9, 0, 100), EINVAL),
    "command 65535": (request(0xFFFF, 0, 0xFFFFFFFF, flags=0xFFFF), EINVAL),
    "BLOCK_STATUS without its context": (request(Command.BLOCK_STATUS, 0, 100), EINVAL),
    "READ one past the end": (request(READ, SIZE - 9, 10), EINVAL),
    "READ behind the end": (request(READ, SIZE, 1), EINVAL),
    "READ of no bytes behind the end": (request(READ, SIZE + 1, 0), EINVAL),
    "READ at the end of 64 bits": (request(READ, (1 << 64) - 1, 1), EINVAL),
    "READ around the end of 64 bits": (request(READ, (1 << 64) - 1, 0xFFFFFFFF), EINVAL),
    "READ of 4 GiB": (request(READ, 0, 0xFFFFFFFF), EINVAL),
    "READ of too much": (request(READ, 0, TOO_LONG), EINVAL),
    "READ with every flag": (request(READ, 0, 1, flags=0xFFFF), EINVAL),
    "WRITE one past the end": (request(WRITE, SIZE - 9, 10, payload=b"x" * 10), ENOSPC),
    "WRITE around the end of 64 bits": (request(WRITE, (1 << 64) - 2, 4, payload=b"xxxx"), ENOSPC),
    "WRITE of no bytes behind the end": (request(WRITE, SIZE + 1, 0), ENOSPC),
    "WRITE of more than there is": (request(WRITE, 0, SIZE + 1, payload=bytes(SIZE + 1)), ENOSPC),
    "WRITE of too much": (request(WRITE, 0, TOO_LONG, payload=bytes(TOO_LONG)), EINVAL),
    "WRITE with every flag": (request(WRITE, 0, 5, flags=0xFFFF, payload=b"xxxxx"), EINVAL),
    "TRIM past the end": (request(TRIM, SIZE - 1, 2), EINVAL),
    "TRIM of 4 GiB at the end of 64 bits": (request(TRIM, (1 << 64) - 1, 0xFFFFFFFF), EINVAL),
    "WRITE_ZEROES past the end": (request(ZEROES, 1, SIZE), ENOSPC),
    "WRITE_ZEROES with DF": (request(ZEROES, 0, 1, flags=CommandFlag.DF), EINVAL),
    "CACHE past the end": (request(Command.CACHE, SIZE, 1), EINVAL),
}


@pytest.mark.parametrize("structured", [True, False], ids=["structured", "simple"])
@pytest.mark.parametrize("case", REQUESTS_REFUSED)
def test_a_refused_request_harms_nothing(world, case, structured):
    """The specification's error under the request's cookie; the next request on the connection is served."""
    words, expected = REQUESTS_REFUSED[case]
    before, held = world.bad_input, world.witness[:]
    with world.stranger() as stranger:
        stranger.negotiate(structured=structured)
        stranger.send(words + request(Command.FLUSH, cookie=8))
        assert sorted((stranger.reply(), stranger.reply()), key=lambda reply: reply[1]) == [(expected, 7), (0, 8)]
        stranger.send(DISC)
        assert stranger.until_closed() == b""
    assert world.bad_input == before
    assert world.witness[:] == held


TRANSMISSION_FATAL = {
    "a wrong request magic": request(READ, 0, 1, magic=wire.SIMPLE_REPLY_MAGIC),
    "zeroes": bytes(28),
    "an option": LIST + bytes(28),
    "a WRITE too long to be read away": request(WRITE, 0, MAX_SKIP + 1),
    "a WRITE of 4 GiB": request(WRITE, 0, 0xFFFFFFFF, payload=bytes(1000)),
}


@pytest.mark.parametrize("case", TRANSMISSION_FATAL)
def test_a_stream_that_is_out_of_step_is_cut_off(world, case):
    """What came before it is still answered or lost, never more; the server closes by itself and counts it."""
    before = world.bad_input
    with world.stranger() as stranger:
        stranger.negotiate()
        stranger.send(request(Command.FLUSH, cookie=1))
        assert stranger.reply() == (0, 1)
        stranger.send(TRANSMISSION_FATAL[case] + request(READ, 0, 100))
        assert stranger.until_closed() == b""
    assert world.bad_input == before + 1


@pytest.mark.parametrize("structured", [True, False], ids=["structured", "simple"])
def test_the_payload_of_a_refused_write_is_not_obeyed(world, structured):
    """It is made of requests that would wipe the memory; it is read away, and what follows it is served."""
    world.witness[:] = b"\x5a" * SIZE
    wipes = request(TRIM, 0, SIZE, cookie=666) * 5000
    with world.stranger() as stranger:
        stranger.negotiate(structured=structured)
        for round_, (offset, flags) in enumerate([(SIZE - 10, 0), (1 << 63, 0), (0, CommandFlag.NO_HOLE)]):
            cookie = 10 * round_
            stranger.send(request(WRITE, offset, len(wipes), cookie=cookie, flags=flags, payload=wipes))
            stranger.send(request(Command.CACHE, 0, 1, cookie=cookie + 1))
            assert stranger.reply() == (EINVAL if flags else ENOSPC, cookie)
            assert stranger.reply() == (0, cookie + 1)
    assert world.witness[:] == b"\x5a" * SIZE


def test_a_refused_write_is_answered_after_its_payload(world):
    """libnbd does not expect a reply to a request that it still sends, so there is none before the last byte."""
    payload = bytes(200_000)
    with world.stranger() as stranger:
        stranger.negotiate()
        words = request(WRITE, SIZE, len(payload), payload=payload)
        stranger.send(words[:-1])
        for _ in range(3):  # the server has seen the stranger's bytes before it answers this
            world.works()
        stranger.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            stranger.sock.recv(1)
        stranger.sock.settimeout(TIMEOUT)
        stranger.send(words[-1:])
        assert stranger.reply() == (ENOSPC, 7)


def test_what_comes_after_disc_is_not_looked_at(world):
    """Requests before DISC are answered, then the connection ends, whatever follows."""
    world.witness[:] = b"\x5a" * SIZE
    before = world.bad_input
    with world.stranger() as stranger:
        stranger.negotiate()
        reads = b"".join(request(READ, BORDER - 100, 200, cookie=cookie) for cookie in range(50))
        stranger.send(reads + DISC + request(TRIM, 0, SIZE) * 100 + b"garbage")
        cookies = {stranger.chunk()[1] for _ in range(50)}
        assert cookies == set(range(50))
        assert stranger.until_closed() == b""
    assert world.witness[:] == b"\x5a" * SIZE
    assert world.bad_input == before
