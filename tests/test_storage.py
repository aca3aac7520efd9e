"""Whose memory it is that `up` finds: its own and whole, or it is refused and left as it is."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import yaml
from harness import TIMEOUT

import memcluster
from memcluster.launcher.run.leftovers import wait_gone


def test_a_memory_of_another_shape_is_not_overwritten(make_cluster):
    """After a crash, `up` with other sizes refuses; `down` discards; then it starts."""
    cluster = make_cluster()
    cluster.record.supervisor.signal(signal.SIGKILL)
    assert wait_gone([node.identity for node in cluster.record.nodes], TIMEOUT)
    cluster.file.write_text(yaml.safe_dump({**cluster.keys, "memory": "2MiB"}))
    refused = cluster.command("up", "-d", check=False)
    assert refused.returncode == 1
    assert b"holds another memory" in refused.stderr
    cluster.command("down")
    cluster.up()


def test_storage_in_a_directory_outlives_down(tmp_path, new_cluster):
    """`storage: DIR`: the shards are files there, found again by the next `up`; a stranger's are refused."""
    cluster = new_cluster(tmp_path, storage="data")
    cluster.up()
    with cluster.connect() as memory:
        memory.pwrite(b"on disk", 500_000, fua=True)
        memory.flush()
    assert cluster.end() == []
    names = sorted(entry.name for entry in (tmp_path / "data").iterdir())
    assert names == ["memory.json", "shard0", "shard1", "shard2"]
    cluster.up()
    with cluster.connect() as memory:
        assert memory.pread(7, 500_000) == b"on disk"
    assert cluster.end() == []
    (tmp_path / "data" / "memory.json").unlink()
    refused = cluster.command("up", "-d", check=False)
    assert refused.returncode == 1
    assert b"but no memory.json" in refused.stderr
    assert cluster.left_behind() == []


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("damage", ["missing", "short", "long", "empty", "all missing", "another cluster's"])
def test_storage_that_is_not_whole_is_refused_and_left_as_it_is(tmp_path, new_cluster, damage):
    """Zeroes are never put where acknowledged bytes were: one sentence, and nothing has changed. With the right files
    back, every byte is there."""
    cluster = new_cluster(tmp_path, storage="data")
    cluster.up()
    with cluster.connect() as memory:
        memory.pwrite(b"kept" * 1000, 350_000)
    assert cluster.end() == []
    data, shard = tmp_path / "data", tmp_path / "data" / "shard1"
    whole = contents(data)
    if damage == "another cluster's":
        cluster.file.write_text(yaml.safe_dump({**cluster.keys, "name": f"{cluster.name}-other"}))
        words = b"holds another memory: cluster " + cluster.name.encode()
    elif damage.endswith("missing"):
        for path in data.glob("shard*") if damage.startswith("all") else [shard]:
            path.unlink()
        words = b"is not whole: " + (b"shard0" if damage.startswith("all") else b"shard1") + b" is missing"
    else:
        size = {"short": 100, "long": 1 << 20, "empty": 0}[damage]
        os.truncate(shard, size)
        words = b"is not whole: shard1 has %d bytes instead of " % size
    damaged = contents(data)
    for _ in range(2):
        refused = cluster.command("up", "-d", check=False)
        assert refused.returncode == 1
        assert words in refused.stderr
        assert b"put back what belongs there, or choose another directory" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
        assert contents(data) == damaged
        assert cluster.left_behind() == []
    cluster.file.write_text(yaml.safe_dump(cluster.keys))
    for name, content in whole.items():
        (data / name).write_bytes(content)
    cluster.up()
    with cluster.connect() as memory:
        assert memory.pread(4000, 350_000) == b"kept" * 1000
    assert cluster.end() == []


@pytest.mark.parametrize("names", [["shard1"], ["shard0", "shard1", "shard2"]])
def test_memory_that_is_not_whole_is_refused_until_down_discards_it(make_cluster, names):
    """On tmpfs, too, after a crash."""
    cluster = make_cluster()
    cluster.record.supervisor.signal(signal.SIGKILL)
    assert wait_gone([node.identity for node in cluster.record.nodes], TIMEOUT)
    for name in names:
        (cluster.directory / name).unlink()
    for _ in range(2):
        refused = cluster.command("up", "-d", check=False)
        assert refused.returncode == 1
        assert names[0].encode() + b" is missing" in refused.stderr
        assert b"down` discards it" in refused.stderr
    cluster.command("down")
    cluster.up()


def test_a_server_whose_shard_is_gone_does_not_come_back_with_zeroes(tmp_path, new_cluster):
    """It was deleted under the running cluster: the node's own words say so, and a client waits or is refused."""
    cluster = new_cluster(tmp_path, storage="data", retry_timeout="1s", restart={"deaths": 2})
    cluster.up()
    with cluster.connect() as memory:
        memory.pwrite(b"kept", 400_000)
        (tmp_path / "data" / "shard1").unlink()
        cluster.command("fault", "kill", "server1")
        with pytest.raises(memcluster.RequestError):
            memory.pread(4, 400_000)
    assert not (tmp_path / "data" / "shard1").exists()
    cluster.wait_for(lambda status: status["state"] == "degraded" and status["nodes"][1]["state"] == "failed")
    assert b"shard1 is gone, and with it" in cluster.command("status", check=False).stdout
    assert cluster.end() == []
