"""Whether somebody is still at the other side of a connection: what a process sees that holds this side."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from memcluster.node.transport import peer
from memcluster.node.transport.peer import is_gone

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(params=["127.0.0.1", "::1", "mapped", "unix"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A client's socket and its server's."""
    if request.param == "unix":
        client, server = socket.socketpair()
    else:
        six = request.param != "127.0.0.1"
        own = "::" if request.param == "mapped" else request.param
        family = socket.AF_INET6 if six else socket.AF_INET
        with socket.create_server((own, 0), family=family, dualstack_ipv6=own == "::") as listener:
            there = "127.0.0.1" if own == "::" else own
            client = socket.create_connection((there, listener.getsockname()[1]))
            server, _ = listener.accept()
    with client, server:
        yield client, server


def fill(sock: socket.socket) -> None:
    """Send more than the other side's socket holds."""
    sock.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            sock.send(bytes(1 << 20))


def test_who_is_there_is_not_gone(pair: Pair) -> None:
    client, server = pair
    assert not is_gone(server)
    fill(client)
    assert not is_gone(server)


def test_who_sends_no_more_is_not_gone(pair: Pair) -> None:
    client, server = pair
    client.send(b"x")
    client.shutdown(socket.SHUT_WR)
    assert not is_gone(server)


def test_who_has_closed_is_gone_before_what_he_sent_is_read(pair: Pair) -> None:
    client, server = pair
    client.send(b"x")
    client.close()
    assert is_gone(server)
    assert server.recv(10) == b"x"
    assert is_gone(server)


def test_who_has_closed_is_gone_before_all_that_he_sent_has_come(pair: Pair) -> None:
    client, server = pair
    fill(client)
    client.close()
    assert is_gone(server)


def test_who_has_given_his_socket_to_another_is_there(pair: Pair) -> None:
    client, server = pair
    client.send(b"x")
    with client.dup():
        client.close()
        assert not is_gone(server)
    assert is_gone(server)


def test_where_the_kernel_does_not_tell_the_end_counts(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a client on another host."""
    monkeypatch.setattr(peer, "NETLINK_SOCK_DIAG", 31)  # none that this kernel has
    client, server = pair
    client.send(b"x")
    assert not is_gone(server)
    client.close()
    assert is_gone(server)
