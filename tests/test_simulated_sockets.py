"""Simulated sockets are true: each fact about sockets is held against the kernel's, then against the simulated ones."""

from __future__ import annotations

import array
import errno
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from memcluster.client import system as client
from memcluster.node.transport.system import KERNEL, Poller, System
from memcluster.simulator.process import Process
from memcluster.simulator.sockets import SMALL
from memcluster.simulator.world import World

IN, OUT, ERR, HUP, RDHUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLERR, select.EPOLLHUP, select.EPOLLRDHUP
ALL = IN | OUT | RDHUP
PATIENCE = 30.0
QUIET = 0.05
"""Seconds in which a socket that is full stays so."""
SEEDS = 3


class Place:
    """Where sockets are: `system` as a node has it, and a way to listen."""

    system: System
    library: client.System
    """The same for the client's library."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.poller: Poller
        self.masks: dict[int, int] = {}

    def listen(self, family: int) -> Any:
        raise NotImplementedError

    def events(self, sock: Any, seconds: float = 0.0) -> int:
        """What epoll says of a socket."""
        poller = self.system.poller()
        poller.register(sock.fileno(), ALL)
        found = dict(poller.poll(seconds, 8))
        poller.unregister(sock.fileno())
        poller.close()
        return found.get(sock.fileno(), 0)

    def wait(self, sock: Any, event: int) -> int:
        """Until epoll says this of a socket; all that it says."""
        poller = self.system.poller()
        poller.register(sock.fileno(), event)
        found = poller.poll(PATIENCE, 8)
        poller.close()
        assert [1 for _, events in found if events & (event | ERR | HUP)], f"{found}, and no {event}, in {PATIENCE} s"
        return self.events(sock)

    def nobodys(self) -> Any:
        """An address of TCP where nobody listens."""
        raise NotImplementedError

    def stream(self, family: int) -> Any:
        """One that is to be connected, and does not block."""
        sock = self.system.make_socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        return sock

    def pair(self, family: int) -> tuple[Any, Any]:
        """Both ends of a connection: the one that connected, the one that was accepted."""
        listener = self.listen(family)
        client = self.stream(family)
        with suppress(BlockingIOError):
            client.connect(listener.getsockname())
        self.wait(listener, IN)
        server, _ = listener.accept()
        server.setblocking(False)
        self.wait(client, OUT)
        listener.close()
        return client, server

    def fill(self, sock: Any) -> int:
        """Send until nothing is taken, and no more will be; how much was. (The kernel makes buffers grow meanwhile.)"""
        sent = 0
        while True:
            try:
                sent += sock.send(bytes(1 << 20))
            except BlockingIOError:
                if not self.events(sock, QUIET) & OUT:
                    return sent

    def read(self, sock: Any, count: int) -> bytes:
        """So many bytes, as they come."""
        data = b""
        while len(data) < count:
            try:
                more = sock.recv(count - len(data))
            except BlockingIOError:
                self.wait(sock, IN)
                continue
            assert more, f"the end after {len(data)} bytes"
            data += more
        return data

    def close(self) -> None:
        pass


class Real(Place):
    system = KERNEL
    library = client.KERNEL

    def listen(self, family: int) -> Any:
        if family == socket.AF_INET:
            listener = socket.create_server(("127.0.0.1", 0))
        else:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(self.folder / "door"))
            listener.listen()
        listener.setblocking(False)
        return listener

    def nobodys(self) -> Any:
        self.taken = socket.socket()
        self.taken.bind(("127.0.0.1", 0))
        return self.taken.getsockname()

    def close(self) -> None:
        if hasattr(self, "taken"):
            self.taken.close()


class Simulated(Place):
    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder)
        self.process = Process(World(seed), "test", lambda _: None)
        self.system = self.library = self.process.system

    def listen(self, family: int) -> Any:
        return self.process.listen(str(self.folder / "door") if family == socket.AF_UNIX else ("127.0.0.1", 0))

    def nobodys(self) -> Any:
        return "127.0.0.1", 9


@pytest.fixture(params=["kernel", *range(SEEDS)], ids=lambda which: f"{which}")
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    made = Real(tmp_path) if request.param == "kernel" else Simulated(tmp_path, request.param)
    yield made
    made.close()


FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX], ids=["tcp", "unix"])


def code(call: Callable[[], object]) -> int:
    """The errno that a call fails with; 0 if it does not."""
    try:
        call()
    except OSError as error:
        return error.errno or -1
    return 0


# -- streams ---------------------------------------------------------------------------------------------------------


@FAMILIES
def test_what_is_sent_comes_in_order(place: Place, family: int) -> None:
    client, server = place.pair(family)
    data = bytes(range(256)) * 64
    sent = 0
    received = b""
    while len(received) < len(data):
        if sent < len(data):
            with suppress(BlockingIOError):
                sent += client.sendmsg([data[sent : sent + 1000], data[sent + 1000 : sent + 3000]])
        with suppress(BlockingIOError):
            received += server.recv(5000)
    assert received == data


@FAMILIES
def test_an_idle_connection_is_writable_and_has_nothing(place: Place, family: int) -> None:
    client, server = place.pair(family)
    assert place.events(client) == place.events(server) == OUT
    assert code(lambda: server.recv(1)) == errno.EAGAIN


@FAMILIES
def test_a_reader_that_does_not_read_stops_its_sender(place: Place, family: int) -> None:
    """And when it has read, the sender is told."""
    client, server = place.pair(family)
    sent = place.fill(client)
    assert place.read(server, sent) == bytes(sent)
    assert place.wait(client, OUT) & OUT
    assert client.send(b"x") == 1
    assert place.read(server, 1) == b"x"


@FAMILIES
def test_a_small_send_goes_whole_into_an_empty_buffer(place: Place, family: int) -> None:
    """In one piece or in several, and again when what was there has been read; handshakes count on it."""
    client, server = place.pair(family)
    for _ in range(20):
        assert client.sendmsg([bytes(28), bytes(SMALL - 28)]) == SMALL
        assert place.read(server, SMALL) == bytes(SMALL)
        assert server.send(bytes(SMALL)) == SMALL
        assert place.read(client, SMALL) == bytes(SMALL)


@FAMILIES
def test_a_full_sender_is_told_of_room_when_there_is_much(place: Place, family: int) -> None:
    """Not for a byte that was read, nor, on a unix socket, before most of it has been."""
    client, server = place.pair(family)
    sent = place.fill(client)
    place.read(server, 1)
    assert not place.events(client) & OUT
    if family == socket.AF_UNIX:
        place.read(server, sent // 2)
        assert not place.events(client) & OUT
        sent -= sent // 2
    place.read(server, sent - 1)
    assert place.wait(client, OUT) & OUT


@FAMILIES
def test_the_end_comes_behind_the_bytes(place: Place, family: int) -> None:
    client, server = place.pair(family)
    client.send(b"x")
    client.close()
    events = place.wait(server, IN | RDHUP)
    assert events & IN
    assert server.recv(1) == b"x"
    place.wait(server, IN)
    assert server.recv(1) == server.recv(1) == b""


@FAMILIES
def test_the_end_comes_behind_what_waits_in_the_senders_system(place: Place, family: int) -> None:
    client, server = place.pair(family)
    sent = place.fill(client)
    client.close()
    assert place.read(server, sent) == bytes(sent)
    place.wait(server, IN)
    assert server.recv(1) == b""


@FAMILIES
def test_a_half_closed_connection_goes_on_in_the_other_direction(place: Place, family: int) -> None:
    client, server = place.pair(family)
    client.shutdown(socket.SHUT_WR)
    assert place.wait(server, IN) == IN | OUT | RDHUP
    assert server.recv(1) == b""
    server.send(b"x")
    assert place.read(client, 1) == b"x"
    assert code(lambda: client.send(b"y")) == errno.EPIPE
    server.close()
    assert place.wait(client, IN) & (IN | HUP) == IN | HUP
    assert client.recv(1) == b""


@FAMILIES
def test_a_connection_that_is_shut_down_is_ended_for_both(place: Place, family: int) -> None:
    client, server = place.pair(family)
    server.shutdown(socket.SHUT_RDWR)
    assert place.wait(server, IN) & (IN | HUP | RDHUP) == IN | HUP | RDHUP
    assert server.recv(1) == b""
    place.wait(client, IN)
    assert client.recv(1) == b""
    assert code(lambda: server.send(b"x")) == errno.EPIPE


def test_what_is_sent_to_nobody_is_answered_by_a_reset(place: Place) -> None:
    """The first is taken; the end had come, so the next is a broken pipe."""
    client, server = place.pair(socket.AF_INET)
    server.close()
    place.wait(client, IN)
    assert client.send(b"x") == 1
    assert place.wait(client, IN) & (ERR | HUP) == ERR | HUP
    assert client.recv(1) == b""
    assert code(lambda: client.send(b"x")) == errno.EPIPE
    assert client.recv(1) == b""


def test_what_is_sent_to_nobody_on_a_unix_socket_is_a_broken_pipe(place: Place) -> None:
    client, server = place.pair(socket.AF_UNIX)
    server.close()
    assert place.wait(client, IN) == IN | OUT | HUP | RDHUP
    assert code(lambda: client.send(b"x")) == errno.EPIPE
    assert client.recv(1) == b""


@FAMILIES
def test_who_closes_with_words_unread_resets_the_connection(place: Place, family: int) -> None:
    client, server = place.pair(family)
    client.send(b"xx")
    server.send(b"y")
    place.wait(server, IN)
    server.recv(1)
    server.close()
    place.wait(client, IN)
    assert client.recv(1) == b"y"  # what has come is there, even so
    assert place.events(client) & (ERR | HUP) == ERR | HUP
    assert code(lambda: client.recv(1)) == errno.ECONNRESET
    assert client.recv(1) == b""


def test_a_connection_can_be_reset_on_purpose(place: Place) -> None:
    client, server = place.pair(socket.AF_INET)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.close()
    assert place.wait(client, IN) & (ERR | HUP) == ERR | HUP
    assert code(lambda: client.send(b"x")) == errno.ECONNRESET
    assert code(lambda: client.send(b"x")) == errno.EPIPE
    assert client.recv(1) == b""


def test_who_was_reset_has_no_peer(place: Place) -> None:
    client, server = place.pair(socket.AF_INET)
    assert client.getpeername() == server.getsockname()
    assert server.getpeername() == client.getsockname()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.close()
    place.wait(client, IN)
    assert code(client.getpeername) == errno.ENOTCONN


# -- RCVLOWAT --------------------------------------------------------------------------------------------------------


def test_a_reader_is_woken_for_as_much_as_it_asked_for(place: Place) -> None:
    client, server = place.pair(socket.AF_INET)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1000)
    sent = 0
    while sent < 999:
        sent += client.send(bytes(999 - sent))
    assert not place.events(server) & IN
    client.send(b"x")
    assert place.wait(server, IN) & IN


def test_what_is_less_than_was_asked_for_can_be_received(place: Place) -> None:
    client, server = place.pair(socket.AF_INET)
    client.send(b"x")
    place.wait(server, IN)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1000)
    assert not place.events(server) & IN
    assert server.recv(10) == b"x"


def test_the_end_wakes_whoever_asked_for_more(place: Place) -> None:
    client, server = place.pair(socket.AF_INET)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1000)
    client.send(b"x")
    client.close()
    assert place.wait(server, IN) & IN
    assert server.recv(10) == b"x"
    assert server.recv(10) == b""


def test_who_asks_for_more_makes_room_for_it(place: Place) -> None:
    """Without receiving anything: a sender that had none is told of room, and what it sends then comes, too."""
    client, server = place.pair(socket.AF_INET)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
    sent = place.fill(client)
    more = 2 * sent
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, more)
    assert place.wait(client, OUT) & OUT
    while sent < more:
        try:
            sent += client.send(bytes(more - sent))
        except BlockingIOError:
            place.wait(client, OUT)
    place.wait(server, IN)
    assert place.read(server, more) == bytes(more)


def test_a_unix_stream_wakes_for_every_byte(place: Place) -> None:
    client, server = place.pair(socket.AF_UNIX)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1000)
    client.send(b"x")
    assert place.wait(server, IN) & IN


# -- connecting ------------------------------------------------------------------------------------------------------


def test_connecting_is_under_way_at_first(place: Place) -> None:
    listener = place.listen(socket.AF_INET)
    client = place.stream(socket.AF_INET)
    assert code(lambda: client.connect(listener.getsockname())) == errno.EINPROGRESS
    assert place.wait(client, OUT) == OUT
    client.send(b"x")
    place.wait(listener, IN)
    server, _ = listener.accept()
    server.setblocking(False)
    assert server.getpeername() == client.getsockname()
    assert place.read(server, 1) == b"x"
    assert code(listener.accept) == errno.EAGAIN


def test_where_nobody_listens_the_connection_is_refused(place: Place) -> None:
    address = place.nobodys()
    client = place.stream(socket.AF_INET)
    assert code(lambda: client.connect(address)) == errno.EINPROGRESS
    assert place.wait(client, IN) & (IN | ERR | HUP) == IN | ERR | HUP
    assert code(lambda: client.recv(1)) == errno.ECONNREFUSED


def test_a_unix_socket_connects_at_once_or_not_at_all(place: Place) -> None:
    client = place.stream(socket.AF_UNIX)
    assert code(lambda: client.connect(str(place.folder / "door"))) == errno.ENOENT
    listener = place.listen(socket.AF_UNIX)
    assert code(lambda: client.connect(str(place.folder / "door"))) == 0
    other = place.stream(socket.AF_UNIX)
    listener.close()
    assert code(lambda: other.connect(str(place.folder / "door"))) == errno.ECONNREFUSED


def test_who_connects_again_learns_what_became_of_it(place: Place) -> None:
    """Once that it is connected, then that it has been; or why not."""
    listener = place.listen(socket.AF_INET)
    client = place.stream(socket.AF_INET)
    assert client.connect_ex(listener.getsockname()) == errno.EINPROGRESS
    place.wait(client, OUT)
    assert client.connect_ex(listener.getsockname()) == 0
    assert client.connect_ex(listener.getsockname()) == errno.EISCONN
    address = place.nobodys()
    other = place.stream(socket.AF_INET)
    assert other.connect_ex(address) == errno.EINPROGRESS
    place.wait(other, OUT)
    assert other.connect_ex(address) == errno.ECONNREFUSED


def test_whom_a_backlog_has_no_room_for_waits(place: Place) -> None:
    """It is neither refused nor connected, and there is nothing to send to."""
    listener = place.listen(socket.AF_INET)
    clients = []
    while True:
        client = place.stream(socket.AF_INET)
        clients.append(client)
        assert client.connect_ex(listener.getsockname()) == errno.EINPROGRESS
        if not place.events(client, 10 * QUIET) & OUT:
            break
    assert place.events(client) == 0
    assert client.connect_ex(listener.getsockname()) == errno.EALREADY
    assert code(client.getpeername) == errno.ENOTCONN
    assert code(lambda: client.send(b"x")) == errno.EAGAIN
    assert code(lambda: client.recv(1)) == errno.EAGAIN
    for one in clients:
        one.close()


def test_a_unix_socket_that_a_backlog_has_no_room_for_may_try_again(place: Place) -> None:
    listener = place.listen(socket.AF_UNIX)
    clients = []
    while True:
        client = place.stream(socket.AF_UNIX)
        clients.append(client)
        if number := client.connect_ex(listener.getsockname()):
            break
    assert number == errno.EAGAIN
    listener.accept()[0].close()
    assert client.connect_ex(listener.getsockname()) == 0
    listener.accept()[0].close()
    assert client.connect_ex(listener.getsockname()) == errno.EISCONN
    for one in clients:
        one.close()


@FAMILIES
def test_a_connection_in_a_backlog_is_reset_with_it(place: Place, family: int) -> None:
    listener = place.listen(family)
    client = place.stream(family)
    with suppress(BlockingIOError):
        client.connect(listener.getsockname())
    place.wait(client, OUT)
    listener.close()
    place.wait(client, IN)
    assert code(lambda: client.recv(1)) == errno.ECONNRESET


# -- descriptors -----------------------------------------------------------------------------------------------------


def hand(channel: Any, *socks: Any) -> None:
    """Send a byte with descriptors."""
    rights = array.array("i", [sock.fileno() for sock in socks])
    assert channel.sendmsg([b"h"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]) == 1


def take(channel: Any, most: int) -> tuple[bytes, list[int]]:
    """What comes of a message, and the descriptors with it."""
    buffer = memoryview(bytearray(most))
    count, extra, _, _ = channel.recvmsg_into([buffer], socket.CMSG_SPACE(64), socket.MSG_CMSG_CLOEXEC)
    found = [number for _, _, data in extra for number in array.array("i", data)]
    return bytes(buffer[:count]), found


def test_a_socket_that_is_handed_over_is_the_same(place: Place) -> None:
    """Both who gave it and who took it may write to it, and it ends when both have closed it."""
    taker, giver = place.pair(socket.AF_UNIX)
    (place.folder / "door").unlink()
    client, server = place.pair(socket.AF_INET)
    hand(giver, server)
    place.wait(taker, IN)
    data, [descriptor] = take(taker, 100)
    assert data == b"h"
    mine = place.system.socket_of(descriptor)
    mine.setblocking(False)
    mine.send(b"1")
    server.send(b"2")
    assert place.read(client, 2) == b"12"
    server.close()
    mine.send(b"3")
    assert place.read(client, 1) == b"3"
    mine.close()
    place.wait(client, IN)
    assert client.recv(1) == b""


def test_a_message_with_a_socket_ends_what_is_received_at_once(place: Place) -> None:
    """Bytes before it may come along, those after it do not."""
    taker, giver = place.pair(socket.AF_UNIX)
    giver.send(b"b")
    hand(giver, giver)
    giver.send(b"a")
    place.wait(taker, IN)
    seen, descriptors = b"", []
    while not descriptors:
        data, descriptors = take(taker, 100)
        seen += data
    assert seen == b"bh"
    assert take(taker, 100) == (b"a", [])
    for descriptor in descriptors:
        place.system.close(descriptor)


def test_a_message_may_hand_over_several_sockets(place: Place) -> None:
    """They come in their order, and those of the next message do not come with them."""
    taker, giver = place.pair(socket.AF_UNIX)
    (place.folder / "door").unlink()
    client, server = place.pair(socket.AF_INET)
    hand(giver, server, client)
    hand(giver, giver)
    place.wait(taker, IN)
    data, descriptors = take(taker, 100)
    assert data == b"h"
    first, second = (place.system.socket_of(descriptor) for descriptor in descriptors)
    assert (first.getsockname(), second.getsockname()) == (server.getsockname(), client.getsockname())
    data, [third] = take(taker, 100)
    assert data == b"h"
    place.system.close(third)
    for sock in (first, second):
        sock.close()


def test_a_socket_that_comes_with_bytes_that_are_just_received_is_lost(place: Place) -> None:
    taker, giver = place.pair(socket.AF_UNIX)
    (place.folder / "door").unlink()
    client, server = place.pair(socket.AF_INET)
    hand(giver, server)
    server.close()
    assert not place.events(client) & IN
    place.wait(taker, IN)
    assert taker.recv(100) == b"h"
    place.wait(client, IN)
    assert client.recv(1) == b""


def test_a_socket_on_its_way_to_nobody_is_closed(place: Place) -> None:
    taker, giver = place.pair(socket.AF_UNIX)
    (place.folder / "door").unlink()
    client, server = place.pair(socket.AF_INET)
    hand(giver, server)
    server.close()
    assert not place.events(client) & IN
    taker.close()
    place.wait(client, IN)
    assert client.recv(1) == b""


def test_a_duplicate_keeps_a_connection(place: Place) -> None:
    client, server = place.pair(socket.AF_INET)
    again = place.system.socket_of(place.system.duplicate(server.fileno()))
    server.close()
    assert place.events(client) == OUT
    again.close()
    assert place.wait(client, IN) & IN


def test_shutting_down_ends_a_connection_for_all_who_hold_it(place: Place) -> None:
    client, server = place.pair(socket.AF_INET)
    again = place.system.socket_of(place.system.duplicate(server.fileno()))
    again.shutdown(socket.SHUT_RDWR)
    place.wait(server, IN)
    assert server.recv(1) == b""
    place.wait(client, IN)
    assert client.recv(1) == b""


# -- whether somebody is still there ---------------------------------------------------------------------------------


def test_who_only_sends_no_more_is_there(place: Place) -> None:
    client, server = place.pair(socket.AF_INET)
    assert not place.system.is_gone(server)
    client.send(b"x")
    client.shutdown(socket.SHUT_WR)
    place.wait(server, IN)
    assert not place.system.is_gone(server)
    client.close()
    assert place.system.is_gone(server)


@FAMILIES
def test_who_has_closed_is_gone_whatever_is_to_be_read(place: Place, family: int) -> None:
    client, server = place.pair(family)
    client.send(b"x")
    client.close()
    place.wait(server, IN)
    assert place.system.is_gone(server)


def test_who_has_closed_with_much_to_send_is_gone(place: Place) -> None:
    client, server = place.pair(socket.AF_INET)
    place.fill(client)
    client.close()
    place.wait(server, IN)
    assert place.system.is_gone(server)


# -- datagrams -------------------------------------------------------------------------------------------------------


def bell(place: Place, name: str) -> Any:
    made = place.system.make_socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.setblocking(False)
    made.bind(str(place.folder / name))
    return made


def test_a_datagram_is_whole_and_wakes(place: Place) -> None:
    one, other = bell(place, "one"), bell(place, "other")
    assert place.events(other) == OUT
    assert one.sendto(b"first", str(place.folder / "other")) == 5
    one.sendto(b"second", str(place.folder / "other"))
    assert place.wait(other, IN) & IN
    assert other.recv(16) == b"first"
    assert other.recv(3) == b"sec"
    assert code(lambda: other.recv(16)) == errno.EAGAIN


def test_a_name_is_taken_until_its_file_is_gone(place: Place) -> None:
    one = bell(place, "one")
    one.close()
    assert code(lambda: bell(place, "one")) == errno.EADDRINUSE
    (place.folder / "one").unlink()
    bell(place, "one").close()


def test_a_datagram_to_nobody_is_refused(place: Place) -> None:
    one, other = bell(place, "one"), bell(place, "other")
    other.close()
    assert code(lambda: one.sendto(b"x", str(place.folder / "other"))) == errno.ECONNREFUSED
    assert code(lambda: one.sendto(b"x", str(place.folder / "nowhere"))) == errno.ENOENT


def test_who_does_not_take_datagrams_stops_their_sender(place: Place) -> None:
    one, other = bell(place, "one"), bell(place, "other")
    while not code(lambda: one.sendto(b"x", str(place.folder / "other"))):
        pass
    assert code(lambda: one.sendto(b"x", str(place.folder / "other"))) == errno.EAGAIN
    assert other.recv(16) == b"x"
    one.sendto(b"x", str(place.folder / "other"))


# -- epoll -----------------------------------------------------------------------------------------------------------


@FAMILIES
def test_only_what_was_asked_for_is_told_but_failures_are(place: Place, family: int) -> None:
    client, server = place.pair(family)
    poller = place.system.poller()
    poller.register(client.fileno(), IN)
    assert poller.poll(0, 8) == []
    poller.modify(client.fileno(), OUT)
    assert poller.poll(0, 8) == [(client.fileno(), OUT)]
    poller.modify(client.fileno(), IN)
    client.send(b"x")
    place.wait(server, IN)
    server.close()
    [(descriptor, events)] = poller.poll(PATIENCE, 8)
    assert descriptor == client.fileno()
    assert events & (IN | ERR | HUP) == IN | ERR | HUP
    assert not events & OUT
    poller.unregister(client.fileno())
    assert code(lambda: poller.unregister(client.fileno())) == errno.ENOENT
    poller.close()


@FAMILIES
def test_what_is_closed_is_no_longer_told(place: Place, family: int) -> None:
    """And its number may be watched anew, for another."""
    client, server = place.pair(family)
    poller = place.system.poller()
    number = server.fileno()
    poller.register(number, IN)
    client.send(b"x")
    place.wait(server, IN)
    server.close()
    assert poller.poll(0, 8) == []
    assert code(lambda: poller.modify(number, IN)) in (errno.EBADF, errno.ENOENT)
    poller.close()


# -- poll, in which the client's library waits -----------------------------------------------------------------------


@FAMILIES
def test_poll_tells_as_epoll_does(place: Place, family: int) -> None:
    client, server = place.pair(family)
    waits, both = place.library.poll(), place.library.poll()
    waits.register(client.fileno(), IN)
    both.register(client.fileno(), IN | OUT)
    assert waits.poll(0) == []
    assert both.poll(0) == [(client.fileno(), OUT)]
    server.send(b"x")
    place.wait(client, IN)
    assert waits.poll(0) == [(client.fileno(), IN)]
    assert both.poll(0) == [(client.fileno(), IN | OUT)]
    client.send(b"y")
    place.wait(server, IN)
    server.close()
    place.wait(client, RDHUP)
    [(number, events)] = waits.poll(0)
    assert number == client.fileno()
    assert events & (IN | ERR | HUP) == IN | ERR | HUP


def test_a_number_is_an_address(place: Place) -> None:
    assert place.library.find("127.0.0.1", 7) == [(socket.AF_INET, ("127.0.0.1", 7))]
