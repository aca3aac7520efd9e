"""Dispatcher and chain: others answer than who took the request. What breaks, what does not, and what is logged."""

from __future__ import annotations

import json
import random
import select
import signal
import socket
from collections import Counter

import pytest
from harness import Cluster, run

import memcluster
from memcluster.launcher.run.identity import Identity
from memcluster.node.handover.messages import ADOPT, DROP, HELLO, ORDER, Order
from memcluster.node.nbd import wire
from memcluster.node.nbd.client import ClientSession
from memcluster.node.nbd.errors import Refused
from memcluster.node.nbd.wire import Command, CommandFlag

MiB = 1 << 20


@pytest.fixture(params=["dispatcher", "chain"])
def kind(request) -> str:
    return request.param


def owners(cluster: Cluster) -> list[dict]:
    """The servers that hold memory, as status shows them."""
    return [node for node in cluster.status()["nodes"] if node["range"]]


def log(cluster: Cluster, *words: str) -> list[dict]:
    return [json.loads(line) for line in cluster.command("logs", "--json", *words).stdout.splitlines()]


def counters(cluster: Cluster) -> dict[str, dict]:
    return {node["name"]: node for node in cluster.status()["nodes"]}


def session_of(cluster: Cluster, *, structured: bool = True) -> tuple[socket.socket, ClientSession]:
    """A plain connection in the transmission phase."""
    host, port = cluster.uri.removeprefix("nbd://").split(":")
    sock = socket.create_connection((host, int(port)), 60)
    session = ClientSession("", structured=structured)
    while not session.ready:
        if session.outgoing:
            sock.sendmsg(session.outgoing)
            session.outgoing.clear()
        session.received(sock.recv_into(session.receive_buffer(), 1))
    return sock, session


ROLES = {
    "primary-secondary": ["primary", "secondary", "secondary"],
    "client-routed": ["server", "server", "server"],
    "dispatcher": ["dispatcher", "secondary", "secondary", "secondary"],
    "chain": ["head", "middle", "tail"],
}


def test_roles_and_ranges(make_cluster, kind):
    """Each role is called what it is; a dispatcher owns nothing, comes first, and is not counted as a server."""
    cluster = make_cluster(topology=kind)
    status = cluster.status()
    servers = [(node["role"], node["range"]) for node in status["nodes"] if node["role"] != "logger"]
    assert [role for role, _ in servers] == ROLES[kind]
    if kind == "dispatcher":
        assert servers.pop(0) == ("dispatcher", None)
    assert len(servers) == 3
    assert servers[0][1][0] == 0
    assert servers[-1][1][1] == MiB
    words = cluster.command("status").stdout.decode().splitlines()[-1]
    assert f"{kind}, 3 servers{' behind a dispatcher' * (kind == 'dispatcher')}, 1MiB" in words


def test_the_dispatcher_sees_no_bytes_of_reads(make_cluster):
    """Reads within a server and over all of them: what the servers send never passes through the dispatcher."""
    cluster = make_cluster(topology="dispatcher", memory="8MiB", layout={"stripe": "64KiB"})
    with cluster.connect() as memory:
        data = random.Random(1).randbytes(memory.size)
        memory.pwrite(data, 0)
        before = counters(cluster)
        assert memory.pread(memory.size, 0) == data
        for offset in range(0, memory.size, 4096):
            assert memory.pread(4096, offset) == data[offset : offset + 4096]
        after = counters(cluster)
    change = {name: {key: after[name][key] - before[name][key] for key in ("received", "sent")} for name in
              ("server0", "server1", "server2", "server3")}  # fmt: skip
    requests = 2 + memory.size // 4096
    assert change["server0"]["sent"] < requests * 200
    assert change["server0"]["received"] < requests * 200
    assert sum(change[f"server{number}"]["sent"] for number in (1, 2, 3)) > 2 * memory.size


def test_a_chain_carries_what_was_gathered_so_far(make_cluster):
    """Bytes grow from server to server: the second takes one piece, the third two, and the client gets three."""
    cluster = make_cluster(topology="chain", memory="3MiB")
    with cluster.connect() as memory:
        memory.pwrite(b"x" * memory.size, 0)
        before = counters(cluster)
        assert memory.pread(memory.size, 0) == b"x" * memory.size
        after = counters(cluster)
    sent = [after[f"server{number}"]["sent"] - before[f"server{number}"]["sent"] for number in range(3)]
    assert [round(count / MiB, 1) for count in sent] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("way", ["simple", "df"])
@pytest.mark.parametrize("command", ["read", "write"])
def test_clients_that_want_one_reply_get_one(make_cluster, kind, way, command):
    """Without structured replies, or with DF: a request over all servers has one reply, and it is right."""
    cluster = make_cluster(topology=kind, layout={"stripe": "4KiB"})
    data = random.Random(2).randbytes(50_000)
    with cluster.connect() as memory:
        memory.pwrite(data, 1000)
    sock, session = session_of(cluster, structured=way == "df")
    with sock:
        flags = CommandFlag.DF if way == "df" and command == "read" else 0
        if command == "read":
            session.submit(Command.READ, 7, 1000, len(data), flags)
        else:
            session.submit(Command.WRITE, 7, 1000, len(data), flags, (data[::-1],))
        sock.sendmsg(session.outgoing)
        session.outgoing.clear()
        head = sock.recv(4, socket.MSG_PEEK | socket.MSG_WAITALL)
        structured = way == "df" and command == "read"
        assert int.from_bytes(head, "big") == (wire.CHUNK_MAGIC if structured else wire.SIMPLE_REPLY_MAGIC)
        replies: list = []
        received = 0
        while not replies:
            count = sock.recv_into(session.receive_buffer())
            received += count
            replies = session.received(count)
        assert not replies[0].error
        if command == "read":
            assert bytes(replies[0].data) == data
            assert received == len(data) + (28 if structured else 16)  # one header
    with cluster.connect() as memory:
        assert memory.pread(len(data), 1000) == (data if command == "read" else data[::-1])


def test_one_story_through_all_nodes(make_cluster, kind):
    """The request, logged by who answered, before its pieces, one of each node it visited; one identifier for all."""
    cluster = make_cluster(topology=kind, layout={"stripe": "4KiB"})
    with cluster.connect() as memory:
        memory.pwrite(b"abc" * 4096, 4096)
        memory.pread(1, 0)
    [write] = [entry for entry in log(cluster, "--op", "write") if entry["kind"] == "request"]
    assert (write["offset"], write["length"], write["error"]) == (4096, 12288, None)
    story = log(cluster, "--request", write["request"])
    assert [entry["kind"] for entry in story] == ["request"] + ["piece"] * (4 if kind == "dispatcher" else 3)
    visited = Counter(entry["node"] for entry in story[1:])
    assert visited == Counter(counters(cluster).keys() & {f"server{number}" for number in range(4)})
    assert sum(entry["length"] for entry in story[1:]) == 12288
    assert all(entry["time_ns"] >= write["time_ns"] for entry in story[1:])
    [read] = [entry for entry in log(cluster, "--op", "read", "-n", "5") if entry["kind"] == "request"]
    assert read["node"] != "server0"
    text = cluster.command("logs", "--request", write["request"]).stdout.decode()
    assert len(text.splitlines()) == len(story)


def test_kills_under_load_lose_nothing_acknowledged(make_cluster, kind):
    """Each server in turn is killed under load: the client's library goes on, and every answered write is there, and in
    the log."""
    cluster = make_cluster(topology=kind, layout={"stripe": "4KiB"}, restart={"deaths": 100})
    servers = [node["name"] for node in cluster.status()["nodes"] if node["role"] != "logger"]
    values: dict[int, int] = {}
    with cluster.connect() as memory:
        for turn, name in enumerate(servers * 2):
            waiting = []
            for number in range(256):
                offset = (turn * 256 + number) * 128 % memory.size
                value = turn << 16 | number
                waiting.append((offset, value, memory.start_pwrite(value.to_bytes(8, "little") * 16, offset)))
                if number == 100:
                    waiting[10][2].result()
                    Identity.of(cluster.pid(name)).signal(signal.SIGKILL)
            for offset, value, future in waiting:
                future.result()
                values[offset] = value
        for offset, value in values.items():
            assert memory.pread(128, offset) == value.to_bytes(8, "little") * 16
    requests = [entry for entry in log(cluster, "--op", "write") if entry["kind"] == "request"]
    assert {entry["offset"] for entry in requests if not entry["error"]} >= set(values)
    assert max(Counter(entry["request"] for entry in requests).values()) == 1
    assert cluster.status()["state"] == "running"


def test_who_does_not_wait_for_the_dead_keeps_its_connection(make_cluster, kind):
    """A client without requests in flight at the server that dies notices nothing but a pause."""
    cluster = make_cluster(topology=kind)
    with cluster.connect(reconnect=False) as memory:
        for node in owners(cluster)[kind == "chain" :]:
            memory.pwrite(node["name"].encode(), node["range"][0])
        for node in owners(cluster)[kind == "chain" :]:
            cluster.command("fault", "kill", node["name"])
            while not any(one["name"] == node["name"] and one["restarts"] and one["ready"] for one in owners(cluster)):
                pass  # its death is known to all
            assert memory.pread(7, node["range"][0]) == node["name"].encode()


def test_who_reads_nothing_holds_up_nobody_but_himself(make_cluster, kind):
    """One client asks all servers for megabytes and takes nothing; another one works; the first gets all in the end."""
    cluster = make_cluster(topology=kind, memory="24MiB", layout={"stripe": "64KiB"})
    data = random.Random(3).randbytes(24 * MiB)
    with cluster.connect() as memory:
        memory.pwrite(data, 0)
        sock, session = session_of(cluster)
        with sock:
            for cookie in range(6):
                session.submit(Command.READ, cookie, 4 * MiB * cookie, 4 * MiB)
            sock.sendmsg(session.outgoing)
            session.outgoing.clear()
            for number in range(100):
                offset = number * 97_001 % (memory.size - 5000)
                assert memory.pread(5000, offset) == data[offset : offset + 5000]
            replies: list = []
            while len(replies) < 6:
                replies += session.received(sock.recv_into(session.receive_buffer()))
            assert all(bytes(r.data) == data[4 * MiB * r.cookie : 4 * MiB * (r.cookie + 1)] for r in replies)


def test_refusals_stand_between_the_answers_of_servers(make_cluster, kind):
    """Errors that the first server finds and bytes that others send share a stream; a slow client reads both whole."""
    cluster = make_cluster(topology=kind, memory="24MiB", layout={"stripe": "64KiB"})
    data = random.Random(5).randbytes(24 * MiB)
    with cluster.connect() as memory:
        memory.pwrite(data, 0)
    sock, session = session_of(cluster)
    with sock:
        for cookie in range(40):
            if cookie % 2:
                session.submit(Command.READ, cookie, 24 * MiB - 5, 10)
            else:
                session.submit(Command.READ, cookie, cookie * MiB // 2, MiB)
        sock.sendmsg(session.outgoing)
        session.outgoing.clear()
        replies: dict[int, object] = {}
        while len(replies) < 40:
            room = session.receive_buffer()
            for reply in session.received(sock.recv_into(room[: min(len(room), 10_000)])):
                replies[reply.cookie] = reply.error or bytes(reply.data)
    for cookie in range(40):
        start = cookie * MiB // 2
        assert replies[cookie] == (22 if cookie % 2 else data[start : start + MiB]), cookie


def test_a_client_that_goes_in_the_middle_leaves_nothing(make_cluster, kind):
    """Descriptors are given back in every process when clients vanish with requests in flight."""
    cluster = make_cluster(topology=kind, memory="24MiB", layout={"stripe": "64KiB"}, clients={"limit": 4})
    names = [node["name"] for node in cluster.status()["nodes"] if node["role"] != "logger"]

    def descriptors() -> list[int]:
        return [len(list(cluster_descriptors(cluster.pid(name)))) for name in names]

    with cluster.connect() as memory:
        memory.pread(memory.size, 0)
        before = descriptors()
        for _ in range(20):
            sock, session = admitted(cluster, memory)
            for cookie in range(4):
                session.submit(Command.READ, cookie, 0, 8 * MiB)
            sock.sendmsg(session.outgoing)
            sock.recv(100)
            sock.close()
            session.outgoing.clear()
            memory.pread(1000, 1000)
        deadline = select.poll()
        while descriptors() != before:  # the last ones are on their way out: each answer is a turn of every loop
            memory.pread(memory.size, 0)
            deadline.poll(10)


def admitted(cluster: Cluster, memory: memcluster.Memory) -> tuple[socket.socket, ClientSession]:
    """A connection, as soon as there is a place: those who vanished have theirs until what they asked for is done."""
    while True:
        try:
            return session_of(cluster)
        except Refused:
            memory.pread(1000, 1000)


def cluster_descriptors(pid: int) -> list[str]:
    return run("ls", f"/proc/{pid}/fd").stdout.decode().split()


def test_a_server_that_is_away_too_long_is_an_error(make_cluster, kind):
    """After retry_timeout the client gets EIO, and goes on when the server is back."""
    cluster = make_cluster(topology=kind, retry_timeout="500ms", restart={"deaths": 100})
    last = owners(cluster)[-1]
    with cluster.connect() as memory:
        memory.pwrite(b"there", last["range"][0])
        cluster.command("fault", "kill", last["name"], "--for", "1h")
        with pytest.raises(memcluster.ServerError, match=r"no answer from server\d for 0.5 s"):
            memory.pread(5, last["range"][0])
        cluster.command("fault", "resume", last["name"])
        while True:
            try:
                assert memory.pread(5, last["range"][0]) == b"there"
                break
            except memcluster.ServerError:
                continue


def test_a_partition_is_a_pause(make_cluster, kind):
    """A cut link holds requests up until it heals."""
    cluster = make_cluster(topology=kind)
    first, second = ("server0", "server2") if kind == "dispatcher" else ("server1", "server2")
    with cluster.connect() as memory:
        memory.pwrite(b"x", MiB // 2)
        cluster.command("fault", "partition", first, second, "--for", "300ms")
        assert memory.pread(1, MiB // 2) == b"x"
    assert {entry["operation"] for entry in log(cluster)} >= {"partitioned", "healed"}


def test_strangers_at_the_servers_doors_harm_nobody(make_cluster, kind):
    """Rubbish, orders beyond the memory, and messages nobody asked for: closed, counted, and clients go on."""
    cluster = make_cluster(topology=kind)
    rng = random.Random(4)
    beyond = Order(ORDER, Command.WRITE, client=1, offset=MiB - 10, length=1 << 20)
    said = [
        b"GET / HTTP/1.1\r\n\r\n" * 10,
        Order(ORDER, Command.READ, offset=1 << 63, length=5).encode(),
        beyond.encode(1 << 20) + bytes(1 << 20),
        Order(ADOPT, client=3).encode() + Order(ORDER, Command.READ, client=3, length=100).encode(),
        Order(HELLO).encode() + Order(DROP, client=9).encode(),
        *(bytes([0, 0, 0, rng.randrange(12)]) + rng.randbytes(rng.randrange(200)) for _ in range(50)),
        *(Order(rng.randrange(1, 10), rng.randrange(12), offset=rng.randrange(MiB), length=rng.randrange(4096),
                client=rng.randrange(4)).encode(length := rng.randrange(200)) + bytes(length) for _ in range(200)),
    ]  # fmt: skip
    before = [node["pid"] for node in cluster.status()["nodes"]]
    with cluster.connect() as memory:
        memory.pwrite(b"mine" * 1000, MiB // 2)
        for words in said:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(60)
                sock.connect(str(cluster.directory / "server1.sock"))
                cluster.introduce(sock, "server1")
                try:
                    sock.sendall(words)
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(1 << 16):
                        pass
                except ConnectionError:
                    pass
        assert memory.pread(4000, MiB // 2) == b"mine" * 1000
    after = cluster.status()["nodes"]
    assert [node["pid"] for node in after] == before
    assert after[1]["bad_input"] >= 3
