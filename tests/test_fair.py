"""Nobody waits long for another: what floods of requests, options and refusals cost those who do not send them."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

from harness import Cluster
from raw import shake_hands

from memcluster.node.nbd import wire
from memcluster.node.nbd.wire import Command, CommandFlag, Option
from memcluster.node.transport.tcp import LOST_AFTER

MIB = 1 << 20
GREETED = wire.CLIENT_FLAGS.pack(1)


def door(cluster: Cluster) -> socket.socket:
    host, port = cluster.uri.removeprefix("nbd://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def opened(cluster: Cluster) -> socket.socket:
    """In the transmission phase, with structured replies and base:allocation."""
    sock = door(cluster)
    shake_hands(sock)
    return sock


def test_a_flood_of_requests_that_cost_much_is_no_hang(make_cluster, topology):
    """Hundreds of BLOCK_STATUS over memory in pieces, and of zeroings that keep the room, in a few kB: other clients
    are answered meanwhile, and nobody is killed for standing still."""
    cluster = make_cluster(topology=topology, memory="64MiB", servers=2, hang_timeout="500ms")
    with cluster.connect() as memory:
        written = [memory.start_pwrite(b"x", start) for start in range(0, 16 * MIB, 8192)]
        for one in written:
            one.result()
        flood = opened(cluster)
        ask = wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, Command.BLOCK_STATUS, 1, 0, 32 * MIB)
        zero = wire.REQUEST.pack(wire.REQUEST_MAGIC, CommandFlag.NO_HOLE, Command.WRITE_ZEROES, 1, 16 * MIB, 16 * MIB)
        flood.sendall(ask * 500 + zero * 100)
        for _ in range(50):
            assert memory.pread(1, 0) == b"x"
        flood.close()
        assert memory.pread(1, 8192) == b"x"
    status = cluster.status()
    assert {node["restarts"] for node in status["nodes"]} == {0}


def test_who_never_opens_an_export_is_cut_off_and_others_are_served(make_cluster, topology):
    """Twenty connections ask for the list again and again. Each gets 64 answers and then nothing."""
    cluster = make_cluster(topology=topology, servers=2)
    lists = GREETED + wire.OPTION.pack(wire.IHAVEOPT, Option.LIST, 0) * 100
    with cluster.connect() as memory:
        strangers = [door(cluster) for _ in range(20)]
        for stranger in strangers:
            stranger.sendall(lists)
        assert memory.pread(1, 0) == b"\0"
        for stranger in strangers:
            answered = 0
            with suppress(ConnectionResetError):
                while got := stranger.recv(1 << 16):
                    answered += got.count(struct.pack(">I", 1) + bytes(4))
            stranger.close()
        assert memory.pread(1, 0) == b"\0"
    assert cluster.status()["nodes"][0]["bad_input"] >= 20


def test_refusals_are_counted_and_do_not_flood_the_log(make_cluster):
    """Whoever is refused a thousand times leaves some records; the owner's own stay."""
    cluster = make_cluster(servers=1)
    with cluster.connect() as memory:
        memory.pwrite(b"mine", 0)
    name = b"no such export"
    go = wire.OPTION.pack(wire.IHAVEOPT, Option.GO, len(name) + 6)
    go += struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
    for _ in range(20):
        stranger = door(cluster)
        stranger.sendall(GREETED + go * 70)
        with suppress(ConnectionResetError):
            while stranger.recv(1 << 16):
                pass
        stranger.close()
    server = cluster.status()["nodes"][0]
    assert server["refused"] == 20 * 64
    assert server["events_unlogged"] > 0
    shown = cluster.command("logs", "-n", "100000").stdout
    assert shown.count(b"refused") + shown.count(b"bad") + server["events_unlogged"] >= 20 * 64
    assert b"WRITE" in shown


def test_the_kernel_asks_after_a_client_that_says_nothing(make_cluster):
    """A machine that vanished sends no end: the server's socket has a timer for that, and the client's place is free
    again LOST_AFTER seconds later."""
    cluster = make_cluster(servers=1)
    with cluster.connect():
        port = int(cluster.uri.rpartition(":")[2])
        while not (timers := keepalive_timers(port)):  # until the last reply is acknowledged it is another timer
            pass
        assert 0 < max(timers) <= LOST_AFTER * 100


def keepalive_timers(port: int) -> list[int]:
    """When the kernel asks after the clients of a server, in jiffies of 10 ms."""
    found = []
    with open("/proc/net/tcp") as table:
        for line in table:
            _, local, _, state, _, timer, *_ = line.split()
            kind, _, when = timer.partition(":")
            if local.endswith(f":{port:04X}") and state == "01" and kind == "02":
                found.append(int(when, 16))
    return found
