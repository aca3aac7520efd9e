"""The connection: many requests in flight, losses and how they are mended, waits and how they end."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import contextmanager

import pytest
from harness import TIMEOUT
from peers import Peer, opened, refusing, scripted, serving, wait_for_goodbye

import memcluster.client.connection
from memcluster.client.connection import Connection
from memcluster.client.errors import (
    ClusterError,
    Disconnected,
    InvalidRequest,
    NoSpace,
    ReadOnly,
    Refused,
    ServerError,
    ShuttingDown,
    Timeout,
)
from memcluster.client.handshake import list_exports, throw_away
from memcluster.client.pending import Pending
from memcluster.client.uri import Target, parse_uri
from memcluster.node.nbd import wire
from memcluster.node.nbd.wire import Command, Error, Rep


@contextmanager
def connected(uri: str, **options):
    connection = Connection(parse_uri(uri), **options)
    try:
        yield connection
    finally:
        connection.close()


def read(connection: Connection, offset: int, length: int = 4):
    return connection.submit(Pending(Command.READ, offset, length))


def write(connection: Connection, offset: int, data: bytes):
    return connection.submit(Pending(Command.WRITE, offset, len(data), 0, (data,)))


def gone(_: Peer) -> None:
    """A script that closes at once."""


# -- many in flight ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unix", [False, True])
def test_replies_in_any_order_find_their_requests(unix, tmp_path):
    """A hundred reads are in flight at once; answered backwards, each gets its own bytes."""

    @opened
    def script(peer: Peer) -> None:
        for request in reversed(peer.take(100)):
            peer.answer(request, request.offset.to_bytes(4, "big"))
        wait_for_goodbye(peer)

    with scripted(script, path=tmp_path / "socket" if unix else None) as uri, connected(uri) as connection:
        pending = [read(connection, offset) for offset in range(100)]
        assert [item.wait().data for item in pending] == [offset.to_bytes(4, "big") for offset in range(100)]


def test_a_full_pipe_both_ways_is_no_deadlock():
    """A server that takes nothing while it answers: the client goes on reading while it has more to send."""
    block = 4 << 20

    @opened
    def script(peer: Peer) -> None:
        for request in peer.serve():
            peer.answer(request, bytes(block) if request.command == Command.READ else None)

    with scripted(script) as uri, connected(uri) as connection:
        pending = [read(connection, 0, block) for _ in range(8)]
        pending += [write(connection, 0, bytes(block)) for _ in range(8)]
        for item in pending:
            item.wait()


def test_done_makes_progress_by_itself():
    """Asking whether a request is done is enough for it to become done."""
    with scripted(serving(bytearray(b"abcd"))) as uri, connected(uri) as connection:
        pending = [read(connection, offset, 1) for offset in range(4)]
        for item in pending:
            while not item.done:
                pass
        assert [item.wait().data for item in pending] == [b"a", b"b", b"c", b"d"]


def test_what_is_in_flight_is_bounded(monkeypatch):
    """A server that answers nothing gets no more than the limit: submitting waits for room, and that wait ends."""
    monkeypatch.setattr(memcluster.client.connection, "MAX_IN_FLIGHT", 1 << 20)
    stop = threading.Event()

    @opened
    def script(_: Peer) -> None:
        stop.wait(30)

    with scripted(script) as uri, connected(uri, timeout=0.1) as connection:
        for _ in range(11):
            write(connection, 0, bytes(100_000))
        with pytest.raises(Timeout):
            write(connection, 0, b"x")
        stop.set()


def test_what_is_answered_gives_its_room_back(monkeypatch):
    """Ten times the limit goes through a server that answers."""
    monkeypatch.setattr(memcluster.client.connection, "MAX_IN_FLIGHT", 1 << 20)
    with scripted(serving(bytearray(100_000))) as uri, connected(uri, timeout=5) as connection:
        pending = [write(connection, 0, bytes(100_000)) for _ in range(100)]
        assert not any(item.wait().error for item in pending)


# -- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Error.EPERM, ReadOnly),
        (Error.EINVAL, InvalidRequest),
        (Error.ENOTSUP, InvalidRequest),
        (Error.ENOSPC, NoSpace),
        (Error.EIO, ServerError),
        (Error.ENOMEM, ServerError),
        (Error.ESHUTDOWN, ShuttingDown),
        (9999, ServerError),
    ],
)
def test_an_error_reply_is_an_exception_with_its_facts_and_is_not_repeated(error, kind):
    """By whose fault; with the server's words. The connection goes on."""

    @opened
    def script(peer: Peer) -> None:
        [request] = peer.take(1)
        peer.answer(request, error=error, message="because")
        [request] = peer.take(1)
        peer.answer(request, b"next")
        wait_for_goodbye(peer)

    with scripted(script) as uri, connected(uri) as connection:
        with pytest.raises(kind) as raised:
            write(connection, 10, b"abc").wait()
        found = raised.value
        assert (found.command, found.offset, found.length, found.errno, found.message) == (1, 10, 3, error, "because")
        assert "WRITE of 3 bytes at 10: because" in str(found)
        assert read(connection, 0).wait().data == b"next"
        assert connection.reconnections == 0


def test_a_server_that_breaks_the_protocol_fails_what_is_in_flight():
    """Its connection is given up and nothing is repeated; a later request makes a new one."""

    @opened
    def liar(peer: Peer) -> None:
        peer.take(2)
        peer.sock.sendall(bytes(16))
        peer.sock.recv(1)

    with scripted(liar, serving(bytearray(b"good"))) as uri, connected(uri) as connection:
        first, second = read(connection, 0), read(connection, 0)
        for pending in (first, second):
            with pytest.raises(Disconnected, match="broke the protocol: reply magic"):
                pending.wait()
        assert read(connection, 0).wait().data == b"good"


# -- losses --------------------------------------------------------------------------------------------------------


def half_an_answer(peer: Peer) -> None:
    """Take three requests, answer the second, and the first in part."""
    first, second, _ = peer.take(3)
    peer.answer(second)
    peer.session.reply_data(first, [b"wrong"])
    peer.sock.sendall(b"".join(peer.session.outgoing)[:-2])


def test_what_was_in_flight_at_a_loss_is_repeated_in_its_order():
    """What was answered is not repeated; all else is, byte for byte, and its outcome is the second answer's."""
    seen = []

    @opened
    def second(peer: Peer) -> None:
        for request in peer.take(2):
            seen.append((request.command, request.offset, bytes(request.payload or b"")))
            peer.answer(request, b"right" if request.command == Command.READ else None)
        wait_for_goodbye(peer)

    with scripted(opened(half_an_answer), second) as uri, connected(uri) as connection:
        pending = [read(connection, 100, 5), write(connection, 200, b"abc"), write(connection, 300, b"xyz")]
        assert [item.wait().data for item in pending] == [b"right", None, None]
        assert connection.reconnections == 1
    assert seen == [(Command.READ, 100, b""), (Command.WRITE, 300, b"xyz")]


def test_a_loss_while_nothing_is_in_flight_shows_nowhere():
    """The next request makes a new connection."""

    @opened
    def once(peer: Peer) -> None:
        [request] = peer.take(1)
        peer.answer(request, b"once")

    with scripted(once, serving(bytearray(b"more"))) as uri, connected(uri) as connection:
        assert read(connection, 0).wait().data == b"once"
        assert read(connection, 0).wait().data == b"more"


def test_several_losses_in_a_row_are_mended():
    """Servers that close in the handshake, that are going down, that take the request and die."""

    @opened
    def takes(peer: Peer) -> None:
        peer.take(1)

    shutdown = refusing(Rep.ERR_SHUTDOWN, "going down")
    with (
        scripted(takes, gone, shutdown, takes, gone, serving(bytearray(b"last"))) as uri,
        connected(uri) as connection,
    ):
        assert read(connection, 0).wait().data == b"last"
        assert connection.reconnections == 2


def test_a_large_write_that_was_half_sent_is_repeated_whole():
    """The server dies in the middle of a payload."""
    data = bytes(range(256)) * (1 << 15)
    memory = bytearray(len(data))

    @opened
    def dies(peer: Peer) -> None:
        peer.sock.recv(1000)

    with scripted(dies, serving(memory)) as uri, connected(uri) as connection:
        write(connection, 0, data).wait()
    assert memory == data


def test_without_reconnect_a_loss_is_final():
    """Disconnected, for what was in flight and for what comes later."""

    @opened
    def takes(peer: Peer) -> None:
        peer.take(2)

    with scripted(takes) as uri, connected(uri, reconnect=False) as connection:
        for pending in [read(connection, 0), read(connection, 4)]:
            with pytest.raises(Disconnected, match="lost"):
                pending.wait()
        with pytest.raises(Disconnected, match="lost"):
            read(connection, 0).wait()


def test_a_server_that_does_not_come_back_is_given_up_in_time():
    """Disconnected after the timeout, with how the connection was lost, for all that is in flight."""

    @opened
    def takes(peer: Peer) -> None:
        peer.take(2)

    with scripted(takes) as uri, connected(uri, timeout=0.2) as connection:
        for pending in [read(connection, 0), read(connection, 4)]:
            with pytest.raises(Disconnected, match=r"was lost .* and could not be made again"):
                pending.wait()


def test_a_refusal_that_is_not_for_a_shutdown_ends_the_attempts():
    """Refused at once, with the server's words."""

    @opened
    def takes(peer: Peer) -> None:
        peer.take(1)

    with scripted(takes, refusing(Rep.ERR_POLICY, "all 64 slots are taken")) as uri, connected(uri) as connection:
        with pytest.raises(Refused, match="all 64 slots are taken") as refused:
            read(connection, 0).wait()
        assert refused.value.reply == Rep.ERR_POLICY


def test_an_interrupt_in_the_middle_of_a_receive_loses_nothing(monkeypatch):
    """After Ctrl-C the state of the stream is unknown: the request is repeated on a new connection."""
    memory = bytearray(b"abcd")
    with scripted(serving(memory), serving(memory)) as uri, connected(uri) as connection:
        pending = read(connection, 0)

        class Interrupted:
            """The session, but for what it is told of a receive."""

            def __getattr__(self, name: str):
                return getattr(session, name)

            def received(self, _: int):
                raise KeyboardInterrupt

        session = connection.session
        monkeypatch.setattr(connection, "session", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            pending.wait()
        assert pending.wait().data == b"abcd"
        assert connection.reconnections == 1


# -- waits ---------------------------------------------------------------------------------------------------------


def test_a_wait_that_ran_out_can_be_taken_up_again():
    """Timeout leaves the request in flight; its answer still counts."""
    go_on = threading.Event()

    @opened
    def script(peer: Peer) -> None:
        [request] = peer.take(1)
        assert go_on.wait(30)
        peer.answer(request, b"late")
        wait_for_goodbye(peer)

    with scripted(script) as uri, connected(uri) as connection:
        pending = read(connection, 0)
        with pytest.raises(Timeout, match=r"no answer in 0\.05 s") as ran_out:
            pending.wait(0.05)
        assert isinstance(ran_out.value, TimeoutError)
        go_on.set()
        assert pending.wait().data == b"late"


def test_close_fails_what_is_in_flight_and_what_comes_later():
    """Disconnected: by this program."""

    @opened
    def script(peer: Peer) -> None:
        peer.take(1)

    with scripted(script) as uri:
        connection = Connection(parse_uri(uri))
        pending = read(connection, 0)
        connection.close()
        connection.close()
        with pytest.raises(Disconnected, match="by this program"):
            pending.wait()
        with pytest.raises(Disconnected, match="by this program"):
            read(connection, 0)


def test_close_says_goodbye():
    """The server sees DISC, not only a closed socket."""
    seen = []

    @opened
    def script(peer: Peer) -> None:
        seen.extend(peer.serve())
        seen.append(peer.session.finished)

    with scripted(script) as uri, connected(uri):
        pass
    assert seen == [True]


# -- connecting ----------------------------------------------------------------------------------------------------


def test_nobody_listens():
    """Disconnected at once, with the system's reason as its cause."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(Disconnected, match="Connection refused") as refused:
        Connection(Target("127.0.0.1", port))
    assert isinstance(refused.value.__cause__, ConnectionRefusedError)


@pytest.mark.parametrize(
    ("words", "reason"),
    [(b"SSH-2.0-OpenSSH_9.6\r\n" * 2, "not an NBD server"), (b"", "closed the connection in the handshake"),
     (wire.GREETING.pack(wire.NBDMAGIC, wire.IHAVEOPT, 3), "closed the connection in the handshake")],
)  # fmt: skip
def test_somebody_else_listens(words, reason):
    """Disconnected, and why."""

    def script(peer: Peer) -> None:
        peer.sock.sendall(words)
        peer.sock.shutdown(socket.SHUT_WR)
        while peer.sock.recv(1000):
            pass

    with scripted(script) as uri, pytest.raises(Disconnected, match=reason):
        Connection(parse_uri(uri))


def test_a_server_that_resets_the_connection_is_told_in_the_system_s_words():
    """Without the number of the error, and no matter that it was in the middle of the handshake."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def reset() -> None:
            sock, _ = server.accept()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()

        thread = threading.Thread(target=reset)
        thread.start()
        with pytest.raises(Disconnected) as caught:
            Connection(Target("127.0.0.1", server.getsockname()[1]), timeout=30)
        thread.join()
    assert caught.value.reason.endswith("Connection reset by peer")
    assert "Errno" not in caught.value.reason


def test_a_server_that_says_nothing_is_given_up_in_time():
    """Timeout in the handshake."""
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(Timeout, match="handshake"):
        Connection(Target("127.0.0.1", silent.getsockname()[1]), timeout=0.05)


def test_a_unix_socket_with_a_full_backlog_is_waited_for(tmp_path):
    """Unlike TCP, such a socket says no at once; the client tries again until its time is up."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        others = []
        while True:
            other = socket.socket(socket.AF_UNIX)
            other.setblocking(False)
            others.append(other)
            try:
                other.connect(path)
            except BlockingIOError:
                break
        with pytest.raises(Timeout, match="no connection"):
            Connection(Target(path=path), timeout=0.05)
        for other in others:
            other.close()


def test_a_refused_client_is_told_why():
    """Refused, with the reply and the server's text, also for an export that does not exist."""
    script = refusing(Rep.ERR_POLICY, "all 64 slots are taken")
    with scripted(script) as uri, pytest.raises(Refused) as refused:
        Connection(parse_uri(uri))
    assert (refused.value.reply, refused.value.message) == (Rep.ERR_POLICY, "all 64 slots are taken")
    assert isinstance(refused.value, ClusterError)
    with scripted(lambda peer: peer.handshake()) as uri, pytest.raises(Refused, match="no export 'x'"):
        Connection(parse_uri(uri + "/x"))


def test_what_a_server_offers_can_be_asked():
    """The exports with their descriptions; none of them is opened."""
    exports = {"": 100, "cluster.json": 10}
    with scripted(lambda peer: peer.handshake(), exports=exports) as uri:
        assert list_exports(parse_uri(uri)) == [("", "the memory"), ("cluster.json", "cluster.json memory")]


@pytest.mark.parametrize(("listens", "reset"), [("127.0.0.1", False), ("127.0.0.2", True)])
def test_what_has_not_left_yet_does_not_come_later_to_another_machine(listens: str, reset: bool) -> None:
    """A connection there is reset when something on it waits for an answer; another address is another machine."""
    with socket.create_server((listens, 0)) as listener:
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        sock.connect(listener.getsockname())
        server, _ = listener.accept()
        with server:
            server.settimeout(TIMEOUT)
            sock.sendall(b"a request")
            throw_away(sock)
            assert server.recv(100) == b"a request"
            if reset:
                with pytest.raises(ConnectionResetError):
                    server.recv(100)
            else:
                assert server.recv(100) == b""
