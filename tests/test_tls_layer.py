"""The layer of TLS without I/O, and a socket with it: both sides in memory, then on a socket that is always full."""

from __future__ import annotations

import socket

import certificates
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcluster.node.tls.context import check, client_context, read_keys, server_context
from memcluster.node.tls.credentials import BadCredentials, Credentials
from memcluster.node.tls.layer import PIECE, RECORD, Layer, TLSError, pieces
from memcluster.node.tls.secured import Secured


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return certificates.folders(tmp_path_factory.mktemp("certificates"))["right"]


def both(folder) -> tuple[Layer, Layer]:
    """A server and a client before their handshake."""
    server = server_context(Credentials(str(folder)))
    return Layer(server, server=True), Layer(client_context(str(folder), hostname=False), server=False)


def shaken(folder, size: int = 1 << 20) -> tuple[Layer, Layer]:
    """The same behind it; what each says comes to the other in parts of so many bytes."""
    server, client = both(folder)
    done = {server: False, client: False}
    while not all(done.values()):
        for one, other in ((client, server), (server, client)):
            done[one] = done[one] or one.shake_hands()
            said = one.unsent()
            for at in range(0, len(said), size):
                other.received(said[at : at + size])
                if not done[other]:
                    done[other] = other.shake_hands()
    return server, client


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_a_handshake_in_parts_of_any_size_is_one(folder, size):
    server, client = shaken(folder, size)
    assert server.cipher.startswith("TLSv1.3")
    server.received(client.seal(b"through"))
    room = memoryview(bytearray(20))
    assert (server.open_into(room), bytes(room[:7])) == (7, b"through")


def test_what_was_sealed_is_opened_byte_by_byte_and_into_any_room(folder):
    """Nothing is there before a record is, and what finds no room waits."""
    server, client = shaken(folder)
    data = bytes(range(256)) * 200
    opened, room = bytearray(), memoryview(bytearray(1000))
    for byte in client.seal(data):
        server.received(bytes([byte]))
        while server.more:
            opened += room[: server.open_into(room)]
    assert opened == data


def test_the_end_is_told(folder):
    server, client = shaken(folder)
    client.end()
    server.received(client.unsent())
    assert server.open_into(memoryview(bytearray(10))) == 0
    assert server.ended


def test_a_record_that_was_changed_is_not_opened(folder):
    """Nothing of it gets into the room."""
    server, client = shaken(folder)
    sealed = bytearray(client.seal(b"x" * 1000))
    sealed[500] ^= 1
    server.received(bytes(sealed))
    room = bytearray(1000)
    with pytest.raises(TLSError, match="a record is not as it was sent"):
        server.open_into(memoryview(room))
    assert not any(room)


def test_nothing_is_kept_to_resume_a_session(folder):
    """No tickets: behind its part of the handshake the server says nothing by itself."""
    server, client = both(folder)
    client.shake_hands()
    server.received(client.unsent())
    server.shake_hands()
    client.received(server.unsent())
    client.shake_hands()
    server.received(client.unsent())
    assert server.shake_hands()
    assert server.unsent() == b""


def test_who_asks_for_new_keys_and_takes_none_is_cut_off(folder):
    """What TLS itself has to say and nobody takes is bounded: OpenSSL would keep an answer to each. (Python cannot ask
    for new keys; what would be said of them is put where OpenSSL puts it.)"""
    server, client = shaken(folder)
    server.received(client.seal(b"x"))
    server._outgoing.write(bytes(PIECE + 1))
    with pytest.raises(TLSError, match="asks for new keys again and again"):
        server.open_into(memoryview(bytearray(10)))


buffers = st.lists(
    st.one_of(st.binary(max_size=50), st.integers(RECORD - 2, 3 * PIECE).map(bytes)), max_size=8
)


@given(buffers, st.integers(0, 1))
def test_pieces_are_all_bytes_in_order(given_buffers, skip):
    """But the first, if it was sealed before; none is empty, and none much longer than a piece."""
    data = b"".join(given_buffers)
    cut = list(pieces([memoryview(buffer) for buffer in given_buffers if buffer], skip if data else 0))
    assert b"".join(cut) == data[skip if data else 0 :]
    assert all(0 < len(piece) < PIECE + RECORD for piece in cut)


def test_small_replies_are_sealed_together_and_large_ones_from_where_they_lie():
    small, large = [bytes(20), bytes(4096)] * 8, memoryview(bytearray(1 << 20))
    assert [len(piece) for piece in pieces(small, 0)] == [8 * 4116]
    first, *others = pieces([bytes(20), large], 0)
    assert len(first) == PIECE
    assert all(piece.obj is large.obj for piece in others)


def test_a_socket_that_takes_little_at_a_time_gets_everything_once(folder):
    """Whoever sends comes again for the last byte as long as something is unsent, and then with that byte first."""
    server, client = shaken(folder)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for sock in (ours, theirs):
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sending, receiving = Secured(ours, server), Secured(theirs, client)
        data = bytes(range(251)) * 3000
        unsent, got, room = memoryview(data), bytearray(), memoryview(bytearray(1 << 18))
        while len(got) < len(data):
            if unsent:
                try:
                    unsent = unsent[sending.sendmsg([unsent[:10], unsent[10:70_000], unsent[70_000:]]) :]
                except BlockingIOError:
                    pass
            try:
                got += room[: receiving.recv_into(room)]
            except BlockingIOError:
                pass
        assert got == data
        assert not unsent


CREDENTIALS = {
    "no folder": ("nowhere/server-cert.pem: No such file or directory", {}),
    "another key": ("server-key.pem is not the key of", {"server-key.pem": "client-key.pem"}),
    "no certificate": ("is not a certificate and a key in PEM form", {"server-cert.pem": b"nothing"}),
    "no authority": ("ca-cert.pem is not a certificate in PEM form", {"ca-cert.pem": b"nothing"}),
    "another authority": ("no client that trusts ca-cert.pem would accept it", {"ca-cert.pem": "client-cert.pem"}),
}


@pytest.mark.parametrize("what", CREDENTIALS)
def test_what_is_wrong_with_the_files_is_a_sentence(folder, tmp_path, what):
    """Before anything is started."""
    words, changes = CREDENTIALS[what]
    mine = tmp_path / ("nowhere" if what == "no folder" else "mine")
    if what != "no folder":
        certificates.mixed(mine, {folder: (*certificates.CA, *certificates.SERVER)})
        for name, content in changes.items():
            (mine / name).write_bytes((folder / content).read_bytes() if isinstance(content, str) else content)
    with pytest.raises(BadCredentials, match=words):
        check(Credentials(str(mine)))
    check(Credentials(str(folder)))


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "has no keys"), ("alice", ":1: a line is NAME:KEY"), ("alice:00\nbob:xyz", ":2: a line is NAME:KEY"),
     (":00", ":1: a line"), ("alice:", ":1: a line")],
)  # fmt: skip
def test_a_file_of_keys_is_read_line_by_line(tmp_path, text, words):
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(BadCredentials, match=words):
        read_keys(path)
    path.write_text("# ours\nalice:00ff\nan:odd:name:01\n")
    assert read_keys(path) == {"alice": b"\0\xff", "an:odd:name": b"\1"}
