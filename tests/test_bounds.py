"""What one client may do to the others, and to the memory of the server: bounds, deadlines, fairness."""

from __future__ import annotations

import select
import socket
import struct
from contextlib import suppress

import psutil
import pytest
from harness import Cluster, run_in_small_room
from raw import shake_hands

from memcluster import Refused
from memcluster.node.nbd import wire
from memcluster.node.nbd.wire import Command
from memcluster.node.serving.connection import ROOM


def raw_client(cluster: Cluster) -> socket.socket:
    """A plain socket in the transmission phase, with small buffers."""
    address = cluster.uri.removeprefix("nbd://")
    host, port = address.split(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(60)
    sock.connect((host, int(port)))
    shake_hands(sock, structured=False)
    return sock


def request(command: int, offset: int, length: int) -> bytes:
    return wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, command, 1, offset, length)


def ended(sock: socket.socket) -> bool:
    """The server closed it; everything that was on the way is read away."""
    try:
        while sock.recv(1 << 20):
            pass
    except ConnectionResetError:
        pass
    return True


def cut_off(sock: socket.socket) -> bool:
    """The server reset the connection, although nothing of what it sent was taken."""
    poll = select.poll()
    poll.register(sock, select.POLLHUP)
    return bool(poll.poll(60_000))


@pytest.fixture
def cluster(make_cluster):
    return make_cluster(memory="256MiB", servers=2, clients={"stall_timeout": "1s", "limit": 20})


def test_a_client_that_never_reads_its_replies_is_bounded_and_then_cut_off(make_cluster, topology):
    """It asks for gigabytes from both servers and takes nothing: no process keeps more than one client may have, and it
    is ended after stall_timeout; another client works meanwhile."""
    cluster = make_cluster(
        topology=topology, memory="256MiB", servers=2, clients={"stall_timeout": "1s", "limit": 20}
    )
    primary = psutil.Process(cluster.pid("server0"))
    with cluster.connect() as other:
        for start in range(0, other.size, 4 << 20):
            other.pwrite(b"x" * (4 << 20), start)
        before = primary.memory_info().rss - primary.memory_info().shared
        greedy = raw_client(cluster)
        place = 96 << 20 if topology == "client-routed" else 160 << 20  # of a server's own part, or the other server's
        greedy.sendall(request(Command.READ, place, 32 << 20) * 100)
        for number in range(200):
            other.pwrite(bytes([number]), 5)
        during = primary.memory_info().rss - primary.memory_info().shared
        assert during - before < ROOM + (48 << 20)
        assert cut_off(greedy)
        assert other.pread(1, 5) == bytes([199])
    status = cluster.status()["nodes"][0]
    assert status["restarts"] == 0
    assert status["bad_input"] == 1


def test_a_write_whose_payload_never_comes_is_cut_off(cluster):
    """It holds a buffer: it has stall_timeout for the whole payload, however it trickles."""
    with raw_client(cluster) as slow:
        slow.sendall(request(Command.WRITE, 0, 32 << 20) + b"the beginning")
        assert ended(slow)
    assert cluster.status()["nodes"][0]["bad_input"] == 1
    with cluster.connect() as memory:
        assert memory.pread(1, memory.size - 1) == b"\0"


def test_an_idle_client_may_stay(cluster):
    """Idleness holds nothing: no deadline applies to a client that owes nothing and is owed nothing."""
    with cluster.connect(reconnect=False) as idle, raw_client(cluster) as slow:
        slow.sendall(request(Command.WRITE, 0, 32 << 20))
        assert ended(slow)  # longer than stall_timeout has passed
        assert idle.pread(1, 0) == b"\0"


def test_zeroing_everything_does_not_hold_the_others_up(cluster):
    """A request over the whole memory is done in slices: another client's requests go on between them."""
    with cluster.connect() as one, cluster.connect() as other:
        one.pwrite(b"x" * 1000, 0)
        zeroing = one.start_zero(one.size, 0, no_hole=True)
        assert other.pread(1, one.size - 1) == b"\0"
        zeroing.result()
        assert one.pread(1000, 0) == bytes(1000)
        assert all(not extent.hole for extent in one.extents(one.size, 0))


def test_auto_counts_and_shows_in_status(make_cluster):
    """clients.limit: auto starts, lets clients in while the machine is well, and status has the refusals by reason."""
    cluster = make_cluster(clients={"limit": "auto"})
    memories = [cluster.connect() for _ in range(100)]
    assert cluster.status()["nodes"][0]["refusals"] == {}
    for memory in memories:
        memory.close()


def test_a_handshake_that_stalls_is_ended(make_cluster):
    """A connection that never gets to an export has handshake_timeout, and counts as bad input."""
    cluster = make_cluster(clients={"handshake_timeout": "500ms"})
    host, port = cluster.uri.removeprefix("nbd://").split(":")
    with socket.create_connection((host, int(port))) as silent:
        silent.settimeout(60)
        assert silent.recv(18)[:8] == struct.pack(">Q", wire.NBDMAGIC)
        assert ended(silent)
    assert cluster.status()["nodes"][0]["bad_input"] == 1


def test_a_handshake_that_goes_on_and_on_is_ended(make_cluster):
    """What is said in it gives no more time, and takes no place from clients that come to an export."""
    cluster = make_cluster(clients={"limit": 1, "handshake_timeout": "500ms"})
    host, port = cluster.uri.removeprefix("nbd://").split(":")
    with socket.create_connection((host, int(port)), 60) as talker:
        talker.sendall(struct.pack(">I", 1))  # fixed newstyle
        with cluster.connect() as memory:
            try:
                while True:
                    talker.sendall(wire.OPTION.pack(wire.IHAVEOPT, wire.Option.LIST, 0))
                    assert memory.pread(1, 0) == b"\0"
                    if not talker.recv(4096):
                        break
            except ConnectionError:
                pass
    assert cluster.status()["nodes"][0]["bad_input"] == 1


FULL_STORAGE = """
set -e
mount -t tmpfs -o size=3m tmpfs data
$memcluster up -d >/dev/null
head -c 4194304 /dev/urandom > big
$memclient copy big memory: && exit 9
$memclient read 0 100 | cmp -n 100 - big
$memcluster status
$memcluster down >/dev/null
"""


def test_a_full_storage_is_enospc_for_the_client_and_shows_in_status(tmp_path, new_cluster):
    """No room: the client's error says so, what was written before stays, every process lives, status tells."""
    cluster = new_cluster(tmp_path, memory="8MiB", storage="data")
    (tmp_path / "data").mkdir()
    done = run_in_small_room(tmp_path, FULL_STORAGE)
    assert b"No space left on device (ENOSPC)" in done.stderr
    assert b"requests found no room" in done.stdout
    assert cluster.left_behind() == []


@pytest.mark.parametrize("topology", ["primary-secondary", "dispatcher", "chain"])
def test_who_leaves_has_its_place_until_nothing_of_it_is_in_flight(make_cluster, topology):
    """Its request waits for a server that is away, and its payload takes up memory: leaving makes no room for more."""
    cluster = make_cluster(topology=topology, servers=2, clients={"limit": 1})
    away = "server2" if topology == "dispatcher" else "server1"
    cluster.command("fault", "pause", away)
    sock = raw_client(cluster)
    sock.sendall(request(Command.WRITE, 1 << 19, 1 << 16) + bytes(1 << 16))
    cluster.wait_for(lambda status: status["nodes"][0]["requests"] >= 3)  # a probe asked each server for a byte
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # as of a process that is killed
    sock.close()
    cluster.wait_for(lambda status: not status["nodes"][0]["clients"])
    with pytest.raises(Refused, match="all 1 client slots are taken"):
        cluster.connect(reconnect=False)
    cluster.command("fault", "resume", away)
    while True:
        with suppress(Refused), cluster.connect(reconnect=False) as memory:
            assert memory[0:1] == b"\0"
            break
