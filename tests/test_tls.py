"""TLS for clients, with those that nobody here wrote: what they can do with certificates, and how they are refused."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import ssl
import struct
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import certificates
import pytest
from harness import TIMEOUT, Cluster, clusters, memclient_command, memcluster_command, need, run
from strangers import FLAGS, GO, LIST, STARTTLS, STRUCTURED, Stranger, option
from tlsdoor import coming_with, refused, said, server0

import memcluster
from memcluster.client.uri import Security, Target, parse_uri
from memcluster.node.nbd import wire
from memcluster.node.nbd.negotiation import MAX_OPTION
from memcluster.node.nbd.wire import Option, Rep
from memcluster.node.serving.security import AT_ONCE
from memcluster.node.tls.context import client_context
from memcluster.node.tls.credentials import CA

SIZE = 4 << 20
DEBIAN = {"PATH": f"/usr/bin:/bin:{os.environ['PATH']}"}
SHAPES = {
    "primary-secondary": {"servers": 3},
    "stripes": {"servers": 3, "layout": {"stripe": "64KiB"}},
    "unix": {"servers": 3, "listen": "unix:nbd.sock"},
    "client-routed": {"servers": 1, "topology": "client-routed"},  # other clients see one server's part: here it is all
}


@pytest.fixture(scope="module", params=SHAPES)
def shaped(request, tmp_path_factory, folders) -> Cluster:
    with clusters() as new:
        tls = {"certificates": str(folders["right"])}
        cluster = new(tmp_path_factory.mktemp("tls"), memory="4MiB", tls=tls, **SHAPES[request.param])
        cluster.up()
        yield cluster


@pytest.fixture
def content() -> bytes:
    return random.Random(1).randbytes(SIZE)


# -- what clients do -------------------------------------------------------------------------------------------------


def test_nbdinfo_and_nbdcopy_use_the_address_that_is_printed(shaped, content, tmp_path):
    """`up` and `status` print it with all that a client on this machine needs."""
    need("nbdinfo", "libnbd-bin")
    found = json.loads(run("nbdinfo", "--json", shaped.uri).stdout)
    assert (found["TLS"], found["exports"][0]["export-size"]) == (True, SIZE)
    assert shaped.uri.startswith("nbds")
    assert shaped.status()["uri"] == shaped.uri
    (tmp_path / "in").write_bytes(content)
    run("nbdcopy", "--connections=2", tmp_path / "in", shaped.uri)
    run("nbdcopy", shaped.uri, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content
    with shaped.connect() as memory:
        assert memory[:] == content


def test_qemu_img_reads_and_writes(shaped, content, folders, tmp_path):
    need("qemu-img", "qemu-utils")
    target = parse_uri(shaped.uri)
    place = f"server.type=unix,server.path={target.path}" if target.path else (
        f"server.type=inet,server.host={target.host},server.port={target.port}"
    )  # fmt: skip
    name = ",tls-hostname=localhost" if target.path else ""
    image = f"driver=nbd,{place},tls-creds=tls0{name}"
    credentials = f"tls-creds-x509,id=tls0,endpoint=client,dir={folders['right']}"
    (tmp_path / "in").write_bytes(content)
    words = ["qemu-img", "convert", "-n", "--object", credentials]
    run(*words, "-f", "raw", "--target-image-opts", tmp_path / "in", f"{image},discard=unmap")
    run("qemu-img", "convert", "--object", credentials, "-O", "raw", "--image-opts", image, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content


def test_nbdsh_asks_for_everything(shaped):
    """Extents, flush, trim, zeroes, FUA, many requests at once."""
    need("nbdsh", "python3-libnbd")
    script = """
assert h.get_tls_negotiated() and h.get_structured_replies_negotiated()
h.zero(h.get_size(), 0)
futures = [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([n]) * 70_001), n * 70_001) for n in range(32)]
while h.aio_in_flight():
    h.poll(-1)
for n in range(32):
    assert h.pread(70_001, n * 70_001) == bytes([n]) * 70_001
h.pwrite(b"fua", 5, nbd.CMD_FLAG_FUA)
h.flush()
h.trim(1 << 20, 1 << 20)
assert h.pread(1 << 20, 1 << 20) == bytes(1 << 20)
found = []
h.block_status(h.get_size(), 0, lambda context, offset, entries, error: found.extend(entries))
assert len(found) > 2
"""
    options = "import nbd\nh.set_uri_allow_local_file(True)\n"
    connect = f"h.add_meta_context('base:allocation')\nh.connect_uri({shaped.uri!r})\n"
    run("nbdsh", "-c", options + connect + script, **DEBIAN)


def test_memclient_and_the_library_read_and_write(shaped, content):
    assert shaped.memclient("write", "4096", "by memclient")
    assert shaped.memclient("read", "4096", "12").stdout == b"by memclient"
    shaped.memclient("copy", "-", "memory:", stdin=content)
    assert shaped.memclient("copy", "memory:", "-").stdout == content
    assert shaped.uri in shaped.memclient("info").stdout.decode()
    with shaped.connect() as memory:
        writes = [memory.start_pwrite(bytes([n]) * 5000, n * 5000) for n in range(200)]
        assert [write.result() for write in writes] == [5000] * 200
        assert memory[:1_000_000] == b"".join(bytes([n]) * 5000 for n in range(200))
        assert memory.exports()


def test_an_event_loop_has_tls_and_makes_it_again(shaped, content):
    """Many tasks at once, more than a record of TLS holds, and a server that is killed under them."""

    async def main() -> None:
        async with memcluster.aconnect(shaped.uri) as memory:
            await memory.pwrite(content, 0)
            os.kill(shaped.pid("server0"), 9)
            found = await asyncio.gather(*(memory.pread(50_000, number * 5000) for number in range(300)))
            assert found == [content[number * 5000 : number * 5000 + 50_000] for number in range(300)]
            assert memory.reconnections

    asyncio.run(main())


def test_a_client_that_routes_has_tls_to_every_server(new_cluster, tmp_path, folders, content):
    """And makes it again when a server is killed, with what was in flight."""
    cluster = new_cluster(
        tmp_path, topology="client-routed", servers=3, memory="4MiB", tls={"certificates": str(folders["right"])}
    )
    cluster.up()
    with cluster.connect() as memory:
        memory[:] = content
        os.kill(cluster.pid("server1"), 9)
        assert memory[:] == content
        assert memory.reconnections
    for node in cluster.wait_until_running()["nodes"]:
        if node["role"] == "server":
            with pytest.raises(memcluster.Refused, match="speaks to nobody without TLS"):
                memcluster.connect(f"nbd://{node['address']}")


def test_a_server_that_is_killed_is_found_again(new_cluster, tmp_path, folders):
    """With certificates that were renewed meanwhile."""
    mine = tmp_path / "certs"
    certificates.make(mine)
    cluster = new_cluster(tmp_path, tls={"certificates": "certs"})
    cluster.up()
    with cluster.connect() as memory:
        memory.pwrite(b"kept", 0)
        for path in mine.iterdir():
            path.unlink()
        certificates.make(mine)
        os.kill(cluster.pid("server0"), 9)
        assert memory.pread(4, 0) == b"kept"


# -- modes ---------------------------------------------------------------------------------------------------------


def test_without_verify_no_certificate_is_asked_for(new_cluster, tmp_path, folders):
    cluster = new_cluster(tmp_path, tls={"certificates": str(folders["right"]), "verify": False})
    cluster.up()
    uri = coming_with(cluster, folders["no certificate"])
    with memcluster.connect(uri) as memory:
        assert memory.size == 1 << 20
    unverified = replace(parse_uri(uri), tls=Security(verify=False))
    assert run(*memclient_command("--uri", str(unverified), "info")).stdout


def test_where_tls_is_allowed_both_come_in(new_cluster, tmp_path, folders):
    cluster = new_cluster(tmp_path, tls={"certificates": str(folders["right"]), "mode": "allow"})
    cluster.up()
    with cluster.connect() as memory, memcluster.connect(coming_with(cluster, None)) as plain:
        memory.pwrite(b"both", 0)
        assert plain.pread(4, 0) == b"both"


# -- strangers at the door -------------------------------------------------------------------------------------------


def stranger(cluster: Cluster) -> Stranger:
    """Somebody who has been greeted."""
    target = parse_uri(cluster.uri)
    found = Stranger(socket.create_connection((target.host, target.port), timeout=TIMEOUT))
    found.take(wire.GREETING.size)
    return found


def secured(cluster: Cluster, folder: Path, before: bytes = b"") -> Stranger:
    """One who has begun TLS, with some options `before`."""
    found = stranger(cluster)
    found.send(FLAGS + before + STARTTLS)
    while found.option_reply()[0] != Option.STARTTLS:
        pass
    context = client_context(str(folder), hostname=False)
    return Stranger(context.wrap_socket(found.sock))


def test_before_tls_there_is_only_starttls_and_abort(door):
    """Every other option is refused, and EXPORT_NAME is the end."""
    with stranger(door) as one:
        long = option(Option.GO, bytes(MAX_OPTION + 1))
        one.send(FLAGS + LIST + STRUCTURED + GO + option(4711, b"x") + long + option(Option.ABORT))
        replies = [one.option_reply() for _ in range(6)]
        assert [reply[1] for reply in replies] == [Rep.ERR_TLS_REQD] * 5 + [Rep.ACK]
        assert all(b"nbds://" in reply[2] for reply in replies[:5])
    with stranger(door) as one:
        one.send(FLAGS + option(Option.EXPORT_NAME))
        assert one.until_closed() == b""


def test_what_was_agreed_on_before_tls_is_forgotten(new_cluster, tmp_path, folders):
    """Somebody between the two may have said it: after STRUCTURED_REPLY without TLS a READ is answered simply."""
    cluster = new_cluster(tmp_path, tls={"certificates": str(folders["right"]), "mode": "allow"})
    cluster.up()
    with secured(cluster, folders["right"], before=STRUCTURED) as one:
        one.send(STARTTLS)
        assert one.option_reply()[:2] == (Option.STARTTLS, Rep.ERR_INVALID)
        one.send(GO)
        while one.option_reply()[1] != Rep.ACK:
            pass
        one.send(wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, 0, 7, 0, 1))
        assert one.simple() == (0, 7)


@pytest.mark.parametrize("behind", [LIST, GO, b"\0", b"\x16\x03\x01"], ids=["LIST", "GO", "a byte", "a record's head"])
def test_plain_bytes_behind_starttls_are_the_end(door, folders, behind):
    """They might be taken for words that came through TLS. The server counts it, and serves others."""
    before = server0(door)["bad_input"]
    with stranger(door) as one:
        one.send(FLAGS + STARTTLS + behind)
        assert one.until_closed() in (b"", wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, 5, Rep.ACK, 0))
    assert server0(door)["bad_input"] == before + 1
    with door.connect() as memory:
        assert memory.pread(1, 0)


@pytest.mark.parametrize(
    "said_instead",
    [b"GET / HTTP/1.1\r\n\r\n", LIST, bytes(1000), b"\x16\x03\x01\xff\xff" + bytes(70_000), b"\x15\x03\x03\0\2\2\x28"],
    ids=["HTTP", "LIST", "zeroes", "a record too long", "an alert"],
)
def test_who_speaks_no_tls_when_it_has_asked_for_it_is_refused(door, said_instead):
    before = server0(door)["refused"]
    with stranger(door) as one:
        one.send(FLAGS + STARTTLS)
        assert one.option_reply()[:2] == (Option.STARTTLS, Rep.ACK)
        one.send(said_instead)
        one.until_closed()
    assert refused(door, before) == before + 1


def test_old_tls_is_refused(door, folders):
    """TLS 1.2 has renegotiation, and sessions to be kept."""
    with stranger(door) as one:
        one.send(FLAGS + STARTTLS)
        one.option_reply()
        context = client_context(str(folders["right"]), hostname=False)
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError):
            context.wrap_socket(one.sock)
    assert "does not speak TLS 1.3" in said(door)


def test_a_record_that_was_tampered_with_is_the_end_and_changes_nothing(door, folders):
    """Of a payload that lands in the shard, too: what is not what was sent gets nowhere."""
    target = parse_uri(door.uri)
    with door.connect() as memory:
        memory[:] = b"\x11" * SIZE
    before = server0(door)["bad_input"]
    sock = socket.create_connection((target.host, target.port), timeout=TIMEOUT)
    one = Stranger(sock)
    one.take(wire.GREETING.size)
    one.send(FLAGS + STARTTLS)
    one.option_reply()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context(str(folders["right"]), hostname=False).wrap_bio(incoming, outgoing)
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            one.send(outgoing.read())
            incoming.write(sock.recv(1 << 16))
        else:
            break
    tls.write(GO)
    one.send(outgoing.read())
    answers = b""
    while answers[-20:] != wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, Option.GO, Rep.ACK, 0):
        try:
            answers += tls.read(1 << 16)
        except ssl.SSLWantReadError:
            incoming.write(sock.recv(1 << 16))
    length = 1 << 20
    tls.write(wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, 1, 7, 0, length) + b"\x22" * length)
    sealed = bytearray(outgoing.read())
    (first,) = struct.unpack_from(">H", sealed, 3)
    sealed[5 + first + 100] ^= 1  # within the second record
    one.send(bytes(sealed))
    one.until_closed()
    one.sock.close()
    assert server0(door)["bad_input"] == before + 1
    assert "a record is not as it was sent" in said(door)
    with door.connect() as memory:
        held = memory[:]
    landed = held.count(b"\x22")
    assert landed < 16384  # of the first record, that was right
    assert held == b"\x22" * landed + b"\x11" * (SIZE - landed)


def test_only_so_many_shake_hands_at_a_time(door, folders):
    """Who comes when the places are taken is told so; when they are given back it comes in."""
    waiting = []
    try:
        for _ in range(AT_ONCE):
            waiting.append(stranger(door))
            waiting[-1].send(FLAGS + STARTTLS)
            assert waiting[-1].option_reply()[1] == Rep.ACK
        with pytest.raises(memcluster.Refused, match="in the handshake of TLS already"):
            memcluster.connect(door.uri)
    finally:
        for one in waiting:
            one.sock.close()
    while True:
        with suppress(memcluster.Refused):
            memcluster.connect(door.uri).close()
            break


def test_a_handshake_has_a_deadline(new_cluster, tmp_path, folders):
    """The one that all the way to an export has."""
    cluster = new_cluster(
        tmp_path, tls={"certificates": str(folders["right"])}, clients={"handshake_timeout": "200ms"}, servers=1
    )
    cluster.up()
    with stranger(cluster) as one:
        one.send(FLAGS + STARTTLS)
        one.option_reply()
        one.until_closed()
    assert "no end of the handshake" in said(cluster)


# -- cluster.yaml ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topology", ["dispatcher", "chain"])
def test_topologies_that_hand_sockets_over_have_no_tls(new_cluster, tmp_path, folders, topology):
    cluster = new_cluster(tmp_path, topology=topology, tls={"certificates": str(folders["right"])})
    done = cluster.command("config", check=False)
    assert done.returncode == 2
    assert f"topology {topology} hands its clients' sockets from server to server" in done.stderr.decode()


def test_certificates_are_made_once_and_for_their_user(tmp_path):
    """Keys are their owner's to read, and nothing is overwritten."""
    command = memcluster_command("certificates", "certs", "--host", "nas.example", "--host", "192.0.2.7")
    assert run(*command, cwd=tmp_path).stdout
    for name in ("server-key.pem", "client-key.pem"):
        assert (tmp_path / "certs" / name).stat().st_mode & 0o777 == 0o600
    again = run(*command, cwd=tmp_path, check=False)
    assert (again.returncode, b"is there already" in again.stderr) == (1, True)
    assert CA in "".join(path.name for path in (tmp_path / "certs").iterdir())


def test_the_uri_of_a_target_names_what_a_client_needs():
    """As libnbd's parameters say it."""
    uri = "nbds://alice@host:1/x?tls-psk-file=/k&tls-hostname=h&tls-verify-peer=0"
    assert parse_uri(uri) == Target("host", 1, export="x", tls=Security("", "/k", "alice", "h", False))
    assert str(parse_uri(uri)) == uri
