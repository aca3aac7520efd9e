"""Who does not belong is refused by TLS, and hears why: with clients that nobody here wrote, each with certificates
that are wrong in one way, or at a server whose own are. For the server that is a sentence, a number and an event."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import certificates
import pytest
from harness import Cluster, clusters, memclient_command, need, run
from tlsdoor import coming_with, refused, said, server0

import memcluster
from memcluster.client.uri import Security, parse_uri

DEBIAN = {"PATH": f"/usr/bin:/bin:{os.environ['PATH']}"}


def nbdsh(cluster: Cluster, folder: Path | None) -> Sequence[str]:
    script = f"h.set_uri_allow_local_file(True)\nh.connect_uri({coming_with(cluster, folder)!r})\nprint(h.get_size())"
    return [need("nbdsh", "python3-libnbd"), "-c", script]


def qemu_img(cluster: Cluster, folder: Path | None, *more: str) -> Sequence[str]:
    target = parse_uri(cluster.uri)
    image = ["driver=nbd", "server.type=inet", f"server.host={target.host}", f"server.port={target.port}", *more]
    words = [need("qemu-img", "qemu-utils"), "info"]
    if folder is not None:
        words += ["--object", f"tls-creds-x509,id=tls0,endpoint=client,dir={folder}"]
        image.append("tls-creds=tls0")
    return [*words, "--image-opts", ",".join(image)]


CLIENTS: dict[str, Callable[[Cluster, Path | None], Sequence[str]]] = {
    "memclient": lambda cluster, folder: memclient_command("--uri", coming_with(cluster, folder), "info"),
    "nbdinfo": lambda cluster, folder: [need("nbdinfo", "libnbd-bin"), "--size", coming_with(cluster, folder)],
    "nbdcopy": lambda cluster, folder: [need("nbdcopy", "libnbd-bin"), coming_with(cluster, folder), "null:"],
    "nbdsh": nbdsh,
    "qemu-img": qemu_img,
}
HUNG_UP = "it hung up in the handshake; perhaps it does not accept our certificate"


@dataclass(frozen=True)
class Fault:
    """`words` are memclient's, `sentence` what the server says; of `alone` clients the server hears nothing, or no more
    than that they go: they look at what they have, or at the server's certificate, by themselves."""

    folder: str
    words: str
    sentence: str
    alone: tuple[str, ...] = ()
    server: str = "right"


FAULTS = {
    "no TLS": Fault("", "this server speaks to nobody without TLS", "it came without TLS, which is required here"),
    "no certificate": Fault(
        "no certificate", "wants a certificate of ours, and there is none", "has no certificate, and must have one"
    ),
    "a stranger's certificate": Fault(
        "a stranger's certificate",
        "the other side does not know who signed our certificate",
        "the other side's certificate is not accepted: ",
    ),
    "an expired certificate": Fault(
        "an expired certificate",
        "the other side says that our certificate has expired",
        "the other side's certificate is not accepted: certificate has expired",
        ("qemu-img",),
    ),
    "another key": Fault("another key", "client-key.pem is not the key of", HUNG_UP, ("qemu-img",)),
    "another authority": Fault(
        "other", "certificate is not accepted: ", f"does not know who signed our certificate|{HUNG_UP}", ("qemu-img",)
    ),
    "a server of another name": Fault(
        "right",
        "certificate is not valid for '127.0.0.1'",
        f"the other side does not accept our certificate|{HUNG_UP}",
        ("qemu-img",),
        "misnamed server",
    ),
    "a server whose time is over": Fault(
        "right",
        "certificate is not accepted: certificate has expired",
        f"the other side says that our certificate has expired|{HUNG_UP}",
        ("qemu-img",),
        "outdated server",
    ),
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory, folders, door) -> Iterator[dict[str, Cluster]]:
    """By the certificates that they have. One whose time is over would not be started where it could be seen: this one
    has no authority beside it."""
    with clusters() as new:
        found = {"right": door}
        for name, verify in (("misnamed server", True), ("outdated server", False)):
            tls = {"certificates": str(folders[name]), "verify": verify}
            found[name] = new(tmp_path_factory.mktemp("server"), servers=1, tls=tls)
            found[name].up()
        yield found


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("what", FAULTS)
def test_who_does_not_belong_is_refused_with_a_sentence_on_both_sides(servers, folders, what, client):
    """And counted, and it stands in the log; whoever belongs is let in."""
    fault = FAULTS[what]
    cluster = servers[fault.server]
    before, told = server0(cluster)["refused"], said(cluster)
    command = CLIENTS[client](cluster, folders[fault.folder] if fault.folder else None)
    done = run(*command, check=False, **DEBIAN)
    words = done.stderr.decode()
    assert done.returncode == 1
    assert not done.stdout
    if client == "memclient":
        assert fault.words in words
        assert words.count("\n") == 1
    else:
        assert words  # libnbd 1.24.4's nbdinfo has none of TLS
    if client not in fault.alone:
        assert refused(cluster, before) == before + 1
        assert re.search(fault.sentence, said(cluster).removeprefix(told))
    if client == "memclient":
        assert b"no TLS, or none that both sides accept" in cluster.command("logs", "-n", "9").stdout
    if fault.server == "right":
        right = run(*CLIENTS[client](cluster, folders["right"]), **DEBIAN)
        assert right.returncode == 0


def test_a_name_in_the_uri_is_held_against_the_certificate(door, folders):
    """By memclient, qemu, and libnbd where it knows the parameter: 1.14 passes over it, and holds the host against the
    certificate, as docs/clients.md says."""
    uri = str(replace(parse_uri(door.uri), tls=Security(str(folders["right"]), hostname="elsewhere")))
    done = run(*memclient_command("--uri", uri, "info"), check=False)
    assert (done.returncode, b"certificate is not valid for 'elsewhere'" in done.stderr) == (1, True)
    done = run(*qemu_img(door, folders["right"], "tls-hostname=elsewhere"), check=False)
    assert (done.returncode, b"does not match the hostname elsewhere" in done.stderr) == (1, True)
    knows = run(need("nbdsh", "python3-libnbd"), "-c", "print(hasattr(h, 'set_tls_hostname'))", **DEBIAN).stdout
    done = run(need("nbdinfo", "libnbd-bin"), "--size", uri, check=False)
    assert done.returncode == (knows == b"True\n")


@pytest.mark.parametrize(("folder", "told"), [("", True), ("other", False)])
def test_who_names_no_authority_is_told_how(door, folders, folder, told):
    """A URI without a folder is the first that one tries; who has named one knows."""
    uri = str(replace(parse_uri(door.uri), tls=Security(str(folders[folder]) if folder else "")))
    done = run(*memclient_command("--uri", uri, "info"), check=False)
    assert done.returncode == 1
    assert b"certificate is not accepted: " in done.stderr
    assert (b"; ?tls-certificates=DIR in the URI names a folder" in done.stderr) == told


def test_certificates_whose_time_is_over_are_not_served(new_cluster, tmp_path, folders):
    """They are refused by the check of the file: what clients could not trust is not served."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    old, right = folders["old"], folders["right"]
    both = certificates.mixed(tmp_path / "both", {right: certificates.SERVER, old: certificates.CA})
    cluster = new_cluster(tmp_path / "a", tls={"certificates": str(both), "verify": True})
    done = cluster.command("up", "-d", check=False)
    assert done.returncode == 2
    assert b"no client that trusts ca-cert.pem would accept it" in done.stderr
    cluster = new_cluster(tmp_path / "b", tls={"certificates": str(old)})
    done = cluster.command("config", check=False)
    assert done.returncode == 2
    assert b"server-cert.pem: no client that trusts ca-cert.pem would accept it: certificate has expired" in done.stderr


def test_a_server_without_tls_says_so(make_cluster):
    """To who asks for it."""
    cluster = make_cluster(servers=1)
    with pytest.raises(memcluster.Refused, match="there is no TLS here"):
        memcluster.connect(str(replace(parse_uri(cluster.uri), tls=Security(verify=False))))
    done = run(need("nbdinfo", "libnbd-bin"), cluster.uri.replace("nbd://", "nbds://"), check=False)
    assert (done.returncode, done.stdout) == (1, b"")
