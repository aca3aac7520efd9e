"""What happens when something dies: nodes come back on their own memory, and nothing acknowledged is lost."""

from __future__ import annotations

import os
import signal

import pytest
from harness import TIMEOUT

import memcluster
from memcluster.launcher.run.identity import Identity
from memcluster.launcher.run.leftovers import wait_gone


@pytest.mark.parametrize("name", ["server0", "server1", "logger0", "logger2"])
def test_a_process_that_is_killed_comes_back_on_its_own_memory(make_cluster, name):
    """kill -9 of any node: it is restarted, the bytes are there, status tells of one restart."""
    cluster = make_cluster()
    with cluster.connect() as memory:
        memory.pwrite(b"kept" * 1000, memory.size // 3)
        victim = Identity.of(cluster.pid(name))
        victim.signal(signal.SIGKILL)
        assert wait_gone([victim], TIMEOUT)
        assert memory.pread(4000, memory.size // 3) == b"kept" * 1000
    [node] = [node for node in cluster.wait_until_running()["nodes"] if node["name"] == name]
    assert node["restarts"] == 1
    assert node["pid"] != victim.pid
    cluster.remember()


def test_no_client_sees_a_secondary_die(make_cluster):
    """Writes in flight when a secondary is killed are carried out after its return, in their order."""
    cluster = make_cluster()
    with cluster.connect(reconnect=False) as memory:
        offset = cluster.status()["nodes"][1]["range"][0]
        for round_number in range(3):
            futures = [memory.start_pwrite(bytes([round_number, number]), offset) for number in range(200)]
            Identity.of(cluster.pid("server1")).signal(signal.SIGKILL)
            futures += [memory.start_pwrite(bytes([round_number, number]), offset) for number in range(200, 256)]
            for future in futures:
                future.result()
            assert memory.pread(2, offset) == bytes([round_number, 255])
            cluster.wait_until_running()
    cluster.remember()


def test_a_secondary_that_stays_away_is_an_error_after_retry_timeout(make_cluster):
    """EIO with a reason, and the connection goes on."""
    cluster = make_cluster(retry_timeout="500ms")
    with cluster.connect(reconnect=False) as memory:
        nodes = cluster.status()["nodes"]
        secondary = Identity.of(nodes[1]["pid"])
        secondary.signal(signal.SIGSTOP)
        with pytest.raises(memcluster.ServerError, match="retry_timeout"):
            memory.pread(1, nodes[1]["range"][0])
        assert memory.pread(1, 0) == b"\0"
        secondary.signal(signal.SIGCONT)
        assert memory.pread(1, nodes[1]["range"][0]) == b"\0"


def test_a_killed_supervisor_takes_its_nodes_along_and_the_memory_stays(make_cluster):
    """kill -9 of the supervisor: no process is left, every command says so, and a new `up` finds every byte and
    record."""
    cluster = make_cluster()
    with cluster.connect() as memory:
        memory.pwrite(b"acknowledged", memory.size // 2)
    record = cluster.record
    record.supervisor.signal(signal.SIGKILL)
    everyone = [record.supervisor, *record.helpers, *(node.identity for node in record.nodes)]
    assert wait_gone(everyone, TIMEOUT)
    status = cluster.command("status", check=False)
    assert status.returncode == 3
    assert b"the supervisor is dead" in status.stdout
    for words in (["logs"], ["timeline"], ["stats"]):
        assert b"is not running; of its last run, from " in cluster.command(*words).stderr
    for words in (["logs", "-f"], ["stats", "--watch"], ["fault", "kill", "server0"]):
        done = cluster.command(*words, check=False)
        assert (done.returncode, done.stdout) == (3, b"")
        assert b"is not running" in done.stderr
    cluster.up()
    with cluster.connect() as memory:
        assert memory.pread(12, memory.size // 2) == b"acknowledged"
    assert len(cluster.logged_writes()) == 1


def test_everything_killed_at_once_loses_nothing_acknowledged(make_cluster, topology):
    """kill -9 of the supervisor and of every node in one go."""
    cluster = make_cluster(topology=topology)
    data = os.urandom(300_000)
    with cluster.connect() as memory:
        memory.pwrite(data, 123_457)
    record = cluster.record
    for identity in (record.supervisor, *record.helpers, *(node.identity for node in record.nodes)):
        identity.signal(signal.SIGKILL)
    cluster.up()
    with cluster.connect() as memory:
        assert memory.pread(len(data), 123_457) == data


def test_a_killed_fork_server_is_replaced(make_cluster):
    """Its children die with it (PDEATHSIG); the supervisor starts them all again."""
    cluster = make_cluster()
    with cluster.connect() as memory:
        memory.pwrite(b"kept", memory.size - 4)
        for helper in cluster.record.helpers:
            helper.signal(signal.SIGKILL)
        assert memory.pread(4, memory.size - 4) == b"kept"
    cluster.wait_until_running()
    cluster.remember()


def test_down_cleans_up_after_a_dead_supervisor(make_cluster):
    """The files and the memory go; the exit code is 0."""
    cluster = make_cluster()
    cluster.record.supervisor.signal(signal.SIGKILL)
    done = cluster.down()
    assert b"supervisor is dead" in done.stdout
    assert cluster.left_behind() == []
