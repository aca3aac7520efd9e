"""The order of the log: nothing lost or added, a cause before its effects, a server's own order kept."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcluster.node.log import merge as merge_module
from memcluster.node.log.merge import (
    EVENT,
    PIECE,
    REQUEST,
    UNKNOWN,
    Entry,
    Live,
    Merger,
    Stretch,
    entries,
    in_order,
    survey,
)
from memcluster.node.log.record import RECORD, Event, Kind, make_identifier

SECOND = 10**9


def entry(start: int, kind: int, identifier: int, server: int) -> Entry:
    return (start, kind, identifier, server, f"{server}/{kind}/{identifier}".encode())


def merge(logs: Mapping[int, Iterable[Entry]], batch: int = 1024) -> Iterator[Entry]:
    """The servers' logs, each in order of start, as one."""
    merger = Merger(logs)
    rest = {server: iter(log) for server, log in logs.items()}
    while not merger.finished:
        for server in tuple(merger.wanting):
            if following := list(islice(rest[server], batch)):
                merger.feed(server, following)
            else:
                merger.end(server)
        yield from merger.take(batch)


def surveys(blocks: Iterable[list[Entry]]) -> list[Stretch]:
    stretches: list[Stretch] = []
    for block in blocks:
        stretches.append(survey(block, stretches[-1].latest if stretches else ()))
    return stretches


def sort(blocks: list[list[Entry]]) -> list[Entry]:
    return [entry for block in in_order(surveys(blocks), blocks) for entry in block]


def causal(log: list[Entry]) -> bool:
    """No piece stands before its request, if that is in the log."""
    given: set[int] = set()
    requests = {identifier for _, kind, identifier, _, _ in log if kind == REQUEST}
    for _, kind, identifier, _, _ in log:
        if kind == REQUEST:
            given.add(identifier)
        elif kind == PIECE and identifier in requests and identifier not in given:
            return False
    return True


# -- what a cluster may log --------------------------------------------------------------------------------------


@st.composite
def clusters(draw: st.DrawFn, skewed: bool = True, whole: bool = False) -> list[list[Entry]]:
    """The logs of a cluster's servers, in the order of ends.

    Requests come to any server and have pieces on others, within their time. Clocks are off by up to a second, some
    records are missing, and some requests were cut short by the death of their server: their pieces are there alone.
    """
    count = draw(st.integers(1, 4))
    dice = random.Random(draw(st.integers(0, 1 << 32)))
    skews = [dice.randrange(SECOND) if skewed else 0 for _ in range(count)]
    ended: list[tuple[int, Entry]] = []
    counters = [0] * count
    now = 10 * SECOND
    for _ in range(draw(st.integers(0, 60))):
        now += dice.choice((0, 1, 1000, SECOND // 10))
        server = dice.randrange(count)
        counters[server] += 1
        identifier = make_identifier(server, 1, counters[server])
        duration = dice.choice((1, 1000, SECOND // 3))
        for other in range(count):
            if other != server and dice.random() < 0.5:
                start = now + dice.randrange(duration)
                end = dice.randrange(start, now + duration + 1)
                if whole or dice.random() < 0.9:
                    ended.append((end, entry(start + skews[other], PIECE, identifier, other)))
        if whole or dice.random() < 0.9:
            ended.append((now + duration, entry(now + skews[server], REQUEST, identifier, server)))
    ended.sort(key=lambda pair: pair[0])
    return [[e for _, e in ended if e[3] == server] for server in range(count)]


def cut(log: list[Entry], length: int) -> list[list[Entry]]:
    return [log[i : i + length] for i in range(0, len(log), length)]


# -- one server --------------------------------------------------------------------------------------------------


@given(clusters(), st.integers(1, 20))
def test_one_servers_log_is_sorted_block_by_block(logs: list[list[Entry]], length: int) -> None:
    """Whatever the blocks: even where all of one is late, as when requests waited for a server that was paused."""
    for log in logs:
        assert sort(cut(log, length)) == sorted(log)


@given(st.lists(st.lists(st.tuples(*[st.integers(0, 50)] * 4, st.just(b"")), max_size=8), max_size=8))
def test_sorting_loses_nothing_whatever_the_clock_did(blocks: list[list[Entry]]) -> None:
    assert Counter(sort(blocks)) == Counter(e for block in blocks for e in block)


def test_a_long_request_is_put_where_it_began() -> None:
    """Even if it ended many blocks later."""
    log = [entry(n, REQUEST, n, 0) for n in range(10, 100)] + [entry(12, REQUEST, 1000, 0), entry(100, REQUEST, 1, 0)]
    blocks = cut(log, 10)
    assert [stretch.late for stretch in surveys(blocks)].count([]) == len(blocks) - 1
    assert sort(blocks) == sorted(log)
    first = next(in_order(surveys(blocks), blocks))
    assert entry(12, REQUEST, 1000, 0) in first


def test_a_new_order_begins_where_it_is_said() -> None:
    """As where another run begins: what is in it comes after, whatever its times."""
    before = [entry(n, REQUEST, n, 0) for n in range(100, 120)]
    after = [entry(n, REQUEST, 20 + n, 0) for n in range(50, 70)]
    blocks = [*cut(before, 10), *cut(after, 10)]
    stretches = [*surveys(blocks[:2]), *surveys(blocks[2:])]
    assert [e for block in in_order(stretches, blocks) for e in block] == before + after
    assert all(not stretch.late for stretch in stretches)


@pytest.mark.parametrize("block", [3, 20, 62])
def test_requests_that_waited_stand_before_their_pieces(block: int) -> None:
    """200 requests came while a server was paused: they end late by many blocks, and their pieces before them."""
    quick = [entry(n, REQUEST, make_identifier(0, 1, 200 + n), 0) for n in range(300, 400)]
    waited = [entry(100 + n, REQUEST, make_identifier(0, 1, n), 0) for n in range(1, 200)]
    pieces = [entry(1000 + n, PIECE, make_identifier(0, 1, n), 1) for n in range(1, 200)]
    logs = {0: sort(cut([*quick, *waited], block)), 1: sort(cut(pieces, block))}
    assert logs[0] == sorted([*quick, *waited])
    merged = list(merge(logs, block))
    assert Counter(merged) == Counter([*quick, *waited, *pieces])
    assert causal(merged)


def test_a_block_that_is_not_wanted_still_gives_its_late_entries() -> None:
    long = entry(5, REQUEST, 9, 0)
    blocks = [
        [entry(n, REQUEST, n, 0) for n in (1, 2, 9)],
        [entry(10, REQUEST, 10, 0), long, entry(11, REQUEST, 11, 0)],
    ]
    assert [e for block in in_order(surveys(blocks), [[], []]) for e in block] == [long]


def test_entries_are_read_from_slots() -> None:
    """A slot of zeros (the machine died before it was on the disk) is no record."""
    slot = RECORD.pack(7, 1, 42, 4096, 512, 3, PIECE, 1, 0, 0, 1)
    assert entries(2, slot + bytes(64) + slot) == [(7, PIECE, 42, 2, slot)] * 2


# -- several servers ---------------------------------------------------------------------------------------------


@given(clusters(), st.integers(1, 5))
def test_the_merged_log(logs: list[list[Entry]], batch: int) -> None:
    """A permutation, and causal although clocks disagree and records are missing; however it is fed."""
    merged = list(merge({server: sorted(log) for server, log in enumerate(logs)}, batch))
    assert Counter(merged) == Counter(e for log in logs for e in log)
    assert causal(merged)


@given(clusters(whole=True), st.integers(1, 5))
def test_each_servers_own_order_is_kept(logs: list[list[Entry]], batch: int) -> None:
    ordered = {server: sorted(log) for server, log in enumerate(logs)}
    merged = list(merge(ordered, batch))
    for server, log in ordered.items():
        assert [e for e in merged if e[3] == server] == log


@given(clusters(skewed=False, whole=True), st.integers(1, 5))
def test_where_clocks_agree_the_merged_log_is_in_order_of_start(logs: list[list[Entry]], batch: int) -> None:
    merged = list(merge({server: sorted(log) for server, log in enumerate(logs)}, batch))
    assert merged == sorted(e for log in logs for e in log)


def test_servers_that_wait_for_one_another_go_on() -> None:
    """Each has a piece of a request that the other takes later, or never logged: nothing is given before its cause."""
    a, b = make_identifier(0, 1, 5), make_identifier(1, 1, 9)
    first = [entry(1, PIECE, b, 0), entry(2, REQUEST, a, 0)]
    second = [entry(1, PIECE, a, 1), entry(2, REQUEST, b + 1, 1)]
    merged = list(merge({0: first, 1: second}))
    assert Counter(merged) == Counter(first + second)
    assert causal(merged)


@given(
    st.dictionaries(
        st.integers(0, 3),
        st.lists(
            st.builds(
                entry,
                st.integers(0, 9),
                st.sampled_from((REQUEST, PIECE, 3)),
                st.builds(make_identifier, st.integers(0, 4), st.just(0), st.integers(0, 5)),
                st.integers(0, 3),
            ),
            max_size=12,
        ),
    )
)
def test_any_input_comes_to_an_end(logs: dict[int, list[Entry]]) -> None:
    """Servers that wait for one another, doubles, requests that come back in time: nothing is lost, nothing hangs."""
    logs = {server: [(*e[:3], server, e[4]) for e in log] for server, log in logs.items()}
    assert Counter(merge(logs, 2)) == Counter(e for log in logs.values() for e in log)


def test_a_piece_stands_right_after_its_request_if_its_clock_is_behind() -> None:
    requests = [entry(n, REQUEST, make_identifier(0, 1, n), 0) for n in (10, 11, 12)]
    piece = entry(3, PIECE, make_identifier(0, 1, 11), 1)
    assert list(merge({0: requests, 1: [piece]})) == [requests[0], requests[1], piece, requests[2]]


def test_a_piece_whose_request_is_gone_stands_where_its_clock_says() -> None:
    """Its server died before it could log the request, and lives on as another incarnation."""
    before = entry(10, REQUEST, make_identifier(0, 1, 5), 0)
    after = entry(30, REQUEST, make_identifier(0, 2, 1), 0)
    piece = entry(12, PIECE, make_identifier(0, 1, 6), 1)
    other = entry(13, REQUEST, make_identifier(1, 1, 1), 1)
    assert list(merge({0: [before, after], 1: [piece, other]})) == [before, after, piece, other]
    assert list(merge({0: [before], 1: [piece, other]})) == [before, piece, other]
    assert list(merge({1: [piece, other]})) == [piece, other]


def test_a_piece_of_before_the_log_of_its_request_begins_stands_where_its_clock_says() -> None:
    """The request is no longer kept, or not wanted: nobody waits for it, and nothing that is later comes before."""
    old = [entry(n, PIECE, make_identifier(0, 1, n), 1) for n in (1, 2)]
    new = entry(91, PIECE, make_identifier(0, 1, 90), 1)
    event = entry(80, EVENT, 0, 0)
    request = entry(90, REQUEST, make_identifier(0, 1, 90), 0)
    for batch in (1, 2, 9):
        assert list(merge({0: [event, request], 1: [*old, new]}, batch)) == [*old, event, request, new]


def test_the_last_records_of_a_server_may_hold_no_request() -> None:
    """Then there is none in them that a piece could wait for."""
    piece = entry(1, PIECE, make_identifier(0, 1, 5), 1)
    event = entry(2, EVENT, 0, 0)
    assert list(merge({0: [event], 1: [piece]})) == [piece, event]


def test_a_run_comes_after_the_one_before_it() -> None:
    """Although the clock was set back in between, and one server was not there in the first."""
    old = [entry(n, REQUEST, make_identifier(0, 1, n), 0) for n in (100, 101)]
    new = entry(5, REQUEST, make_identifier(0, 2, 1), 0)
    piece = entry(4, PIECE, make_identifier(0, 2, 1), 1)
    for one_clock in (False, True):
        merger = Merger([0, 1], one_clock=one_clock)
        merger.feed(0, old, 1)
        merger.feed(1, [piece], 2)
        assert merger.take(10) == old
        merger.feed(0, [new], 2)
        for server in (0, 1):
            merger.end(server)
        expected = [piece, new] if one_clock else [new, piece]
        assert [e for _ in range(3) for e in merger.take(10)] == expected
        assert merger.finished


def test_on_one_clock_a_request_may_stand_in_any_log() -> None:
    """Whoever answers logs the request: no piece waits for the log of the server that took it."""
    request = entry(10, REQUEST, make_identifier(0, 1, 5), 1)
    passed = entry(11, PIECE, make_identifier(0, 1, 5), 0)
    piece = entry(12, PIECE, make_identifier(0, 1, 5), 1)
    late = entry(90, REQUEST, make_identifier(0, 1, 6), 0)
    merger = Merger([0, 1], one_clock=True)
    merger.feed(0, [passed, late])
    merger.feed(1, [request, piece])
    merger.end(0)
    merger.end(1)
    assert merger.take(10) == [request, passed, piece, late]
    assert merger.finished


def test_the_merger_asks_for_what_it_needs_and_no_more() -> None:
    """That is what bounds its memory: a server is not asked before its batch is used up."""
    merger = Merger([0, 1])
    assert merger.wanting == {0, 1}
    merger.feed(0, [entry(1, REQUEST, 1, 0), entry(2, REQUEST, 2, 0)])
    assert merger.take(10) == []
    merger.feed(1, [entry(5, REQUEST, make_identifier(1, 0, 1), 1)])
    assert [e[0] for e in merger.take(1)] == [1]
    assert [e[0] for e in merger.take(10)] == [2]
    assert merger.wanting == {0}
    merger.end(0)
    assert [e[0] for e in merger.take(10)] == [5]
    assert merger.wanting == {1}
    assert not merger.finished
    merger.end(1)
    assert merger.take(10) == []
    assert merger.finished


# -- what happens now --------------------------------------------------------------------------------------------


def test_live_waits_for_the_window() -> None:
    live = Live({0: 0}, window=10, patience=100)
    second, first = entry(20, REQUEST, 2, 0), entry(10, REQUEST, 1, 0)
    live.add([second], 25)
    assert live.take(34) == []
    live.add([first], 34)
    assert live.take(35) == [first, second]  # the first began before: it goes along, whenever it came
    assert live.take(1000) == []


@pytest.mark.parametrize("ahead", [3600 * SECOND, -3600 * SECOND])
def test_live_waits_by_its_own_clock(ahead: int) -> None:
    """A server whose clock is an hour off waits no longer than others, and makes nobody hurry."""
    now = 10_000 * SECOND
    live = Live({0: 0, 1: 0}, window=10, patience=100)
    other = entry(now + ahead, REQUEST, make_identifier(1, 1, 1), 1)
    first, second = entry(now, REQUEST, 1, 0), entry(now + 1, REQUEST, 2, 0)
    live.add([other], now)
    live.add([second], now + 5)
    assert live.take(now + 10) == [other]
    live.add([first], now + 12)
    assert live.take(now + 15) == [first, second]


@pytest.mark.parametrize("ahead", [3600 * SECOND, 0, -3600 * SECOND])
def test_live_gives_a_piece_after_its_request(ahead: int) -> None:
    """The piece is logged first, and its request may take longer than the window; whatever its server's clock says."""
    now = 10_000 * SECOND
    live = Live({0: 0}, window=10, patience=1000)
    request = entry(now, REQUEST, 1, 0)
    piece, late = entry(now + ahead, PIECE, 1, 1), entry(now + ahead, PIECE, 1, 2)
    live.add([piece], now)
    assert live.take(now + 500) == []
    live.add([request], now + 500)
    assert live.take(now + 510) == [request, piece]
    live.add([late], now + 520)
    assert live.take(now + 530) == [late]


def test_live_gives_a_piece_up_when_its_request_cannot_come_any_more() -> None:
    live = Live({0: 0}, window=10, patience=1000)
    piece = entry(12, PIECE, 1, 1)
    live.add([piece], 20)
    assert live.take(30) == []
    assert live.take(1029) == []
    assert live.take(1030) == [piece]


def test_live_gives_a_piece_up_when_the_server_of_its_request_has_started_again() -> None:
    live = Live({0: 0}, window=10, patience=1000)
    lost, next_one = (entry(12, PIECE, make_identifier(0, incarnation, 7), 1) for incarnation in (1, 2))
    live.add([lost, next_one], 20)
    assert live.take(30) == []
    started = RECORD.pack(15, 0, 0, 2, 0, 0, Kind.EVENT, Event.STARTED, 0, 0, 1)
    [event] = entries(0, started)
    live.add([event], 30)
    assert live.take(40) == [event, lost]


def test_live_does_not_wait_for_a_log_that_it_does_not_follow() -> None:
    live = Live({0: 0}, window=10, patience=1000)
    piece = entry(12, PIECE, make_identifier(1, 1, 1), 2)
    live.add([piece], 12)
    assert live.take(22) == [piece]


def test_live_does_not_wait_for_a_request_before_the_history_that_was_asked_for() -> None:
    live = Live({0: UNKNOWN}, window=10, patience=1000)
    before, after = entry(12, PIECE, 4, 1), entry(12, PIECE, 6, 1)
    live.expect([entry(11, REQUEST, 5, 0), entry(13, REQUEST, 7, 0)])
    assert live.pass_on([before, after], 0) == [before]


def test_live_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge_module, "HELD", 3)
    monkeypatch.setattr(merge_module, "REMEMBERED", 2)
    live = Live({0: 0}, window=10, patience=1000)
    pieces = [entry(10 + n, PIECE, 1 + n, 1) for n in range(5)]
    live.add(pieces, 90)
    assert live.take(100) == pieces[:2]
    requests = [entry(20 + n, REQUEST, 100 + n, 0) for n in range(5)]
    live.add(requests, 90)
    assert live.take(100) == requests
    late = [entry(30, PIECE, 100, 1), entry(31, PIECE, 104, 1), entry(32, PIECE, 105, 1)]
    live.add(late, 90)  # the first one's request is forgotten; that of the last is still to come
    assert live.take(100) == [*late[:2], pieces[2]]


@given(clusters(), st.lists(st.integers(-3600, 3600), min_size=4, max_size=4), st.randoms(use_true_random=False))
def test_live_is_causal(logs: list[list[Entry]], clocks: list[int], dice: random.Random) -> None:
    """However the servers' news arrive and whatever their clocks say, if every request comes within the patience."""
    live = Live(dict.fromkeys(range(4), 0), window=SECOND // 5, patience=100 * SECOND)
    rest = [
        [(start + (clocks[server] + 3600) * SECOND, *more) for start, *more in log] for server, log in enumerate(logs)
    ]
    expected = Counter(e for log in rest for e in log)
    given_out: list[Entry] = []
    now = 3610 * SECOND
    while any(rest):
        log = dice.choice([log for log in rest if log])
        count = dice.randrange(1, 5)
        live.add(log[:count], now)
        del log[:count]
        now += SECOND // 10
        given_out += live.take(now)
    given_out += live.take(now + SECOND)
    given_out += live.take(now + 1000 * SECOND)
    assert Counter(given_out) == expected
    assert causal(given_out)
