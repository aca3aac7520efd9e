"""Gates: one writer at a time, nobody waits, nobody is forgotten, and the dead are found out."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from memcluster.node.handover.gates import BrokenStream, Gates
from memcluster.node.transport.loop import Loop

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def loop():
    found = Loop()
    yield found
    found.close()


@pytest.fixture
def two(loop, tmp_path):
    """Two writers' views of the same gates (open file descriptions of their own, as in two processes)."""
    first = Gates(loop, tmp_path, 0, create=True)
    second = Gates(loop, tmp_path, 1, create=False)
    yield first, second
    first.close()
    second.close()


def test_who_finds_it_held_is_woken_when_it_is_given_back(loop, two):
    first, second = two
    woken = []
    assert first.take(5, lambda: None)
    assert not second.take(5, lambda: woken.append(second.take(5, lambda: None)))
    assert second.take(6, lambda: None)
    second.give_back(6)
    loop.turn(0)
    assert woken == []
    first.give_back(5)
    while not woken:
        loop.turn(10)
    assert woken == [True]
    second.give_back(5)


class Overtaken(Gates):
    """After its first try something else happens."""

    meanwhile: Callable[[int], None] | None = None

    def _lock(self, gate: int) -> bool:
        found = super()._lock(gate)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile(gate)
        return found


def test_no_wake_up_is_lost_between_the_try_and_the_mark(loop, tmp_path):
    """Given back just before the mark is set, nobody would ring: the second try finds it free."""
    first = Gates(loop, tmp_path, 0, create=True)
    second = Overtaken(loop, tmp_path, 1, create=False)
    assert first.take(5, lambda: None)
    second.meanwhile = first.give_back
    assert second.take(5, lambda: pytest.fail("nobody can have rung"))
    assert second.meanwhile is None
    second.give_back(5)
    first.close()
    second.close()


def test_who_forgot_is_not_called(loop, two):
    first, second = two
    woken = []
    assert first.take(5, lambda: None)
    assert not second.take(5, lambda: woken.append(5))
    assert first.take(7, lambda: None)
    assert not second.take(7, lambda: woken.append(7))
    second.forget(5)
    first.give_back(5)
    first.give_back(7)
    while not woken:
        loop.turn(10)
    assert woken == [7]


def test_tickets_count_pieces_and_keep_the_first_error(two):
    first, second = two
    first.open_ticket(3, 3)
    assert second.count(3, 0) == (False, 0)
    assert first.count(3, 28) == (False, 28)
    assert second.count(3, 5) == (True, 28)


def test_one_that_died_while_it_wrote_has_broken_the_stream(two, tmp_path):
    """kill -9 with the gate held: the lock goes, the mark stays; a reset makes the gate good again."""
    first, _ = two
    context = multiprocessing.get_context("spawn")
    ready, theirs = context.Pipe()
    process = context.Process(target=_take_and_stay, args=(tmp_path, theirs))
    process.start()
    assert ready.recv()
    assert not first.take(9, lambda: None)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with pytest.raises(BrokenStream, match="server2 died"):
        first.take(9, lambda: None)
    first.reset(9)
    assert first.take(9, lambda: None)
    first.give_back(9)


def _take_and_stay(directory: Path, ready) -> None:
    gates = Gates(Loop(), directory, 2, create=False)
    ready.send(gates.take(9, lambda: None))
    signal.pause()


def test_many_writers_shut_one_another_out_and_all_get_in(tmp_path):
    """Processes that fight for one gate, with nothing but the bell to wake them: no two are in at once, none waits for
    ever. Each adds to a number in steps that would lose some if another were in between."""
    context = multiprocessing.get_context("spawn")
    number = tmp_path / "number"
    number.write_bytes(bytes(8))
    gates = Gates(Loop(), tmp_path, 0, create=True)
    processes = [context.Process(target=_add, args=(tmp_path, number, writer)) for writer in (1, 2, 3, 4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(50)
        assert process.exitcode == 0
    assert int.from_bytes(number.read_bytes(), "little") == 4 * TIMES
    gates.close()


TIMES = 2000


def _add(directory: Path, number: Path, writer: int) -> None:
    loop = Loop()
    gates = Gates(loop, directory, writer, create=False)
    done = 0

    def go() -> None:
        nonlocal done
        if not gates.take(5, go):
            return
        value = int.from_bytes(number.read_bytes(), "little")
        number.write_bytes((value + 1).to_bytes(8, "little"))
        gates.give_back(5)
        done += 1
        if done < TIMES:
            loop.soon(go)

    go()
    while done < TIMES:
        loop.turn()

def test_no_room_for_a_gate_is_an_error_and_not_a_signal(two, monkeypatch):
    """The file has holes; room is made before a page is touched."""
    first, _ = two

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    first.reset(5)
    first.open_ticket(7, 2)
    monkeypatch.setattr("os.posix_fallocate", full)
    first.reset(6)  # beside one that has room
    first.open_ticket(8, 2)
    with pytest.raises(OSError, match="no room"):
        first.reset(5000)
    with pytest.raises(OSError, match="no room"):
        first.open_ticket(500_000, 2)
