"""client-routed over several hosts: clients go to every host, over TLS, and find their way whatever dies there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostlab import Lab, guardian, lab, load, pids, up

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def labs(tmp_path: Path) -> Iterator[Lab]:
    with lab(tmp_path) as made:
        yield made


def test_clients_come_to_every_host_and_nobody_without_a_certificate(labs: Lab) -> None:
    """Each server has its host's address, and its own part of a request; who has the clients' files comes in from
    another host, too; nothing is left anywhere."""
    status = up(labs, topology="client-routed", listen=None)
    here = [f"{host.address}:" for host in (labs.here, *labs.hosts.values())]
    assert [node["address"][: len(here[0])] for node in status["nodes"][:3]] == here
    labs.memclient("write", "0xffffc", "over two of them")
    uri = status["uri"]
    assert uri.startswith("nbds://10.9.0.1:10809?tls-certificates=/dev/shm/memcluster-0-lab/clients")
    host = labs.hosts["host-c"]
    host.run("mkdir", "/run/theirs")
    for name in ("ca-cert.pem", "client-cert.pem", "client-key.pem"):
        data = labs.here.run("cat", f"/dev/shm/memcluster-0-lab/clients/{name}").stdout.decode()
        host.run("sh", "-c", f"cat > /run/theirs/{name} <<END\n{data}END\n")
    there = "nbds://10.9.0.1:10809?tls-certificates=/run/theirs"
    assert labs.memclient("--uri", there, "read", "0xffffc", "16", host=host).stdout == b"over two of them"
    other = status["nodes"][1]["address"]
    refused = labs.memclient("--uri", f"nbd://{other}", "read", "0", "4", check=False, host=host)
    assert b"this server speaks to nobody without TLS" in refused.stderr
    host.run("rm", "/run/theirs/client-cert.pem", "/run/theirs/client-key.pem")
    refused = labs.memclient("--uri", there, "read", "0", "4", check=False, host=host)
    assert b"the other side wants a certificate of ours" in refused.stderr
    lines = labs.command("logs").stdout.decode().splitlines()
    [first] = {line.split()[2] for line in lines if re.search(r"WRITE +0x000ffffc \+4 ", line)}
    assert sorted(line.split()[1] for line in lines if line.split()[2] == first) == ["server0", "server1"]
    assert "log records merged" in labs.command("down").stdout.decode()
    labs.wait_until_empty()
    assert [each.left() for each in (labs.here, *labs.hosts.values())] == [[], [], []]


def wait_for_another(labs: Lab, pid: int) -> None:
    """In the place of this server1."""
    labs.wait_for(lambda now: now["state"] == "running" and pids(now)["server1"] != pid)


def test_clients_that_route_lose_no_write_to_deaths_and_cuts(labs: Lab) -> None:
    """Under load: a server there is killed, its guardian, and the link is cut and comes back."""
    status = up(labs, topology="client-routed", listen=None)
    host = labs.hosts["host-b"]
    with load(labs, status):
        host.run("kill", "-KILL", str(pids(status)["server1"]))
        wait_for_another(labs, pids(status)["server1"])
        first = pids(labs.status())["server1"]
        host.run("kill", "-KILL", str(guardian(host)))
        wait_for_another(labs, first)
        before = pids(labs.status())
        host.cut(True)
        labs.wait_for(lambda now: now["nodes"][1]["state"] == "unreachable")
        host.cut(False)
        assert pids(labs.wait_until_running()) == before
    labs.command("down")
    labs.wait_until_empty()
