"""The loop: who is called, and that it burns nothing when there is nothing to do."""

import os
import socket
import time

import pytest

from node.loop import READ, SPIN, WRITE, Loop


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


def test_looking_instead_of_sleeping_ends_when_nothing_comes(loop, pair):
    """After a hundred quick requests and then silence, a loop that may spin sleeps: at most a few looks are paid."""
    loop.spin = SPIN
    loop.watch(pair[0], READ, lambda _mask: pair[0].recv(1))
    for _ in range(100):
        pair[1].send(b"x")
        loop.turn(1)
    began = time.process_time()
    for _ in range(20):
        loop.turn(0.01)
    assert time.process_time() - began < 0.05


def test_a_closed_loop_holds_no_descriptors(pair):
    """Nor does it close any that are not its own."""
    before = os.listdir("/proc/self/fd")
    made = Loop()
    made.watch(pair[0], READ, lambda _mask: None)
    made.close()
    assert os.listdir("/proc/self/fd") == before
