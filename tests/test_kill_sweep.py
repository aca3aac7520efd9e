"""kill -9 of the supervisor after every step of starting and stopping: nothing is left, nothing is lost."""

from __future__ import annotations

import signal
import socket
import time
from bisect import bisect_left

import pytest
from harness import Cluster

from memcluster.launcher.run.leftovers import wait_gone

SHARES = 2
"""A sweep is cut into so many tests, which run side by side."""


def assert_no_process_is_left(cluster: Cluster) -> None:
    """All of them go by themselves; a deadline, no sleep: each is waited for with its pidfd."""
    deadline = time.monotonic() + 10
    while left := cluster.processes():
        assert wait_gone(left, max(0.0, deadline - time.monotonic())), left


def up(cluster: Cluster, data: bytes, kill_at: int = 0) -> None:
    """Start it; its supervisor will die at that step, if it comes so far. The bytes are there."""
    variables = {"MEMCLUSTER_KILL_AT": str(kill_at)} if kill_at else {}
    cluster.command("up", "-d", **variables)
    with cluster.connect() as memory:
        assert memory.pread(len(data), 300_000) == data


def down(cluster: Cluster) -> bytes:
    """Stop it, or clean up after it: nothing is left. Returns what `down` said."""
    done = cluster.command("down")
    assert cluster.left_behind() == []
    assert_no_process_is_left(cluster)
    assert not (cluster.folder / "sock").exists()
    return done.stdout


def kill_supervisor(cluster: Cluster) -> None:
    cluster.record.supervisor.signal(signal.SIGKILL)
    assert_no_process_is_left(cluster)


def write(cluster: Cluster, data: bytes) -> None:
    cluster.command("up", "-d")
    with cluster.connect() as memory:
        memory.pwrite(data, 300_000)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize(
    ("storage", "topology", "end"),
    [("data", "dispatcher", down), ("memory", "primary-secondary", kill_supervisor)],
)
def test_killed_at_any_step_of_the_start(tmp_path, new_cluster, share, storage, topology, end):
    """Whatever step of `up` the supervisor dies at: no process stays, and the next `up` has what was written before a
    stop, or before the death of a supervisor."""
    cluster = new_cluster(tmp_path, storage=storage, topology=topology, listen="unix:sock")
    data = bytes(range(256)) * 2000
    write(cluster, data)
    end(cluster)
    steps = 1 + share
    while cluster.command("up", "-d", check=False, MEMCLUSTER_KILL_AT=str(steps)).returncode:
        assert_no_process_is_left(cluster)
        up(cluster, data)
        end(cluster)
        steps += SHARES
    # The steps of the start are used up, as far as the starter can see.
    cluster.command("down", check=False)
    assert_no_process_is_left(cluster)
    cluster.command("down", check=False)
    assert cluster.left_behind() == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("storage", ["data", "memory"])
def test_killed_at_any_step_of_the_first_start(tmp_path, new_cluster, storage):
    """While the memory is being made nobody has been served yet: the next `up` makes it, and asks for nothing."""
    for steps in range(1, 100):
        folder = tmp_path / str(steps)
        folder.mkdir()
        cluster = new_cluster(folder, storage=storage)
        assert cluster.command("up", "-d", check=False, MEMCLUSTER_KILL_AT=str(steps)).returncode
        assert_no_process_is_left(cluster)
        made = ((folder / "data" if storage == "data" else cluster.directory) / "memory.json").exists()
        cluster.up()
        with cluster.connect() as memory:
            assert memory[:] == bytes(memory.size)
        down(cluster)
        if made:
            break  # from here on it is a start like any other
    assert steps > 5


@pytest.mark.timeout(300)
@pytest.mark.parametrize("share", range(SHARES))
def test_killed_at_any_step_of_the_stop(tmp_path, new_cluster, share):
    """Whatever step of the stop the supervisor dies at: no process stays, `down` cleans up, the storage is whole."""
    cluster = new_cluster(tmp_path, storage="data", topology="chain", listen="unix:sock")
    data = bytes(range(255)) * 2000
    write(cluster, data)
    down(cluster)
    steps = count_steps_of_the_start(cluster) + share
    while True:
        up(cluster, data, steps)
        if b"the supervisor is dead" not in down(cluster):
            break  # the steps are used up
        steps += SHARES
    up(cluster, data)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("share", range(SHARES))
def test_up_after_a_stop_that_was_killed_at_any_step(tmp_path, new_cluster, share):
    """The stop of a SIGTERM, with nobody who would clean up: what `up` finds is whole, and its port is free."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    cluster = new_cluster(tmp_path, storage="data", listen=f"127.0.0.1:{port}")
    data = bytes(range(254)) * 2000
    write(cluster, data)
    down(cluster)
    steps = count_steps_of_the_start(cluster) + share
    while True:
        up(cluster, data, steps)
        supervisor = cluster.record.supervisor
        supervisor.signal(signal.SIGTERM)
        assert wait_gone([supervisor], 30)
        assert_no_process_is_left(cluster)
        if not cluster.directory.exists():
            break  # the steps are used up
        steps += SHARES
    up(cluster, data)
    down(cluster)


def count_steps_of_the_start(cluster: Cluster) -> int:
    """The first step at which the start is over when the kill comes."""

    def is_over(steps: int) -> bool:
        done = cluster.command("up", "-d", check=False, MEMCLUSTER_KILL_AT=str(steps))
        cluster.command("down", check=False)
        assert_no_process_is_left(cluster)
        cluster.command("down", check=False)
        return done.returncode == 0

    return bisect_left(range(128), True, lo=1, key=is_over) + 1
