"""Strangers on raw sockets: whatever they send, or do not, is answered as the protocol says or cut off.

After every test here the client that was there before still works, every process is the one that was started, and
the servers hold as many descriptors as before.
"""

from __future__ import annotations

import json
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from harness import TIMEOUT, Cluster, clusters

from launcher.run.control import ask
from node.logger.logger import ASK_TIMEOUT
from node.nbd import wire
from node.nbd.errors import ProtocolError, Refused
from node.nbd.negotiation import MAX_OPTION, MAX_SKIP, Export
from node.nbd.server import ServerSession
from node.nbd.wire import Chunk, Command, CommandFlag, Error, Option, Rep
from node.serving.connection import ROOM
from node.serving.server import CLIENTS_MEMORY, MEMORY_FLAGS
from node.topology import names
from node.transport.address import Address
from node.transport.frames import MAX_QUESTION, PREFIX, FrameReader

pytestmark = pytest.mark.timeout(120)

SIZE = 6 << 20
BORDER = SIZE // 3

# -- the cluster and its witness ---------------------------------------------------------------------------------


class World:
    """A cluster, and a well-behaved client of it that stays connected while strangers come and go."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.witness = cluster.connect(reconnect=False)
        self.turn = 0
        self.nodes = {node["name"]: node["pid"] for node in self.status()}
        self.servers = [psutil.Process(pid) for name, pid in self.nodes.items() if name.startswith("server")]
        self.server0 = self.servers[0]

    def status(self) -> list[dict]:
        return ask(self.cluster.directory / "control", {"do": "status"}, TIMEOUT)["nodes"]

    def held(self) -> list[tuple[int, int]]:
        """(clients, descriptors) of each server."""
        clients = [node["clients"] for node in self.status()]
        return [(count, server.num_fds()) for count, server in zip(clients, self.servers, strict=False)]

    def memory(self) -> list[int]:
        """Bytes of each server's own, without the shard and the log's segments."""
        return [anonymous_memory(server.pid) for server in self.servers]

    @property
    def bad_input(self) -> int:
        """How often server 0 says that it cut a client off."""
        return self.status()[0]["bad_input"]

    def works(self) -> None:
        """The witness writes to all servers and over a border, and reads it back; it leaves the rest alone."""
        self.turn += 1
        for offset in (0, BORDER - 3000, SIZE - 6000):
            data = struct.pack(">I", self.turn) * 1500
            self.witness.pwrite(data, offset)
            assert self.witness.pread(len(data), offset) == data

    def unhurt(self, before: list[tuple[int, int]]) -> None:
        """Everything is as it was before the strangers came."""
        self.works()
        deadline = time.monotonic() + TIMEOUT
        while (found := self.held()) != before:
            assert time.monotonic() < deadline, f"the servers' clients and descriptors are {found}, not {before}"
        nodes = self.status()
        assert {node["name"]: node["pid"] for node in nodes} == self.nodes
        assert [node["restarts"] for node in nodes] == [0] * len(nodes)

    def address(self, name: str) -> str:
        return next(node["address"] for node in self.status() if node["name"] == name)

    def stranger(self, address: str = "") -> Stranger:
        """Somebody at server 0's door, or at another."""
        host, _, port = (address or self.cluster.uri.removeprefix("nbd://")).rpartition(":")
        return Stranger(socket.create_connection((host, int(port)), timeout=TIMEOUT))


def anonymous_memory(pid: int) -> int:
    """RssAnon of /proc/PID/status (proc(5)), in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise ValueError(f"/proc/{pid}/status has no RssAnon")


class Stranger:
    """A socket that says what it likes."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send it all, unless the server has had enough."""
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def take(self, count: int) -> bytes:
        """Exactly so many bytes."""
        data = bytearray()
        while len(data) < count:
            part = self.sock.recv(count - len(data))
            assert part, f"closed after {len(data)} of {count} bytes"
            data += part
        return bytes(data)

    def until_closed(self) -> bytes:
        """Whatever comes until the server closes; fails if it does not."""
        data = bytearray()
        try:
            while part := self.sock.recv(1 << 16):
                data += part
        except ConnectionResetError:  # closed while bytes from here were not yet read
            pass
        return bytes(data)

    def say_all(self, data: bytes) -> bytes:
        """Send everything, say that nothing more comes, and take what the server answers until it closes."""
        self.send(data)
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        return self.until_closed()

    def option_reply(self) -> tuple[int, int, bytes]:
        """(option, reply type, data)."""
        magic, option, reply, length = wire.OPTION_REPLY.unpack(self.take(wire.OPTION_REPLY.size))
        assert magic == wire.OPTION_REPLY_MAGIC
        return option, reply, self.take(length)

    def negotiate(self, *, structured: bool = True) -> None:
        """Come as far as the transmission phase."""
        self.take(wire.GREETING.size)
        self.send(FLAGS + (STRUCTURED if structured else b"") + GO)
        while self.option_reply()[:2] != (Option.GO, Rep.ACK):
            pass

    def simple(self) -> tuple[int, int]:
        """(error, cookie) of a simple reply."""
        magic, error, cookie = wire.SIMPLE_REPLY.unpack(self.take(wire.SIMPLE_REPLY.size))
        assert magic == wire.SIMPLE_REPLY_MAGIC
        return error, cookie

    def chunk(self) -> tuple[int, int, bytes]:
        """(type, cookie, data) of a chunk that is a whole reply."""
        magic, flags, kind, cookie, length = wire.CHUNK.unpack(self.take(wire.CHUNK.size))
        assert (magic, flags) == (wire.CHUNK_MAGIC, 1)
        return kind, cookie, self.take(length)

    def reply(self) -> tuple[int, int]:
        """(error, cookie) of a reply without data, in either form."""
        magic = self.sock.recv(4, socket.MSG_PEEK | socket.MSG_WAITALL)
        if magic == struct.pack(">I", wire.SIMPLE_REPLY_MAGIC):
            return self.simple()
        kind, cookie, data = self.chunk()
        assert kind == Chunk.ERROR or not data
        return struct.unpack_from(">I", data)[0] if kind == Chunk.ERROR else 0, cookie


@pytest.fixture(scope="module")
def standing(tmp_path_factory) -> Iterator[World]:
    with clusters() as new:
        cluster = new(tmp_path_factory.mktemp("hostile"), memory=str(SIZE))
        cluster.up()
        world = World(cluster)
        yield world
        world.witness.close()


@contextmanager
def proved(world: World) -> Iterator[World]:
    """Nobody is hurt by what happens inside."""
    world.works()
    before = world.held()
    assert [clients for clients, _ in before] == [1, 1, 1]  # the witness, and server 0 at the others
    yield world
    world.unhurt(before)


@pytest.fixture
def world(standing) -> Iterator[World]:
    with proved(standing):
        yield standing


# -- what a client says ------------------------------------------------------------------------------------------


def option(number: int, data: bytes = b"", magic: int = wire.IHAVEOPT, length: int | None = None) -> bytes:
    return wire.OPTION.pack(magic, number, len(data) if length is None else length) + data


def text(data: bytes, length: int | None = None) -> bytes:
    return struct.pack(">I", len(data) if length is None else length) + data


def request(
    command: int, offset: int = 0, length: int = 0, *, cookie: int = 7, flags: int = 0, payload: bytes = b"",
    magic: int = wire.REQUEST_MAGIC,
) -> bytes:  # fmt: skip
    return wire.REQUEST.pack(magic, flags, command, cookie, offset, length) + payload


FLAGS = wire.CLIENT_FLAGS.pack(3)
STRUCTURED = option(Option.STRUCTURED_REPLY)
LIST = option(Option.LIST)


def go(name: bytes) -> bytes:
    return option(Option.GO, text(name) + struct.pack(">HH", 1, 3))


def query(name: bytes) -> bytes:
    return text(name) + struct.pack(">I", 1) + text(b"base:allocation")


GO, QUERY = go(b""), query(b"")
DISC = request(Command.DISC)
WORK = [
    request(Command.WRITE, BORDER - 20, 40, cookie=1, payload=b"forty bytes of payload over a border....", flags=1),
    request(Command.READ, BORDER - 50, 100, cookie=2),
    request(Command.WRITE_ZEROES, 4096, 9000, cookie=3, flags=CommandFlag.NO_HOLE),
    request(Command.TRIM, 2 * BORDER - 5000, 10_000, cookie=4),
    request(Command.CACHE, 0, 100, cookie=5),
    request(Command.FLUSH, cookie=6),
]


def sessions(name: bytes) -> dict[str, list[bytes]]:
    """What well-behaved clients of an export send; the server's answers do not change it."""
    return {
        "structured": [
            FLAGS, LIST, STRUCTURED, option(Option.LIST_META_CONTEXT, query(name)),
            option(Option.SET_META_CONTEXT, query(name)),
            option(Option.INFO, text(b"cluster.json") + struct.pack(">HHHH", 3, 1, 2, 3)), go(name), *WORK,
            request(Command.BLOCK_STATUS, 0, BORDER, cookie=8), request(Command.READ, 9, 50, cookie=9, flags=4), DISC,
        ],
        "simple": [FLAGS, option(Option.INFO, text(name) + struct.pack(">H", 0)), go(name), *WORK, DISC],
        "old": [wire.CLIENT_FLAGS.pack(1), option(Option.EXPORT_NAME, name), *WORK, DISC],
        "abort": [FLAGS, LIST, STRUCTURED, option(Option.ABORT)],
    }  # fmt: skip


SESSIONS = sessions(b"")


# -- the handshake -----------------------------------------------------------------------------------------------

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
    "STARTTLS": (option(Option.STARTTLS), Rep.ERR_UNSUP),
    "EXTENDED_HEADERS": (option(Option.EXTENDED_HEADERS), Rep.ERR_UNSUP),
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
        assert (number, reply) == (wire.OPTION.unpack_from(words)[1], expected)
        assert len(sentence.decode()) > 10
        assert [stranger.option_reply()[:2] for _ in range(3)] == [
            (Option.LIST, Rep.SERVER), (Option.LIST, Rep.SERVER), (Option.LIST, Rep.ACK),
        ]  # fmt: skip
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
    """Thousands of options on one connection: each is answered in its turn."""
    with world.stranger() as stranger:
        stranger.take(wire.GREETING.size)
        stranger.send(FLAGS)
        for _ in range(20):
            stranger.send((LIST + STRUCTURED + option(4711)) * 50)
            for _ in range(50):
                replies = [stranger.option_reply()[1] for _ in range(5)]
                assert replies == [Rep.SERVER, Rep.SERVER, Rep.ACK, Rep.ACK, Rep.ERR_UNSUP]


# -- requests ----------------------------------------------------------------------------------------------------

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


# -- time and memory ---------------------------------------------------------------------------------------------


def test_who_stalls_in_the_handshake_is_cut_off(tmp_path, new_cluster):
    """At handshake_timeout, wherever it stopped; a client that has opened its export may be idle for ever."""
    cluster = new_cluster(tmp_path, clients={"handshake_timeout": "2s"})
    cluster.up()
    world = World(cluster)
    stalls = [b"", FLAGS[:3], FLAGS, FLAGS + LIST, FLAGS + GO[:-1], FLAGS + option(4711, length=60_000) + b"x" * 9]
    stalls.append(FLAGS + option(Option.INFO, length=MAX_SKIP))
    descriptors = world.server0.num_fds()
    before = world.bad_input
    with ExitStack() as stack:
        strangers = [stack.enter_context(world.stranger()) for _ in stalls]
        for stranger, words in zip(strangers, stalls, strict=True):
            stranger.send(words)
        for stranger in strangers:
            stranger.until_closed()
    assert world.bad_input == before + len(stalls)
    assert world.witness[0:1] == b"\0"  # idle since before the first of them
    deadline = time.monotonic() + TIMEOUT
    while world.server0.num_fds() != descriptors:
        assert time.monotonic() < deadline
    world.witness.close()


def fill(stranger: Stranger, words: bytes, world: World) -> int:
    """Send the same request until the server takes no more of them; returns how many whole ones it was sent."""
    stranger.sock.setblocking(False)
    sent, stuck = 0, 0
    while stuck < 20:
        try:
            sent += stranger.sock.send((words * 100)[sent % len(words) :])
            stuck = 0
        except BlockingIOError:
            stuck += 1
            world.works()  # the server turns its loop a few times, and is not kept from it
        assert sent < 50_000_000, "the server takes requests without end"
    stranger.sock.settimeout(TIMEOUT)
    return sent // len(words)


@pytest.mark.parametrize(
    "offset",
    [100_000, 100_000 + BORDER, 2 * BORDER - 2048],
    ids=["own shard", "a secondary's", "over a border"],
)
def test_who_never_reads_is_held_up_and_nobody_else(world, offset):
    """The server takes no more of its requests, its memory stays bounded, another client works; when it reads at
    last, every request that was held up is answered in full, and those behind it are taken up."""
    world.witness[:] = held = random.Random(5).randbytes(SIZE)
    before = world.server0.memory_info().rss
    with world.stranger() as stranger:
        stranger.negotiate()
        length = 4096
        count = fill(stranger, request(READ, offset, length), world)
        assert count * length > ROOM + 1000, "not enough to hold anybody up"
        grown = world.server0.memory_info().rss - before
        assert grown < ROOM + (32 << 20), f"{grown >> 20} MiB more"
        head = wire.CHUNK_DATA.pack(wire.CHUNK_MAGIC, 1, Chunk.OFFSET_DATA, 7, length + 8, offset)
        reply = head + held[offset : offset + length]
        for _ in range(min(count, ROOM // length + 2000)):
            assert stranger.take(len(reply)) == reply


def test_many_who_hold_all_there_is_leave_room_for_others(world):
    """Requests in flight to a server that stands still take up all that clients may; others still write large
    payloads, come and go."""
    payload = random.Random(6).randbytes(3 << 19)
    server1 = psutil.Process(world.cluster.pid("server1"))
    server1.suspend()
    try:
        with ExitStack() as stack:
            for _ in range(2 + CLIENTS_MEMORY // ROOM):
                stranger = stack.enter_context(world.stranger())
                stranger.negotiate()
                stranger.send(request(READ, BORDER, 1 << 20) * (2 * ROOM >> 20))
            for _ in range(200):  # each takes a turn of the loop, in which the strangers' requests are begun
                world.witness.pread(1, 0)
            for offset in (0, 100_001):
                world.witness.pwrite(payload, offset)
                assert world.witness.pread(len(payload), offset) == payload
            with world.stranger() as leaver:
                leaver.negotiate()
                leaver.send(request(WRITE, 0, BORDER, payload=payload))
            with world.stranger() as late:
                late.negotiate()
                late.send(request(WRITE, 0, len(payload), payload=payload) + DISC)
                assert late.reply() == (0, 7)
    finally:
        server1.resume()
    world.works()


def test_many_who_never_read_from_secondaries(world):
    """Ten at a time, some in the middle of a payload, gone without a word: the memory they held is given back."""
    before = world.server0.memory_info().rss
    with ExitStack() as stack:
        for number in range(10):
            stranger = stack.enter_context(world.stranger())
            stranger.negotiate(structured=bool(number % 2))
            if number % 5 == 4:
                stranger.send(request(WRITE, 0, 4 << 20, payload=b"x" * (1 << 20)))
            else:
                stranger.send(request(READ, BORDER, 2 * BORDER) * 4)
        world.works()
        assert world.server0.memory_info().rss - before < CLIENTS_MEMORY
    world.works()


def test_thousands_who_connect_and_leave(world):
    """Port probes: a close, a close with bytes unread, a reset: none of them is bad input, none leaves a trace."""
    before = world.bad_input
    for number in range(3000):
        with world.stranger() as stranger:
            if number % 3 == 1:
                stranger.send(FLAGS)
            elif number % 3 == 2:
                stranger.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if number % 500 == 0:
            world.works()
    world.works()
    assert world.bad_input == before


# -- sessions cut and mutated ------------------------------------------------------------------------------------


@dataclass
class Grammar:
    """Reads what the server said to a stranger; whatever that was, every word of it must be NBD."""

    said: bytes
    no_zeroes: bool
    position: int = 0
    structured: bool = False
    frames: list[tuple] = field(default_factory=list)

    def left(self) -> int:
        return len(self.said) - self.position

    def take(self, form: struct.Struct) -> tuple | None:
        """The next frame, or None where the stream ends first."""
        if self.left() < form.size:
            return None
        words = form.unpack_from(self.said, self.position)
        self.position += form.size
        return words

    def check(self) -> None:
        greeting = self.take(wire.GREETING)
        if greeting is None:
            return
        assert greeting == (wire.NBDMAGIC, wire.IHAVEOPT, 3)
        if self.handshake():
            self.transmission()

    def handshake(self) -> bool:
        """True when it came to its end."""
        while self.left() >= 8:
            (magic,) = struct.unpack_from(">Q", self.said, self.position)
            if magic != wire.OPTION_REPLY_MAGIC:
                reply = self.take(wire.EXPORT_NAME_REPLY)
                if reply is None:
                    return False
                assert reply[0] in (SIZE, BORDER) or reply[0] < 10_000, f"{magic:#x} is no reply"
                assert reply[1] & 1
                if not self.no_zeroes:
                    self.position += wire.EXPORT_NAME_PADDING
                return self.left() >= 0
            frame = self.take(wire.OPTION_REPLY)
            if frame is None:
                return False
            _, number, reply, length = frame
            assert reply in Rep.__members__.values()
            assert length <= 5000
            self.frames.append((number, reply))
            if (number, reply) == (Option.STRUCTURED_REPLY, Rep.ACK):
                self.structured = True
            self.position += length
            if (number, reply) == (Option.GO, Rep.ACK):
                return True
        return False

    def transmission(self) -> None:
        while self.left() >= 4:
            (magic,) = struct.unpack_from(">I", self.said, self.position)
            if magic == wire.SIMPLE_REPLY_MAGIC:
                frame = self.take(wire.SIMPLE_REPLY)
                if frame is None:
                    return
                assert frame[1] in Error.__members__.values()
                if not self.structured:
                    return  # a READ's bytes may follow, and how many only the request tells
            else:
                assert magic == wire.CHUNK_MAGIC, f"{magic:#x} is no reply"
                assert self.structured
                frame = self.take(wire.CHUNK)
                if frame is None:
                    return
                _, flags, kind, _, length = frame
                assert flags in (0, 1)
                assert kind in Chunk.__members__.values()
                assert length <= SIZE + 8
                self.position += length


def understood(said: bytes, session: bytes) -> None:
    flags = struct.unpack(">I", session[:4])[0] if len(session) >= 4 else 0
    Grammar(said, no_zeroes=bool(flags & 2)).check()


@pytest.mark.parametrize("name", SESSIONS)
def test_a_session_that_ends_at_any_byte_ends(world, name):
    """Cut off after every single byte of it: the server closes too, and has said nothing that is not NBD."""
    session = b"".join(SESSIONS[name])
    before = world.bad_input
    for cut in range(len(session) + 1):
        with world.stranger() as stranger:
            understood(stranger.say_all(session[:cut]), session)
    assert world.bad_input == before


@pytest.mark.parametrize("name", SESSIONS)
def test_a_session_byte_by_byte_is_the_same_session(world, name):
    """However it is cut into packets, the answers are those to the session in one piece."""
    session = b"".join(SESSIONS[name])

    def answers(parts: Sequence[bytes]) -> bytes:
        world.witness.trim(SIZE, 0)
        with world.stranger() as stranger:
            for part in parts:
                stranger.send(part)
            return stranger.until_closed()

    whole = answers([session])
    assert len(whole) > 200 or name == "abort"
    in_order = answers(SESSIONS[name])
    slowly = answers([session[at : at + 1] for at in range(len(session))])
    # Replies come in any order.
    assert len(whole) == len(in_order) == len(slowly)
    assert sorted(whole) == sorted(in_order) == sorted(slowly)


def mutated(rng: random.Random, valid: dict[str, list[bytes]]) -> bytes:
    """A valid session with something wrong with it."""
    parts = list(valid[rng.choice(list(valid))])
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        match rng.randrange(6):
            case 0:  # out of order, lost, twice
                rng.shuffle(parts)
            case 1:
                del parts[rng.randrange(len(parts))]
            case 2:
                parts.insert(rng.randrange(len(parts) + 1), rng.choice(parts))
            case 3:  # from another session
                other = valid[rng.choice(list(valid))]
                parts.insert(rng.randrange(len(parts) + 1), rng.choice(other))
            case _:
                break
        if not parts:
            return b""
    data = bytearray(b"".join(parts))
    for _ in range(rng.choice([0, 1, 1, 2, 5, 30])):
        if not data:
            break
        at = rng.randrange(len(data))
        match rng.randrange(7):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.randrange(256)
            case 2:  # a length, a count, an offset
                number = rng.choice([0, 1, 27, 28, 4096, 4097, 65536, 65537, SIZE, SIZE + 1, 0x7FFFFFFF, 0xFFFFFFFF])
                data[at & ~3 : (at & ~3) + 4] = struct.pack(">I", number)
            case 3:
                del data[at : at + rng.choice([1, 4, 16, 28])]
            case 4:
                data[at:at] = rng.randbytes(rng.choice([1, 4, 28, 300]))
            case 5:
                data[at:at] = data[rng.randrange(len(data)) :][: rng.choice([1, 4, 28, 300])]
            case 6:
                del data[at:]
    return bytes(data)


def hear_out(world: World, address: str, said: Sequence[bytes]) -> list[bytes]:
    """Each is said by a stranger of its own, all at a time; returns what they were answered until they were closed."""
    with ExitStack() as stack:
        strangers = [stack.enter_context(world.stranger(address)) for _ in said]
        for stranger, words in zip(strangers, said, strict=True):
            stranger.send(words)
            try:
                stranger.sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass
        return [stranger.until_closed() for stranger in strangers]


LARGE = [FLAGS, STRUCTURED, GO, *(request(WRITE, 9, 99_999, payload=bytes(99_999)), *WORK) * 2, DISC]
"""Its payloads are received in their place; too long to be cut at each byte."""
MUTABLE = SESSIONS | {"large": LARGE}
TOGETHER = 40
BLOCK, BLOCKS = 2500, 16
"""Sessions after which the servers' memory is looked at, and how often at most."""


def attack(world: World, rng: random.Random, rounds: int) -> None:
    """So many times forty mutated sessions at a time: each ends, and the server speaks NBD to the last word."""
    for _ in range(rounds):
        said = [mutated(rng, MUTABLE) for _ in range(TOGETHER)]
        for session, answer in zip(said, hear_out(world, "", said), strict=True):
            try:
                understood(answer, session)
            except AssertionError as error:
                raise AssertionError(f"after {session.hex()}") from error
        world.works()


def leaves_nothing(world: World, rng: random.Random) -> None:
    """The memory before and after thousands of sessions is the same. The allocator finds its high-water mark in the
    first ones; what leaks even 20 bytes a session grows in every block."""
    growth = []
    for _ in range(BLOCKS):
        before = world.memory()
        attack(world, rng, BLOCK // TOGETHER)
        growth.append(max(after - earlier for earlier, after in zip(before, world.memory(), strict=True)))
        if growth[-1] < 20 * BLOCK:
            return
    raise AssertionError(f"{BLOCK} sessions take up memory for ever, bytes each time: {growth}")


def test_ten_thousand_sessions_with_something_wrong_harm_nobody(world):
    """Each ends, the server speaks NBD to the last word, and thousands more find and leave the memory as it is."""
    before = world.bad_input
    attack(world, random.Random(0), 10_000 // TOGETHER)
    assert world.bad_input > before + 1000
    leaves_nothing(world, random.Random(1))


def test_mutated_sessions_end_in_every_state_of_the_protocol():
    """They would prove little if none came beyond the greeting: the same sessions, without a socket."""
    rng = random.Random(0)
    ends = Counter(end_of_session(mutated(rng, MUTABLE)) for _ in range(2000))
    states = ["handshake", "handshake broken", "left in the handshake", "transmission", "transmission broken", "left"]
    wanted = [f"{state}, {form}" for state in states for form in ("simple", "structured")]
    assert {state: ends[state] for state in [*wanted, "in a payload, structured"] if ends[state] < 5} == {}


class AnyExport:
    """One export, for sessions without a server."""

    export = Export("", SIZE, MEMORY_FLAGS)

    def names(self) -> Sequence[Export]:
        return [self.export]

    def find(self, name: str) -> Export:
        if name:
            raise Refused(Rep.ERR_UNKNOWN, name)
        return self.export

    def contexts(self, _export: Export) -> Sequence[str]:
        return ()

    open = find


def end_of_session(words: bytes) -> str:
    """The state in which a server is when a client that said this is gone."""
    session = ServerSession(AnyExport(), lambda asked: memoryview(bytearray(asked.length)))
    broken = False
    try:
        while words and not session.finished:
            room = session.receive_buffer()[: len(words)]
            room[:] = words[: len(room)]
            words = words[len(room) :]
            session.received(len(room), 1 << 30)
    except ProtocolError:
        broken = True
    if session.sink is not None:
        state = "in a payload"
    elif session.finished:
        state = "left in the handshake" if session.export is None else "left"
    else:
        state = "handshake" if session.export is None else "transmission"
        state += " broken" if broken else ""
    agreed = session._negotiation or session
    return f"{state}, {'structured' if agreed.structured else 'simple'}"


@pytest.mark.parametrize("topology", sorted({*names()} - {"primary-secondary"}))
def test_mutated_sessions_at_the_door_of_other_topologies(tmp_path, new_cluster, topology):
    """Where servers answer on sockets that they were handed, thousands of strangers leave no more behind."""
    cluster = new_cluster(tmp_path, memory=str(SIZE), topology=topology)
    cluster.up()
    world = World(cluster)
    world.works()
    before = world.held()
    leaves_nothing(world, random.Random(13))
    world.unhurt(before)
    world.witness.close()


# -- the other doors ---------------------------------------------------------------------------------------------


def test_strangers_at_a_secondary_harm_nobody(world):
    """It is a server like the primary: a thousand mutated sessions, and those cut at each byte."""
    address = world.address("server1")
    rng = random.Random(11)
    valid = sessions(b"shard")
    whole = b"".join(valid["structured"])
    cut = [whole[:at] for at in range(len(whole))]
    for at in range(0, len(cut), 40):
        hear_out(world, address, cut[at : at + 40])
        world.works()
    before = world.status()[1]["bad_input"]
    for _ in range(25):
        said = [mutated(rng, valid) for _ in range(40)]
        for session, answer in zip(said, hear_out(world, address, said), strict=True):
            understood(answer, session)
        world.works()
    assert world.status()[1]["bad_input"] > before + 100


def frame(head: object, body: bytes = b"") -> bytes:
    data = head if isinstance(head, bytes) else json.dumps(head).encode()
    return PREFIX.pack(len(data), len(body)) + data + body


ODD = [None, True, -1, 0, 1, 1 << 70, 1.5, "", "x", "READ", [], [1], [[]], ["READ"], [None], {}, {"ask": "share"}]
KEYS = ["window", "follow", "since", "until", "request", "last", "after", "client", "operations", "slower", "errors",
        "offset", "length", "node"]  # fmt: skip
QUERIES = [
    b"", b"\0" * 8, b"GET / HTTP/1.1\r\n\r\n", PREFIX.pack(0xFFFFFFFF, 0), PREFIX.pack(2, 0xFFFFFFFF) + b"{}",
    frame(b""), frame(b"{"), frame(b"[" * 100_000), frame([]), frame(7), frame({}), frame({}, b"x" * 100_000),
    frame(b"\xff\xfe"), frame(b'{"ask": "share", "since": 1e999}'), frame(b'{"ask": NaN}'),
    *(frame({"ask": odd}) for odd in ODD),
    *(frame({"ask": ask_, key: odd}) for ask_ in ("share", "merged") for key in KEYS for odd in ODD),
    frame({"ask": "share", "window": 1}) + frame({"ask": "share"}),
    frame({"ask": "share", "window": 1}) + frame({"ask": "more"}) * 1000,
    frame({"ask": "merged"}) + frame({"ask": "more"}), frame({"ask": "more"}),
]  # fmt: skip


@pytest.mark.parametrize("node", ["logger0", "logger1"])
def test_strangers_at_a_logger_harm_nobody(world, node):
    """Whatever is asked is answered with a sentence, or with the log, or cut off; the log can be read as before."""
    address = world.address(node)
    rng = random.Random(12)
    said = list(QUERIES)
    whole = frame({"ask": "share", "last": 3})
    said += [whole[:at] for at in range(len(whole))]
    for _ in range(500):
        data = bytearray(rng.choice(QUERIES) or b"\0")
        for _ in range(rng.choice([1, 2, 5])):
            data[rng.randrange(min(len(data), 200))] = rng.randrange(256)
        said.append(bytes(data))
    for at in range(0, len(said), 8):  # a logger answers sixteen at a time
        for answer in hear_out(world, address, said[at : at + 8]):
            reader = FrameReader()
            reader.receive(answer)  # frames all, or an error here
    world.works()
    assert world.cluster.command("logs", "-n", "1").stdout.strip()


def test_strangers_at_the_supervisor_harm_nobody(world):
    """The control socket is the user's own; still, words that it does not know are answered or cut off."""
    path = str(world.cluster.directory / "control")
    supervisor = world.cluster.record.supervisor.pid
    said = [*QUERIES[:15], *(frame({"do": odd}) for odd in ODD), *(frame({"do": "status", "x": odd}) for odd in ODD)]
    whole = frame({"do": "status"})
    said += [whole[:at] for at in range(len(whole))]
    for words in said:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(TIMEOUT)
            sock.connect(path)
            try:
                sock.sendall(words)
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(1 << 16):
                    pass
            except ConnectionError:
                pass
    assert world.cluster.record.supervisor.pid == supervisor


@pytest.mark.parametrize("whom", ["logger0", "logger1", "the supervisor"])
def test_a_question_that_is_too_long_is_not_waited_for(world, whom):
    """What has come of a frame is kept until the rest has; of strangers' frames that is little. Who announces more is
    cut off at once, and not when its time to ask is over."""
    control = str(world.cluster.directory / "control")
    address = Address(path=control) if whom == "the supervisor" else Address.parse(world.address(whom))
    with socket.socket(address.family) as sock:
        sock.settimeout(ASK_TIMEOUT / 2)
        sock.connect(address.sockaddr)
        sock.sendall(PREFIX.pack(MAX_QUESTION, 0) + b" " * 1000)
        with suppress(ConnectionResetError):
            assert sock.recv(1) == b""
    world.works()


@pytest.mark.parametrize(
    "words",
    [
        {"do": "fault"},
        {"do": "fault", "kind": "kill", "targets": 5, "seconds": 1, "delay": 0},
        {"do": "down", "timeout": "x"},
    ],
    ids=["fault without fields", "fault with odd fields", "down with an odd timeout"],
)
def test_broken_orders_do_not_kill_the_supervisor(make_cluster, words):
    """An order that lacks what it needs, or has it in the wrong form, is answered with a sentence."""
    cluster = make_cluster(servers=1)
    answer = ask(cluster.directory / "control", words, TIMEOUT)
    assert "error" in answer
    assert cluster.status()["state"] == "running"
