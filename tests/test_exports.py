"""What can be opened beside the memory itself: it read-only, one server's part of it, and who holds what."""

from __future__ import annotations

import json
import subprocess

import pytest
from harness import need
from raw import Raw

from memcluster.node.nbd.errors import Refused
from memcluster.node.nbd.wire import BASE_ALLOCATION, OWNER, Command, CommandFlag, Error, TransmissionFlag

MIB = 1 << 20
STRIPE = 64 << 10


def test_the_read_only_export_is_the_memory_and_cannot_be_changed(make_cluster, topology):
    """Reads see what others write; whatever would change a byte is EPERM."""
    cluster = make_cluster(topology=topology, servers=1 if topology == "client-routed" else 3)
    with Raw(cluster.uri) as writer, Raw(cluster.uri, "readonly") as reader:
        assert reader.session.size == writer.session.size == MIB
        assert reader.flags & TransmissionFlag.READ_ONLY
        assert not reader.flags & (TransmissionFlag.SEND_TRIM | TransmissionFlag.SEND_WRITE_ZEROES)
        writer.ask(Command.WRITE, MIB // 2 - 3, 6, payload=b"abcdef")
        assert reader.ask(Command.READ, MIB // 2 - 3, 6).data == b"abcdef"
        for command, payload in (Command.WRITE, b"xxxxxx"), (Command.TRIM, b""), (Command.WRITE_ZEROES, b""):
            assert reader.ask(command, MIB // 2 - 3, 6, payload=payload).error == Error.EPERM
        assert writer.ask(Command.READ, MIB // 2 - 3, 6).data == b"abcdef"
        assert reader.ask(Command.BLOCK_STATUS, 0, MIB).extents[0][1] == 3


@pytest.mark.parametrize("layout", ["linear", {"stripe": STRIPE}])
def test_the_export_of_a_server_is_its_part_of_the_memory(make_cluster, layout):
    """primary-secondary: what is written through it lies where the layout has that server's bytes, and the other way
    round; the log speaks of the memory, and FLUSH and FUA reach the server."""
    cluster = make_cluster(memory="3MiB", layout=layout)
    sizes = [server["memory"] for server in _map(cluster)["servers"]]
    with Raw(cluster.uri) as whole:
        address = 0
        for server, size in enumerate(sizes):
            start = server * STRIPE if layout != "linear" else address
            address += size
            with Raw(cluster.uri, f"server{server}") as part:
                assert part.session.size == size
                text = f"I am {server}".encode()
                assert part.ask(Command.WRITE, 0, 6, CommandFlag.FUA, text).error == 0
                assert whole.ask(Command.READ, start, 6).data == text
                whole.ask(Command.WRITE, start + 100, 3, payload=b"abc")
                assert part.ask(Command.READ, 100, 3).data == b"abc"
                large = bytes([server + 1]) * (512 << 10)
                assert part.ask(Command.WRITE, size - len(large), len(large), payload=large).error == 0
                assert part.ask(Command.READ, size - len(large), len(large)).data == large
                for command, length in (Command.FLUSH, 0), (Command.TRIM, 0), (Command.CACHE, size):
                    assert part.ask(command, 0, length).error == 0
                assert part.ask(Command.READ, size, 1).error == Error.EINVAL
                assert part.ask(Command.BLOCK_STATUS, 0, 10).extents == [(10, 0)]
    firsts = [entry["offset"] for entry in cluster.logged_writes() if entry["length"] == 6]
    assert firsts == [server * (STRIPE if layout != "linear" else MIB) for server in range(3)]


def test_a_client_of_a_routed_cluster_opens_a_server_by_its_name(make_cluster):
    """client-routed: each server has its own part under its name, and no other's."""
    cluster = make_cluster(topology="client-routed")
    for server, node in enumerate(node for node in cluster.status()["nodes"] if node["range"]):
        with Raw(node["address"], f"server{server}", contexts=(OWNER,)) as part:
            start, end = node["range"]
            assert part.ask(Command.BLOCK_STATUS, 0, end - start).extents == [(end - start, server)]
        with pytest.raises(Refused, match="there is no export"):
            Raw(node["address"], f"server{server + 1}")


@pytest.mark.parametrize("topology", ["dispatcher", "chain"])
def test_where_others_answer_there_is_no_export_of_a_server(make_cluster, topology):
    """Those who answer there know the memory's addresses alone; asking for it is refused in words."""
    cluster = make_cluster(topology=topology)
    with pytest.raises(Refused, match="there is no export"):
        Raw(cluster.uri, "server1")


@pytest.mark.parametrize("layout", ["linear", {"stripe": STRIPE}])
@pytest.mark.parametrize("extended", [False, True])
def test_who_holds_what(make_cluster, topology, layout, extended):
    """The context memcluster:owner says of each extent which server holds it, by itself and beside base:allocation."""
    if topology == "client-routed":
        pytest.skip("a server has nothing to tell there but of itself")
    cluster = make_cluster(topology=topology, memory="3MiB", layout=layout)
    servers = [number for number, server in enumerate(_map(cluster)["servers"]) if server["memory"]]
    if layout == "linear":
        owners = [(MIB, server) for server in servers]
    else:
        owners = [(STRIPE, server) for server in servers] * (MIB // STRIPE)
    for contexts in (OWNER,), (OWNER, BASE_ALLOCATION):
        with Raw(cluster.uri, contexts=contexts, extended=extended) as client:
            assert set(client.session.contexts.values()) == set(contexts)
            assert client.ask(Command.BLOCK_STATUS, 0, 3 * MIB).extents == owners
            assert client.ask(Command.BLOCK_STATUS, 10, 3 * MIB - 10, CommandFlag.REQ_ONE).extents == [
                (owners[0][0] - 10, owners[0][1])
            ]
            assert client.ask(Command.BLOCK_STATUS, owners[0][0] - 1, 2).extents == [(1, servers[0]), (1, servers[1])]
    with Raw(cluster.uri, contexts=(BASE_ALLOCATION, OWNER), extended=extended) as client:
        assert client.ask(Command.BLOCK_STATUS, 0, 3 * MIB).extents == [(3 * MIB, 3)]


def test_nbdinfo_shows_who_holds_what(make_cluster):
    """A tool that knows nothing of the context prints its numbers."""
    need("nbdinfo", "libnbd-bin")
    cluster = make_cluster(memory="3MiB")
    words = ["nbdinfo", "--json", f"--map={OWNER}", cluster.uri]
    found = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    assert [(part["offset"], part["length"], part["type"]) for part in found] == [
        (0, MIB, 0), (MIB, MIB, 1), (2 * MIB, MIB, 2),
    ]  # fmt: skip


def _map(cluster) -> dict:
    with Raw(cluster.uri, "cluster.json") as client:
        return json.loads(bytes(client.ask(Command.READ, 0, client.session.size).data))
