"""The newer half of the protocol against real clusters: requests of more than 4 GiB, and holes in what is read."""

from __future__ import annotations

import json

import psutil
import pytest
from raw import Raw

from memcluster.node.nbd.wire import Command, CommandFlag, Error, Status

MIB, GIB = 1 << 20, 1 << 30
HOLE = int(Status.HOLE | Status.ZERO)
NEEDED = 8 * GIB
"""Bytes of memory, and of room in /dev/shm, that let there be a cluster of a little more than 5 GiB; none is used."""
ROOM = min(psutil.virtual_memory().total, psutil.disk_usage("/dev/shm").free)


@pytest.mark.skipif(ROOM < NEEDED, reason="needs a machine with 8 GiB of memory and of room in /dev/shm")
def test_a_request_of_more_than_4_gib_is_one_request(make_cluster, topology):
    """Zeroing, its extents, and its line in the log; a part of 5 GiB is one server's."""
    cluster = make_cluster(topology=topology, servers=[{"memory": "1MiB"}, {"memory": "5GiB"}], memory=5 * GIB + MIB)
    routed = topology == "client-routed"
    where = cluster.status()["nodes"][1]["address"] if routed else cluster.uri
    size = 5 * GIB if routed else 5 * GIB + MIB
    with Raw(where, extended=True) as client:
        assert client.session.extended
        assert client.session.size == size
        far = 9 * GIB // 2
        for flags in 0, CommandFlag.FUA:
            assert client.ask(Command.WRITE, far, 5, flags, b"hello").error == 0
            assert client.ask(Command.READ, far - 1, 7).data == b"\0hello\0"
            told = client.ask(Command.BLOCK_STATUS, 0, size).extents
            assert told == [(far, HOLE), (4096, 0), (size - far - 4096, HOLE)]
            assert client.ask(Command.TRIM, 1, size - 1, flags).error == 0
            assert bytes(client.ask(Command.READ, far, 5).data) == bytes(5)
        assert client.ask(Command.BLOCK_STATUS, 0, size).extents == [(size, HOLE)]
        assert client.ask(Command.WRITE_ZEROES, 0, size).error == 0
        assert client.ask(Command.CACHE, 0, size).error == 0
        assert client.ask(Command.READ, 0, 1 << 33).error == Error.EINVAL
        assert client.ask(Command.WRITE_ZEROES, 1, size).error == Error.ENOSPC
    entries = map(json.loads, cluster.command("logs", "--json").stdout.splitlines())
    requests = [entry for entry in entries if entry["kind"] == "request"]
    assert {entry["length"] for entry in requests if entry["operation"] == "TRIM"} == {size - 1}


@pytest.mark.parametrize("extended", [False, True])
def test_holes_of_a_read_do_not_travel(make_cluster, topology, extended):
    """A large read that finds little data brings little more than that, and every byte is right."""
    cluster = make_cluster(topology=topology, memory="8MiB", servers=1 if topology == "client-routed" else 2)
    last = 4 * MIB  # in a chain, what the others add is bytes
    right = bytes(MIB) + b"hello" + bytes(2 * MIB - 5)
    for start in (last,) if topology == "chain" else (0, last):
        with Raw(cluster.uri, extended=extended) as client:
            client.ask(Command.WRITE, start + MIB, 5, 0, b"hello")
            before = client.received
            assert bytes(client.ask(Command.READ, start, 3 * MIB).data) == right
            assert client.received - before < 20_000
            assert client.ask(Command.READ, start + MIB - 2, 10, CommandFlag.DF).data == b"\0\0hello\0\0\0"
            assert bytes(client.ask(Command.READ, start, 3 * MIB, CommandFlag.DF).data) == right
        with Raw(cluster.uri, structured=False) as client:
            assert bytes(client.ask(Command.READ, start, 3 * MIB).data) == right


def test_holes_of_another_server_do_not_travel_either(make_cluster):
    """The link tells the primary of a hole, and the primary its client."""
    cluster = make_cluster(memory="8MiB", servers=2)
    with Raw(cluster.uri) as client:
        for offset, length in (5 * MIB, MIB), (3 * MIB, 2 * MIB), (8 * MIB - 1, 1):
            before = client.received
            assert bytes(client.ask(Command.READ, offset, length).data) == bytes(length)
            assert client.received - before < 200
