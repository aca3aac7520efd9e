"""Clusters over hosts that Slurm runs commands on: what becomes of them when parts of Slurm, and what it runs, die."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostlab import guardian, lab, load, pids, up
from slurmlab import SlurmLab

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def labs(tmp_path: Path) -> Iterator[SlurmLab]:
    with lab(tmp_path, kind=SlurmLab) as made:
        assert isinstance(made, SlurmLab)
        yield made


def down(labs: SlurmLab) -> None:
    """And nothing is left on any host, nor of any job."""
    labs.command("down")
    for host in (labs.here, *labs.hosts.values()):
        assert not host.ours()
        assert not host.left()
    labs.wait_until_slurm(lambda: not labs.jobs())


def test_a_cluster_over_three_hosts_of_slurm_from_up_to_down(labs: SlurmLab) -> None:
    """A job for each host; the memory spans them; no argument holds the secret; in the end the jobs are over."""
    status = up(labs)
    assert labs.jobs().keys() == {"host-b", "host-c"}
    assert [node["host"] for node in status["nodes"]][:3] == ["host-a", "host-b", "host-c"]
    labs.memclient("write", "0xffffc", "over two of them")
    assert labs.memclient("read", "0xffffc", "16").stdout == b"over two of them"
    secret = labs.here.run("cat", "/dev/shm/memcluster-0-lab/secret").stdout.hex()
    for host in (labs.here, *labs.hosts.values()):
        assert secret not in host.run("ps", "-eo", "args").stdout.decode()
    down(labs)


def test_no_death_of_slurms_or_of_ours_loses_a_write(labs: SlurmLab) -> None:
    """Under load a node is killed, a guardian, Slurm's controller and daemon, and the link is cut."""
    status = up(labs)
    host = labs.hosts["host-b"]

    def another_server1(before: dict) -> dict:
        return labs.wait_for(lambda now: now["state"] == "running" and pids(now)["server1"] != pids(before)["server1"])

    with load(labs, status):
        host.run("kill", "-KILL", str(pids(status)["server1"]))
        status = another_server1(status)
        labs.kill_controller()
        labs.kill_daemon(host)
        host.cut(True)
        labs.wait_for(lambda now: now["nodes"][1]["state"] == "unreachable")
        host.cut(False)
        assert pids(labs.wait_until_running()) == pids(status)
        host.run("kill", "-KILL", str(guardian(host)))  # nobody is there to run another one
        labs.wait_for(lambda now: now["nodes"][1]["state"] != "ready")
        labs.start_controller()
        labs.start_daemon(host)
        another_server1(status)
    down(labs)


def test_a_cut_longer_than_the_lease_another_clock_and_an_empty_host(tmp_path: Path) -> None:
    """The cut, under load: the guardian ends by itself, and Slurm runs another one when the host is back. Records have
    the times of the supervisor. A host that has lost its shard is refused."""
    with lab(tmp_path, kind=SlurmLab, clock=3600) as far:
        status = up(far, host_lease="5s", retry_timeout="2m")
        host = far.hosts["host-b"]
        with load(far, status):
            host.cut(True)
            far.wait_until_empty(host)
            host.cut(False)
            far.wait_for(lambda now: now["state"] == "running" and pids(now)["server1"] != pids(status)["server1"])
        far.memclient("write", "0xffffc", "over two of them")
        found = map(json.loads, far.command("logs", "--json").stdout.decode().splitlines())
        last = [entry for entry in found if entry.get("operation") == "WRITE"][-3:]
        assert [entry["kind"] for entry in last] == ["request", "piece", "piece"]
        assert {entry["node"] for entry in last[1:]} == {"server0", "server1"}
        assert max(abs(entry["time_ns"] - last[0]["time_ns"]) for entry in last) < 60e9
        host.run("rm", "-r", "/dev/shm/memcluster-0-lab@host-b")
        host.run("kill", "-KILL", str(guardian(host)))
        failed = far.wait_for(lambda now: now["nodes"][1]["state"] == "failed")
        assert "host-b does not hold the shard of server1" in failed["nodes"][1]["reason"]
        far.command("down")


def test_a_job_that_is_cancelled_is_left_in_peace(labs: SlurmLab) -> None:
    """Its guardian says that it leaves, and keeps the shard; `start` has a new job run."""
    up(labs)
    labs.memclient("write", "0x100000", "kept")
    labs.here.run("scancel", labs.jobs()["host-b"])
    labs.wait_for(lambda now: now["nodes"][1]["state"] == "stopped" == now["nodes"][4]["state"])
    labs.wait_until_empty(labs.hosts["host-b"])
    labs.command("start", "server1", "logger1")
    labs.wait_until_running()
    assert labs.memclient("read", "0x100000", "4").stdout == b"kept"
    down(labs)


def test_a_supervisor_that_is_killed_leaves_no_job(labs: SlurmLab) -> None:
    """When the lease is over Slurm has its nodes back; the shards stay for the next `up`."""
    status = up(labs, host_lease="5s")
    labs.memclient("write", "0xffffc", "on either side")
    labs.here.run("kill", "-KILL", str(status["supervisor"]))
    labs.wait_until_empty()
    labs.wait_until_slurm(lambda: not labs.jobs())
    labs.command("up", "-d")
    labs.wait_until_running()
    assert labs.memclient("read", "0xffffc", "14").stdout == b"on either side"
    down(labs)


def test_what_slurm_refuses_is_told_in_its_words(labs: SlurmLab) -> None:
    """And nothing is left of the start."""
    labs.describe(engine={"slurm": {"partition": "nowhere"}})
    refused = labs.command("up", "-d", check=False)
    assert refused.returncode == 1
    said = refused.stderr.decode()
    assert re.search(r"host-[bc]: srun ended with status 1: .* partition", said), said  # whichever is first
    labs.wait_until_empty()
    assert not labs.jobs()
