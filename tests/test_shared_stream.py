"""Several processes write to one client's socket: no reply is ever mixed up with another, or said twice, or forgotten,
whatever dies, is held up, or runs short at the worst moment."""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import select
import signal
import socket
import struct
import sys
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from harness import Cluster, run_in_small_room
from nodes import SHARD, Nodes

from memcluster.launcher.run.identity import Identity
from memcluster.node.handover.gates import Gates
from memcluster.node.handover.messages import ADOPT, DROP, HELLO, WELCOME, Order, OrderReader, fresh
from memcluster.node.handover.passage import Passage, PassageLink
from memcluster.node.handover.taking import HandedConnection
from memcluster.node.nbd import wire
from memcluster.node.nbd.client import ClientSession, Reply
from memcluster.node.nbd.errors import ProtocolError
from memcluster.node.nbd.wire import Command, CommandFlag
from memcluster.node.serving.budget import Budget
from memcluster.node.spec import Bounds
from memcluster.node.transport.address import Address
from memcluster.node.transport.loop import Loop

MiB = 1 << 20


@pytest.fixture(params=["dispatcher", "chain"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def loop():
    found = Loop()
    yield found
    found.close()


class Raw:
    """A client that reads and writes exactly what a test says; `submit` only queues."""

    def __init__(self, cluster: Cluster, *, structured: bool = True, receive: int = 0) -> None:
        where = Address.parse(cluster.uri.removeprefix("nbd://").replace("nbd+unix:///?socket=", "unix:"))
        self.sock = socket.socket(socket.AF_UNIX if where.path else socket.AF_INET)
        if receive:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        self.sock.settimeout(60)
        self.sock.connect(where.sockaddr)
        self.session = ClientSession("", structured=structured)
        while not self.session.ready:
            self.send()
            count = self.sock.recv_into(self.session.receive_buffer(), 1)
            if not count:
                raise ConnectionResetError("closed during the handshake")
            self.session.received(count)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_) -> None:
        self.sock.close()

    def ask(self, command: int, cookie: int, offset: int, length: int, flags: int = 0) -> None:
        self.session.submit(command, cookie, offset, length, flags)
        self.send()

    def send(self) -> None:
        self.sock.sendall(b"".join(self.session.outgoing))
        self.session.outgoing.clear()

    def receive(self, most: int = 1 << 20) -> list[Reply] | None:
        """What the next bytes complete; None at the end. Raises ProtocolError where the stream makes no sense."""
        room = self.session.receive_buffer()
        try:
            count = self.sock.recv_into(room, min(most, len(room)))
        except ConnectionError:
            return None
        return self.session.received(count) if count else None

    def reply(self) -> Reply:
        while True:
            replies = self.receive()
            assert replies is not None, "the connection is lost"
            if replies:
                [reply] = replies
                return reply


def pids(cluster: Cluster) -> list[int]:
    return [node["pid"] for node in cluster.status()["nodes"]]


def requests(cluster: Cluster, server: int) -> int:
    return cluster.status()["nodes"][server]["requests"]


# -- what a client may do --------------------------------------------------------------------------------------------


def test_a_client_that_asks_and_goes_before_the_answer_harms_nobody(make_cluster, kind):
    """Its socket is dead when it is to be handed over for the first time: no process minds."""
    cluster = make_cluster(topology=kind, listen="unix:door.sock")
    before = pids(cluster)
    go = bytes(6)
    words = struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", wire.Option.GO, len(go)) + go
    words += wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, Command.READ, 5, 0, 4096)
    for _ in range(100):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(cluster.folder / "door.sock"))
            sock.recv(18, socket.MSG_WAITALL)
            sock.sendall(words)
    with cluster.connect(reconnect=False) as memory:
        assert memory.pread(1, 0) == b"\0"
    assert pids(cluster) == before


class Taken(Passage):
    """Takes what a connection hands over, instead of a server."""

    def __init__(self, loop: Loop) -> None:
        ours, self.theirs = socket.socketpair()
        super().__init__(loop, ours, memoryview(bytearray(1000)), lambda *_: None, lambda *_: None)
        self.handed = 0

    def hand(self, order: Order, descriptor: int) -> None:  # noqa: ARG002
        os.close(descriptor)
        self.handed += 1

    def close(self) -> None:
        super().close()
        self.theirs.close()


class Link(PassageLink):
    """Is there already."""

    def __init__(self, passage: Passage) -> None:
        self.number = 1
        self.passage = passage


def half_said(server: Any) -> tuple[HandedConnection, socket.socket]:
    """A connection in the middle of what its own server says to a client that takes nothing."""
    ours, theirs = socket.socketpair()
    exports = SimpleNamespace(names=lambda: [], contexts=lambda _: (), find=None, open=None)
    scratch = memoryview(bytearray(1 << 18))
    connection = HandedConnection(server.loop, ours, server, lambda _: exports, 1, scratch, Budget(1 << 30))
    connection.outgoing.append(b"x" * (4 * MiB))
    connection.flush()
    assert connection.queued
    return connection, theirs


@pytest.fixture
def nodes(tmp_path, kind):
    folder = tmp_path / "nodes"
    folder.mkdir()
    made = Nodes(folder, kind)
    yield made
    made.close()


@pytest.mark.parametrize("kind", ["dispatcher"])
def test_nobody_writes_behind_half_a_reply_of_the_dispatcher(nodes, tmp_path):
    """A refusal is half said when the socket is handed over: the gate is held until it is said."""
    loop = nodes.loop
    gates = Gates(loop, tmp_path, 0, create=True)
    server = Gates(loop, tmp_path, 1, create=False)
    connection, client = half_said(nodes.servers[0])
    connection.gates, connection.gate = gates, 3
    passage = Taken(loop)
    connection.hand_to(Link(passage))
    assert passage.handed == 1
    free: list[bool] = []
    assert not server.take(3, lambda: free.append(True))
    client.settimeout(10)
    taken = 0
    while not free:
        assert taken < 4 * MiB + 18 or not connection.queued
        if taken < 4 * MiB + 18:
            taken += len(client.recv(1 << 20))
        loop.turn(1)
    assert taken == 4 * MiB + 18  # the greeting, and all of it
    assert server.take(3, lambda: None)
    for one in (connection, server, gates, client, passage):
        one.close()


@pytest.mark.parametrize("kind", ["chain"])
def test_a_chain_waits_for_who_has_not_taken_what_the_head_has_said(nodes):
    """The tail cannot know that the head has not finished: the socket is handed along when it has."""
    loop = nodes.loop
    connection, client = half_said(nodes.servers[0])
    passage = Taken(loop)
    link = Link(passage)
    said: list[bool] = []
    connection.when_said = lambda: said.append(True)
    assert not connection.hand_to(link)
    assert not passage.handed
    while not said:
        client.recv(1 << 20)
        loop.turn(1)
    assert connection.hand_to(link)
    assert passage.handed == 1
    for one in (connection, client, passage):
        one.close()


def test_a_read_of_which_a_part_is_given_up_at_once_is_answered_once(tmp_path, monkeypatch):
    """Its time is over when its first part has to wait, and the others are yet to be passed on; all come back."""
    monkeypatch.setattr("nodes.ClientSession", partial(ClientSession, structured=False))
    nodes = Nodes(tmp_path, "dispatcher", bounds=Bounds(retry_timeout=1e-9))
    client = nodes.client()
    nodes.servers[0].cut("server1", True)
    client.ask(Command.READ, 1, SHARD - 4096, 8192)
    assert client.reply().error == wire.Error.EIO
    nodes.turn_until(lambda: not any(nodes.servers[0]._sent.values()))
    client.done(Command.READ, 2, SHARD, 4096)
    nodes.close()


# -- what a server may do --------------------------------------------------------------------------------------------


def keep_away(cluster, *names):
    """Kill servers until they are asked back. The dispatcher has seen them go: what it gives one that is just dying is
    in that one's hands, and costs the client its connection."""
    for name in names:
        cluster.command("fault", "kill", name, "--for", "1h")
    away = {*names}
    cluster.wait_for(lambda now: away <= {node["name"] for node in now["nodes"] if node["state"] == "restarting"})
    cluster.status()  # it answers in a turn of its loop in which it meets whatever was there before


@pytest.mark.parametrize("way", ["simple", "df", "extents"])
def test_who_waits_too_long_gets_one_answer(make_cluster, way):
    """A request whose pieces come back to the dispatcher, and one does not: EIO, once, and the stream goes on."""
    cluster = make_cluster(topology="dispatcher", retry_timeout="300ms", restart={"deaths": 100})
    with Raw(cluster, structured=way != "simple") as client:
        keep_away(cluster, "server2", "server3")
        command = Command.BLOCK_STATUS if way == "extents" else Command.READ
        client.ask(command, 1, 0, MiB, CommandFlag.DF if way == "df" else 0)
        assert client.reply().error == wire.Error.EIO
        client.ask(Command.READ, 2, 0, 5)
        reply = client.reply()
        assert (reply.cookie, reply.error, bytes(reply.data)) == (2, 0, bytes(5))


@pytest.mark.parametrize("fan_out", ["parallel", "serial"])
@pytest.mark.parametrize("away", [("server1",), ("server3",), ("server1", "server2", "server3")])
@pytest.mark.parametrize("command", [Command.READ, Command.WRITE, Command.FLUSH])
def test_who_waits_too_long_for_one_of_several_gets_eio(make_cluster, command, away, fan_out):
    """Others have had their say: the dispatcher says the word of who is away. One answer, and the connection goes on;
    serial, nothing behind the failure is begun."""
    cluster = make_cluster(topology="dispatcher", fan_out=fan_out, retry_timeout="300ms", restart={"deaths": 100})
    second = MiB // 2  # a byte of server 2
    with Raw(cluster) as client:
        keep_away(cluster, *away)
        length = 0 if command == Command.FLUSH else MiB
        client.session.submit(command, 1, 0, length, 0, (b"x" * MiB,) if command == Command.WRITE else ())
        client.send()
        reply = client.reply()
        assert reply.error == wire.Error.EIO
        if len(away) == 1:
            assert f"no answer from {away[0]} for 0.3 s (retry_timeout)" in reply.message
        for name in away:
            cluster.command("fault", "resume", name)
        client.ask(Command.READ, 2, second, 1)
        while (reply := client.reply()).error:  # it may need longer than that to come back
            client.ask(Command.READ, 2, second, 1)
        written = command == Command.WRITE and len(away) == 1 and (fan_out == "parallel" or away == ("server3",))
        assert bytes(reply.data) == (b"x" if written else b"\0")
        client.ask(Command.READ, 3, 0, MiB)  # the ticket is good for others
        while (reply := client.reply()).error:
            client.ask(Command.READ, 3, 0, MiB)
        assert len(reply.data) == MiB
    lines = map(json.loads, cluster.command("logs", "--json", "--op", command.name.lower()).stdout.splitlines())
    first = next(line for line in lines if (line["kind"], line["offset"], line["length"]) == ("request", 0, length))
    assert first["error"] == "EIO"


FULL = """
mount -t tmpfs -o size=2m tmpfs data || exit 1
$memcluster up -d && $memclient write 4MiB before && $memclient write 3MiB before || exit 1
head -c 4194304 /dev/urandom >data/ballast
head -c 4194304 /dev/zero | tr '\\0' x >big
$python - <<'END'
import memcluster
with memcluster.connect(reconnect=False) as memory:
    for size in (8, 4096, 1 << 20):
        try:
            memory.pwrite(b"x" * (2 * size), (4 << 20) - size)
        except memcluster.NoSpace:
            print(bytes(memory[4 << 20 : (4 << 20) + 6]))
END
$memcluster down
"""


@pytest.mark.parametrize("topology", ["dispatcher", "primary-secondary"])
def test_serial_begins_nothing_behind_a_failure(tmp_path, new_cluster, topology):
    """The first server has no room: the client is told, and the second is not even asked, although it has."""
    cluster = new_cluster(tmp_path, topology=topology, servers=2, memory="8MiB", storage="data", fan_out="serial")
    (tmp_path / "data").mkdir()
    done = run_in_small_room(tmp_path, FULL, python=sys.executable)
    assert done.stdout.count(b"b'before'") == 3, done.stdout
    assert cluster.left_behind() == []


def test_orders_of_a_lost_connection_are_not_counted_for_others(make_cluster):
    """A server that was stopped and cut off has an old order still; its ticket must not be another request's yet."""
    cluster = make_cluster(topology="dispatcher", hang_timeout="60s")
    data = random.Random(1).randbytes(MiB)
    with cluster.connect() as memory:
        memory.pwrite(data, 0)
    before = pids(cluster)
    with Raw(cluster) as first, Raw(cluster) as second:
        for client in (first, second):
            client.ask(Command.READ, 1, 0, 1)  # all have their sockets
            client.ask(Command.READ, 2, MiB // 2, 1)
            client.ask(Command.READ, 3, MiB - 1, 1)
            while client.session._awaited:
                client.receive()
        cluster.command("fault", "pause", "server2")
        first.ask(Command.READ, 1, 0, MiB)
        while first.receive() is not None and requests(cluster, 3) < 4:
            pass
        cluster.command("fault", "partition", "server0", "server2", "--for", "50ms")
        while first.receive() is not None:
            pass
        second.ask(Command.READ, 1, 0, MiB)
        while requests(cluster, 1) < 5 or requests(cluster, 3) < 5:
            pass
        cluster.command("fault", "resume", "server2")
        assert bytes(second.reply().data) == data
    assert pids(cluster) == before


def test_only_the_last_one_who_said_hello_passes_orders_on(make_cluster, kind):
    """The connection of the one before ends first, and with it all that it had; orders without HELLO are none."""
    cluster = make_cluster(topology=kind)
    taker, last = ("server0", "server3") if kind == "dispatcher" else ("server1", "server2")
    before = pids(cluster)
    cluster.command("fault", "partition", taker, last)  # or it would say HELLO again in between

    def dial(*words: Order) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(60)
        sock.connect(str(cluster.directory / f"{last}.sock"))
        cluster.introduce(sock, last)
        sock.sendall(b"".join(order.encode() for order in words))
        return sock

    with dial(Order(HELLO)) as old:
        assert old.recv(1000) == Order(WELCOME).encode()
        with dial(Order(HELLO)) as new:
            assert new.recv(1000) == Order(WELCOME).encode()
            assert old.recv(1000) == b""
    with dial(Order(DROP, client=1)) as stranger:
        assert stranger.recv(1000) == b""
    cluster.command("fault", "resume", last)
    with cluster.connect() as memory:
        assert memory.pread(MiB, 0) == bytes(MiB)
    assert pids(cluster) == before


@pytest.mark.parametrize("short", [0, 1, -1])
def test_a_server_without_room_for_a_socket_loses_that_client_only(make_cluster, kind, short):
    """Descriptors have run out in the first, the second or the last server: who has come too late loses his connection,
    the others go on; when there is room again, so can he."""
    cluster = make_cluster(topology=kind)
    servers = [node["name"] for node in cluster.status()["nodes"] if node["role"] != "logger"]
    before, name = pids(cluster), servers[short]
    with Raw(cluster) as old, Raw(cluster) as late:
        old.ask(Command.READ, 1, 0, MiB)
        assert bytes(old.reply().data) == bytes(MiB)
        pid = cluster.pid(name)
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        lowest = next(number for number in itertools.count() if not Path(f"/proc/{pid}/fd/{number}").exists())
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, hard))
        late.ask(Command.READ, 1, 0, MiB)
        while late.receive() is not None:
            pass
        old.ask(Command.READ, 2, 0, MiB)
        assert bytes(old.reply().data) == bytes(MiB)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
        with Raw(cluster) as again:
            again.ask(Command.READ, 1, 0, MiB)
            assert bytes(again.reply().data) == bytes(MiB)
    assert pids(cluster) == before


class ShortReader(OrderReader):
    """Takes so many bytes at a time, as at the end of a full buffer; 0: as many as there are."""

    most = 0

    def receive_buffer(self) -> memoryview:
        whole = super().receive_buffer()
        return whole[: self.most] if self.most else whole


def test_a_descriptor_that_did_not_come_is_missed_by_its_own_message(loop):
    """The message is received in two parts, the next one behind it: it must not take the next one's descriptor."""
    near, far = socket.socketpair()
    got: list[int | None] = []
    scratch = memoryview(bytearray(1000))
    sender = Passage(loop, far, memoryview(bytearray(1000)), lambda *_: None, lambda *_: None)
    receiver = Passage(loop, near, scratch, lambda one, orders: got.extend(one.take_descriptor() for _ in orders),
                       lambda *_: None)  # fmt: skip
    receiver._reader = reader = ShortReader(scratch, fresh)
    first, second = os.pipe()
    inode = os.fstat(second).st_ino
    sender.hand(Order(ADOPT, client=1), first)
    sender.hand(Order(ADOPT, client=2), second)
    sender.flush()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reader.most = len(Order(ADOPT).encode()) - 10
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        receiver._readable()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    reader.most = 0
    assert got == []
    while len(got) < 2:
        receiver._readable()
    assert got[0] is None
    assert os.fstat(got[1]).st_ino == inode
    os.close(got[1])
    sender.close()
    receiver.close()


# -- all of it at once -----------------------------------------------------------------------------------------------


class Reader(threading.Thread):
    """Reads all of the memory in pieces of any size, many in flight, now fast, now slowly; comes back when the
    connection is lost. What it gets must make sense, byte for byte, up to the end of each connection."""

    def __init__(self, cluster: Cluster, data: bytes, seed: int, *, structured: bool, may_fail: bool) -> None:
        super().__init__(daemon=True)
        self.failures = (wire.Error.EIO,) if may_fail else ()
        self.cluster, self.data, self.structured = cluster, data, structured
        self.rng = random.Random(seed)
        self.stop = threading.Event()
        self.answered = self.connections = 0
        self.problem = ""

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                try:
                    client = Raw(self.cluster, structured=self.structured, receive=self.rng.choice([0, 4096]))
                except (BrokenPipeError, ConnectionResetError):
                    continue  # who let it in was killed during the handshake
                with client:
                    self.connections += 1
                    self._read(client)
        except (ProtocolError, AssertionError) as problem:
            self.problem = repr(problem)
        except OSError as problem:
            self.problem = f"not let in again: {problem!r}"

    def _read(self, client: Raw) -> None:
        asked: dict[int, tuple[int, int, bool]] = {}
        cookie = 0
        while asked or not self.stop.is_set():
            while len(asked) < 8 and not self.stop.is_set():
                length = self.rng.choice([100, 5000, 200_000, 2 * MiB])
                refused = self.rng.random() < 0.1
                offset = self.rng.randrange(len(self.data) - length) + (len(self.data) if refused else 0)
                asked[cookie] = offset, length, refused
                try:
                    client.ask(Command.READ, cookie, offset, length)
                except ConnectionError:
                    return
                cookie += 1
            replies = client.receive(self.rng.choice([1, 100, 10_000, MiB]))
            if replies is None:
                return
            for reply in replies:
                offset, length, refused = asked.pop(reply.cookie)
                assert reply.error in (wire.Error.EINVAL if refused else 0, *self.failures), reply
                assert reply.error or bytes(reply.data) == self.data[offset : offset + length]
                self.answered += 1


@pytest.mark.parametrize("patience", ["30s", "10ms"])
def test_streams_make_sense_while_servers_die(make_cluster, kind, patience):
    """Every server is killed in the middle, again and again, under clients fast and slow, of simple and of structured
    replies: connections may end, but what came before the end is right, and clients are let in again at once. With
    little patience some requests fail, and are answered like all others."""
    cluster = make_cluster(
        topology=kind, memory="9MiB", layout={"stripe": "64KiB"}, restart={"deaths": 1000, "cap": "10ms"},
        retry_timeout=patience,
    )  # fmt: skip
    data = random.Random(1).randbytes(9 * MiB)
    with cluster.connect() as memory:
        memory.pwrite(data, 0)
    servers = [node["name"] for node in cluster.status()["nodes"] if node["role"] != "logger"]
    readers = [
        Reader(cluster, data, seed, structured=seed % 3 > 0, may_fail=patience == "10ms") for seed in range(6)
    ]
    for reader in readers:
        reader.start()
    for name in servers * 3:
        goal = [reader.answered + 3 for reader in readers]
        poll = select.poll()
        while any(reader.answered < least for reader, least in zip(readers, goal, strict=True)):
            assert not [reader.problem for reader in readers if reader.problem]
            poll.poll(5)
        Identity.of(cluster.pid(name)).signal(signal.SIGKILL)
    for reader in readers:
        reader.stop.set()
    for reader in readers:
        reader.join(60)
        assert not reader.is_alive()
    assert [reader.problem for reader in readers] == [""] * len(readers)
    assert sum(reader.connections for reader in readers) > len(readers)
