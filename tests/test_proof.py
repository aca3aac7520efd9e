"""The handshake between the cluster's own: whole, byte by byte, between sides that share a secret and sides that do
not; and at a door, where strangers wait."""

from __future__ import annotations

import hashlib
import hmac
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from harness import SECRET
from hypothesis import given
from hypothesis import strategies as st
from test_link import accept

from memcluster.node.transport import introduction
from memcluster.node.transport.address import Address
from memcluster.node.transport.dialer import Dialer
from memcluster.node.transport.introduction import Doorkeeper, introduce
from memcluster.node.transport.loop import Loop
from memcluster.node.transport.proof import (
    ANSWER,
    CHALLENGE,
    HMAC_SIZE,
    MAGIC,
    NONCE_SIZE,
    Opener,
    Pass,
    ProofError,
    Server,
    Side,
    Who,
)

OURS, THEIRS = b"o" * NONCE_SIZE, b"t" * NONCE_SIZE
KEY = Pass(SECRET, Who.LOGGER, "logger1")


def say(side: Side) -> bytes:
    said, side.outgoing = side.outgoing, b""
    return said


def meet(opener: Opener, server: Server, size: int = 1 << 20) -> None:
    """Carry it out, so many bytes at a time."""
    while opener.needs or server.needs:
        for one, other in ((server, opener), (opener, server)):
            said = say(one)
            while said:
                count = min(size, other.needs)
                assert count, f"{len(said)} bytes too many"
                part, said = said[:count], said[count:]
                other.received(part)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_who_shares_a_secret_is_known(size: int) -> None:
    """However the bytes are cut; the server knows who has come."""
    opener, server = Opener(KEY, OURS), Server(SECRET, "logger1", THEIRS)
    meet(opener, server, size)
    assert server.who is Who.LOGGER
    assert say(opener) == say(server) == b""


def test_the_words_on_the_wire() -> None:
    """As docs/protocol.md has them."""

    def mac(word: bytes) -> bytes:
        return hmac.new(SECRET, word + b"\0\2" + THEIRS + OURS + b"\0logger1", hashlib.sha256).digest()

    opener, server = Opener(KEY, OURS), Server(SECRET, "logger1", THEIRS)
    challenge = say(server)
    assert challenge == b"MEMCLUST" + THEIRS
    opener.received(challenge)
    answer = say(opener)
    assert answer == b"\2" + OURS + mac(b"memcluster opener")
    server.received(answer)
    assert say(server) == mac(b"memcluster server")


def test_a_secret_is_not_shown() -> None:
    """A pass stands in a traceback, perhaps."""
    assert repr(KEY) == "Pass(who=<Who.LOGGER: 2>, node='logger1')"


@given(
    st.just(SECRET) | st.binary(min_size=32, max_size=32),
    st.sampled_from(["logger1", "server1", "logger10", ""]),
    st.sampled_from(Who),
)
def test_another_secret_or_another_node_is_none(secret: bytes, node: str, who: Who) -> None:
    """The server says nothing more."""
    opener, server = Opener(Pass(secret, who, node), OURS), Server(SECRET, "logger1", THEIRS)
    if (secret, node) == (SECRET, "logger1"):
        meet(opener, server)
        return
    opener.received(say(server))
    with pytest.raises(ProofError, match="does not know this run's secret"):
        server.received(say(opener))
    assert not say(server)
    assert server.who is None


@given(st.binary(min_size=ANSWER.size, max_size=ANSWER.size))
def test_no_bytes_are_a_proof_by_chance(answer: bytes) -> None:
    server = Server(SECRET, "logger1", THEIRS)
    with pytest.raises(ProofError):
        server.received(answer)
    assert server.who is None


@given(st.integers(0, ANSWER.size * 8 - 1))
def test_every_bit_of_an_answer_counts(bit: int) -> None:
    """Who it says it is, too."""
    opener, server = Opener(KEY, OURS), Server(SECRET, "logger1", THEIRS)
    opener.received(say(server))
    answer = bytearray(say(opener))
    answer[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ProofError):
        server.received(bytes(answer))


def test_whoever_it_is_must_be_known() -> None:
    """Who knows the secret and calls itself something that is not there."""
    server = Server(SECRET, "logger1", THEIRS)
    answer = server._hmac(b"memcluster opener", 9, THEIRS, OURS)
    with pytest.raises(ProofError, match="says that it is a 9"):
        server.received(ANSWER.pack(9, OURS, answer))


@given(st.binary(min_size=CHALLENGE.size + HMAC_SIZE, max_size=CHALLENGE.size + HMAC_SIZE), st.booleans())
def test_an_opener_believes_no_stranger(said: bytes, with_magic: bool) -> None:
    """One without the magic is not even answered."""
    if with_magic:
        said = MAGIC + said[len(MAGIC) :]
    opener, challenge, proof = Opener(KEY, OURS), said[: CHALLENGE.size], said[CHALLENGE.size :]
    if said.startswith(MAGIC):
        opener.received(challenge)
        assert len(say(opener)) == ANSWER.size
        with pytest.raises(ProofError, match="does not know this run's secret"):
            opener.received(proof)
    else:
        with pytest.raises(ProofError, match="not of a cluster"):
            opener.received(challenge)
    assert not say(opener)


def test_what_was_said_once_proves_nothing_again() -> None:
    """Neither a recorded answer to a new nonce, nor the opener's own words said back to it."""
    opener, server = Opener(KEY, OURS), Server(SECRET, "logger1", THEIRS)
    opener.received(say(server))
    answer = say(opener)
    with pytest.raises(ProofError):
        Server(SECRET, "logger1", b"n" * NONCE_SIZE).received(answer)
    with pytest.raises(ProofError):
        opener.received(answer[-HMAC_SIZE:])


# -- at a door ---------------------------------------------------------------------------------------------------


class Scene:
    """A door, and those who have come in or were turned away."""

    def __init__(self, admits: tuple[Who, ...] = (Who.LOGGER,)) -> None:
        self.loop = Loop()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address(*self.listener.getsockname())
        self.inside: list[tuple[socket.socket, Who]] = []
        self.reasons: list[str] = []
        self.kept: list[socket.socket] = [self.listener]
        self.door = Doorkeeper(
            self.loop, SECRET, "logger1", admits, lambda *who: self.inside.append(who), self.reasons.append
        )
        self.loop.watch(self.listener, 1, lambda _: self.door.take(self.listener.accept()[0]))

    def turn_until(self, fact: Callable[[], object]) -> None:
        for _ in range(10_000):
            if fact():
                return
            self.loop.turn(0.01)
        raise AssertionError("it does not become true")

    def stranger(self, words: bytes = b"") -> socket.socket:
        sock = socket.create_connection(self.address.sockaddr)
        sock.sendall(words)
        self.kept.append(sock)
        return sock

    def opener(self, key: Pass = KEY) -> tuple[list[socket.socket], list[str]]:
        met: list[socket.socket] = []
        failed: list[str] = []
        introduce(self.loop, self.address, key, met.append, failed.append)
        return met, failed


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.door.close()
    for sock in (*scene.kept, *(sock for sock, _ in scene.inside)):
        sock.close()
    scene.loop.close()


def test_nothing_that_follows_the_handshake_is_lost_in_it(scene: Scene) -> None:
    """What the server says at once comes to whoever has the socket then."""
    met, _ = scene.opener()
    scene.turn_until(lambda: scene.inside)
    [(sock, who)] = scene.inside
    assert who is Who.LOGGER
    sock.sendall(b"the first word")
    scene.turn_until(lambda: met)
    met[0].settimeout(10)
    assert met[0].recv(100) == b"the first word"
    met[0].close()


def test_who_knows_the_secret_and_has_no_business_here_is_turned_away(scene: Scene) -> None:
    met, failed = scene.opener(Pass(SECRET, Who.SERVER, "logger1"))
    scene.turn_until(lambda: scene.reasons)
    assert scene.reasons == ["logger1 has nothing to say to a <Who.SERVER: 1>"]
    scene.turn_until(lambda: met or failed)
    assert not scene.inside
    for sock in met:
        sock.close()


def test_strangers_keep_nobody_out(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are at the door the next one finds a place: that of who has waited longest."""
    monkeypatch.setattr(introduction, "PLACES", 4)
    strangers = [scene.stranger() for _ in range(9)]
    scene.turn_until(lambda: len(scene.reasons) == 5)
    met, _ = scene.opener()
    scene.turn_until(lambda: met and scene.inside)
    assert scene.reasons == ["no proof, and 4 others came after it"] * 6
    for sock in strangers[:6]:
        sock.settimeout(10)
        assert sock.recv(100).startswith(MAGIC)
        with suppress(ConnectionResetError):
            assert sock.recv(100) == b""
    met[0].close()


def test_nobody_stays_at_the_door(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has not proved himself in time is gone, however slowly he speaks."""
    monkeypatch.setattr(introduction, "PATIENCE", 0.05)
    scene.stranger()
    scene.stranger(b"\2")
    scene.turn_until(lambda: len(scene.reasons) == 2)
    assert scene.reasons == ["no proof in 0.05 s"] * 2
    assert repr(scene.door) == "<Doorkeeper of logger1, 0 at the door>"


@pytest.mark.parametrize(
    "words",
    [b"", MAGIC, CHALLENGE.pack(MAGIC, THEIRS) + bytes(HMAC_SIZE), b"NBDMAGICIHAVEOPT" + bytes(100)],
    ids=["nothing", "half a challenge", "a false proof", "NBD"],
)
def test_who_listens_at_a_node_s_address_must_know_the_secret(words: bytes) -> None:
    """A dialer goes on trying, and its owner gets no socket; the stranger learns an HMAC of its own nonce at most."""
    loop = Loop()
    found: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        dialer = Dialer(loop, Address(*listener.getsockname()), found.append, KEY)
        dialer.dial()
        for _ in range(3):
            with accept(loop, listener) as sock:
                sock.setblocking(True)
                sock.sendall(words)
                sock.shutdown(socket.SHUT_WR)
                dialer.trouble = ""
                while not dialer.trouble:
                    loop.turn(0.01)
                learnt = b""
                with suppress(ConnectionResetError):
                    while part := sock.recv(1000):
                        learnt += part
                assert len(learnt) in (0, ANSWER.size)
    dialer.close()
    assert not found
    loop.close()


def test_a_dialer_that_is_closed_or_cut_gives_up_who_it_was_to_meet() -> None:
    """Its socket is closed; given back, it dials again."""
    loop = Loop()
    found: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dialer = Dialer(loop, Address(*listener.getsockname()), found.append, KEY)
        dialer.dial()
        first, _ = listener.accept()
        dialer.cut(True, None)
        assert first.recv(1) == b""
        assert dialer.trouble.endswith("cut by a fault")
        dialer.cut(False, None)
        second, _ = listener.accept()
        dialer.close()
        assert second.recv(1) == b""
        first.close()
        second.close()
    assert not found
    loop.close()
