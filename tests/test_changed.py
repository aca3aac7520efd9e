"""An edited cluster.yaml: who asks is told what of it does not hold yet, and what it takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Cluster

from memcluster.launcher.clusterfile.difference import differences

FILE = "name: one\nmemory: 1MiB\nservers:\n- {memory: 512KiB, listen: '127.0.0.1:1'}\n- {memory: 512KiB}\n"


@pytest.mark.parametrize(
    ("written", "key", "how", "means"),
    [
        (FILE.replace("1MiB", "1536KiB").replace("- {memory: 512KiB}", "- {memory: 1MiB}"), "memory", "restart",
         "restart: larger, at the end"),
        (FILE.replace("1MiB", "768KiB").replace("- {memory: 512KiB}", "- {memory: 256KiB}"), "memory", "restart",
         "restart: smaller: the bytes from 768KiB on are lost"),
        (FILE + "- {memory: 4KiB}\n", "servers", "restart", "restart: clients wait for a moment"),
        (FILE.replace("512KiB}", "256KiB}") + "- {memory: 512KiB}\n", "servers", "move",
         "move: 1MiB go to other shards; clients wait for a moment when they are there"),
        (FILE + "layout: {stripe: 4KiB}\n", "layout.stripe", "move",
         "move: 1MiB go to other shards; clients wait for a moment when they are there"),
        (FILE + "listen: 127.0.0.1:2\n", "listen", "restart", "restart: clients find it at another address"),
        (FILE.replace("{memory: 512KiB}", "{memory: 512KiB, listen: '127.0.0.1:3'}"), "servers' listen", "restart",
         "restart: clients find it at another address"),
        (FILE + "topology: chain\n", "topology", "restart", "restart: clients connect again"),
        (FILE + "storage: elsewhere\n", "storage", "next start", "the bytes are copied to another memory"),
        (FILE + "logs: {level: errors}\n", "logs.level", "at once", "at once, without a restart"),
        (FILE + "logs: {directory: a$$b}\n", "logs.directory", "next start", "from the next start on"),
    ],
)  # fmt: skip
def test_a_key_that_differs(written: str, key: str, how: str, means: str) -> None:
    change = next(each for each in differences(FILE, written) if each.key == key)
    assert (change.how, change.means) == (how, means)
    assert "$$" not in str(change.written)
    back = next(each for each in differences(written, FILE) if each.key == key)
    assert (back.running, back.written) == (change.written, change.running)


def test_what_is_the_same_does_not_differ() -> None:
    """Another name is another cluster, and is not compared."""
    assert differences(FILE, FILE.replace("one", "two")) == []


def test_an_edited_file_is_told_of_until_it_holds(make_cluster: Callable[..., Cluster]) -> None:
    """By `status`, by `up` with its own exit code, and key by key by `diff`; one that is just saved again is not."""
    cluster = make_cluster(storage="data")
    before = cluster.file.read_text()
    assert b"runs as cluster.yaml says" in cluster.command("diff").stdout
    cluster.file.write_text(before)
    assert b"note:" not in cluster.command("status").stdout
    assert cluster.command("up", "-d").returncode == 0
    with cluster.connect() as memory:
        memory.pwrite(b"kept", 350_000)

    cluster.file.write_text(before + "sockets: {mode: 0660}\nclients: {limit: 9}\n")
    changes = cluster.command("diff", "--json", check=False)
    assert changes.returncode == 1
    assert {change["key"]: change["written"] for change in json.loads(changes.stdout)} == {
        "sockets.mode": "0660",
        "clients.limit": 9,
    }
    table = cluster.command("diff", check=False).stdout.decode()
    assert "nothing that was answered is lost" in " ".join(table.split())
    assert "note: cluster.yaml was changed, and what runs was not (sockets.mode, clients.limit)" in " ".join(
        cluster.command("status").stdout.decode().split()
    )
    again = cluster.command("up", "-d", check=False)
    assert again.returncode == 6
    assert b"but not as it is written now:" in again.stderr

    cluster.file.write_text(before + "clients: {limit: 9}\n")
    assert "`memcluster apply` applies that" in cluster.command("diff", check=False).stdout.decode()
    cluster.file.write_text(before + "retry_timeout: 7 suns\n")
    assert b"cluster.yaml was changed and cannot be used" in cluster.command("status").stdout
    assert cluster.command("diff", check=False).returncode == 2

    cluster.file.write_text(before + "retry_timeout: 7s\nclients: {limit: 9}\n")
    cluster.command("down")
    assert cluster.command("diff", check=False).returncode == 3
    cluster.command("up", "-d")
    cluster.remember()
    assert cluster.command("diff").returncode == 0
    with cluster.connect() as memory:
        assert memory.pread(4, 350_000) == b"kept"


def test_another_shape_is_told_with_the_way_to_it(make_cluster: Callable[..., Cluster]) -> None:
    """Where apply cannot have it, what `diff` says to do does it."""
    cluster = make_cluster()
    with cluster.connect() as memory:
        memory.pwrite(b"kept", 700_000)
    cluster.file.write_text(cluster.file.read_text().replace("servers: 3", "servers: 5") + "storage: elsewhere\n")
    said = cluster.command("diff", check=False).stdout.decode()
    assert "`memclient copy memory: FILE` keeps the bytes" in said
    cluster.memclient("copy", "memory:", "saved")
    cluster.command("down")
    cluster.command("up", "-d")
    cluster.remember()
    cluster.memclient("copy", "saved", "memory:")
    assert cluster.command("diff").returncode == 0
    with cluster.connect() as memory:
        assert memory.pread(4, 700_000) == b"kept"


def test_what_was_set_on_the_command_line_is_no_change_of_the_file(
    new_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """`up` with the same words again finds what it wants; without them it says what it does not find."""
    cluster = new_cluster(tmp_path)
    words = ("up", "-d", "--set", "retry_timeout=7s")
    cluster.command(*words)
    cluster.remember()
    assert cluster.command(*words).returncode == 0
    assert b"note:" not in cluster.command("status").stdout
    assert cluster.command("up", "-d", check=False).returncode == 6
