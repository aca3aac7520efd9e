"""Streams and their sockets: what the loop is woken for, and how a connection on one host is set up."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from memcluster.node.transport import tcp
from memcluster.node.transport.loop import Loop
from memcluster.node.transport.stream import WAKE_AT, Stream
from memcluster.node.transport.tcp import FAR_LOST_AFTER, round_trip, tune


class Receiver(Stream):
    """Counts how often it is woken, and what it gets."""

    def __init__(self, loop: Loop, sock: socket.socket) -> None:
        super().__init__(loop, sock, [])
        self.wakes = 0
        self.came = 0
        self.update()

    def _readable(self) -> None:
        self.wakes += 1
        data = self.sock.recv(1 << 20)
        self.came += len(data)
        if not data:
            self._lost("")

    def _lost(self, reason: str) -> None:  # noqa: ARG002 - whatever the reason
        self.close()


class Turns(Receiver):
    def __init__(self, loop: Loop, sock: socket.socket, takes_turns: bool) -> None:
        super().__init__(loop, sock)
        self._takes_turns = takes_turns

    @property
    def takes_turns(self) -> bool:
        return self._takes_turns


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname(), 10)
        far, _ = listener.accept()
    with near, far:
        yield near, far


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def congestion_control(sock: socket.socket) -> bytes:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")


class TestExpect:
    def test_part_of_a_large_payload_wakes_nobody(self, loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
        """A loop that waits for 1,000 bytes is woken by the thousandth, and then by any."""
        receiver = Receiver(loop, pair[0])
        receiver.expect(1000)
        pair[1].sendall(bytes(999))
        loop.turn(timeout=0)
        assert receiver.wakes == 0
        pair[1].sendall(bytes(1))
        loop.turn(timeout=10)
        assert (receiver.wakes, receiver.came) == (1, 1000)
        receiver.expect(0)
        pair[1].sendall(bytes(1))
        loop.turn(timeout=10)
        assert (receiver.wakes, receiver.came) == (2, 1001)

    def test_the_end_of_the_stream_wakes_whatever_is_missing(
        self, loop: Loop, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        """A sender that goes in the middle of a payload is noticed."""
        receiver = Receiver(loop, pair[0])
        receiver.expect(10 * WAKE_AT)
        pair[1].sendall(bytes(10))
        pair[1].close()
        while receiver.open:
            loop.turn(timeout=10)
        assert receiver.came == 10


class TestTurns:
    @pytest.mark.parametrize("takes_turns", [True, False])
    def test_a_stream_that_takes_turns_sends_its_share(
        self, loop: Loop, monkeypatch: pytest.MonkeyPatch, takes_turns: bool
    ) -> None:
        """Although the socket would take more; all of it leaves in the end, and in its order."""
        monkeypatch.setattr("memcluster.node.transport.stream.SHARE", 3000)
        near, far = socket.socketpair()
        with near, far:
            stream = Turns(loop, near, takes_turns)
            sent = [bytes([number]) * 2000 for number in range(4)]
            stream.outgoing += sent
            for turn in range(1, 4):
                stream.flush() if turn == 1 else loop.turn(timeout=10)
                assert stream.sent == (min(3000 * turn, 8000) if takes_turns else 8000)
                if not stream.queued:
                    break
            assert far.recv(8000, socket.MSG_WAITALL) == b"".join(sent)


class TestTune:
    def test_one_host(self, pair: tuple[socket.socket, socket.socket]) -> None:
        """Small packets leave at once, and nothing is paced."""
        tune(pair[0])
        assert pair[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert congestion_control(pair[0]) == b"reno"

    def test_two_addresses(self) -> None:
        """What goes to another address is sent as the system wants it."""
        with (
            socket.create_server(("127.0.0.2", 0)) as listener,
            socket.create_connection(listener.getsockname(), 10) as sock,
        ):
            usual = congestion_control(sock)
            tune(sock)
            assert sock.getsockname() != listener.getsockname()
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert congestion_control(sock) == usual

    @pytest.mark.parametrize(("least", "paced"), [(tcp.NEARBY, False), (0, True)])
    def test_a_link_to_another_host(self, monkeypatch: pytest.MonkeyPatch, least: int, paced: bool) -> None:
        """One that is nearby is not paced, either; who is lost is noticed soon."""
        monkeypatch.setattr(tcp, "NEARBY", least and 1_000_000)  # the round trip that is measured is of a busy machine
        with (
            socket.create_server(("127.0.0.2", 0)) as listener,
            socket.create_connection(listener.getsockname(), 10) as sock,
        ):
            usual = congestion_control(sock)
            tune(sock, far=True)
            assert 0 < round_trip(sock) < 1_000_000
            assert congestion_control(sock) == (usual if paced else b"reno")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == FAR_LOST_AFTER * 1000

    def test_unix_sockets_and_lost_ones_are_left_alone(self, pair: tuple[socket.socket, socket.socket]) -> None:
        near, far = socket.socketpair()
        with near, far:
            tune(near)
        far = pair[1]
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        far.close()
        with pytest.raises(ConnectionResetError):
            pair[0].recv(1)
        tune(pair[0])

    def test_a_system_that_does_not_allow_it(self, pair: tuple[socket.socket, socket.socket]) -> None:
        """net.ipv4.tcp_allowed_congestion_control may lack Reno: then connections are as the system wants them."""

        class Strict(socket.socket):
            def setsockopt(self, level: int, option: int, *value: object) -> None:  # type: ignore[override]
                if option == socket.TCP_CONGESTION:
                    raise PermissionError(1, "Operation not permitted")
                super().setsockopt(level, option, *value)  # type: ignore[arg-type]

        with Strict(fileno=pair[0].detach()) as sock:
            tune(sock)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_what_is_held_up_goes_on_when_the_loop_is_slow_no_more(loop, pair):
    """And not after what was the delay."""
    near, far = pair
    far.settimeout(10)
    stream = Receiver(loop, near)
    loop.slow(3600.0)
    stream.outgoing.append(b"late")
    stream.send_soon()
    loop.turn(0)
    assert stream.sent == 0
    loop.slow(0.0)
    loop.turn(0)
    assert far.recv(4) == b"late"
    stream.close()
