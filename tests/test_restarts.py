"""A server that starts again while another one is away: it serves what it can without that one."""

from __future__ import annotations

import pytest
from harness import Cluster

import memcluster

MiB = 1 << 20
AWAY = {"killed": ("kill", "--for", "1h"), "paused": ("pause",), "failed": ("kill",)}


def wait_for_the_restart(cluster: Cluster, name: str) -> None:
    """The server was killed: it is ready again."""

    def is_back(status: dict) -> bool:
        return any(node["name"] == name and node["restarts"] and node["ready"] for node in status["nodes"])

    cluster.wait_for(is_back)


def make(make_cluster, kind: str, how: str = "") -> tuple[Cluster, str, int, int]:
    """A cluster, who is to be away, a byte that can be served meanwhile, and one of the other's."""
    deaths = 1 if how == "failed" else 100
    cluster = make_cluster(topology=kind, retry_timeout="500ms", restart={"deaths": deaths})
    owners = [node for node in cluster.status()["nodes"] if node["range"]]
    return cluster, owners[1]["name"], owners[0]["range"][0], owners[1]["range"][0]


@pytest.mark.parametrize("kind", ["chain", "dispatcher", "primary-secondary"])
@pytest.mark.parametrize("how", ["killed", "paused"])
def test_who_starts_again_while_another_is_away_serves_what_it_can(make_cluster, kind, how):
    """Bytes that need nobody else are read and written; requests for the others wait, and fail by retry_timeout."""
    cluster, away, here, there = make(make_cluster, kind)
    with cluster.connect() as memory:
        memory.pwrite(b"kept", here)
        memory.pwrite(b"away", there)
    cluster.command("fault", AWAY[how][0], away, *AWAY[how][1:])
    cluster.command("fault", "kill", "server0")
    wait_for_the_restart(cluster, "server0")
    with cluster.connect() as memory:
        assert memory.pread(4, here) == b"kept"
        memory.pwrite(b"new ", here)
        with pytest.raises(memcluster.ServerError, match="retry_timeout"):
            memory.pread(4, there)
        assert memory.pread(4, here) == b"new "
        cluster.command("fault", "resume", away)
        while True:
            try:
                assert memory.pread(8, there) == b"away" + bytes(4)
                break
            except memcluster.ServerError:
                continue
        assert memory.pread(4, here) == b"new "
    cluster.remember()


def test_a_chain_that_is_back_takes_over_from_its_head(make_cluster):
    """What the head alone has answered meanwhile is not taken yet: the next answers come behind it, from the tail."""
    cluster = make_cluster(topology="chain", restart={"deaths": 100})
    length = MiB // 3
    with cluster.connect(reconnect=False) as memory:
        memory.pwrite(b"x" * length, 0)
        cluster.command("fault", "kill", "server1", "--for", "1h")
        cluster.wait_for(lambda status: any(node["state"] == "restarting" for node in status["nodes"]))
        cluster.status()  # the head answers in a turn of its loop in which it meets whatever was there before
        reads = [memory.start_pread(length, 0) for _ in range(50)]
        reads[0].result()
        cluster.command("fault", "resume", "server1")
        reads += [memory.start_pread(length, 0) for _ in range(50)]
        assert all(read.result() == b"x" * length for read in reads)
        assert memory.pread(1, MiB - 1) == b"\0"


@pytest.mark.parametrize("how", AWAY)
def test_a_client_that_routes_gets_in_while_a_server_is_away(make_cluster, how):
    """It is told of the whole memory, and is served by the others; that one's bytes are there when it is."""
    cluster, away, here, there = make(make_cluster, "client-routed", how)
    cluster.command("fault", AWAY[how][0], away, *AWAY[how][1:])
    with cluster.connect(timeout=2.5) as memory:
        assert memory.size == MiB
        memory.pwrite(b"kept", here)
        assert memory.pread(4, here) == b"kept"
        with pytest.raises(memcluster.ClusterError, match="could not be made again"):
            memory.pread(4, there)
        assert memory.pread(4, here) == b"kept"
        cluster.command("fault", "resume", away)
        memory.pwrite(b"back", there)
        assert memory.pread(4, there) == b"back"
