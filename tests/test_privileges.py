"""What the processes of a cluster may do beyond their user's rights, as the kernel shows it in /proc/PID/status."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ANOTHER = 65534
CAP_DAC_READ_SEARCH = 1 << 2
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to lose")


def seen(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def capabilities(pid: int) -> dict[str, int]:
    return {key: int(value, 16) for key, value in seen(pid).items() if key.startswith("Cap")}


def test_no_process_of_a_cluster_gains_privileges_by_what_it_executes(make_cluster, topology):
    """The nodes, the fork server, and a node that was started again; and nodes have no capability at all."""
    cluster = make_cluster(topology=topology)
    cluster.command("fault", "kill", "server0")
    cluster.wait_until_running()
    record = cluster.record
    pids = [node.pid for node in record.nodes]
    assert {seen(pid)["NoNewPrivs"] for pid in (*pids, *(helper.pid for helper in record.helpers))} == {"1"}
    ignored = {} if os.geteuid() == 0 else {"CapBnd": 0}  # which is nobody else's to change, and means nothing then
    assert not any(any((capabilities(pid) | ignored).values()) for pid in pids)
    cluster.memclient("write", "0", "bytes")
    assert cluster.memclient("read", "0", "5").stdout == b"bytes"


@needs_root
def test_a_cluster_of_root_in_another_users_home_gets_to_its_own_folders(new_cluster, tmp_path):
    """By the one capability that it takes, which no file can be changed with."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    os.chown(home, ANOTHER, ANOTHER)
    cluster = new_cluster(home, storage="data")
    cluster.up()
    pid = cluster.pid("server0")
    assert capabilities(pid) | {"CapEff": 0, "CapPrm": 0} == dict.fromkeys(capabilities(pid), 0)
    assert (capabilities(pid)["CapEff"], capabilities(pid)["CapPrm"]) == (CAP_DAC_READ_SEARCH,) * 2
    cluster.memclient("write", "0", "bytes")
    cluster.command("fault", "kill", "server0")
    cluster.wait_until_running()
    assert cluster.memclient("read", "0", "5").stdout == b"bytes"
    assert "merged into" in cluster.down().stdout.decode()
