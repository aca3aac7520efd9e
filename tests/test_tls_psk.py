"""Keys shared beforehand, for TLS without certificates: Python 3.13 and later have them. Where the suite runs on an
older one CI runs this file again on a newer."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace

import pytest
from harness import Cluster, memclient_command, need, run
from tlsdoor import refused, said, server0

import memcluster
from memcluster.client.uri import Security, parse_uri
from memcluster.node.tls.context import HAS_PSK, client_context, server_context
from memcluster.node.tls.credentials import Credentials
from memcluster.node.tls.layer import Layer, TLSError

DEBIAN = {"PATH": f"/usr/bin:/bin:{os.environ['PATH']}"}
needs_psk = pytest.mark.skipif(not HAS_PSK, reason="keys shared beforehand need Python 3.13")
SIZE = 1 << 20


@pytest.fixture
def make_with_keys(tmp_path, new_cluster):
    """Makes a cluster that knows two users, and files of keys: the right ones, and others."""

    def make() -> Cluster:
        for folder, first in (("right", 0x12), ("wrong", 0x13)):
            (tmp_path / folder).mkdir()
            lines = [f"{user}:{bytes([first + number]).hex() * 32}" for number, user in enumerate(("alice", "bob"))]
            (tmp_path / folder / "keys.psk").write_text("\n".join(lines) + "\n")
        cluster = new_cluster(tmp_path, tls={"psk": "right/keys.psk"})
        cluster.up()
        return cluster

    return make


def uri(cluster: Cluster, folder: str, user: str) -> str:
    security = Security(psk_file=str(cluster.folder / folder / "keys.psk"), username=user)
    return str(replace(parse_uri(cluster.uri), tls=security))


def qemu_img(cluster: Cluster, folder: str, user: str) -> Sequence[str]:
    target = parse_uri(cluster.uri)
    credentials = f"tls-creds-psk,id=tls0,endpoint=client,dir={cluster.folder / folder},username={user}"
    image = f"driver=nbd,server.type=inet,server.host={target.host},server.port={target.port},tls-creds=tls0"
    return [need("qemu-img", "qemu-utils"), "info", "--output=json", "--object", credentials, "--image-opts", image]


def clients(cluster: Cluster, folder: str, user: str) -> dict[str, Sequence[str]]:
    """Commands that ask for the size."""
    where = uri(cluster, folder, user)
    script = f"h.set_uri_allow_local_file(True)\nh.connect_uri({where!r})\nprint(h.get_size())"
    return {
        "memclient": memclient_command("--uri", where, "info", "--json"),
        "nbdinfo": [need("nbdinfo", "libnbd-bin"), "--json", where],
        "nbdcopy": [need("nbdcopy", "libnbd-bin"), where, "null:"],
        "nbdsh": [need("nbdsh", "python3-libnbd"), "-c", script],
        "qemu-img": qemu_img(cluster, folder, user),
    }


@pytest.mark.skipif(HAS_PSK, reason="this Python has keys shared beforehand")
def test_shared_keys_need_a_python_that_has_them(new_cluster, tmp_path):
    (tmp_path / "keys").write_text("alice:00ff\n")
    done = new_cluster(tmp_path, tls={"psk": "keys"}).command("config", check=False)
    assert (done.returncode, b"need Python 3.13 or later" in done.stderr) == (2, True)


@needs_psk
def test_shared_keys_let_in_who_has_one(make_with_keys):
    """Each user by his own, with every client; and bytes come through."""
    cluster = make_with_keys()
    for user in ("alice", "bob"):
        done = {name: run(*command, **DEBIAN) for name, command in clients(cluster, "right", user).items()}
        assert json.loads(done["qemu-img"].stdout)["virtual-size"] == SIZE
        found = json.loads(done["nbdinfo"].stdout)
        assert (found["TLS"], found["exports"][0]["export-size"]) == (True, SIZE)
        assert done["nbdsh"].stdout == b"1048576\n"
    data = bytes(range(256)) * (SIZE // 256)
    run("nbdcopy", "-", uri(cluster, "right", "bob"), stdin=data)
    with memcluster.connect(uri(cluster, "right", "alice")) as memory:
        assert memory[:] == data


@needs_psk
@pytest.mark.parametrize(("folder", "user"), [("wrong", "alice"), ("right", "nobody")], ids=["key", "user"])
def test_who_has_another_key_is_refused_with_a_sentence_on_both_sides(make_with_keys, folder, user):
    """So is one who says that he is somebody that is not known: which it was nobody is told."""
    cluster = make_with_keys()
    keys = cluster.folder / folder / "keys.psk"
    if user == "nobody":
        cluster.folder.joinpath("also").mkdir()
        keys = cluster.folder / "also" / "keys.psk"
        keys.write_text("nobody:" + "12" * 32 + "\n")
    for name, command in clients(cluster, keys.parent.name, user).items():
        before, told = server0(cluster)["refused"], said(cluster)
        done = run(*command, check=False, **DEBIAN)
        assert (done.returncode, done.stdout) == (1, b""), name
        assert b"TLS" in done.stderr, name
        assert refused(cluster, before) == before + 1, name
        sentence = "TLS: the other side has another shared key, or is nobody who has one\n"
        assert said(cluster).removeprefix(told).endswith(sentence), name
        if name == "memclient":
            assert b"our shared key is another there" in done.stderr


@needs_psk
def test_who_has_no_key_is_refused(make_with_keys, folders):
    """With a certificate, with nothing, without TLS; and a key that the file does not name is not tried."""
    cluster = make_with_keys()
    target = parse_uri(cluster.uri)
    for security in (Security(str(folders["right"])), Security(verify=False), None):
        before = server0(cluster)["refused"]
        done = run(*memclient_command("--uri", str(replace(target, tls=security)), "info"), check=False)
        assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
        assert refused(cluster, before) == before + 1
    done = run(*memclient_command("--uri", uri(cluster, "right", "carol"), "info"), check=False)
    assert b"keys.psk has no key of 'carol'" in done.stderr


def test_keys_and_certificates_do_not_stand_beside_each_other(new_cluster, tmp_path, folders):
    """Whoever has a key would not get in."""
    cluster = new_cluster(tmp_path, tls={"psk": "keys.psk", "certificates": str(folders["right"])})
    done = cluster.command("config", check=False)
    assert (done.returncode, b"tls.psk stands instead of tls.certificates" in done.stderr) == (2, True)


@needs_psk
def test_openssl_takes_no_shared_key_where_it_has_a_certificate(folders, tmp_path):
    """The reason; when this fails, both may stand beside each other."""
    keys = tmp_path / "keys.psk"
    keys.write_text("alice:" + "12" * 32 + "\n")
    server = Layer(server_context(Credentials(str(folders["right"]), str(keys), verify=False)), server=True)
    client = Layer(client_context(psk=str(keys), username="alice"), server=False)

    def shake_hands() -> None:
        for _ in range(3):
            client.shake_hands()
            server.received(client.unsent())
            server.shake_hands()
            client.received(server.unsent())

    with pytest.raises(TLSError):
        shake_hands()
