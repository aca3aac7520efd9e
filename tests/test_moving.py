"""Bytes go to other shards while clients read and write: none is lost, whoever dies meanwhile, and there is a way back
at any time."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import TIMEOUT, Cluster, memcluster_command, need, run, run_in_small_room

from memcluster.node.topology import names

Make = Callable[..., Cluster]
KIB = 1024
SIZE = 16 << 20
PACE = ("--rate", "16MiB")


class Changer(threading.Thread):
    """A client that changes its memory at random and reads what it has changed, one request after the other; `content`
    is what has been acknowledged. It connects again by itself, and must get through."""

    def __init__(self, cluster: Cluster, seed: int = 1) -> None:
        super().__init__()
        self._memory = cluster.connect()
        self.content = bytearray(self._memory.pread(self._memory.size, 0))
        self._chance = random.Random(seed)
        self._over = False
        self._failure: BaseException | None = None
        self._told = threading.Condition()
        self._count = 0

    def run(self) -> None:
        try:
            with self._memory as memory:
                while not self._over:
                    self._change(memory)
                    with self._told:
                        self._count += 1
                        self._told.notify()
        except BaseException as error:  # told by `more` and `stop`
            with self._told:
                self._failure = error
                self._told.notify()

    def _change(self, memory: Any) -> None:
        chance, content = self._chance, self.content
        length = chance.choice([1, 512, 4 * KIB, 4 * KIB, 5000, 64 * KIB])
        start = chance.randrange(len(content) - length)
        kind = chance.choice(["write", "write", "write", "zero", "trim", "read"])
        if kind == "write":
            content[start : start + length] = data = chance.randbytes(length)
            memory.pwrite(data, start)
        elif kind == "read":
            assert bytes(memory.pread(length, start)) == content[start : start + length]
        else:
            content[start : start + length] = bytes(length)
            (memory.trim if kind == "trim" else memory.zero)(length, start)

    def more(self, count: int = 30) -> None:
        """Wait until some more was done."""
        with self._told:
            enough = self._count + count
            assert self._told.wait_for(lambda: self._failure is not None or self._count >= enough, TIMEOUT)
        assert self._failure is None, self._failure

    def stop(self) -> None:
        self._over = True
        self.join(TIMEOUT)
        assert not self.is_alive()
        assert self._failure is None, self._failure


def write(cluster: Cluster, **keys: Any) -> None:
    """Edit cluster.yaml."""
    cluster.keys |= keys
    cluster.file.write_text(yaml.safe_dump(cluster.keys))


def moves(status: dict[str, Any]) -> bool:
    return bool(status.get("applying"))


def holds(cluster: Cluster, content: bytearray) -> bool:
    with cluster.connect() as memory:
        return bytes(memory.pread(memory.size, 0)) == content


def fill(cluster: Cluster) -> None:
    with cluster.connect() as memory:
        memory.pwrite(random.Random(9).randbytes(SIZE // 2), SIZE // 4)


def events(cluster: Cluster) -> list[str]:
    """What the log says of moves, in order."""
    lines = cluster.command("logs", "--json", "--all-runs").stdout.splitlines()
    found = [json.loads(line)["operation"] for line in lines]
    return [name for name in found if name.startswith("move_")]


@pytest.mark.parametrize(
    ("topology", "links"), [*((name, "copy") for name in names()), ("primary-secondary", "shared")]
)
def test_clients_go_on_while_bytes_move(make_cluster: Make, topology: str, links: str) -> None:
    """Every byte is there, in every topology; the log tells what was done."""
    cluster = make_cluster(topology=topology, memory=SIZE, links=links)
    fill(cluster)
    changer = Changer(cluster)
    changer.start()
    try:
        changer.more()
        write(cluster, servers=4, layout={"stripe": "4KiB"})
        cluster.command("apply", "--yes", *PACE)
        cluster.remember()
        changer.more()
    finally:
        changer.stop()
    assert holds(cluster, changer.content)
    told = events(cluster)
    assert told[0] == "move_begun"
    assert told[-1] == "move_switched"
    assert set(told[1:-1]) <= {"move_round"}


def test_servers_die_while_bytes_move(make_cluster: Make, start: Callable[..., Any]) -> None:
    """What they had changed, and what they change when they are back before they are watched again, is there."""
    cluster = make_cluster(memory=SIZE)
    fill(cluster)
    changer = Changer(cluster)
    changer.start()
    write(cluster, servers=5)
    applying = start(*memcluster_command("apply", "--yes", "--rate", "6MiB"), cwd=cluster.folder)
    try:
        cluster.wait_for(moves)
        changer.more()
        for name in ("server1", "server0"):
            cluster.command("fault", "kill", name)
            cluster.remember()
            changer.more()
        assert applying.wait(TIMEOUT) == 0
        cluster.remember()
        changer.more()
    finally:
        changer.stop()
    assert holds(cluster, changer.content)
    assert len(cluster.status()["nodes"]) == 10


def test_it_can_be_watched_left_and_called_off(make_cluster: Make, start: Callable[..., Any]) -> None:
    """`status` shows it, Ctrl-C leaves it, another apply is refused, and --abort goes back: no node was started anew,
    and no client had to connect again. Then it can be begun again."""
    cluster = make_cluster(memory=SIZE)
    fill(cluster)
    pids = [node.pid for node in cluster.record.nodes]
    with cluster.connect(reconnect=False) as memory:
        write(cluster, servers=2)
        applying = start(*memcluster_command("apply", "--yes", "--rate", "64KiB"), cwd=cluster.folder)
        status = cluster.wait_for(moves)
        assert status["state"] == "running"
        assert status["applying"]["total"] == SIZE
        assert b"16MiB are moved" in cluster.command("status").stdout
        applying.send_signal(signal.SIGINT)
        assert applying.wait(TIMEOUT) == 130
        refused = cluster.command("apply", "--yes", check=False)
        assert refused.returncode == 5
        assert b"another apply is under way" in refused.stderr
        memory.pwrite(b"meanwhile", SIZE - 9)
        assert moves(cluster.status())
        assert b"is what it was before" in cluster.command("apply", "--abort").stdout
        assert not moves(cluster.status())
        memory.pwrite(b"and after", 0)
        assert [node.pid for node in cluster.record.nodes] == pids
        names = {path.name for path in cluster.directory.iterdir()}
        assert not {name for name in names if name.startswith("changes") or name.endswith(".1")}
    cluster.command("apply", "--yes")
    cluster.remember()
    with cluster.connect() as memory:
        assert bytes(memory.pread(9, SIZE - 9)) == b"meanwhile"
        assert bytes(memory.pread(9, 0)) == b"and after"
    assert events(cluster) == ["move_begun", "move_aborted", "move_begun", "move_switched"]


def test_a_server_that_is_paused_is_waited_for(tmp_path: Path, new_cluster: Make, start: Callable[..., Any]) -> None:
    """And `status` names it. The supervisor is held at the end of a round, before it asks the servers."""
    cluster = new_cluster(tmp_path)
    cluster.command("up", "-d", MEMCLUSTER_KILL_AT="reshape:4", MEMCLUSTER_KILL_WITH="SIGSTOP")
    cluster.remember()
    write(cluster, servers=2)
    applying = start(*memcluster_command("apply", "--yes"), cwd=cluster.folder)
    cluster.wait_for(lambda status: "the supervisor is paused" in status.get("problem", ""))
    secondary = next(node.identity for node in cluster.record.nodes if node.name == "server1")
    secondary.signal(signal.SIGSTOP)
    cluster.record.supervisor.signal(signal.SIGCONT)
    cluster.wait_for(lambda status: moves(status) and status["applying"]["waits_for"] == ["server1"])
    assert b"waiting for server1" in cluster.command("status", check=False).stdout
    secondary.signal(signal.SIGCONT)
    assert applying.wait(TIMEOUT) == 0
    cluster.remember()


def through_qemu(folder: Path, uri: str) -> list[str]:
    """qemu writes the file `data` into the memory, 4 MiB a second, and comes back where it lost its connection."""
    host, port = uri.removeprefix("nbd://").split(":")
    target = f"driver=nbd,server.type=inet,server.host={host},server.port={port},reconnect-delay=60"
    return [
        need("qemu-img", "qemu-utils"), "convert", "-n", "-r", "4M", "-t", "writeback", "-f", "raw",
        str(folder / "data"), "--target-image-opts", target,
    ]  # fmt: skip


def through_nbdcopy(folder: Path, uri: str) -> list[str]:
    """nbdcopy does, by way of nbdkit, which comes back."""
    need("nbdcopy", "libnbd-bin")
    return [
        need("nbdkit", "nbdkit"), "-U", "-", "--filter=retry", "--filter=rate", "nbd", f"uri={uri}", "retry=30",
        "rate=32M", "retries=30", "retry-delay=1", "retry-exponential=no",
        "--run", f'nbdcopy --flush "{folder}/data" "$uri"',
    ]  # fmt: skip


@pytest.mark.parametrize("client", [through_qemu, through_nbdcopy])
def test_clients_of_others_that_come_back_go_on(
    tmp_path: Path, make_cluster: Make, start: Callable[..., Any], client: Callable[[Path, str], list[str]]
) -> None:
    """They write from before bytes move until after the pause, and all of it is there."""
    data = random.Random(4).randbytes(SIZE)
    (tmp_path / "data").write_bytes(data)
    cluster = make_cluster(memory=SIZE)
    writing = start(*client(tmp_path, cluster.uri), stderr=subprocess.PIPE)
    cluster.wait_for(lambda status: status["nodes"][0]["requests"] > 10)
    write(cluster, servers=4, layout={"stripe": "64KiB"})
    cluster.command("apply", "--yes")
    cluster.remember()
    _, said = writing.communicate(timeout=TIMEOUT)
    assert writing.returncode == 0, said
    assert holds(cluster, bytearray(data))


def test_fio_verifies_what_it_wrote_before(tmp_path: Path, make_cluster: Make) -> None:
    """fio does not come back, so it writes before, and verifies every checksum after."""
    cluster = make_cluster(memory=SIZE)
    job = [
        need("fio", "fio"), "--name=moved", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", f"--size={SIZE}",
        "--iodepth=16", "--randseed=7", "--verify=crc32c", "--verify_fatal=1",
    ]  # fmt: skip
    run(*job, f"--uri={cluster.uri}", "--do_verify=0", cwd=tmp_path)
    write(cluster, servers=2, layout={"stripe": "4KiB"})
    cluster.command("apply", "--yes")
    cluster.remember()
    run(*job, f"--uri={cluster.uri}", "--verify_only", cwd=tmp_path)


def test_what_has_failed_can_be_removed(make_cluster: Make) -> None:
    """Its bytes are in its shard; nothing else can be changed until it is well."""
    cluster = make_cluster(memory=SIZE)
    fill(cluster)
    with cluster.connect() as memory:
        content = bytearray(memory.pread(SIZE, 0))
    shard, aside = cluster.directory / "shard2", cluster.directory / "aside"
    shard.rename(aside)
    cluster.command("fault", "kill", "server2")
    cluster.wait_for(lambda status: any(node["state"] == "failed" for node in status["nodes"]))
    aside.rename(shard)
    cluster.wait_for(lambda status: not status["missing"])
    write(cluster, servers=4)
    refused = cluster.command("apply", "--yes", check=False)
    assert refused.returncode == 4
    assert b"server2 is failed" in refused.stderr
    write(cluster, servers=2)
    cluster.command("apply", "--yes")
    cluster.remember()
    assert cluster.status()["state"] == "running"
    assert holds(cluster, content)


def test_where_there_is_no_room_for_both(tmp_path: Path) -> None:
    """The bytes are moved in one pause, which is said; a rate for that is refused."""
    (tmp_path / "cluster.yaml").write_text(
        yaml.safe_dump({"name": f"tight-{tmp_path.name}", "memory": "8MiB", "servers": 3, "listen": "127.0.0.1:0",
                        "storage": "room/data"})
    )  # fmt: skip
    done = run_in_small_room(
        tmp_path,
        """
        mkdir room && mount -t tmpfs -o size=90m tmpfs room || exit 9
        head -c 16000000 /dev/zero > room/other
        head -c 8000000 /dev/urandom > data
        $memcluster up -d > /dev/null && $memclient copy data memory: || exit 8
        sed -i 's/servers: 3/servers: 2/' cluster.yaml
        $memcluster apply --yes --rate 1MiB; echo "bounded $?"
        $memcluster apply --yes; echo "apply $?"
        $memclient copy memory: back && cmp -n 8000000 data back && echo the same
        $memcluster down > /dev/null
        """,
    )
    said = done.stdout.decode()
    assert "bounded 1" in said, (said, done.stderr)
    assert "a rate would only make longer" in done.stderr.decode()
    assert "apply 0" in said
    assert "note: there is no room for a copy" in said
    assert "the same" in said
