"""The rules about bytes find what they are there for, and accept what may be read; and the history they are held to."""

from __future__ import annotations

import pytest
from histories import write

from memcluster.simulator.history import BLOCK, Operation, identify, pattern, read_operations, write_operations, zeroes
from memcluster.simulator.rules import Verdict, check

A, B, C, ZERO = 0xA, 0xB, 0xC, 0
MIXED = "mixed"


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
