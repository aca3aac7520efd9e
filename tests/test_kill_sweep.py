"""kill -9 of the supervisor after every step of starting and stopping: nothing is left, nothing is lost."""

from __future__ import annotations

import signal
import socket
import time

import pytest
from harness import Cluster

from launcher.run.leftovers import wait_gone

SHARES = 4
"""The sweep is cut into so many tests, which run side by side."""


def assert_no_process_is_left(cluster: Cluster) -> None:
    """All of them go by themselves; a deadline, no sleep: each is waited for with its pidfd."""
    deadline = time.monotonic() + 10
    while left := cluster.processes():
        assert wait_gone(left, max(0.0, deadline - time.monotonic())), left


def check(cluster: Cluster, data: bytes) -> None:
    """A new `up` finds the bytes, and a `down` after it leaves nothing."""
    cluster.command("up", "-d")
    with cluster.connect() as memory:
        assert memory.pread(len(data), 300_000) == data
    cluster.command("down")
    assert cluster.left_behind() == []
    assert_no_process_is_left(cluster)
    assert not (cluster.folder / "sock").exists()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize(("storage", "topology"), [("data", "dispatcher"), ("memory", "primary-secondary")])
def test_killed_at_any_step_of_the_start(tmp_path, new_cluster, share, storage, topology):
    """Whatever step of `up` the supervisor dies at: no process stays, and the next `up` has what was written before."""
    cluster = new_cluster(tmp_path, storage=storage, topology=topology, listen="unix:sock")
    data = bytes(range(256)) * 2000
    steps = share
    while True:
        steps += 1 if steps == share else SHARES
        cluster.command("up", "-d")
        with cluster.connect() as memory:
            memory.pwrite(data, 300_000)
        cluster.record.supervisor.signal(9)
        assert_no_process_is_left(cluster)
        done = cluster.command("up", "-d", check=False, MEMCLUSTER_KILL_AT=str(steps))
        if done.returncode == 0:
            break  # the steps of the start are used up, as far as the starter can see
        assert_no_process_is_left(cluster)
        check(cluster, data)
    cluster.command("down", check=False)
    assert_no_process_is_left(cluster)
    cluster.command("down", check=False)
    assert cluster.left_behind() == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("storage", ["data", "memory"])
def test_killed_at_any_step_of_the_first_start(tmp_path, storage):
    """While the memory is being made nobody has been served yet: the next `up` makes it, and asks for nothing."""
    for steps in range(1, 100):
        folder = tmp_path / str(steps)
        folder.mkdir()
        cluster = Cluster(folder, storage=storage)
        done = cluster.command("up", "-d", check=False, MEMCLUSTER_KILL_AT=str(steps))
        if done.returncode == 0:
            break
        assert_no_process_is_left(cluster)
        cluster.up()
        with cluster.connect() as memory:
            assert memory[:] == bytes(memory.size)
        assert cluster.end() == []
    assert steps > 5
    cluster.command("down", check=False)
    assert_no_process_is_left(cluster)
    cluster.command("down", check=False)
    assert cluster.left_behind() == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("share", range(SHARES))
def test_killed_at_any_step_of_the_stop(tmp_path, new_cluster, share):
    """Whatever step of the stop the supervisor dies at: no process stays, `down` cleans up, the storage is whole."""
    cluster = new_cluster(tmp_path, storage="data", topology="chain", listen="unix:sock")
    data = bytes(range(255)) * 2000
    cluster.command("up", "-d")
    with cluster.connect() as memory:
        memory.pwrite(data, 300_000)
    cluster.command("down")
    first = count_steps_of_the_start(cluster)
    steps = first + share
    while True:
        up = cluster.command("up", "-d", check=False, MEMCLUSTER_KILL_AT=str(steps))
        assert up.returncode == 0, up.stderr
        done = cluster.command("down")
        assert_no_process_is_left(cluster)
        assert cluster.left_behind() == []
        check(cluster, data)
        if b"the supervisor is dead" not in done.stdout:
            break  # the steps are used up
        steps += SHARES


@pytest.mark.timeout(300)
@pytest.mark.parametrize("share", range(SHARES))
def test_up_after_a_stop_that_was_killed_at_any_step(tmp_path, new_cluster, share):
    """The stop of a SIGTERM, with nobody who would clean up: what `up` finds is whole, and its port is free."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    cluster = new_cluster(tmp_path, storage="data", listen=f"127.0.0.1:{port}")
    data = bytes(range(254)) * 2000
    cluster.command("up", "-d")
    with cluster.connect() as memory:
        memory.pwrite(data, 300_000)
    cluster.command("down")
    steps = count_steps_of_the_start(cluster) + share
    while True:
        cluster.command("up", "-d", MEMCLUSTER_KILL_AT=str(steps))
        supervisor = cluster.record.supervisor
        supervisor.signal(signal.SIGTERM)
        assert wait_gone([supervisor], 30)
        assert_no_process_is_left(cluster)
        over = not cluster.directory.exists()
        check(cluster, data)
        if over:
            break  # the steps are used up
        steps += SHARES


def count_steps_of_the_start(cluster: Cluster) -> int:
    """The first step at which the start is over when the kill comes."""
    steps = 10
    while cluster.command("up", "-d", check=False, MEMCLUSTER_KILL_AT=str(steps)).returncode:
        assert_no_process_is_left(cluster)
        steps += 1
    cluster.command("down", check=False)
    assert_no_process_is_left(cluster)
    cluster.command("down", check=False)
    return steps + 1


