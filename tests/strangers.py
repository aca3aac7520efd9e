"""Strangers on raw sockets, what they say, and the cluster that they come to.

After every test with one the client that was there before still works, every process is the one that was started, and
the servers hold as many descriptors as before.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from harness import SECRET, TIMEOUT, Cluster

from memcluster.launcher.run.control import ask
from memcluster.node.nbd import wire
from memcluster.node.nbd.wire import Chunk, Command, CommandFlag, Option, Rep
from memcluster.node.transport.proof import NONCE_SIZE, Server

SIZE = 6 << 20
BORDER = SIZE // 3


class World:
    """A cluster, and a well-behaved client of it that stays connected while strangers come and go."""

    starttls = Rep.ERR_UNSUP
    """What STARTTLS is answered."""

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

    def listed(self) -> None:
        """Take the answer to LIST, however many exports there are."""
        kinds = [Rep.SERVER]
        while kinds[-1] == Rep.SERVER:
            number, kind, _ = self.option_reply()
            assert number == Option.LIST
            kinds.append(kind)
        assert (len(kinds) > 2, kinds[-1]) == (True, Rep.ACK)

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


def admit(sock: socket.socket, node: str) -> None:
    """What a node says to who connects, up to where it is known. Raises ProofError."""
    side = Server(SECRET, node, bytes(NONCE_SIZE))
    sock.sendall(side.outgoing)
    while side.needs and (data := sock.recv(side.needs)):
        side.received(data)
    sock.sendall(side.outgoing)


@contextmanager
def proved(world: World) -> Iterator[World]:
    """Nobody is hurt by what happens inside."""
    world.works()
    before = world.held()
    assert [clients for clients, _ in before] == [1, 1, 1]  # the witness, and server 0 at the others
    yield world
    world.unhurt(before)


def option(number: int, data: bytes = b"", magic: int = wire.IHAVEOPT, length: int | None = None) -> bytes:
    return wire.OPTION.pack(magic, number, len(data) if length is None else length) + data


def text(data: bytes, length: int | None = None) -> bytes:
    return struct.pack(">I", len(data) if length is None else length) + data


def request(
    command: int, offset: int = 0, length: int = 0, *, cookie: int = 7, flags: int = 0, payload: bytes = b"",
    magic: int = wire.REQUEST_MAGIC,
) -> bytes:  # fmt: skip
    return wire.REQUEST.pack(magic, flags, command, cookie, offset, length) + payload


def long_request(command: int, offset: int, length: int, payload: bytes = b"") -> bytes:
    flags = CommandFlag.PAYLOAD_LEN if payload else 0
    return wire.EXTENDED_REQUEST.pack(wire.EXTENDED_REQUEST_MAGIC, flags, command, 7, offset, length) + payload


FLAGS = wire.CLIENT_FLAGS.pack(3)
STRUCTURED = option(Option.STRUCTURED_REPLY)
LIST = option(Option.LIST)
STARTTLS = option(Option.STARTTLS)


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
        "extended": [
            FLAGS, option(Option.EXTENDED_HEADERS), option(Option.SET_META_CONTEXT, query(name)), go(name),
            long_request(Command.WRITE, BORDER - 20, 40, b"forty bytes of payload over a border...."),
            long_request(Command.CACHE, 0, 8, b"nothing!"), long_request(Command.TRIM, 4096, 9000),
            long_request(Command.BLOCK_STATUS, 0, BORDER), long_request(Command.READ, BORDER - 50, 100),
            long_request(Command.READ, 0, 1 << 40), long_request(Command.DISC, 0, 0),
        ],
        "abort": [FLAGS, LIST, STRUCTURED, option(Option.ABORT)],
    }  # fmt: skip


SESSIONS = sessions(b"")
