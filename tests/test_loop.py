"""The loop: who is called, and that it burns nothing when there is nothing to do."""

import errno
import gc
import os
import socket
import time
import weakref
from contextlib import suppress

import pytest

from memcluster.node.serving.waiting import LINGER, WINDOW, Awake, Look
from memcluster.node.transport.listener import GONE, Listener
from memcluster.node.transport.loop import READ, WRITE, Loop


@pytest.fixture
def loop():
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def pair():
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    yield ends
    for end in ends:
        end.close()


def test_a_source_is_told_what_it_is_ready_for(loop, pair):
    """Readable, writable, or both; and of that, what it asked for."""
    calls = []
    loop.watch(pair[0], WRITE, calls.append)
    loop.turn(1)
    pair[1].send(b"x")
    loop.watch(pair[0], READ | WRITE, calls.append)
    loop.turn(1)
    loop.watch(pair[0], READ, calls.append)
    loop.turn(1)
    assert calls == [WRITE, READ | WRITE, READ]


def test_the_end_of_the_other_side_is_something_to_read(loop, pair):
    """A source that only reads is called with READ, whatever else epoll reports."""
    calls = []
    loop.watch(pair[0], READ, calls.append)
    pair[1].close()
    loop.turn(1)
    assert calls == [READ]


def test_a_source_that_took_a_number_over_is_not_called_for_its_predecessor(loop):
    """Two sources are ready; whichever handler is first closes both, and new ones get their numbers."""
    first, second = socket.socketpair(), socket.socketpair()
    quiet = []
    wrong = []

    def ready(_mask):
        for source in (first[0], second[0]):
            loop.unwatch(source)
            source.close()
        for _ in range(2):
            quiet.extend(socket.socketpair())
        for source in quiet:
            loop.watch(source, READ, wrong.append)

    for reader, writer in (first, second):
        writer.send(b"x")
        loop.watch(reader, READ, ready)
    numbers = {first[0].fileno(), second[0].fileno()}
    loop.turn(1)
    assert numbers & {source.fileno() for source in quiet}
    assert not wrong
    for source in (*quiet, first[1], second[1]):
        source.close()


def converse(loop, pair, turns):
    """A client that sends the next request when it has its answer."""
    loop.watch(pair[0], READ, lambda _mask: pair[0].recv(1))
    for _ in range(turns):
        pair[1].send(b"x")
        loop.turn(1)


def test_looking_instead_of_sleeping_ends_when_nothing_comes(loop, pair):
    """After a hundred quick requests and then silence, a loop that looks sleeps: at most a few looks are paid."""
    loop.wait = Look(loop.wait).wait
    converse(loop, pair, 100)
    began = time.process_time()
    for _ in range(20):
        loop.turn(0.01)
    assert time.process_time() - began < 0.05


class Waits:
    """Stands for epoll: takes `seconds` to find what it finds; keeps the timeouts that it was given."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.found = [(0, READ)]
        self.timeouts = []

    def __call__(self, timeout, most):
        assert most == 64
        self.timeouts.append(timeout)
        if self.seconds:
            time.sleep(self.seconds)
        return self.found


@pytest.fixture
def device(tmp_path):
    """Stands for the kernel's, which is there for root alone."""
    path = tmp_path / "cpu_dma_latency"
    path.touch()
    return path


def is_open(path):
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the listing's own descriptor is gone by now
            if os.path.samefile(f"/proc/self/fd/{name}", path):
                return True
    return False


def window(awake, work=0.0):
    """As many waits as are judged together, and the server's work after each."""
    for _ in range(WINDOW):
        awake.wait(1, 64)
        if work:
            time.sleep(work)


def test_processors_stay_awake_while_a_client_waits_for_each_answer(device):
    """The request, four bytes of zeroes, is made in a conversation and is dropped in the first silence."""
    waits = Waits()
    awake = Awake(waits, device)
    waits.seconds = 20e-6
    while not is_open(device):  # on a busy machine some conversations are too slow
        window(awake)
    assert device.read_bytes() == bytes(4)
    waits.timeouts.clear()
    awake.wait(LINGER / 2, 64)
    waits.found = []
    awake.wait(None, 64)
    assert waits.timeouts == [LINGER / 2, LINGER]
    assert not is_open(device)
    awake.wait(None, 64)
    assert waits.timeouts[-1] is None


def test_processors_may_sleep_when_the_server_has_no_time_to_wait(device):
    """Waits that take no time, as with many requests in flight, end the request and do not make one."""
    waits = Waits()
    awake = Awake(waits, device)
    window(awake, work=20e-6)
    assert not is_open(device)
    waits.seconds = 20e-6
    while not is_open(device):
        window(awake)
    waits.seconds = 0.0
    window(awake, work=20e-6)
    assert not is_open(device)


def test_a_closed_loop_holds_no_descriptors(pair):
    """Nor does it close any that are not its own."""
    before = os.listdir("/proc/self/fd")
    made = Loop()
    made.watch(pair[0], READ, lambda _mask: None)
    made.close()
    assert os.listdir("/proc/self/fd") == before


def test_a_listener_that_was_stopped_does_not_start_again(loop):
    """The last link may be ready, or a partition healed, in the turn in which a node is told to stop."""
    sock = socket.create_server(("127.0.0.1", 0))
    listener = Listener(loop, sock, socket.socket.close)
    listener.stop()
    listener.start()
    loop.turn(0)


class LosesOne(socket.socket):
    """One connection is lost before it is accepted, which loopback cannot be brought to do."""

    error = errno.EPROTO

    def accept(self):
        taken = super().accept()
        if self.error:
            taken[0].close()
            number, self.error = self.error, 0
            raise OSError(number, os.strerror(number))
        return taken


@pytest.mark.parametrize("error", GONE, ids=errno.errorcode.get)
def test_a_connection_lost_before_it_is_accepted_is_not_the_listener_s_end(loop, error):
    with LosesOne(fileno=socket.create_server(("127.0.0.1", 0)).detach()) as sock:
        sock.error = error
        accepted = []
        listener = Listener(loop, sock, accepted.append)
        listener.start()
        with socket.create_connection(sock.getsockname()), socket.create_connection(sock.getsockname()) as second:
            loop.turn(5)
            assert [taken.getpeername() for taken in accepted] == [second.getsockname()]
        accepted[0].close()
        listener.pause()


def test_a_timer_beyond_what_epoll_can_count_is_waited_for(loop, pair):
    """Its milliseconds have 31 bits, which is 25 days."""
    calls = []
    loop.after(1e9, lambda: calls.append("late"))
    loop.watch(pair[0], READ, calls.append)
    pair[1].send(b"x")
    loop.turn()
    assert calls == [READ]


def test_what_was_held_up_is_forgotten_when_it_goes_on(loop):
    """A closed connection is not kept by the pace that was asked for."""

    class Sender:
        sent = False

        def send(self) -> None:
            self.sent = True

    sender = Sender()
    gone = weakref.ref(sender)
    loop.slow(0.001)
    loop.hold_up(sender.send)
    while not sender.sent:
        loop.turn()
    del sender
    gc.collect()
    assert gone() is None
