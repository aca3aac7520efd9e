"""Beyond loopback: who is let near the memory from other machines, and what is said of it. All in a network namespace
of the test's own, where 192.0.2.1 and fd00::1 are this machine's; nothing reaches a real network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import certificates
import pytest
from harness import memclient_command, memcluster_command, need, run

SET_UP = """
ip link set lo up && ip address add 192.0.2.1/32 dev lo && ip -6 address add fd00::1/128 dev lo nodad &&
printf '127.0.0.1 localhost\\n192.0.2.1 nas\\n' > "$hosts" && mount --bind "$hosts" /etc/hosts && echo ready && exec cat
"""


class Network:
    """Commands in the namespaces of a process that holds them."""

    def __init__(self, folder: Path) -> None:
        need("ip", "iproute2")
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-c", SET_UP],
            env={"hosts": str(folder / "hosts"), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._holder.stdout is not None
        assert self._holder.stderr is not None
        if self._holder.stdout.readline() != "ready\n":
            pytest.skip(f"namespaces are not allowed here: {self._holder.stderr.read()}")

    def run(self, *command: str, cwd: Path, **options) -> subprocess.CompletedProcess[bytes]:
        enter = "nsenter", "--target", str(self._holder.pid), "--net", "--mount"
        return run(*enter, "sh", "-c", 'cd "$0" && exec "$@"', cwd, *command, **options)

    def close(self) -> None:
        self._holder.communicate("")


@pytest.fixture
def network(tmp_path):
    made = Network(tmp_path)
    yield made
    made.close()


KEYS = {"listen": "0.0.0.0:0", "insecure_network": True, "advertise": "nas"}


def up(network, new_cluster, folder: Path, **keys):
    """A cluster that runs in the network, and what its start said."""
    cluster = new_cluster(folder, **keys)
    said = network.run(*memcluster_command("up", "-d"), cwd=folder).stdout.decode()
    cluster.remember()
    return cluster, said


def memclient(network, cluster, *words: str, **options) -> bytes:
    return network.run(*memclient_command(*words), cwd=cluster.folder, **options).stdout


@pytest.mark.parametrize(
    ("listen", "stands_for"), [("nas:0", " (192.0.2.1)"), ("192.0.2.1:0", ""), ("[fd00::1]:0", "")]
)
def test_an_address_beyond_this_machine_is_refused_with_its_place(network, new_cluster, tmp_path, listen, stands_for):
    """And a name that leads there, too; nothing is started."""
    cluster = new_cluster(tmp_path, listen=listen)
    refused = network.run(*memcluster_command("up", "-d"), cwd=tmp_path, check=False)
    assert refused.returncode == 2
    line = next(number for number, line in enumerate(cluster.file.read_text().splitlines(), 1) if listen in line)
    assert f"cluster.yaml:{line}:9: {listen}{stands_for} can be reached from other machines" in refused.stderr.decode()
    assert not cluster.directory.exists()


def test_who_lets_other_machines_in_is_told_so(network, new_cluster, tmp_path):
    """At the start and by `status`; and what clients are told is the host that is advertised."""
    cluster, said = up(network, new_cluster, tmp_path, **KEYS, metrics="192.0.2.1:0")
    status = cluster.status()
    port = status["nodes"][0]["address"].removeprefix("0.0.0.0:")
    sentence = f"0.0.0.0:{port} can be reached from other machines: whoever gets there may read and write the memory"
    assert sentence in said
    assert status["exposed"][0].startswith(sentence)
    assert "192.0.2.1" in status["exposed"][1]
    assert "may read the figures" in status["exposed"][1]
    assert f"note: {sentence}" in cluster.command("status").stdout.decode()
    assert cluster.uri == status["uri"] == f"nbd://nas:{port}"
    assert memclient(network, cluster, "write", "0", "far") == b""
    assert memclient(network, cluster, "--uri", f"nbd://192.0.2.1:{port}", "read", "0", "3") == b"far"


def test_a_client_that_routes_finds_every_server_at_the_host_that_is_advertised(network, new_cluster, tmp_path):
    """Although each listens at every address."""
    cluster, _ = up(network, new_cluster, tmp_path, **KEYS, topology="client-routed")
    found = json.loads(memclient(network, cluster, "info", "--json"))
    assert [server["address"].rpartition(":")[0] for server in found["cluster"]["servers"]] == ["nas"] * 3
    data = bytes(range(256)) * 4096
    memclient(network, cluster, "write", "0", stdin=data)
    assert memclient(network, cluster, "read", "0", str(len(data))) == data


def test_with_tls_required_other_machines_come_in_by_a_certificate(network, new_cluster, tmp_path):
    """Nothing more has to be written, and nothing is said of it; by another name, or without, nobody comes in."""
    need("nbdinfo", "libnbd-bin")
    certificates.Authority().folder(tmp_path / "certs", names=["nas"])
    keys = {"listen": "0.0.0.0:0", "advertise": "nas", "tls": {"certificates": "certs"}}
    cluster, said = up(network, new_cluster, tmp_path, **keys)
    assert "can be reached from other machines" not in said
    assert cluster.status()["exposed"] == []
    assert cluster.uri.startswith("nbds://nas:")
    memclient(network, cluster, "write", "0", "far")
    assert memclient(network, cluster, "read", "0", "3") == b"far"
    assert network.run("nbdinfo", "--size", cluster.uri, cwd=tmp_path).stdout == b"1048576\n"
    by_number = cluster.uri.replace("nas", "192.0.2.1")
    for uri, words in (
        (by_number, "certificate is not valid for '192.0.2.1'"),
        (by_number.partition("?")[0].replace("nbds:", "nbd:"), "speaks to nobody without TLS"),
    ):
        done = network.run(*memclient_command("--uri", uri, "info"), cwd=tmp_path, check=False)
        assert (done.returncode, words in done.stderr.decode()) == (1, True)
        assert network.run("nbdinfo", "--size", uri, cwd=tmp_path, check=False).returncode == 1


def test_tls_that_asks_nobody_who_he_is_is_told_of(network, new_cluster, tmp_path):
    """At the start and by `status`: encrypted, and for everybody."""
    certificates.Authority().folder(tmp_path / "certs", names=["nas"])
    keys = {"listen": "0.0.0.0:0", "advertise": "nas", "tls": {"certificates": "certs", "verify": False}}
    cluster, said = up(network, new_cluster, tmp_path, **keys)
    sentence = "whoever gets there may read and write the memory, over TLS (tls.verify)"
    assert sentence in said
    assert sentence in cluster.status()["exposed"][0]


CROWD = """
import socket, sys
import memcluster
from memcluster.client.errors import Refused
host, port = sys.argv[1], int(sys.argv[2])
inside = [memcluster.connect(f"nbd://{host}:{port}") for _ in range(2)]
try:
    memcluster.connect(f"nbd://{host}:{port}")
except Refused as refused:
    print(refused)
talking = [socket.create_connection((host, port)) for _ in range(3)]
print([bool(sock.recv(1)) for sock in talking])
print(memcluster.connect(f"nbd://127.0.0.1:{port}").pread(4, 0))
"""


@pytest.mark.parametrize(("host", "origin"), [("192.0.2.1", "192.0.2.1"), ("fd00::1", "fd00::/64")])
def test_no_other_machine_keeps_the_rest_out(network, new_cluster, tmp_path, host, origin):
    """It has its places, and is told so; twice as many may talk, and one more is hung up on. Loopback has no bound."""
    keys = {**KEYS, "listen": "[::]:0", "clients": {"per_address": 2}}
    cluster, _ = up(network, new_cluster, tmp_path, **keys)
    port = cluster.uri.rpartition(":")[2]
    bracketed = f"[{host}]" if ":" in host else host
    script = CROWD.replace("nbd://{host}", f"nbd://{bracketed}")
    said = network.run(sys.executable, "-c", script, host, port, cwd=tmp_path).stdout.decode()
    told, talking, near = said.splitlines()
    assert f"{origin} has 2 client slots (clients.per_address in cluster.yaml)" in told
    assert talking == "[True, True, False]"
    assert near == repr(bytes(4))
    refusals = cluster.status()["nodes"][0]["refusals"]
    assert refusals == {"address": 2}
