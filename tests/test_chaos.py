"""The chaos run: its checkers find what they are there for, and a short run from a fixed seed finds nothing.

Longer ones by hand: `python -m bench.chaos --seed 7 --for 60s`.
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from harness import ROOT, need, run

sys.path.insert(0, str(ROOT))  # `bench` is not installed

from bench.chaos import places
from bench.chaos.logcheck import LogVerdict, check_log, logged_at
from bench.chaos.report import Report
from bench.chaos.runs import Runs
from bench.chaos.schedule import HOSTS, LEASE, PHASE, QUIET, WEIGHTS, plan
from memcluster.node.layout import Linear, Striped
from memcluster.node.topology import names
from memcluster.simulator.history import BLOCK, Operation, identify, pattern, read_operations, write_operations, zeroes
from memcluster.simulator.logrules import routed
from memcluster.simulator.rules import Verdict, check

A, B, C, ZERO = 0xA, 0xB, 0xC, 0
MIXED = "mixed"


def write(tag: int, begin: int, end: int, outcome: str = "acknowledged", *, client: str = "one", number: int = 0,
          kind: str = "WRITE", block: int = 0, blocks: int = 1, repeats: int = 0) -> Operation:  # fmt: skip
    """A write of `blocks` blocks."""
    return Operation(
        client, number or begin, kind, block * BLOCK, blocks * BLOCK, tag, begin, end, outcome, repeats, [], ""
    )


def read(value: int | str, begin: int, end: int, *, client: str = "two", number: int = 0, block: int = 0) -> Operation:
    """A read of one block."""
    seen = [value.hex() if isinstance(value, bytes) else value]
    return Operation(client, number or begin, "READ", block * BLOCK, BLOCK, 0, begin, end, "acknowledged", 0, seen, "")


def shows(values: list[int | None], begin: int, end: int, *, kind: str = "READ") -> Operation:
    """A read of several blocks, or what a BLOCK_STATUS told of them."""
    length = len(values) * BLOCK
    return Operation("two", begin, kind, 0, length, 0, begin, end, "acknowledged", 0, list(values), "")


def mix(*tags: int, block: int = 0) -> bytes:
    """A block of parts of several writes."""
    size = BLOCK // len(tags)
    whole = [pattern(tag, block * BLOCK, BLOCK) for tag in tags]
    return b"".join(content[index * size : (index + 1) * size] for index, content in enumerate(whole))


RIGHT = {
    "nothing was written": [read(ZERO, 1, 2)],
    "what was written": [write(A, 1, 2), read(A, 3, 4)],
    "the later of two": [write(A, 1, 2), write(B, 3, 4), read(B, 5, 6)],
    "before a write that goes on": [write(A, 1, 2), write(B, 3, 9), read(A, 4, 5)],
    "after a write that goes on": [write(A, 1, 2), write(B, 3, 9), read(B, 4, 5)],
    "either of two at once": [write(A, 1, 5), write(B, 2, 4, client="two"), read(A, 6, 7), read(B, 6, 7)],
    "an unknown write, there": [write(A, 1, 2), write(B, 3, 4, "unknown"), read(B, 5, 6)],
    "an unknown write, not there": [write(A, 1, 2), write(B, 3, 4, "unknown"), read(A, 5, 6)],
    "an unknown write, seen after one beside it": [
        write(A, 1, 9, "unknown"), write(B, 3, 4), read(B, 5, 6), read(A, 7, 8)],
    "a refused write, there in part": [write(A, 1, 2), write(B, 3, 4, "error"), read(mix(A, B), 5, 6)],
    "zeroes by a trim": [write(A, 1, 2), write(B, 3, 4, kind="TRIM"), read(ZERO, 5, 6)],
    "old zeroes beside a trim that goes on": [write(A, 1, 2), write(B, 3, 9, kind="TRIM"), read(ZERO, 5, 6)],
    "a mix of two at once": [write(A, 1, 5), write(B, 2, 4, client="two"), read(mix(A, B), 6, 7)],
    "another block": [write(A, 1, 2, block=1), read(ZERO, 3, 4)],
    "each block of a long write": [write(A, 1, 2, blocks=3), read(A, 3, 4, block=2)],
    "a failed read tells nothing": [write(A, 1, 2), read(C, 3, 4)._replace(outcome="unknown")],
    "zeroes reported": [write(A, 1, 2), write(B, 3, 4, kind="TRIM"), shows([0], 5, 6, kind="BLOCK_STATUS")],
    "data reported tells nothing": [shows([None], 5, 6, kind="BLOCK_STATUS")],
    "one of two at once, and then again": [write(A, 1, 5), write(B, 2, 4, client="two"), read(A, 6, 7), read(A, 8, 9)],
    "the one and then the other while they go on": [
        write(A, 1, 9), write(B, 1, 9, client="two"), read(A, 2, 3), read(B, 4, 5)],
    "back while it goes on": [write(A, 1, 9), write(B, 2, 4, client="two"), read(B, 5, 6), read(A, 7, 8)],
    "two reads at once": [write(A, 1, 5), write(B, 2, 4, client="two"), read(A, 6, 9), read(B, 7, 8)],
    "what was sent again may be done again": [
        write(A, 1, 5, repeats=1), write(B, 2, 4, client="two"), read(B, 6, 7), read(A, 8, 9)],
    "whole ones side by side": [
        write(A, 1, 5, blocks=2), write(B, 1, 5, client="two", block=1, blocks=2), shows([A, B, B], 6, 7)],
    "a mix while one goes on": [write(A, 1, 9, blocks=2), write(B, 1, 5, client="two", blocks=2), shows([A, B], 6, 7)],
}  # fmt: skip
LOST = {
    "not there": ([write(A, 1, 2), read(ZERO, 3, 4)], {A}),
    "undone": ([write(A, 1, 2), write(B, 3, 4), read(B, 5, 6), read(A, 7, 8)], {B}),
    "undone under another's eyes": ([write(A, 1, 2), write(B, 3, 4, client="two"), read(A, 5, 6)], {B}),
    "undone by zeroes from before": ([write(A, 1, 2, kind="TRIM"), write(B, 3, 4), read(ZERO, 5, 6)], {B}),
    "a trim undone": ([write(A, 1, 2), write(B, 3, 4, kind="TRIM"), read(A, 5, 6)], {B}),
    "one block of a long one": ([write(A, 1, 2, blocks=3), read(A, 3, 4), read(ZERO, 3, 4, block=2)], {A}),
    "hidden by the latest only": ([write(A, 1, 2), write(B, 3, 4), write(C, 5, 6), read(A, 7, 8)], {C}),
    "each once": ([write(A, 1, 2), read(ZERO, 3, 4), read(ZERO, 5, 6)], {A}),
    "although an unknown one is about": ([write(A, 1, 2), write(B, 3, 4, "unknown"), read(ZERO, 5, 6)], {A}),
}
BACK = {
    "a write": [write(A, 1, 5), write(B, 2, 4), read(B, 6, 7), read(A, 8, 9)],
    "a write, under others' eyes": [
        write(A, 1, 5), write(B, 2, 4), read(B, 6, 7), read(B, 8, 9), read(A, 8, 9)],
    "what a trim had replaced": [write(A, 1, 5), write(B, 2, 4, kind="TRIM"), read(ZERO, 6, 7), read(A, 8, 9)],
    "zeroes": [write(C, 1, 2), write(A, 3, 6, kind="TRIM"), write(B, 4, 5), read(B, 7, 8), read(ZERO, 9, 10)],
    "what was reported as zeroes": [
        write(A, 1, 5), write(B, 2, 4, kind="TRIM"), shows([0], 6, 7, kind="BLOCK_STATUS"), read(A, 8, 9)],
}  # fmt: skip
LATE = {
    "of who has left": [write(A, 1, 2, "unknown"), write(B, 3, 4), read(B, 5, 6), read(A, 7, 8)],
    "that nobody saw replaced": [write(A, 1, 2, "unknown"), write(B, 3, 4), read(A, 5, 6)],
    "of who was refused": [write(A, 1, 2, "error"), write(B, 3, 4), read(A, 5, 6)],
    "zeroing": [write(A, 1, 2, "unknown", kind="WRITE_ZEROES"), write(B, 3, 4), read(ZERO, 5, 6)],
}
MIXED_UP = {
    "from block to block": [write(A, 1, 5, blocks=2), write(B, 2, 4, blocks=2), shows([A, B], 6, 7)],
    "where both wrote": [
        write(A, 1, 5, blocks=3), write(B, 2, 4, block=1, blocks=2), shows([A, B, A], 6, 7)],
    "in a block": [write(A, 1, 5), write(B, 2, 4), read(mix(A, B), 6, 7)],
    "while both go on": [write(A, 1, 9, blocks=2), write(B, 2, 9, blocks=2), shows([A, B], 6, 7)],
    "with what was there before": [write(A, 1, 2), write(B, 3, 9, blocks=2), shows([A, B], 6, 7)],
}  # fmt: skip
WRONG = {
    "nobody's": [write(A, 1, 2), read(C, 3, 4)],
    "from the future": [read(A, 1, 2), write(A, 3, 4)],
    "another block's": [write(A, 1, 2, block=1), read(A, 3, 4)],
    "torn": [write(A, 1, 2), write(B, 3, 4), read(mix(A, B), 5, 6)],
    "torn by zeroes": [write(A, 1, 2), read(mix(A, ZERO), 3, 4)],
    "displaced": [write(A, 1, 2, blocks=2), read(pattern(A, BLOCK, BLOCK), 3, 4)],
    "one byte": [write(A, 1, 2), read(pattern(A, 0, BLOCK)[:-1] + b"\1", 3, 4)],
}
IN_ORDER = {
    "a later write that did not wait": ([write(A, 1, 5, number=1), write(B, 2, 6, number=2), read(A, 7, 8)], {B}),
    "an own write that is not waited for": (
        [write(A, 1, 2), write(B, 3, 9, number=3), read(A, 4, 8, client="one", number=4)], {B}),
}  # fmt: skip


@pytest.mark.parametrize("case", RIGHT)
@pytest.mark.parametrize("ordered", [False, True])
def test_what_may_be_read_is_accepted(case, ordered):
    """Histories in which everything is right."""
    verdict = check(
        RIGHT[case], ordered=ordered, whole=lambda one: one.kind != "READ" and case != "a mix of two at once"
    )
    assert not verdict.told


@pytest.mark.parametrize("case", LOST)
@pytest.mark.parametrize("ordered", [False, True])
def test_lost_writes_are_found(case, ordered):
    """A read shows what an acknowledged write had replaced: that write is lost, once."""
    history, lost = LOST[case]
    verdict = check(history, ordered=ordered)
    assert (verdict.lost, len(verdict.told)) == (lost, len(lost))


@pytest.mark.parametrize("case", WRONG)
def test_wrong_reads_are_found(case):
    """A read shows what nobody can have written there by then."""
    verdict = check(WRONG[case])
    assert (len(verdict.wrong), len(verdict.told)) == (1, 1)


@pytest.mark.parametrize("case", BACK)
def test_what_was_replaced_does_not_come_back(case):
    """A read showed that it was gone, a later one shows it."""
    verdict = check(BACK[case])
    assert (len(verdict.back), len(verdict.told)) == (1, 1), verdict.told


@pytest.mark.parametrize("case", LATE)
def test_what_lands_late_is_found(case):
    """Of a write without an answer, on one that began when its client had left."""
    verdict = check(LATE[case])
    assert (verdict.late, len(verdict.told)) == ({A}, 1)


@pytest.mark.parametrize("case", MIXED_UP)
def test_a_mixture_of_two_that_are_whole_is_found(case):
    """Only if both were done when the read began, and only where they are promised to be whole."""
    verdict = check(MIXED_UP[case], whole=lambda _: True)
    assert (verdict.mixed, len(verdict.told)) == ({(A, B)}, 1)
    assert not check(MIXED_UP[case]).told


def test_a_write_in_zeroes_is_seen_whole_or_not_at_all():
    """Unless they are of a zeroing beside it, or of one that may have been done in part."""
    history = [write(A, 2, 9, blocks=2), shows([A, ZERO], 6, 7)]
    assert check(history, whole=lambda _: True).mixed == {(A,)}
    beside = write(B, 1, 3, kind="TRIM", block=1)
    in_part = write(B, 1, 3, "unknown", kind="TRIM", blocks=2)
    for zeroing in (beside, in_part):
        assert not check([zeroing, *history], whole=lambda _: True).told
    over_all = write(B, 1, 3, kind="TRIM", blocks=2)
    assert check([over_all, *history], whole=lambda _: True).mixed == {(A,)}
    for one in (history[0]._replace(outcome="unknown"), history[0]._replace(repeats=1)):
        assert not check([one, history[1]], whole=lambda _: True).told


def test_an_answer_that_comes_early_is_found():
    """Whoever sees it says so."""
    assert check([write(A, 1, 2, "early")]).early == {A}


@pytest.mark.parametrize("case", IN_ORDER)
def test_the_order_of_one_client_is_held_against_reads_where_it_is_promised(case):
    """Requests in flight at once are concurrent, unless a client's requests are known to keep their order."""
    history, lost = IN_ORDER[case]
    assert check(history) == Verdict(blocks_read=1)
    assert check(history, ordered=True).lost == lost


def test_a_write_that_was_sent_again_may_come_after_a_later_one():
    """The later one had been answered, so the client did not repeat it."""
    history = [write(A, 1, 6, number=1, repeats=1), write(B, 2, 5, number=2), read(A, 7, 8)]
    assert check(history, ordered=True) == Verdict(blocks_read=1)


def test_a_write_that_was_sent_again_need_not_be_seen_by_a_read_that_was_not():
    """Seed 1130: its first piece found no room, another waited for a link, and the primary died."""
    history = [write(A, 1, 9, number=1, repeats=1), read(ZERO, 2, 3, client="one", number=2)]
    assert not check(history, ordered=True).told
    assert check([history[0]._replace(repeats=0), history[1]], ordered=True).lost == {A}
    assert check([history[0], history[1]._replace(repeats=1)], ordered=True).lost == {A}


def test_writes_that_were_sent_again_together_keep_their_order():
    history = [write(A, 1, 5, number=1, repeats=1), write(B, 2, 6, number=2, repeats=1), read(A, 7, 8)]
    assert check(history, ordered=True).lost == {B}


def test_a_newer_write_stays_beside_a_slow_zeroing_of_its_client():
    """It clears in several turns: a read may come before it is done, but what the client wrote after it is not cleared,
    unless the zeroing comes to another server later."""

    def slow(one):
        return one.kind == "TRIM"

    trim = write(0, 2, 9, number=1)._replace(kind="TRIM")
    newer = write(B, 3, 5, number=2)
    found = check([trim, newer, read(0, 10, 11)], ordered=True, slow=slow)
    assert found.lost == {B}
    assert not check([trim, newer, read(0, 10, 11)], ordered=True, slow=slow, outlasts=slow).told
    assert not check([trim, newer, read(B, 10, 11)], ordered=True, slow=slow).told
    early = read(A, 3, 5, client="one", number=2)
    assert not check([write(A, 0, 1), trim, early], ordered=True, slow=slow).told
    assert check([write(A, 0, 1), trim, early], ordered=True).told


def test_the_order_in_which_operations_are_given_does_not_matter():
    """Histories of several clients are read one after another."""
    history = [write(A, 1, 2), write(B, 3, 4), read(B, 5, 6), read(A, 7, 8)]
    assert check(history) == check(history[::-1])


# -- history -----------------------------------------------------------------------------------------------------


def test_blocks_tell_who_wrote_them():
    """Runs of writes, zeroes, and blocks that are nobody's."""
    first = BLOCK * 5 + 24
    parts = [pattern(A, first, 2 * BLOCK), bytes(BLOCK), pattern(B, first + 3 * BLOCK, BLOCK), mix(A, B, block=9)]
    assert identify(b"".join(parts), first) == [A, A, 0, B, mix(A, B, block=9).hex()]
    assert identify(pattern(A, first + BLOCK, BLOCK), first) == [pattern(A, first + BLOCK, BLOCK).hex()]


def test_reported_zeroes_are_of_whole_blocks():
    """A run that begins or ends within a block says nothing of that one."""
    extents = [(BLOCK, 100, True), (BLOCK + 100, 2 * BLOCK, False), (3 * BLOCK + 100, 9 * BLOCK, True)]
    assert zeroes(extents, BLOCK, 5 * BLOCK) == [None, None, None, 0, 0]
    assert zeroes([(0, 2 * BLOCK, True), (2 * BLOCK, BLOCK, True)], 0, 3 * BLOCK) == [0, 0, 0]


def test_operations_survive_their_file(tmp_path):
    """What is written is read back, file after file."""
    history = [write(A, 1, 2), read(mix(A, B), 3, 4)]
    for number in range(2):
        write_operations(tmp_path / f"{number}", history)
    assert list(read_operations([tmp_path / "0", tmp_path / "1"])) == history * 2


# -- the log -----------------------------------------------------------------------------------------------------

NODES = partial(logged_at, "primary-secondary", lambda _time: Linear((2 * BLOCK, 2 * BLOCK)))
REGION = [places.Region("all", 0, 4 * BLOCK)]
CLOCK = 1000


def logged(time: int, request: str = "0.1.1", *, kind: str = "request", node: str = "server0", block: int = 0,
           blocks: int = 1, operation: str = "WRITE", error: str | None = None) -> dict:  # fmt: skip
    return {
        "time_ns": time + CLOCK, "request": request, "kind": kind, "node": node, "operation": operation,
        "offset": block * BLOCK, "length": blocks * BLOCK, "error": error,
    }  # fmt: skip


def piece(request: str, node: str) -> dict:
    return logged(1, request, kind="piece", node=node)


SPANNING = [logged(2, block=1, blocks=2), piece("0.1.1", "server0"), piece("0.1.1", "server1")]
LOGS = {
    "each once": ([logged(2), logged(4, "0.1.2")], [write(A, 1, 3), write(B, 3, 5)], {}),
    "missing": ([logged(2)], [write(A, 1, 3), write(B, 3, 5)], {"missing": 1}),
    "at another time": ([logged(9)], [write(A, 1, 3)], {"missing": 1, "double": 1}),
    "of another length": ([logged(2, blocks=2)], [write(A, 1, 3)], {"missing": 1, "double": 1}),
    "another operation": ([logged(2, operation="TRIM")], [write(A, 1, 3)], {"missing": 1, "double": 1}),
    "an error is no record of success": ([logged(2, error="EIO")], [write(A, 1, 3)], {"missing": 1}),
    "twice": ([logged(2), logged(3, "0.1.2")], [write(A, 1, 3)], {"double": 1}),
    "twice under one identifier": ([logged(2), logged(3)], [write(A, 1, 3), write(B, 1, 3)], {"double": 1}),
    "sent again": ([logged(2), logged(3, "0.1.2")], [write(A, 1, 3, repeats=1)], {}),
    "sent again once": (
        [logged(2), logged(2, "0.1.2"), logged(3, "0.1.3")],
        [write(A, 1, 3, repeats=1)],
        {"double": 1},
    ),
    "unknown, there, late": ([logged(9)], [write(A, 1, 3, "unknown")], {}),
    "unknown, not there": ([], [write(A, 1, 3, "unknown")], {}),
    "shared out so that all have one": ([logged(2), logged(5, "0.1.2")], [write(A, 1, 6), write(B, 1, 3)], {}),
    "a probe": ([logged(2) | {"operation": "READ", "length": 1}], [], {}),
    "pieces of both": (SPANNING, [write(A, 1, 3, block=1, blocks=2)], {}),
    "a piece missing": (SPANNING[:2], [write(A, 1, 3, block=1, blocks=2)], {"missing_pieces": 1}),
    "a piece twice": ([*SPANNING, SPANNING[2]], [write(A, 1, 3, block=1, blocks=2)], {"double_pieces": 1}),
    "a remote piece alone": ([logged(2, block=3), piece("0.1.1", "server1")], [write(A, 1, 3, block=3)], {}),
    "a remote piece missing": ([logged(2, block=3)], [write(A, 1, 3, block=3)], {"missing_pieces": 1}),
    "pieces before their request": ([*SPANNING[1:], SPANNING[0]], [write(A, 1, 3, block=1, blocks=2)], {"before": 2}),
    "one of two before it": (
        [SPANNING[1], SPANNING[0], SPANNING[2]],
        [write(A, 1, 3, block=1, blocks=2)],
        {"before": 1},
    ),
    "before one that failed": ([piece("0.1.1", "server1"), logged(2, error="EIO")], [], {"before": 1}),
    "pieces of what never was done": ([piece("0.1.1", "server1")], [], {}),
}


@pytest.mark.parametrize("case", LOGS)
def test_the_log_is_held_against_what_was_acknowledged(case):
    """Missing and double records are counted, each where it belongs."""
    entries, operations, wanted = LOGS[case]
    verdict = check_log(entries, operations, REGION, NODES, CLOCK, slack=0)
    counts = {
        name: getattr(verdict, name) for name in ("missing", "double", "missing_pieces", "double_pieces", "before")
    }
    assert {name: count for name, count in counts.items() if count} == wanted
    assert bool(verdict.told) == bool(wanted)


def test_what_a_short_log_no_longer_has_is_not_missed():
    """From the first record on that each server still has all must be there."""
    operations = [write(A, 1, 3), write(B, 5, 7), write(C, 9, 11)]
    entries = [logged(2), logged(4, "0.1.2", kind="event", node="server1"), logged(6, "0.1.3")]
    verdict = check_log(entries, operations, REGION, NODES, CLOCK, slack=0, kept=False)
    assert (verdict.missing, verdict.double) == (1, 0)
    long = {**logged(0, kind="event", node="server2"), "duration_us": 0.010}  # it ended at 10, and was written then
    verdict = check_log([*entries, long], operations, REGION, NODES, CLOCK, slack=0, kept=False)
    assert verdict.missing == 0


def test_who_began_before_what_a_short_log_still_has_may_have_its_record_there():
    """Then those after it have theirs, too, although it could have been given to one of them."""
    operations = [write(A, 20, 24), write(B, 26, 40), write(C, 28, 70)]
    entries = [logged(12, kind="event"), logged(21), logged(27, "0.1.2"), logged(63, "0.1.3")]
    verdict = check_log(entries, operations, REGION, NODES, CLOCK, slack=10, kept=False)
    assert (verdict.missing, verdict.double) == (0, 0)


ROUTED = {
    Linear((2 * BLOCK, 2 * BLOCK)): [(BLOCK, BLOCK), (2 * BLOCK, 2 * BLOCK)],
    Striped((2 * BLOCK, 2 * BLOCK), BLOCK): [(2 * BLOCK, BLOCK), (BLOCK, 2 * BLOCK)],
}


@pytest.mark.parametrize("layout", ROUTED)
@pytest.mark.parametrize("missing", [None, 0, 1])
def test_each_part_of_what_a_client_routes_is_held_against_the_log(layout, missing):
    """One request a server, under the address of its first byte there; a part that is not logged is found."""
    parts = routed(layout, write(A, 1, 3, block=1, blocks=3))
    assert [(part.offset, part.length) for part in parts] == ROUTED[layout]
    entries = [
        {**logged(2, node=f"server{number}"), "offset": part.offset, "length": part.length}
        for number, part in enumerate(parts)
        if number != missing
    ]
    nodes = partial(logged_at, "client-routed", lambda _time: layout)
    verdict = check_log(entries, parts, REGION, nodes, CLOCK, slack=0)
    assert (verdict.missing, verdict.double, verdict.missing_pieces) == (missing is not None, 0, 0)


def test_each_run_has_its_layout():
    """A piece is looked for where the layout of its time has it; of what a client that routes had in flight when the
    map changed no part need be there, by either."""
    second = {"begin_ns": 100 + CLOCK, "sizes": [2 * BLOCK, 2 * BLOCK], "stripe": 0}
    runs = Runs([{"begin_ns": 0, "sizes": [BLOCK, 3 * BLOCK], "stripe": 0}, second], Linear((BLOCK,)))
    nodes = partial(logged_at, "primary-secondary", runs.at)
    before, after = write(A, 1, 3, block=1), write(B, 200, 203, block=1)
    entries = [logged(2, block=1), logged(201, "0.2.1", block=1)]
    verdict = check_log([*entries, piece("0.1.1", "server1")], [before, after], REGION, nodes, CLOCK, slack=0)
    assert verdict == LogVerdict(requests=2, pieces=1)
    assert check_log(entries, [before, after], REGION, nodes, CLOCK, slack=0).missing_pieces == 1
    assert [part.outcome for part in runs.parts(before, CLOCK, 0)] == ["acknowledged"]
    between = runs.parts(write(A, 90, 110, block=0, blocks=2), CLOCK, 0)
    assert [(part.offset, part.length, part.acknowledged) for part in between] == [
        (0, BLOCK, False), (BLOCK, BLOCK, False), (0, 2 * BLOCK, False)
    ]  # fmt: skip


def test_a_flush_of_a_client_that_routes_is_logged_by_every_server():
    """Under the address of the server's first byte."""
    flush = Operation("one", 1, "FLUSH", 0, 0, A, 1, 3, "acknowledged", 0, [], "")
    assert [part.offset for part in routed(Linear((BLOCK, BLOCK)), flush)] == [0, BLOCK]


def test_a_flush_is_logged_everywhere():
    """Its pieces have no bytes; flushes of others do not count as too many."""
    flush = Operation("one", 1, "FLUSH", 0, 0, A, 1, 3, "acknowledged", 0, [], "")
    entry = logged(2, blocks=0, operation="FLUSH")
    pieces = [piece("0.1.1", "server0"), piece("0.1.1", "server1")]
    verdict = check_log([entry, *pieces, entry | {"request": "0.1.2"}], [flush], REGION, NODES, CLOCK, slack=0)
    assert verdict == LogVerdict(requests=2, pieces=2)


def test_every_outcome_is_counted():
    """With what was answered before it was sent."""
    report = Report("a run")
    outcomes = ("acknowledged", "unknown", "error", "early")
    report.count(write(A, 1, 2, outcome) for outcome in outcomes)
    assert report.outcomes == dict.fromkeys(outcomes, 1)


@pytest.mark.parametrize("fault", [
    {"left": ["process 1"]}, {"trouble": ["down"]}, {"disagreements": ["a page"]}, {"unserved": ["a byte"]},
    *({"verdict": Verdict(**{name: {A}})} for name in ("lost", "wrong", "back", "late", "mixed", "early")),
    *({"log": LogVerdict(**{name: 1})} for name in ("missing", "missing_pieces", "double", "double_pieces", "before")),
])  # fmt: skip
def test_whatever_was_found_fails_the_run(fault):
    """Then the folder is kept."""
    assert not Report("a run").failed
    assert Report("a run", **fault).failed


# -- schedule and places -----------------------------------------------------------------------------------------


def test_a_schedule_follows_from_its_seed():
    """The same seed, the same faults; in their order, within the time, and of every kind."""
    assert plan(7, 60.0, 3) == plan(7, 60.0, 3) != plan(8, 60.0, 3)
    faults = plan(8, 1000.0, 3)
    assert all(one.at <= other.at for one, other in pairwise(faults))
    assert all(0 < fault.at < 1000 - QUIET for fault in faults if fault.kind != "resume")
    targets = {fault.target for fault in faults}
    assert targets >= {"server0", "server1", "server2", "logger0", "fork server", "supervisor", "all"}
    assert {fault.kind for fault in faults} == {
        "kill", "pause", "resume", "slow", "partition", "hang", "crowd", "zeroes", "fail"
    }  # fmt: skip
    assert len(faults) > 800
    assert not any(
        fault.target in ("server0", "supervisor", "fork server", "all") or fault.kind != "kill"
        for fault in faults
        if fault.kind in ("kill", "fail", "zeroes") and fault.at % (2 * PHASE) < PHASE - 0.5
        if fault.at % (2 * PHASE) > 0.5  # of a pair that has begun before
    )
    assert sum(WEIGHTS.values()) == 100


@pytest.mark.parametrize("seed", range(5))
def test_every_pause_ends(seed):
    """Each has its resume."""
    faults = plan(seed, 100.0, 3)
    for name in ("pause", "resume"):
        assert any(fault.kind == name for fault in faults)
    pauses = sorted(fault.target for fault in faults if fault.kind in ("pause", "crowd"))
    assert pauses == sorted(fault.target for fault in faults if fault.kind == "resume")


def test_one_server_has_no_links_to_cut():
    """Nothing is asked of a cluster that makes no sense there."""
    assert {fault.target for fault in plan(1, 500.0, 1)} <= {"server0", "logger0", "supervisor", "fork server", "all"}


def test_servers_that_are_not_linked_are_not_cut_off():
    """Where clients route by themselves; everything else happens to these servers, too."""
    assert {fault.kind for fault in plan(1, 500.0, 3, linked=False)}.isdisjoint({"partition"})


def test_other_hosts_are_cut_off_for_less_than_their_lease_and_for_more():
    """Each link comes back; and faults of hosts are for those that there are."""
    faults = plan(1, 1000.0, 3, weights=HOSTS, only=HOSTS, hosts=["b", "c"])
    kinds = {fault.kind for fault in faults if fault.target in ("b", "c")}
    assert kinds == {"kill guardian", "kill host", "lose host", "cut", "cut for long", "mend"}
    for kind, longest in (("cut", LEASE), ("cut for long", 2 * LEASE)):
        for cut in [fault for fault in faults if fault.kind == kind]:
            ends = [end.at - cut.at for end in faults if (end.kind, end.target) == ("mend", cut.target)]
            assert any(longest - LEASE < span < longest for span in ends)
    assert plan(1, 1000.0, 3) == plan(1, 1000.0, 3, hosts=["b", "c"])


@pytest.mark.parametrize("layout", [
    Linear((16 << 20,) * 3), Linear((48 << 20,)), Linear((6 << 20,) * 8), Striped((16 << 20,) * 3, 65536),
])  # fmt: skip
@pytest.mark.parametrize("clients", [1, 4, 16])
def test_regions_do_not_overlap(layout, clients):
    """And lie within the memory; with several servers, shared bytes are on more than one of them."""
    chosen = places.choose(layout, clients)
    regions = sorted((*chosen.ours, chosen.fio, chosen.copy), key=lambda region: region.offset)
    assert len(regions) == clients + 7
    assert all(chosen.rest.offset <= spot.offset for spot in chosen.spots)
    assert all(spot.offset + spot.length <= chosen.rest.offset + chosen.rest.length for spot in chosen.spots)
    assert all(one.offset + one.length <= other.offset for one, other in pairwise(regions))
    assert regions[-1].offset + regions[-1].length <= layout.size
    if len(layout.sizes) > 1:
        for region in (chosen.shared[0], chosen.copy):
            assert len(layout.split(region.offset, region.length)) > 1


# -- a run -------------------------------------------------------------------------------------------------------

RUNS = {
    "parallel-linear": ["--seed", "13"],
    "serial-stripe": ["--seed", "8", "--fan-out", "serial", "--layout", "stripe", "--storage", "directory"],
    "dispatcher": ["--seed", "27", "--topology", "dispatcher", "--layout", "stripe"],
    "chain": ["--seed", "39", "--topology", "chain"],
    "client-routed": ["--seed", "11", "--topology", "client-routed", "--layout", "stripe"],
}
assert set(names()) - set(RUNS) == {"primary-secondary"}, "the default; every other topology has its run"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("combination", RUNS)
def test_a_short_run_loses_nothing_and_leaves_nothing(tmp_path: Path, combination: str, capsys):
    """Six seconds of load and faults; the report is printed whatever it says, and a failure leaves its folder."""
    need("fio", "fio")
    need("nbdcopy", "libnbd-bin")
    need("nbdkit", "nbdkit")
    words = [sys.executable, "-m", "bench.chaos", "--for", "6s", "--every", "0.6", *RUNS[combination]]
    done = run(*words, cwd=tmp_path, timeout=280, check=False)
    with capsys.disabled():
        print("", done.stdout.decode(), sep="\n")
    assert done.returncode == 0, (done.stdout.decode(), done.stderr.decode())
    for name in ("lost", "wrong", "late", "log missing"):
        assert any(line.startswith(name) for line in done.stdout.decode().splitlines())


SABOTAGE = """
from bench.chaos import run
from bench.chaos.__main__ import main
from memcluster.simulator.history import read_operations

look = run._look_at_the_end

def spoil(options, subject, places, report):
    with (subject.folder / "data" / "shard0").open("r+b") as shard:
        for operation in read_operations([subject.folder / "history" / "client0.jsonl"]):
            shard.seek(operation.offset + 5)
            byte = shard.read(1)  # of a write's tag
            if operation.kind == "WRITE" and byte.strip(b"\\0"):
                shard.seek(operation.offset + 5)
                shard.write(bytes([byte[0] ^ 0x80]))
                break
    look(options, subject, places, report)

run._look_at_the_end = spoil
if __name__ == "__main__":
    main()
"""


@pytest.mark.timeout(300)
def test_a_run_that_fails_leaves_a_folder_from_which_it_is_run_again(tmp_path: Path):
    """A byte of a shard is spoilt under the running cluster: the report says so, the folder tells the same once more
    from what was recorded, and the same faults are done again, to a cluster that nobody spoils."""
    spoilt, temporary = tmp_path / "spoilt.py", tmp_path / "temporary"
    spoilt.write_text(SABOTAGE)
    temporary.mkdir()

    def chaos(*words: str | Path) -> tuple[int, dict[str, str], str]:
        done = run(sys.executable, *words, cwd=tmp_path, timeout=120, check=False, TMPDIR=str(temporary))
        report = done.stdout.decode()
        said = report + done.stderr.decode()
        assert "Traceback" not in said, said
        return done.returncode, {line[:22].rstrip(): line[22:] for line in report.splitlines()}, said

    options = ["--for", "4s", "--clients", "2", "--no-real", "--storage", "directory", "--seed", "3"]
    code, found, said = chaos(spoilt, *options)
    assert (code, found["wrong"], found["lost"], found["left behind"]) == (1, "1", "0", "nothing"), said
    assert "of last" in said
    [folder] = temporary.iterdir()
    assert said.endswith(f"python -m bench.chaos --replay {folder}\n")
    for name in ("cluster.yaml", "schedule.json", "faults.json", "run.json", "history", "log.jsonl", "logs", "report"):
        assert (folder / name).exists()
    assert (folder / "report").read_text() in said

    code, again, said = chaos("-m", "bench.chaos", "--replay", folder, "--check-only")
    assert (code, again.pop("run")) == (1, f"{found['run']}, as it was recorded"), said
    assert {name: again[name] for name in ("requests", "blocks read", "wrong", "log", "longest pause")} == {
        name: found[name] for name in ("requests", "blocks read", "wrong", "log", "longest pause")
    }
    assert list(temporary.iterdir()) == [folder]

    code, last, said = chaos("-m", "bench.chaos", "--replay", folder, "--keep")
    assert (code, last["run"], last["wrong"]) == (0, found["run"], "0"), said
    [other] = set(temporary.iterdir()) - {folder}
    assert (other / "schedule.json").read_text() == (folder / "schedule.json").read_text()
