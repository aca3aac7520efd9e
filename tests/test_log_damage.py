"""A log in trouble stops the log and not the service: whatever becomes of its files, memory and clients are served."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import TIMEOUT, Cluster, named

import memcluster
from memcluster.node.log.segments import segment_paths

pytestmark = pytest.mark.timeout(180)
Make = Callable[..., Cluster]
KEPT = b"kept" * 2000
PLACE = 348_000
"""Where it lies: on server0 and server1, which meet at 352,256."""


def folder(cluster: Cluster, server: int) -> Path:
    return cluster.folder / "logs" / cluster.name / f"server{server}"


def wait_for(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not true():
        assert time.monotonic() < deadline, "this never came true"


def lines(cluster: Cluster, *words: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in cluster.command("logs", "--json", *words).stdout.splitlines()]


def wait_for_life(cluster: Cluster, name: str, restarts: int) -> None:
    def lives(status: dict[str, Any]) -> bool:
        found = named(status, name)
        return found["state"] == "ready" and found["restarts"] >= restarts

    cluster.wait_for(lives)


def test_segments_that_are_emptied_take_no_memory_away(make_cluster: Make, topology: str) -> None:
    """All of them, while a client writes: `truncate -s 0`, as people do to free a disk. A server that writes there just
    then dies of it, once, comes back with every byte, and says in its log what was damaged."""
    cluster = make_cluster(topology=topology)
    servers = sum(found["role"] != "logger" for found in cluster.status()["nodes"])
    with cluster.connect() as memory:
        memory.pwrite(KEPT, PLACE)
        for path in [path for server in range(servers) for path in segment_paths(folder(cluster, server))]:
            os.truncate(path, 0)
        for place in range(0, 1 << 20, 1 << 14):
            memory.pwrite(b"x" * 64, place)
        assert memory.pread(len(KEPT), PLACE).replace(b"x" * 64, b"") in KEPT
        assert memory.pread(8, PLACE + 4000) == KEPT[4000:4008]
        for server in range(servers):
            wait_for_life(cluster, f"server{server}", 0)
        memory.pwrite(b"after", 350_000)
    cluster.remember()
    assert all(found["state"] == "ready" for found in cluster.status()["nodes"])
    wait_for(lambda: len(lines(cluster, "--op", "log_damaged")) == servers)
    assert any((line["offset"], line["length"]) == (350_000, 5) for line in lines(cluster, "--op", "write"))
    assert "1 file of its log" in cluster.command("logs", "--errors").stdout.decode()


def test_a_server_that_dies_while_its_log_cannot_be_written_comes_back(make_cluster: Make) -> None:
    """As with a folder that became read-only: here it is no folder any more. The log goes on when it is mended."""
    cluster = make_cluster()
    logs = cluster.folder / "logs" / cluster.name
    with cluster.connect() as memory:
        memory.pwrite(KEPT, PLACE)
        logs.rename(cluster.folder / "away")
        logs.write_text("this is no folder")
        for number, name in enumerate(("server1", "server0", "logger1")):
            cluster.command("fault", "kill", name)
            wait_for_life(cluster, name, 1)
            memory.pwrite(b"%d" % number, number)
        assert memory.pread(len(KEPT), PLACE) == KEPT
        verdict = cluster.command("status", check=False).stdout.decode().splitlines()[-1]
        assert "the log of server0 has stopped (Not a directory), the service goes on" in verdict
        logs.unlink()
        (cluster.folder / "away").rename(logs)
        cluster.wait_for(lambda status: not any(found.get("log_trouble") for found in status["nodes"]))
        memory.pwrite(b"mended", 100)
    cluster.remember()
    found = lines(cluster)
    assert [line for line in found if line["operation"] == "log_stopped"]
    assert any(line["offset"] == 100 and line["length"] == 6 for line in found if line["kind"] == "request")
    stories = [(line["node"], line["kind"], line["request"]) for line in found if line["request"]]
    assert len(stories) == len(set(stories))


def test_a_log_that_is_deleted_goes_on(make_cluster: Make) -> None:
    """Servers notice by themselves, and whoever starts again uses no identifier twice."""
    cluster = make_cluster()
    with cluster.connect() as memory:
        memory.pwrite(KEPT, PLACE)
        for path in [path for server in range(3) for path in segment_paths(folder(cluster, server))]:
            path.unlink()
        wait_for(lambda: all(segment_paths(folder(cluster, server)) for server in range(3)))
        before = lines(cluster)
        memory.pwrite(KEPT, PLACE)
        for path in segment_paths(folder(cluster, 0)):
            path.unlink()
        cluster.command("fault", "kill", "server0")
        memory.pwrite(KEPT, PLACE)
    cluster.remember()
    pieces = [line["request"] for line in lines(cluster, "--op", "write", "--node", "server1")]
    assert len(pieces) == 2
    assert [identifier.split(".")[1] for identifier in pieces] == ["1", "2"]
    assert not [line for line in before if line["operation"] == "WRITE"]


@pytest.mark.parametrize("size", [0, 1000, 340_000])
def test_a_shard_that_is_cut_short_is_not_served(make_cluster: Make, size: int) -> None:
    """Its server ends within a second, or when it touches what is gone, and does not come back with zeroes: it says
    why, and the others serve on."""
    cluster = make_cluster(retry_timeout="500ms", restart={"deaths": 2})
    with cluster.connect() as memory:
        memory.pwrite(KEPT, PLACE)
        os.truncate(cluster.directory / "shard1", size)
        cluster.wait_for(lambda status: named(status, "server1")["state"] == "failed")
        with pytest.raises(memcluster.RequestError):
            memory.pread(4, 354_000)
        assert memory.pread(1000, PLACE) == KEPT[:1000]
    assert f"shard1 has {size} bytes" in cluster.command("status", check=False).stdout.decode()
