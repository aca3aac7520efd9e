"""Strangers who have TLS: what test_hostile_requests.py says of those without holds for them, test by test, and so do
sessions that are cut off, or have something wrong with them."""

from __future__ import annotations

import random
import socket
import ssl
from collections.abc import Iterator

import certificates
import pytest
from harness import TIMEOUT, clusters
from mutations import TOGETHER, attack, understood
from strangers import SESSIONS, SIZE, STARTTLS, Stranger, World
from test_hostile_bounds import (  # noqa: F401
    test_many_who_never_read_from_secondaries,
    test_who_leaves_without_the_replies_takes_them_along,
    test_who_never_reads_is_held_up_and_nobody_else,
)
from test_hostile_requests import *  # noqa: F403 - the same tests, with this module's world
from test_hostile_sessions import test_a_session_byte_by_byte_is_the_same_session  # noqa: F401

from memcluster.client.uri import parse_uri
from memcluster.node.nbd import wire
from memcluster.node.nbd.wire import Rep
from memcluster.node.tls.context import client_context

del test_what_cannot_go_on_is_cut_off  # noqa: F821 - its words are for before TLS
FLAGS = wire.CLIENT_FLAGS.size


class Tunnel:
    """A socket whose words go through TLS from the client's flags on; before them comes the greeting, as ever."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._sock: socket.socket = sock
        self._context = context
        self._unsaid = b""  # the client's flags, as far as they have come
        self._heard = b""  # taken from the socket, and not from here
        self._begun = False
        self._greeting = wire.GREETING.size  # bytes of it that are still to come

    def sendall(self, data: bytes) -> None:
        if not self._begun:
            self._unsaid += data
            if len(self._unsaid) < FLAGS:
                return
            data, self._unsaid = self._unsaid[FLAGS:], self._unsaid[:FLAGS]
            self._begin()
        try:
            self._sock.sendall(data)
        except ssl.SSLError as error:
            raise ConnectionResetError from error

    def send(self, data: bytes) -> int:
        """As much as there is room for now."""
        try:
            return self._sock.send(data)
        except ssl.SSLWantWriteError as error:
            raise BlockingIOError from error

    def recv(self, count: int, flags: int = 0) -> bytes:
        if flags:
            while len(self._heard) < count:
                self._heard += self._sock.recv(count - len(self._heard))
            return self._heard[:count]
        if not self._heard:
            return self._take(count)
        data, self._heard = self._heard[:count], self._heard[count:]
        return data

    def shutdown(self, how: int) -> None:
        if not self._begun and self._unsaid:
            self._sock.sendall(self._unsaid)
        socket.socket.shutdown(self._sock, how)  # an SSLSocket would forget its keys, and there is more to hear

    def setsockopt(self, *option: int) -> None:
        self._sock.setsockopt(*option)

    def settimeout(self, seconds: float) -> None:
        self._sock.settimeout(seconds)

    def setblocking(self, blocking: bool) -> None:
        self._sock.setblocking(blocking)

    def close(self) -> None:
        self._sock.close()

    def _take(self, count: int) -> bytes:
        try:
            data = self._sock.recv(count)
        except ssl.SSLWantReadError as error:
            raise BlockingIOError from error
        except (ssl.SSLError, BrokenPipeError) as error:  # the second: of OpenSSL 3.6
            raise ConnectionResetError from error
        self._greeting = max(0, self._greeting - len(data))
        return data

    def _begin(self) -> None:
        self._begun = True
        self._heard += self._exactly(self._greeting)
        self._sock.sendall(self._unsaid + STARTTLS)
        if self._exactly(wire.OPTION_REPLY.size):  # else they were wrong
            self._sock = self._context.wrap_socket(self._sock)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count and (part := self._take(count - len(data))):
            data += part
        return data


class TLSWorld(World):
    """Strangers have certificates that are right."""

    context: ssl.SSLContext
    starttls = Rep.ERR_INVALID

    def stranger(self, address: str = "") -> Stranger:
        assert not address
        target = parse_uri(self.cluster.uri)
        sock = socket.create_connection((target.host, target.port), timeout=TIMEOUT)
        return Stranger(Tunnel(sock, self.context))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def standing(tmp_path_factory) -> Iterator[World]:
    """One cluster for all strangers of this module."""
    folder = certificates.folders(tmp_path_factory.mktemp("certificates"))["right"]
    with clusters() as new:
        cluster = new(tmp_path_factory.mktemp("hostile"), memory=str(SIZE), tls={"certificates": str(folder)})
        cluster.up()
        world = TLSWorld(cluster)
        world.context = client_context(str(folder), hostname=False)
        yield world
        world.witness.close()


def test_sessions_that_end_somewhere_end(world):
    """Cut off after any byte: the server closes, and has said nothing that is not NBD."""
    session = b"".join(SESSIONS["structured"])
    for cut in range(0, len(session), 3):
        with world.stranger() as stranger:
            understood(stranger.say_all(session[:cut]), session)


def test_a_thousand_sessions_with_something_wrong_harm_nobody(world):
    before = world.bad_input
    attack(world, random.Random(17), 1000 // TOGETHER)
    assert world.bad_input > before + 100
