"""Another cluster takes the place of the one that runs, and clients keep their connections: nothing that was asked for
is lost, done twice, or has to be asked for again."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from harness import TIMEOUT, Cluster, memcluster_command, need
from raw import Raw, shake_hands
from test_apply_anew import asked, memory_of, wait_until_stopped

import memcluster
from memcluster.launcher.run.control import FrameStream
from memcluster.launcher.run.leftovers import wait_gone
from memcluster.node.nbd.wire import REQUEST, REQUEST_MAGIC, SIMPLE_REPLY, SIMPLE_REPLY_MAGIC, Command

Make = Callable[..., Cluster]
Start = Callable[..., Any]
KIB = 1024
SIZE = 8 << 20
ONE_DOOR = ["primary-secondary", "chain", "dispatcher"]
"""Where all clients come in at server 0."""


@pytest.fixture(params=ONE_DOOR)
def one_door(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def write(cluster: Cluster, **keys: Any) -> None:
    """Edit cluster.yaml."""
    cluster.keys |= keys
    cluster.file.write_text(yaml.safe_dump(cluster.keys))


def apply(cluster: Cluster, *words: str, **keys: Any) -> None:
    write(cluster, **keys)
    cluster.command("apply", "--yes", *words)
    cluster.remember()


SHAPES: list[dict[str, Any]] = [{"servers": 4, "layout": {"stripe": "4KiB"}}, {"servers": 1, "layout": "linear"}]


class QemuIo:
    """qemu-io with one connection for all its commands; it does not come back when it loses that."""

    def __init__(self, start: Start, uri: str) -> None:
        command = ["stdbuf", "-oL", need("qemu-io", "qemu-utils"), "-f", "raw", uri]
        self._process = start(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self._said = ""

    def do(self, command: str) -> None:
        """And wait for its answer, of which the last line counts the operations; an error has none."""
        self._process.stdin.write(f"{command}\n".encode())
        self._process.stdin.flush()
        line = " "
        while " ops; " not in line and line:
            line = self._process.stdout.readline().decode()
            self._said += line

    def end(self) -> str:
        self._process.communicate(b"quit\n", timeout=TIMEOUT)
        return self._said


class Nbdsh:
    """libnbd, in the same way."""

    def __init__(self, start: Start, uri: str) -> None:
        words = "for line in __import__('sys').stdin:\n exec(line)\n print('done', flush=True)"
        script = f"h.connect_uri({uri!r})\n{words}"
        command = [need("nbdsh", "python3-libnbd"), "-c", script]
        self._process = start(
            *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PATH": "/usr/bin:/bin"}
        )

    def do(self, command: str) -> None:
        self._process.stdin.write(f"{command}\n".encode())
        self._process.stdin.flush()
        assert self._process.stdout.readline() == b"done\n"


def removed_but_mapped(cluster: Cluster) -> list[str]:
    """Files of the cluster that server 0 keeps in memory for nothing."""
    maps = Path(f"/proc/{cluster.pid('server0')}/maps").read_text().splitlines()
    return [line for line in maps if cluster.name in line and line.endswith("(deleted)")]


def test_clients_of_all_kinds_keep_their_connections(make_cluster: Make, start: Start, one_door: str) -> None:
    """The library without reconnecting, libnbd and qemu-io: what they wrote before is there, and they go on, through
    one shape after the other; server 0's process is the same all the time, and has nothing of the old files."""
    cluster = make_cluster(topology=one_door, memory=SIZE)
    data = bytearray(random.Random(5).randbytes(SIZE))
    with cluster.connect(reconnect=False) as memory:
        memory.pwrite(data, 0)
        qemu, shell = QemuIo(start, cluster.uri), Nbdsh(start, cluster.uri)
        pid = cluster.pid("server0")
        for count, shape in enumerate(SHAPES, start=1):
            at = count * 1000
            qemu.do(f"write -P {count} {at} 500")
            shell.do(f"h.pwrite(b'{count}' * 3000, {SIZE // 2 - 1500 + at})")
            apply(cluster, **shape)
            data[at : at + 500] = bytes([count]) * 500
            data[SIZE // 2 - 1500 + at : SIZE // 2 + 1500 + at] = str(count).encode() * 3000
            qemu.do(f"read -P {count} {at} 500")
            shell.do(f"assert h.pread(3000, {SIZE // 2 - 1500 + at}) == b'{count}' * 3000")
            assert bytes(memory.pread(SIZE, 0)) == data
        memory.flush()
        assert cluster.pid("server0") == pid
        said = qemu.end()
        assert said.count("wrote 500/500") == said.count("read 500/500") == len(SHAPES), said
        assert "Pattern verification failed" not in said
        assert not removed_but_mapped(cluster)


def test_with_shared_links(make_cluster: Make) -> None:
    """What server 0 had mapped of the others' memory goes, too."""
    cluster = make_cluster(memory=SIZE, links="shared")
    data = random.Random(6).randbytes(SIZE)
    with cluster.connect(reconnect=False) as memory:
        memory.pwrite(data, 0)
        for shape in SHAPES:
            apply(cluster, **shape)
            assert bytes(memory.pread(SIZE, 0)) == data
            memory.pwrite(data[: 1 << 20], 0)
        assert not removed_but_mapped(cluster)


class Plain:
    """A client that says and hears bytes."""

    def __init__(self, cluster: Cluster) -> None:
        host, port = cluster.uri.removeprefix("nbd://").split(":")
        self.sock = socket.create_connection((host, int(port)), TIMEOUT)
        shake_hands(self.sock, structured=False)

    def send(self, command: Command, cookie: int, offset: int, length: int, payload: bytes = b"") -> None:
        self.sock.sendall(REQUEST.pack(REQUEST_MAGIC, 0, command, cookie, offset, length) + payload)

    def hear(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            more = self.sock.recv(count - len(found))
            assert more, "the server closed the connection"
            found += more
        return found

    def answered(self, cookie: int, length: int = 0) -> bytes:
        assert self.hear(SIMPLE_REPLY.size) == SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, cookie)
        return self.hear(length)


def test_a_payload_of_which_a_part_has_come(make_cluster: Make, one_door: str) -> None:
    """A long one and a short one, cut in their midst: the rest comes when the shape is another, and each is written
    whole; of the short one not a byte before."""
    cluster = make_cluster(topology=one_door, memory=SIZE)
    long, short = random.Random(7).randbytes(1 << 20), random.Random(8).randbytes(8 * KIB)
    one = Plain(cluster)  # alone at first: a long payload is received straight into the shard then
    one.send(Command.WRITE, 1, 512, len(long), long[: len(long) // 2])
    with cluster.connect() as memory:
        assert memory.pread(4, 0) == bytes(4)
    other = Plain(cluster)
    other.send(Command.READ, 5, 0, 4)
    other.answered(5, 4)
    other.send(Command.WRITE, 2, SIZE // 2, len(short), short[:100])
    for shape in SHAPES:
        apply(cluster, **shape)
    with cluster.connect() as memory:
        assert not any(memory.pread(len(short), SIZE // 2))
    one.sock.sendall(long[len(long) // 2 :])
    other.sock.sendall(short[100:])
    one.answered(1)
    other.answered(2)
    with cluster.connect() as memory:
        assert bytes(memory.pread(len(long), 512)) == long
        assert bytes(memory.pread(len(short), SIZE // 2)) == short
    one.send(Command.READ, 3, 512, len(long))
    assert one.answered(3, len(long)) == long
    one.sock.close()
    other.sock.close()


@pytest.mark.parametrize("one_door", ["dispatcher", "chain"])
def test_answers_that_are_not_taken(make_cluster: Make, one_door: str) -> None:
    """Who does not read does not hold up the others. What server 0 has to say to it is kept, as it was; where another
    server says it the connection is lost."""
    cluster = make_cluster(topology=one_door, memory=SIZE)
    data = random.Random(9).randbytes(SIZE)
    with cluster.connect(reconnect=False) as memory:
        memory.pwrite(data, 0)
        slow = Plain(cluster)
        for cookie in range(32):
            slow.send(Command.READ, cookie, SIZE // 4, SIZE // 2)
        apply(cluster, servers=2)
        assert bytes(memory.pread(SIZE, 0)) == data
        memory.zero(SIZE, 0)
        if one_door != "chain":
            magic, error, _ = SIMPLE_REPLY.unpack(slow.hear(SIMPLE_REPLY.size))
            assert (magic, error) == (SIMPLE_REPLY_MAGIC, 0)
            assert slow.hear(SIZE // 2) == data[SIZE // 4 : SIZE // 4 * 3]
        else:
            with suppress(ConnectionError):
                while slow.sock.recv(1 << 20):
                    pass
        slow.sock.close()


def test_the_size_of_what_is_open(make_cluster: Make) -> None:
    """Old connections have their old size when the memory grows, new ones the new size; when it becomes smaller the old
    ones end."""
    cluster = make_cluster(servers=2)
    with Raw(cluster.uri) as old:
        old.ask(Command.WRITE, 1000, 4, payload=b"kept")
        apply(cluster, memory="2MiB", servers=4)
        assert old.ask(Command.READ, 1000, 4).data == b"kept"
        assert old.ask(Command.READ, 1 << 20, 4).error
        with Raw(cluster.uri) as new:
            assert new.session.size == 2 << 20
            new.ask(Command.WRITE, (1 << 20) + 5, 4, payload=b"more")
        apply(cluster, "--discard", memory="1MiB", servers=3)
        assert old.ask(Command.READ, 1000, 4).data == b"kept"
        apply(cluster, "--discard", memory="512KiB")
        with pytest.raises(ConnectionError):
            old.ask(Command.READ, 1000, 4)


def test_who_is_shaking_hands(make_cluster: Make) -> None:
    """It finds what there is when it opens it."""
    cluster = make_cluster()
    host, port = cluster.uri.removeprefix("nbd://").split(":")
    with socket.create_connection((host, int(port)), TIMEOUT) as sock:
        assert sock.recv(1)  # of the greeting; the rest is read below
        sock.recv(17, socket.MSG_PEEK)
        apply(cluster, memory="2MiB", servers=2)
        whole = Greeted(sock)
        shake_hands(whole)  # type: ignore[arg-type]
        sock.sendall(REQUEST.pack(REQUEST_MAGIC, 0, Command.READ, 7, (2 << 20) - 4, 4))
        assert sock.recv(4)


class Greeted:
    """A socket of which the first byte of the greeting has been read."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._first = b"N"
        self.sendmsg = sock.sendmsg

    def recv_into(self, buffer: memoryview, count: int) -> int:
        if self._first:
            buffer[:1], self._first = self._first, b""
            return 1
        return self._sock.recv_into(buffer, count)


def test_parts_that_become_others(make_cluster: Make) -> None:
    """Who has opened one server's part goes on while its bytes are where they were; when they are elsewhere it has to
    see for itself what is to be found there now."""
    cluster = make_cluster(memory="3MiB", servers=[{"memory": "1MiB"}] * 3)
    with Raw(cluster.uri, "server1") as part, Raw(cluster.uri, "cluster.json") as known:
        part.ask(Command.WRITE, 10, 4, payload=b"part")
        apply(cluster, memory="5MiB", servers=[{"memory": "1MiB"}] * 5)
        assert part.ask(Command.READ, 10, 4).data == b"part"
        with pytest.raises(ConnectionError):
            known.ask(Command.READ, 0, 4)
        apply(cluster, memory="5MiB", servers=2)
        with pytest.raises(ConnectionError):
            part.ask(Command.READ, 10, 4)


def test_client_routed(make_cluster: Make) -> None:
    """Where a server's bytes stay, so do the connections of those who have opened them, whole maps included; else a
    client that routes fetches the new map and connects anew, and others have to."""
    cluster = make_cluster(topology="client-routed", memory="2MiB", servers=[{"memory": "1MiB"}] * 2)
    with cluster.connect() as memory, Raw(cluster.uri) as first, cluster.connect(reconnect=False) as staying:
        memory.pwrite(b"over both", (1 << 20) - 4)
        apply(cluster, memory="4MiB", servers=[{"memory": "1MiB"}] * 4)
        assert first.ask(Command.READ, (1 << 20) - 4, 4).data == b"over"
        assert bytes(staying.pread(9, (1 << 20) - 4)) == b"over both"
        apply(cluster, servers=3, layout={"stripe": "4KiB"}, memory="3MiB")
        assert bytes(memory.pread(9, (1 << 20) - 4)) == b"over both"
        with pytest.raises(ConnectionError):
            first.ask(Command.READ, 0, 4)
        with pytest.raises(memcluster.Disconnected):
            staying.pread(4, 0)


def test_over_tls(make_cluster: Make, folders: dict[str, Path]) -> None:
    """The session goes on; who is in the midst of its handshake has to come again."""
    cluster = make_cluster(memory=SIZE, tls={"certificates": str(folders["right"])})
    data = random.Random(3).randbytes(SIZE)
    with cluster.connect(reconnect=False) as memory:
        memory.pwrite(data, 0)
        apply(cluster, **SHAPES[0])
        assert bytes(memory.pread(SIZE, 0)) == data
        with cluster.connect() as other:
            assert bytes(other.pread(10, SIZE - 10)) == data[-10:]


OLD: dict[str, Any] = {"memory": "1MiB", "servers": [{"memory": "512KiB"}] * 2}


@contextmanager
def in_the_pause(folder: Path, new_cluster: Make, start: Start, **keys: Any) -> Iterator[Pause]:
    """A cluster whose supervisor stops itself when the first door rests, and the `apply` that waits for it; and a way
    to tell it something that is read as soon as it goes on."""
    cluster = new_cluster(folder, **OLD, **keys)
    cluster.command("up", "-d", MEMCLUSTER_KILL_AT="reshape:1", MEMCLUSTER_KILL_WITH="SIGSTOP")
    cluster.remember()
    with cluster.connect() as memory:
        memory.pwrite(b"kept", 0)
    write(cluster, memory="2MiB", servers=[{"memory": "512KiB"}] * 4)
    orders = asked(cluster, {"do": "status"})
    assert next(orders.frames(None))
    applying = start(*memcluster_command("apply", "--yes"), cwd=cluster.folder, stderr=subprocess.PIPE)
    yield Pause(cluster, applying, orders)
    orders.close()


class Pause(NamedTuple):
    cluster: Cluster
    applying: Any
    orders: FrameStream

    def end(self, order: str = "") -> int:
        """Have the supervisor go on; returns the exit code of `apply`."""
        supervisor = self.cluster.record.supervisor
        wait_until_stopped(self.cluster)
        if order:
            self.orders.send({"do": order})
        supervisor.signal(signal.SIGCONT)
        code: int = self.applying.wait(TIMEOUT)
        if order == "down":
            assert wait_gone([supervisor], TIMEOUT)
        else:
            self.cluster.remember()
        return code


def test_called_off_in_the_pause(tmp_path: Path, new_cluster: Make, start: Start) -> None:
    """Clients keep their connections on the way back, too."""
    with in_the_pause(tmp_path, new_cluster, start, topology="dispatcher") as pause, Raw(pause.cluster.uri) as raw:
        assert pause.end("abort") == 1
        assert raw.ask(Command.READ, 0, 4).data == b"kept"
        with pause.cluster.connect() as memory:
            assert memory.size == 1 << 20


def test_server_0_is_killed_in_the_pause(tmp_path: Path, new_cluster: Make, start: Start) -> None:
    """It is started as any other; clients connect again."""
    with in_the_pause(tmp_path, new_cluster, start, topology="chain") as pause, pause.cluster.connect() as memory:
        wait_until_stopped(pause.cluster)
        victim = next(node.identity for node in pause.cluster.record.nodes if node.name == "server0")
        victim.signal(signal.SIGKILL)
        assert wait_gone([victim], TIMEOUT)
        assert pause.end() == 0
        assert bytes(memory.pread(4, 0)) == b"kept"


@pytest.mark.parametrize("topology", ["primary-secondary", "client-routed"])
def test_a_stop_in_the_pause(tmp_path: Path, new_cluster: Make, start: Start, topology: str) -> None:
    """Nobody is left behind, those that rest included."""
    with in_the_pause(tmp_path, new_cluster, start, topology=topology, storage="data") as pause:
        assert pause.end("down") == 1
        assert pause.cluster.left_behind() == []
        if memory_of(pause.cluster).shape.size == 1 << 20:  # with more doors than one it may have gone on before
            write(pause.cluster, **OLD)
        pause.cluster.up()
        with pause.cluster.connect() as memory:
            assert bytes(memory.pread(4, 0)) == b"kept"
