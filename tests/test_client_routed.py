"""client-routed: the library makes one memory of the servers' parts; standard clients see the parts."""

from __future__ import annotations

import json
import random
import signal
from collections import Counter
from itertools import pairwise

import pytest
from harness import Cluster, need, run

import memcluster
from memcluster.launcher.run.identity import Identity

SIZE = 1 << 20
UNEQUAL = [{"memory": 300_000}, {"memory": 400_000}, {"memory": SIZE - 700_000}]


def uris(cluster: Cluster) -> list[str]:
    return [f"nbd://{node['address']}" for node in cluster.status()["nodes"] if node["role"] != "logger"]


def log(cluster: Cluster, *words: str) -> list[dict]:
    return [json.loads(line) for line in cluster.command("logs", "--json", *words).stdout.splitlines()]


@pytest.mark.parametrize("keys", [{"servers": UNEQUAL}, {"layout": {"stripe": "4KiB"}}], ids=["linear", "striped"])
def test_the_whole_memory_from_any_server(make_cluster, keys):
    """The library and memclient see one memory, whichever server they are told of."""
    cluster = make_cluster(topology="client-routed", **keys)
    data = random.Random(1).randbytes(SIZE)
    for number, uri in enumerate(uris(cluster)):
        with memcluster.connect(uri) as memory:
            assert memory.size == SIZE
            assert "Router" in repr(memory)
            part = data[number * 1000 :] + data[: number * 1000]
            memory.pwrite(part, 0)
            assert memory[299_990:300_010] == part[299_990:300_010]
            buffer = bytearray(50_000)
            memory.readinto(buffer, 290_000)
            assert buffer == part[290_000:340_000]
    whole = cluster.memclient("--uri", uris(cluster)[2], "read", "0", "1MiB").stdout
    assert whole == part
    found = json.loads(cluster.memclient("--uri", uris(cluster)[1], "info", "--json").stdout)
    assert found["size"] == SIZE


def test_standard_clients_see_a_servers_part(make_cluster, tmp_path):
    """nbdinfo, nbdcopy and qemu-io on each port: the size and the bytes of that server's shard."""
    for command, package in (("nbdinfo", "libnbd-bin"), ("nbdcopy", "libnbd-bin"), ("qemu-io", "qemu-utils")):
        need(command, package)
    cluster = make_cluster(topology="client-routed", servers=UNEQUAL)
    data = random.Random(2).randbytes(SIZE)
    with cluster.connect() as memory:
        memory.pwrite(data, 0)
    start = 0
    for uri, server in zip(uris(cluster), UNEQUAL, strict=True):
        end = start + server["memory"]
        assert int(run("nbdinfo", "--size", uri).stdout) == server["memory"]
        run("nbdcopy", uri, tmp_path / "part")
        assert (tmp_path / "part").read_bytes() == data[start:end]
        run("qemu-io", "-f", "raw", "-c", "write -P 0x5a 1000 2000", uri)
        with cluster.connect() as memory:
            assert memory[start + 1000 : start + 3000] == b"\x5a" * 2000
        start = end
    assert b"cluster.json" in run("nbdinfo", "--list", uris(cluster)[1]).stdout


def test_one_story_over_all_servers(make_cluster):
    """The parts of a request bear one identifier and stand under their addresses in the memory."""
    cluster = make_cluster(topology="client-routed")
    with cluster.connect() as memory:
        memory.pwrite(b"x" * SIZE, 0)
        memory.pread(10, 5)
    writes = log(cluster, "--op", "write")
    assert len({entry["request"] for entry in writes}) == 1
    assert sum(entry["length"] for entry in writes) == SIZE
    ranges = [node["range"] for node in cluster.status()["nodes"] if node["range"]]
    assert sorted([entry["offset"], entry["offset"] + entry["length"]] for entry in writes) == ranges
    tree = cluster.command("logs", "--request", writes[0]["request"]).stdout.decode().splitlines()
    assert [any(f"server{number}" in line for line in tree) for number in range(3)] == [True] * 3
    [read] = log(cluster, "--op", "read", "--range", "5:5")
    assert read["offset"] == 5
    assert read["request"] != writes[0]["request"]


def test_serial_means_one_after_the_other(make_cluster):
    """With fan_out: serial a part is sent when the part before it has been answered."""
    cluster = make_cluster(topology="client-routed", fan_out="serial")
    with cluster.connect() as memory:
        memory.pwrite(b"x" * SIZE, 0)
        assert memory.pread(SIZE, 0) == b"x" * SIZE
    for operation in ("write", "read"):
        parts = sorted(log(cluster, "--op", operation), key=lambda entry: entry["offset"])[:3]
        spans = [(entry["time_ns"], entry["time_ns"] + int(entry["duration_us"] * 1000)) for entry in parts]
        assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_kills_under_load_lose_nothing_acknowledged(make_cluster):
    """Each server in turn is killed under load: the library goes on; what was answered is there, and logged once."""
    cluster = make_cluster(topology="client-routed", layout={"stripe": "4KiB"}, restart={"deaths": 100})
    values: dict[int, int] = {}
    with cluster.connect() as memory:
        for turn in range(6):
            waiting = []
            for number in range(256):
                offset = (turn * 256 + number) * 128 % SIZE
                value = turn << 16 | number
                waiting.append((offset, value, memory.start_pwrite(value.to_bytes(8, "little") * 16, offset)))
                if number == 100:
                    waiting[10][2].result()
                    Identity.of(cluster.pid(f"server{turn % 3}")).signal(signal.SIGKILL)
            for offset, value, future in waiting:
                future.result()
                values[offset] = value
        assert memory.reconnections >= 6
        for offset, value in values.items():
            assert memory.pread(128, offset) == value.to_bytes(8, "little") * 16
    writes = log(cluster, "--op", "write")
    assert {entry["offset"] for entry in writes} >= set(values)
    assert max(Counter((entry["node"], entry["request"]) for entry in writes).values()) == 1


def test_what_does_not_concern_the_dead_server_goes_on(make_cluster):
    """While one server is away requests to the others are answered; its own wait, and are when it is back. If it stays
    away too long its own fail, and no others."""
    cluster = make_cluster(topology="client-routed", memory="3MiB", restart={"deaths": 100})
    with cluster.connect() as memory:
        memory.pwrite(b"x" * 3 * SIZE, 0)
        cluster.command("fault", "kill", "server1", "--for", "1h")
        waiting = memory.start_pread(2 * SIZE, 0)
        for number in range(100):
            assert memory.pread(10, number) + memory.pread(10, 3 * SIZE - 10) == b"x" * 20
        assert not waiting.done
        cluster.command("fault", "resume", "server1")
        assert waiting.result() == b"x" * 2 * SIZE
        memory._carrier.timeout = 2.0
        cluster.command("fault", "kill", "server1", "--for", "1h")
        waiting = memory.start_pread(2 * SIZE, 0)
        with pytest.raises(memcluster.Disconnected, match="could not be made again"):
            waiting.result()
        assert memory.pread(10, 0) + memory.pread(10, 3 * SIZE - 10) == b"x" * 20
        cluster.command("fault", "resume", "server1")
        memory._carrier.timeout = 60.0
        assert memory.pread(10, SIZE) == b"x" * 10


def test_what_is_in_flight_is_bounded(make_cluster, monkeypatch):
    """As without routing: who submits more than fits waits until there is room."""
    monkeypatch.setattr("memcluster.client.router.MAX_IN_FLIGHT", SIZE)
    cluster = make_cluster(topology="client-routed")
    with cluster.connect() as memory:
        futures = []
        for number in range(50):
            futures.append(memory.start_pwrite(bytes([number]) * (SIZE // 2), 0))
            router = memory._carrier
            assert sum(connection.cost for connection in router._connections) <= 2 * SIZE
        for future in futures:
            future.result()
        assert memory.pread(1, 0) == bytes([49])


def test_an_old_map_is_found_out(tmp_path, new_cluster):
    """Another layout on the same sockets: the client is refused, fetches the new map and goes on."""
    listens = [{"memory": SIZE // 2, "listen": f"unix:{name}"} for name in ("a", "b")]
    cluster = new_cluster(tmp_path, topology="client-routed", servers=listens, listen="unix:a")
    cluster.up()
    data = random.Random(3).randbytes(SIZE)
    with cluster.connect() as memory:
        memory.pwrite(data, 0)
        assert cluster.end() == []
        other = new_cluster(
            tmp_path, topology="client-routed", servers=listens, listen="unix:a", layout={"stripe": "4KiB"}
        )
        other.up()
        assert memory.pread(100, SIZE // 2 - 50) == bytes(100)
        memory.pwrite(data, 0)
        assert memory.reconnections
        with other.connect() as fresh:
            assert fresh.pread(SIZE, 0) == data


def test_a_memory_of_another_size_is_an_error(tmp_path, new_cluster):
    """What a client knows of the memory's size is no longer true: it is told so."""
    whole = [{"memory": SIZE, "listen": "unix:a"}]
    cluster = new_cluster(tmp_path, topology="client-routed", servers=whole, listen="unix:a")
    cluster.up()
    with cluster.connect() as memory:
        assert cluster.end() == []
        half = [{"memory": SIZE // 2, "listen": "unix:a"}]
        other = new_cluster(tmp_path, topology="client-routed", memory=SIZE // 2, servers=half, listen="unix:a")
        other.up()
        with pytest.raises(memcluster.ClusterError, match="the memory is another one"):
            memory.pread(1, 0)


def test_without_reconnect_a_loss_is_an_error(make_cluster):
    cluster = make_cluster(topology="client-routed")
    with cluster.connect(reconnect=False) as memory:
        assert memory.pread(1, 0) == b"\0"
        cluster.command("fault", "kill", "server1", "--for", "1s")
        with pytest.raises(memcluster.Disconnected):
            memory.pread(1, SIZE // 2)


def test_identifiers_are_lent_anew_when_a_block_is_used_up(make_cluster, monkeypatch):
    """A client asks for another block without taking a slot."""
    monkeypatch.setattr("memcluster.client.identifiers.BLOCK", 3)
    cluster = make_cluster(topology="client-routed", clients={"limit": 1})
    with cluster.connect() as memory:
        for number in range(10):
            memory.pwrite(bytes([number]), number)
    writes = log(cluster, "--op", "write")
    assert len({entry["request"] for entry in writes}) == len(writes) == 10


def test_identifiers_are_lent_by_whoever_is_there(make_cluster, monkeypatch):
    """The server that a client was told of is away: it asks another one, and those that are there do what they can."""
    monkeypatch.setattr("memcluster.client.identifiers.BLOCK", 3)
    monkeypatch.setattr("memcluster.client.identifiers.PATIENCE", 0.2)
    cluster = make_cluster(topology="client-routed", restart={"deaths": 100})
    with cluster.connect() as memory:
        cluster.command("fault", "kill", "server0", "--for", "1h")
        for number in range(6):
            memory.pwrite(bytes([number]), SIZE - 1)
        assert memory.pread(1, SIZE - 1) == b"\5"


def test_a_context_that_is_listed_can_be_chosen(make_cluster):
    """The word to clients that route is one for every client, by the letter of the protocol: it tells of no byte."""
    cluster = make_cluster(topology="client-routed", servers=2, memory="2MiB")
    script = """
contexts = []
h.connect_uri(URI)
h.add_meta_context("x-memcluster:")
h.opt_list_meta_context(lambda name: contexts.append(name))
[word] = contexts
h.clear_meta_contexts()
h.add_meta_context(word)
h.add_meta_context("base:allocation")
h.opt_go()
assert h.can_meta_context(word)
told = {}
h.block_status(65536, 0, lambda context, _offset, entries, _error: told.update({context: list(entries)}))
print(told[word], sorted(told) == sorted([word, "base:allocation"]))
"""
    nbdsh = need("nbdsh", "python3-libnbd")
    words = ["-c", "h.set_opt_mode(True)", "-c", script.replace("URI", repr(cluster.uri))]
    done = run(nbdsh, *words, PATH="/usr/bin:/bin")
    assert done.stdout.decode().split() == ["[65536,", "0]", "True"]
