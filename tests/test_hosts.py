"""Clusters over several hosts: what runs where, and what becomes of it when something dies or the way there is cut."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import ROOT
from hostlab import Lab, guardian, lab, load, pids, up

pytestmark = pytest.mark.timeout(300)
SHORT = "5s"
"""A lease that a test waits for the end of; elsewhere no load of the machine is to end one."""


@pytest.fixture
def labs(tmp_path: Path) -> Iterator[Lab]:
    with lab(tmp_path) as made:
        yield made


def test_a_cluster_over_three_hosts_from_up_to_down(labs: Lab) -> None:
    """Each server runs where it belongs; a request over all of them is told in order; nothing is left anywhere."""
    status = up(labs)
    assert {node["name"]: node["host"] for node in status["nodes"]} == {
        "server0": "host-a", "server1": "host-b", "server2": "host-c",
        "logger0": "host-a", "logger1": "host-b", "logger2": "host-c",
    }  # fmt: skip
    table = labs.command("status", "--wide").stdout.decode()
    assert "HOST" in table
    assert f"host-b/{pids(status)['server1']}" in table
    assert pids(status)["server1"] in labs.hosts["host-b"].ours()
    labs.memclient("write", "0xffffc", "over two of them")
    assert labs.memclient("read", "0xffffc", "16").stdout == b"over two of them"
    lines = labs.command("logs").stdout.decode().splitlines()
    [first] = [index for index, line in enumerate(lines) if "WRITE" in line and "client" in line]
    assert lines[first].split()[1] == "server0"
    assert sorted(line.split()[1:3] for line in lines[first + 1 : first + 3]) == [["server0", "└"], ["server1", "└"]]
    page = labs.folder / "timeline.html"
    labs.command("timeline", "-o", str(page))
    assert '"name":"server2","kind":"process","host":"host-c"' in page.read_text()
    labs.command("fault", "kill", "server2")
    assert pids(labs.wait_until_running())["server2"] != pids(status)["server2"]
    said = labs.command("down").stdout.decode()
    assert "log records merged" in said
    for host in (labs.here, *labs.hosts.values()):
        assert not host.ours()
        assert not host.left()


def test_a_guardian_that_is_killed_comes_back_and_nothing_is_lost(labs: Lab) -> None:
    """Its nodes die with it; the engine runs another one, and it starts them on their shards."""
    status = up(labs)
    host = labs.hosts["host-b"]
    with load(labs, status):
        host.run("kill", "-KILL", str(guardian(host)))
        labs.wait_for(lambda now: now["state"] == "running" and pids(now)["server1"] != pids(status)["server1"])
    assert pids(labs.status())["server2"] == pids(status)["server2"]
    labs.command("down")
    labs.wait_until_empty()


def test_a_host_can_be_killed_and_cut_off_on_purpose(labs: Lab) -> None:
    """Under load: its guardian dies, and the way there is cut, for less than the lease and for more."""
    status = up(labs, host_lease=SHORT)
    host = labs.hosts["host-b"]
    with load(labs, status):
        before = pids(status)
        assert labs.command("fault", "kill", "host:host-b").stdout == b"kill: server1, logger1\n"
        labs.wait_for(lambda now: now["state"] == "running" and pids(now)["server1"] != before["server1"])
        before = pids(labs.status())
        labs.command("fault", "partition", "host:host-b")
        cut = labs.wait_for(lambda now: now["nodes"][1]["state"] == "unreachable")
        assert [fault["host"] for fault in cut["faults"]] == ["host-b"]
        labs.command("fault", "resume", "host:host-b")
        assert pids(labs.wait_until_running()) == before
        labs.command("fault", "partition", "host:host-b")
        labs.command("fault", "kill", "server0")
        labs.wait_for(lambda now: now["nodes"][0]["state"] == "ready" and pids(now)["server0"] != before["server0"])
        assert len(labs.memclient("read", "0x200000", "4").stdout) == 4  # a primary that begins then serves the others
        labs.wait_for(lambda _: before["server1"] not in host.ours())
        labs.command("fault", "resume", "all")
        labs.wait_for(lambda now: now["state"] == "running" and pids(now)["server1"] != before["server1"])
    labs.command("down")
    labs.wait_until_empty()


def test_a_host_is_left_in_peace_only_by_its_guardians_own_word(labs: Lab) -> None:
    """One that its engine ends with a SIGTERM is not run again until somebody starts its nodes."""
    status = up(labs)
    labs.memclient("write", "0x100000", "kept")
    host = labs.hosts["host-b"]
    host.run("kill", "-TERM", str(guardian(host)))
    labs.wait_for(lambda now: now["nodes"][1]["state"] == "stopped" == now["nodes"][4]["state"])
    labs.wait_until_empty(host)
    labs.command("start", "server1", "logger1")
    assert pids(labs.wait_until_running())["server1"] != pids(status)["server1"]
    assert labs.memclient("read", "0x100000", "4").stdout == b"kept"
    labs.command("down")


def test_the_death_of_nodes_and_engine_and_a_short_cut_lose_no_write(labs: Lab) -> None:
    """Under load: a node is killed, the engine's daemon, and the link is cut for less than the lease."""
    status = up(labs)
    host = labs.hosts["host-b"]
    with load(labs, status):
        host.run("kill", "-KILL", str(pids(status)["server1"]))
        labs.wait_for(lambda now: now["state"] == "running" and pids(now)["server1"] != pids(status)["server1"])
        host.stop_sshd()
        before = pids(labs.status())
        host.cut(True)
        away = labs.wait_for(lambda now: now["nodes"][1]["state"] == "unreachable")
        assert "host-b has not been heard" in away["nodes"][1]["reason"]
        assert labs.command("status", check=False).returncode == 4
        host.cut(False)
        assert pids(labs.wait_until_running()) == before
    labs.command("down")
    labs.wait_until_empty()


def test_a_host_that_is_away_for_longer_than_its_lease_ends_its_nodes_and_keeps_its_shards(labs: Lab) -> None:
    """Nothing of ours runs there then; when it is back it is run again, and has what it had."""
    status = up(labs, host_lease=SHORT)
    labs.memclient("write", "0x100000", "kept")
    host = labs.hosts["host-b"]
    host.cut(True)
    labs.wait_until_empty(host)
    host.cut(False)
    back = labs.wait_for(lambda now: now["state"] == "running" and pids(now)["server1"] != pids(status)["server1"])
    assert pids(back)["server0"] == pids(status)["server0"]
    assert labs.memclient("read", "0x100000", "4").stdout == b"kept"
    labs.command("down")
    assert not host.left()


def test_nothing_outlives_a_killed_supervisor_but_the_memory(labs: Lab) -> None:
    """The hosts end by themselves; the next `up` has every byte, and `down` without a supervisor discards all of it."""
    status = up(labs, host_lease=SHORT)
    labs.memclient("write", "0xffffc", "on either side")
    labs.here.run("kill", "-KILL", str(status["supervisor"]))
    labs.wait_until_empty()
    assert labs.hosts["host-b"].left() == ["memcluster-0-lab@host-b"]
    labs.command("up", "-d")
    status = labs.wait_until_running()
    assert labs.memclient("read", "0xffffc", "14").stdout == b"on either side"
    labs.here.run("kill", "-KILL", str(status["supervisor"]))
    said = labs.command("down").stdout.decode()
    assert "host-b     has thrown away its part of the memory" in said
    labs.wait_until_empty()
    assert [host.left() for host in (labs.here, *labs.hosts.values())] == [[], [], []]


def test_a_host_that_comes_back_empty_is_refused(labs: Lab) -> None:
    """Zeroes do not take the place of bytes: who asks for them gets an error; and one `up` later it is the same."""
    status = up(labs, retry_timeout="1s", host_lease=SHORT)
    labs.memclient("write", "0x100000", "gone")
    host = labs.hosts["host-b"]
    host.run("rm", "-r", "/dev/shm/memcluster-0-lab@host-b")
    host.run("kill", "-KILL", str(guardian(host)))
    failed = labs.wait_for(lambda now: now["nodes"][1]["state"] == "failed")
    assert "host-b does not hold the shard of server1" in failed["nodes"][1]["reason"]
    read = labs.memclient("read", "0x100000", "4", check=False)
    assert read.returncode
    assert not read.stdout
    assert labs.memclient("read", "0", "4").stdout == bytes(4)
    labs.here.run("kill", "-KILL", str(status["supervisor"]))
    again = labs.command("up", "-d", check=False)
    assert again.returncode == 1
    assert "host-b does not hold the shard of server1" in again.stderr.decode()
    labs.command("down")
    assert up(labs)["state"] == "running"
    labs.command("down")


def test_down_ends_although_a_host_is_away_and_says_which(labs: Lab) -> None:
    """That one ends by itself, and keeps its part of the memory until `down` finds it."""
    up(labs, stop_timeout="1s", host_lease=SHORT)
    host = labs.hosts["host-b"]
    host.cut(True)
    labs.wait_for(lambda now: now["nodes"][1]["state"] == "unreachable")
    gone = labs.command("down", check=False)
    assert gone.returncode == 124
    assert "host-b is away: what runs there ends by itself within 5 s" in gone.stdout.decode() + gone.stderr.decode()
    labs.wait_until_empty()
    assert host.left()
    host.cut(False)
    labs.command("down")
    assert [each.left() for each in (labs.here, *labs.hosts.values())] == [[], [], []]
    assert labs.command("down", check=False).returncode == 3


def test_records_have_the_times_of_the_supervisor_whatever_the_clock_of_their_host(tmp_path: Path) -> None:
    """A piece stands behind its request, and the two are as far apart as the link is long."""
    with lab(tmp_path, names=("host-b",), clock=3600) as far:
        up(far, servers=2, memory="2MiB")
        far.memclient("write", "0xffffc", "over two of them")
        found = far.command("logs", "--json").stdout.decode().splitlines()
        entries = [entry for entry in map(json.loads, found) if entry.get("operation") == "WRITE"]
        assert entries[0]["kind"] == "request"
        assert sorted(entry["node"] for entry in entries[1:]) == ["server0", "server1"]
        assert max(abs(entry["time_ns"] - entries[0]["time_ns"]) for entry in entries) < 60e9
        far.command("down")


def test_nobody_gets_in_between_hosts_without_the_secret_and_a_certificate(labs: Lab) -> None:
    """A secondary there shows nothing to who knows the secret but has no TLS; and no argument holds the secret."""
    status = up(labs)
    secret = labs.here.run("cat", "/dev/shm/memcluster-0-lab/secret").stdout.hex()
    for host in (labs.here, *labs.hosts.values()):
        assert secret not in host.run("ps", "-eo", "args").stdout.decode()
    address = status["nodes"][1]["address"]
    asked = labs.here.run(sys.executable, "-P", "-c", ASKER, address, secret, PYTHONPATH=f"{ROOT}:{ROOT}/tests")
    assert asked.stdout == b"proved\nclosed\n"
    labs.command("down")


ASKER = """
import socket, sys
from memcluster.launcher.log.reader import introduce
from memcluster.node.transport.proof import Pass, Who
host, _, port = sys.argv[1].partition(":")
with socket.create_connection((host, int(port))) as sock:
    introduce(sock, Pass(bytes.fromhex(sys.argv[2]), Who.SERVER, "server1"))
    print("proved")
    sock.sendall(bytes(64))
    try:
        while data := sock.recv(4096):
            assert not data.startswith(b"NBDMAGIC")
    except ConnectionError:
        pass
    print("closed")
"""
