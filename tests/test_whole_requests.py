"""What is promised about requests that meet: each that lies in one server is carried out whole, a range that is said to
be ZERO reads as zeroes, and nothing of a client that is gone lands over what was acknowledged since."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator

import pytest
from harness import Cluster, run
from raw import shake_hands

from memcluster.node.nbd import wire
from memcluster.node.nbd.wire import Command
from memcluster.node.topology import names

MIB = 1 << 20
SIMPLE = struct.Struct(">IIQ")
HANDED_OVER = ["dispatcher", "chain"]
BASES = {"shared": 12 * MIB}
"""Where the clients' memory begins, by the kind of links: at the shard that server 1 has, of two of 24 MiB."""


class Raw:
    """A client that says what it is told, when it is told: half a payload, too."""

    def __init__(self, cluster: Cluster, door: str | None = None) -> None:
        self.base = BASES.get(cluster.keys.get("links"), 0)
        host, port = (door or cluster.uri).removeprefix("nbd://").split(":")
        self.sock = socket.create_connection((host, int(port)), timeout=60)
        shake_hands(self.sock, structured=False)
        self.cookie = 0

    def send(self, command: int, offset: int, length: int, payload: bytes = b"", flags: int = 0) -> None:
        self.cookie += 1
        self.sock.sendall(self.request(command, self.cookie, offset, length, flags) + payload)

    def request(self, command: int, cookie: int, offset: int, length: int, flags: int = 0) -> bytes:
        return wire.REQUEST.pack(wire.REQUEST_MAGIC, flags, command, cookie, self.base + offset, length)

    def more(self, payload: bytes) -> None:
        self.sock.sendall(payload)

    def answer(self) -> int:
        """The error of the next reply, one without data."""
        magic, error, _ = SIMPLE.unpack(self.exactly(SIMPLE.size))
        assert magic == wire.SIMPLE_REPLY_MAGIC
        return error

    def exactly(self, count: int) -> bytes:
        found = bytearray()
        while len(found) < count:
            found += self.sock.recv(min(count - len(found), MIB)) or pytest.fail("closed")
        return bytes(found)

    def ask(self, command: int, offset: int, length: int, payload: bytes = b"", flags: int = 0) -> int:
        self.send(command, offset, length, payload, flags)
        return self.answer()

    def read(self, offset: int, length: int) -> bytes:
        assert self.ask(Command.READ, offset, length) == 0
        return self.exactly(length)

    def vanish(self) -> None:
        """As a process that is killed."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


@pytest.fixture(params=[*names(), "shared"])
def way(request) -> dict[str, str]:
    """Keys of cluster.yaml: what the clients do lies in server 0, or the dispatcher's first; with shared links, in
    server 1."""
    return {"links": request.param} if request.param == "shared" else {"topology": request.param}


@pytest.fixture
def pair(make_cluster, way) -> Iterator[tuple[Cluster, Raw, Raw]]:
    """Two clients of one cluster."""
    cluster = make_cluster(**way, memory="24MiB", servers=2)
    one, other = Raw(cluster), Raw(cluster)
    yield cluster, one, other
    one.sock.close()
    other.sock.close()


@pytest.mark.parametrize("command", [Command.TRIM, Command.WRITE_ZEROES], ids=["trim", "zeroes"])
def test_a_large_write_beside_a_trim_leaves_no_bytes_in_a_hole(pair, command):
    """Half of A's payload is there when B clears the place: one is first, for the bytes, the extents and the file."""
    cluster, a, b = pair
    a.send(Command.WRITE, 0, MIB, b"A" * (MIB // 2))
    assert b.ask(command, 0, MIB) == 0
    a.more(b"A" * (MIB // 2))
    assert a.answer() == 0
    assert b.read(0, MIB) == b"A" * MIB
    with cluster.connect() as memory:
        assert [extent.hole for extent in memory.extents(MIB, a.base)] == [False]
    cluster.command("fault", "kill", f"owner:{a.base}")
    with cluster.connect() as memory:  # connects again, should it be handed to a server before its death is known
        assert memory.pread(MIB, a.base) == b"A" * MIB


@pytest.mark.parametrize("length", [128 << 10, MIB, 8 * MIB], ids=["128K", "1M", "8M"])
def test_of_two_writes_that_overlap_one_is_whole(pair, length):
    """A's payload is half there when B's write of the same place is acknowledged: A's is then the later one."""
    _, a, b = pair
    a.send(Command.WRITE, 0, length, b"A" * (length // 2))
    assert b.ask(Command.WRITE, 0, length, b"B" * length) == 0
    assert b.read(0, length) == b"B" * length
    a.more(b"A" * (length // 2))
    assert a.answer() == 0
    assert set(b.read(0, length)) == {ord("A")}


def test_who_comes_in_while_a_payload_is_received_sees_nothing_of_it_later_on(make_cluster, way):
    """Alone, a client's payload goes straight to its place; another who has waited for it for a while is let in, and it
    is moved out of the way."""
    cluster = make_cluster(**way, memory="24MiB", servers=2)
    a = Raw(cluster)
    a.send(Command.WRITE, 0, MIB, b"A" * (MIB // 2))
    b = Raw(cluster)
    assert b.ask(Command.WRITE, 0, MIB, b"B" * MIB) == 0
    assert b.read(0, MIB) == b"B" * MIB
    a.more(b"A" * (MIB // 2))
    assert a.answer() == 0
    assert b.read(0, MIB) == b"A" * MIB
    a.sock.close()
    b.sock.close()


def test_who_comes_in_while_a_payload_is_received_waits_for_it(make_cluster, way):
    """Half of a lone client's payload is in its place already: whoever reads there now gets the write or nothing."""
    cluster = make_cluster(**way, memory="24MiB", servers=2)
    a = Raw(cluster)
    assert a.ask(Command.WRITE, 0, MIB, b"0" * MIB) == 0
    a.send(Command.WRITE, 0, MIB, b"A" * (MIB // 2))
    b = Raw(cluster)
    b.send(Command.READ, 0, MIB)
    Raw(cluster).vanish()  # the read before its handshake has been looked at by now
    a.more(b"A" * (MIB // 2))
    assert a.answer() == 0
    assert b.answer() == 0
    assert set(b.exactly(MIB)) in ({ord("A")}, {ord("0")})
    a.sock.close()
    b.sock.close()


def test_a_read_shows_a_write_whole_or_not_at_all(pair):
    """A does not take what it has asked for: most of it is unsent when B writes over it. Holes are filled, too."""
    _, a, b = pair
    length, count = 2 * MIB, 12
    assert b.ask(Command.WRITE, MIB, length // 2, b"1" * (length // 2)) == 0
    assert b.ask(Command.WRITE, 0, MIB, b"1" * MIB) == 0
    for _ in range(count):
        a.send(Command.READ, 0, length)
    for value in b"2345":
        assert b.ask(Command.WRITE, 0, length, bytes([value]) * length) == 0
    for _ in range(count):
        assert a.answer() == 0
        found = a.exactly(length)
        assert len(set(found)) == 1, {bytes([value]): found.count(value) for value in set(found)}


def test_a_read_of_a_hole_and_of_data_shows_a_write_whole_or_not_at_all(pair):
    _, a, b = pair
    assert b.ask(Command.TRIM, 0, 8 * MIB) == 0
    a.send(Command.READ, 0, 8 * MIB)
    assert b.ask(Command.WRITE, 0, 8 * MIB, b"2" * (8 * MIB)) == 0
    assert a.answer() == 0
    assert len(set(a.exactly(8 * MIB))) == 1


def test_requests_of_one_client_are_whole_beside_one_another(make_cluster, way):
    """A read and a large write that come in one piece: the write has not begun to land when the read is served."""
    cluster = make_cluster(**way, memory="24MiB", servers=2)
    a = Raw(cluster)
    read, write = a.request(Command.READ, 1, 0, MIB), a.request(Command.WRITE, 2, 0, MIB)
    a.more(read + write + b"A" * 100_000)
    assert a.answer() == 0
    assert a.exactly(MIB) == bytes(MIB)
    a.more(b"A" * (MIB - 100_000))
    assert a.answer() == 0
    a.sock.close()


# -- clients that are gone -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topology", ["primary-secondary", "dispatcher"])
def test_with_serial_fan_out_the_next_piece_of_a_client_that_is_gone_is_not_begun(make_cluster, topology):
    """Its first piece waits for a server that is stopped; meanwhile another client writes where the second goes."""
    cluster = make_cluster(topology=topology, memory="24MiB", servers=3, fan_out="serial")
    stopped = "server2" if topology == "dispatcher" else "server1"
    border = 16 * MIB
    cluster.command("fault", "pause", stopped)
    a, b = Raw(cluster), Raw(cluster)
    a.send(Command.WRITE, border - 4096, 8192, b"A" * 8192)
    cluster.wait_for(lambda status: status["nodes"][0]["requests"] >= 4)  # three of the supervisor's probe
    a.sock.close()
    assert b.ask(Command.WRITE, border, 4096, b"B" * 4096) == 0
    cluster.command("fault", "resume", stopped)
    while len(records(cluster, "WRITE", 8192)) < 1:
        pass
    assert b.read(border, 4096) == b"B" * 4096
    b.sock.close()


@pytest.mark.parametrize("topology", ["primary-secondary", "dispatcher", "chain"])
def test_what_a_client_that_is_gone_has_left_unread_is_not_begun_after_a_newer_write(make_cluster, topology):
    """Its writes to a stopped server are as much as it may have in flight: the last one waits in the socket when it
    closes. Another client's is acknowledged, then the server goes on."""
    cluster = make_cluster(topology=topology, memory="96MiB", servers=2, retry_timeout="60s")
    stopped = "server2" if topology == "dispatcher" else "server1"
    a, b = Raw(cluster), Raw(cluster)
    cluster.command("fault", "pause", stopped)
    for _ in range(2):
        a.send(Command.WRITE, 48 * MIB, 32 * MIB, b"a" * (32 * MIB))
    a.send(Command.WRITE, 0, 512, b"A" * 512)
    a.sock.close()
    if topology == "chain":  # its replies come from the end, which is stopped
        b.send(Command.WRITE, 0, 512, b"B" * 512)
        cluster.command("fault", "resume", stopped)
        assert b.answer() == 0
    else:
        assert b.ask(Command.WRITE, 0, 512, b"B" * 512) == 0
        cluster.command("fault", "resume", stopped)
    cluster.wait_for(lambda status: status["nodes"][0]["clients"] <= 1)
    assert b.read(0, 512) == b"B" * 512
    b.sock.close()


def test_a_client_that_has_closed_its_own_side_alone_is_answered(make_cluster, topology):
    """As by nbdkit: what it had asked for before, of other servers, too, and nobody else has written."""
    cluster = make_cluster(topology=topology, memory="24MiB", servers=2)
    offset = 0 if topology == "client-routed" else 24 * MIB - 4096
    a = Raw(cluster)
    a.send(Command.WRITE, offset, 4096, b"A" * 4096)
    a.send(Command.READ, offset, 4096)
    a.sock.shutdown(socket.SHUT_WR)
    assert a.answer() == 0
    assert a.answer() == 0
    assert a.exactly(4096) == b"A" * 4096
    assert a.sock.recv(1) == b""
    a.sock.close()


def records(cluster: Cluster, operation: str, length: int) -> list[str]:
    """The lines of the log about requests of this kind that are over."""
    lines = cluster.command("logs", "--op", operation.lower(), "-n", "100").stdout.decode().splitlines()
    return [line for line in lines if f"+{length} " in line and "└" not in line]


# -- two ordinary clients --------------------------------------------------------------------------------------------

RACE = """
import sys, threading, memcluster
uri, first, second = sys.argv[1:4]
rounds, size = map(int, sys.argv[4:])
one, other = memcluster.connect(uri), memcluster.connect(uri)
act = {
    "A": lambda memory: memory.pwrite(b"A" * size, 0),
    "B": lambda memory: memory.pwrite(b"B" * size, 0),
    "trim": lambda memory: memory.trim(size, 0),
}
bad = 0
for _ in range(rounds):
    threads = [threading.Thread(target=act[name], args=(m,)) for name, m in ((first, one), (second, other))]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    found = one.pread(size, 0)
    data = any(not extent.hole for extent in one.extents(size, 0))
    bad += len(set(found)) > 1 or (not data and any(found))
print(bad)
"""


@pytest.mark.parametrize("others", [("A", "trim"), ("A", "B")], ids=["write-trim", "write-write"])
def test_two_ordinary_clients_never_diverge(make_cluster, others):
    """Half of such rounds did, with requests of 1 MiB."""
    cluster = make_cluster(memory="4MiB", servers=1)
    done = run(sys.executable, "-c", RACE, cluster.uri, *others, "100", str(MIB))
    assert done.stdout.decode().strip() == "0"
