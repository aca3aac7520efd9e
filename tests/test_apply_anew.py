"""`memcluster apply` of what takes every node a new start: another topology, address or shape of the memory. Every byte
that was acknowledged is there, whoever is killed meanwhile."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import TIMEOUT, Cluster, memcluster_command, run_in_small_room

import memcluster
from memcluster.launcher.run.control import FrameStream, connect
from memcluster.launcher.run.directory import RunDirectory
from memcluster.launcher.run.identity import Identity
from memcluster.launcher.run.leftovers import wait_gone
from memcluster.launcher.run.memory import Claim, read_claim

Make = Callable[..., Cluster]
KIB = 1024


def write(cluster: Cluster, **keys: Any) -> None:
    """Edit cluster.yaml."""
    cluster.keys |= keys
    cluster.file.write_text(yaml.safe_dump({key: value for key, value in cluster.keys.items() if value is not None}))


def apply(cluster: Cluster, *words: str, **keys: Any) -> list[str]:
    """Edit the file and apply it; returns the keys that hold otherwise now."""
    write(cluster, **keys)
    told = json.loads(cluster.command("apply", "--yes", "--json", *words).stdout)
    cluster.remember()
    return [change["key"] for change in told["changes"]]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


def test_one_cluster_becomes_many_others(make_cluster: Make) -> None:
    """Other servers, layouts and topologies, larger and smaller, one after the other: the bytes stay, and so does the
    address until another one is written; the log has it all, and no number twice."""
    cluster = make_cluster()
    data = random.Random(7).randbytes(1 << 20)
    with cluster.connect() as memory:
        memory.pwrite(data, 0)
    uri = cluster.uri

    def holds() -> bool:
        with cluster.connect() as memory:
            return bytes(memory.pread(len(data), 0)) == data

    assert apply(cluster, servers=5) == ["servers"]
    assert holds()
    assert "layout.stripe" in apply(cluster, layout={"stripe": "4KiB"}, topology="dispatcher")
    assert holds()
    unequal = [{"memory": "256KiB"}, {"memory": "512KiB"}, {"memory": "256KiB"}]
    assert "topology" in apply(cluster, servers=unequal, layout="linear", topology="chain")
    assert holds()
    larger = [*unequal[:2], {"memory": "1280KiB"}]
    assert apply(cluster, servers=larger, memory="2MiB", topology="client-routed") == ["memory", "topology", "servers"]
    assert holds()
    assert cluster.uri == uri
    port = free_port()
    assert set(apply(cluster, topology=None, listen=f"127.0.0.1:{port}")) == {"topology", "listen"}
    assert cluster.uri == f"nbd://127.0.0.1:{port}"
    assert holds()
    events = cluster.command("logs", "--json", "--all-runs", "--op", "applied").stdout.splitlines()
    assert len(events) == 5
    entries = map(json.loads, cluster.command("logs", "--json", "--all-runs", "--op", "write").stdout.splitlines())
    requests = [(entry["request"], entry["node"]) for entry in entries if entry["kind"] == "request"]
    assert len(requests) == len(set(requests))
    assert cluster.command("diff").returncode == 0


def test_less_memory_is_refused_while_something_is_there(make_cluster: Make) -> None:
    """The byte that would be lost is named; once the part is zero, or given up, it goes."""
    cluster = make_cluster(layout={"stripe": "4KiB"}, memory="96KiB")
    with cluster.connect() as memory:
        memory.pwrite(b"kept", 0)
        memory.pwrite(b"x", 80 * KIB)
    write(cluster, memory="48KiB")
    for words in (("--yes",), ("--dry-run",)):
        done = cluster.command("apply", *words, check=False)
        assert done.returncode == 1
        assert f"that at {80 * KIB} is not zero; --discard gives them up".encode() in done.stderr
    with cluster.connect() as memory:
        assert memory.size == 96 * KIB
        memory.pwrite(b"\0", 80 * KIB)
        apply(cluster)
        with pytest.raises(memcluster.Disconnected, match="connect anew"):
            memory.pread(4, 0)
    apply(cluster, memory="96KiB")
    with cluster.connect() as memory:
        assert bytes(memory.pread(96 * KIB, 0)) == b"kept".ljust(96 * KIB, b"\0")
        memory.pwrite(b"x", 80 * KIB)
    apply(cluster, "--discard", memory="48KiB")
    with cluster.connect() as memory:
        assert bytes(memory.pread(48 * KIB, 0)) == b"kept".ljust(48 * KIB, b"\0")


class Writer(threading.Thread):
    """A client that writes a byte here and there, again and again, on one memory that it has open; `known` has the last
    byte that was acknowledged at each place. It must get through."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self.known: dict[int, int] = {}
        self._cluster = cluster
        self._count = 0
        self._over = False
        self._failure: BaseException | None = None
        self._told = threading.Condition()

    def run(self) -> None:
        places = random.Random(3)
        try:
            with self._cluster.connect() as memory:
                while not self._over:
                    at, byte = places.randrange(memory.size), places.randrange(1, 256)
                    memory.pwrite(bytes([byte]), at)
                    with self._told:
                        self.known[at] = byte
                        self._count += 1
                        self._told.notify()
        except BaseException as error:  # told by `more` and `stop`
            with self._told:
                self._failure = error
                self._told.notify()

    def more(self) -> None:
        """Wait until some more are written."""
        with self._told:
            enough = self._count + 50
            assert self._told.wait_for(lambda: self._failure is not None or self._count >= enough, TIMEOUT)
        assert self._failure is None, self._failure

    def stop(self) -> None:
        self._over = True
        self.join(TIMEOUT)
        assert not self.is_alive()
        assert self._failure is None, self._failure


def test_clients_go_on_through_it(make_cluster: Make, topology: str) -> None:
    """memcluster's own client connects again by itself, and what it was told is there; with client-routed it takes the
    new map."""
    cluster = make_cluster(topology=topology)
    writer = Writer(cluster)
    writer.start()
    try:
        writer.more()
        apply(cluster, servers=4)
        writer.more()
        apply(cluster, memory="2MiB", layout={"stripe": "8KiB"})
        writer.more()
    finally:
        writer.stop()
    with cluster.connect() as memory:
        assert memory.size == 2 << 20
        found = bytes(memory.pread(memory.size, 0))
    assert {at: found[at] for at in writer.known} == writer.known


def wait_until_stopped(cluster: Cluster) -> None:
    """The supervisor has stopped itself."""
    cluster.wait_for(lambda status: "the supervisor is paused" in status.get("problem", ""))


def memory_of(cluster: Cluster) -> Claim:
    directory = cluster.folder / "data" if cluster.keys.get("storage") == "data" else cluster.directory
    claim = read_claim(directory)
    assert claim is not None
    return claim


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("storage", "share"), [("data", 0), ("memory", 1)])
def test_killed_at_any_step_of_a_move(tmp_path: Path, new_cluster: Make, storage: str, share: int) -> None:
    """kill -9 of the supervisor, and so of all, after every step of the journal (each kind of storage has every other
    one): the next `up` goes on or goes back, as the file says then, and has every byte."""
    cluster = new_cluster(tmp_path, storage=storage, layout={"stripe": "64KiB"})
    data = random.Random(5).randbytes(1 << 20)
    cluster.command("up", "-d")
    with cluster.connect() as memory:
        memory.pwrite(data, 0)
    servers = [3, 2]
    steps = 1 + share
    while True:
        cluster.record.supervisor.signal(signal.SIGKILL)
        assert wait_gone([cluster.record.supervisor], TIMEOUT)
        cluster.command("up", "-d", MEMCLUSTER_KILL_AT=f"reshape:{steps}")
        cluster.remember()
        write(cluster, servers=servers[1])
        done = cluster.command("apply", "--yes", check=False)
        if not done.returncode:
            break  # the steps are used up
        assert b"the supervisor ended before it was done" in done.stderr
        claim = memory_of(cluster)
        forward = claim.new is None and len(claim.shape.shards) == servers[1]
        if not forward and steps % 4 < 2:
            write(cluster, servers=servers[0])  # somebody has thought better of it
        else:
            servers.reverse()
        cluster.up()
        with cluster.connect() as memory:
            assert bytes(memory.pread(len(data), 0)) == data
        assert memory_of(cluster).new is None
        steps += 2
    assert steps > 8


def asked(cluster: Cluster, head: dict[str, Any]) -> FrameStream:
    """A question to a supervisor that will read it when it goes on."""
    stream = connect(RunDirectory(cluster.name).control)
    stream.send(head)
    return stream


def test_a_stop_while_bytes_are_moved(tmp_path: Path, new_cluster: Make, start: Callable[..., Any]) -> None:
    """`down` does not wait for the move; the next `up` goes on with it."""
    cluster = new_cluster(tmp_path, memory="24MiB", servers=3, storage="data")
    cluster.command("up", "-d", MEMCLUSTER_KILL_AT="reshape:1", MEMCLUSTER_KILL_WITH="SIGSTOP")
    cluster.remember()
    with cluster.connect() as memory:
        memory.pwrite(b"kept", 20 << 20)
    write(cluster, servers=2)
    supervisor: Identity = cluster.record.supervisor
    waiting = start(*memcluster_command("apply", "--yes"), cwd=cluster.folder)
    wait_until_stopped(cluster)
    stopping = asked(cluster, {"do": "down"})
    supervisor.signal(signal.SIGCONT)
    assert wait_gone([supervisor], TIMEOUT)
    stopping.close()
    assert waiting.wait(TIMEOUT) == 1
    assert memory_of(cluster).new is not None
    cluster.up()
    assert memory_of(cluster).new is None
    assert len(memory_of(cluster).shape.shards) == 2
    with cluster.connect() as memory:
        assert bytes(memory.pread(4, 20 << 20)) == b"kept"


def test_a_full_disk(tmp_path: Path) -> None:
    """It goes back by itself and says why; the cluster runs as it did, and the bytes are there."""
    (tmp_path / "cluster.yaml").write_text(
        yaml.safe_dump({"name": f"full-{os.getpid()}", "memory": "8MiB", "servers": 3, "listen": "127.0.0.1:0",
                        "storage": "room/data"})
    )  # fmt: skip
    done = run_in_small_room(
        tmp_path,
        """
        mkdir room && mount -t tmpfs -o size=12m tmpfs room || exit 9
        head -c 7000000 /dev/urandom > data
        $memcluster up -d > /dev/null && $memclient copy data memory: || exit 8
        sed -i 's/servers: 3/servers: 2/' cluster.yaml
        $memcluster apply --yes; echo "apply $?"
        $memclient copy memory: back && cmp -n 7000000 data back && echo the same
        ls room/data
        $memcluster down > /dev/null
        """,
    )
    said = done.stdout.decode()
    assert "apply 1" in said, (said, done.stderr)
    assert "No space left" in done.stderr.decode()
    assert "the same" in said
    assert "shard2" in said
    assert "shard0.1" not in said


def test_what_cannot_be_had_is_tried_first(make_cluster: Make) -> None:
    """An address that is in use, however much else is written: nothing has changed, and nobody was started anew."""
    cluster = make_cluster()
    pids = [node.pid for node in cluster.record.nodes]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        write(cluster, servers=5, listen=f"127.0.0.1:{taken.getsockname()[1]}")
        done = cluster.command("apply", "--yes", check=False)
        assert done.returncode == 5
        assert b"already in use" in done.stderr
    assert [node.pid for node in cluster.record.nodes] == pids
    with suppress(memcluster.ClusterError), cluster.connect() as memory:
        assert memory.size == 1 << 20
