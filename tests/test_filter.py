"""What a filter keeps, alone and in a query, and which segments it leaves unread."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcluster.node.layout import make_layout
from memcluster.node.log import history as history_module
from memcluster.node.log.filter import Filter
from memcluster.node.log.history import History
from memcluster.node.log.merge import Entry, entries
from memcluster.node.log.record import (
    RECORD,
    RECORD_SIZE,
    REPEATED,
    Event,
    Kind,
    Summary,
    has_repeats,
    make_identifier,
    subject_name,
    subject_of,
    summarise,
)
from memcluster.node.log.writer import MIN_SEGMENT, LogWriter
from memcluster.node.logger.tallying import Count
from memcluster.node.nbd.wire import Command, Error
from memcluster.node.transport.loop import Loop

LAYOUT = make_layout([8192, 8192, 8192], 4096)
MS = 10**6
HOUR = 3600 * 10**9


def slot(
    start: int = 5,
    duration: int = MS,
    identifier: int = 7,
    offset: int = 0,
    length: int = 512,
    client: int = 3,
    kind: int = Kind.REQUEST,
    operation: int = Command.WRITE,
    flags: int = 0,
    error: int = 0,
) -> bytes:
    return RECORD.pack(start, duration, identifier, offset, length, client, kind, operation, flags, error, 1)


def kept(wanted: Filter, *slots: bytes, server: int = 1) -> list[int]:
    """The positions of the slots that a filter keeps on a server."""
    batch = entries(server, b"".join(slots))
    return [batch.index(entry) for entry in wanted.keep(batch, wanted.within(LAYOUT, server))]


def event(operation: Event, client: int = 0) -> bytes:
    return slot(duration=0, identifier=0, kind=Kind.EVENT, operation=operation, client=client)


@pytest.mark.parametrize(
    ("wanted", "positions"),
    [
        (Filter(), [0, 1, 2, 3, 4]),
        (Filter(since=6), [1]),
        (Filter(until=5), [0, 2, 3, 4]),
        (Filter(request=7), [0, 2]),
        (Filter(client=3), [0, 4]),  # a piece's client is a link
        (Filter(operations=("READ",)), [1]),
        (Filter(operations=("WRITE", "LEFT")), [0, 2, 4]),
        (Filter(slower=2 * MS), [1]),
        (Filter(errors=True), [2, 3]),
        (Filter(errors=True, operations=("DIED",)), [3]),
        (Filter(client=3, slower=1), [0]),
    ],
)
def test_what_is_kept(wanted: Filter, positions: list[int]) -> None:
    slots = (
        slot(),
        slot(start=6, duration=2 * MS, identifier=8, client=4, operation=Command.READ),
        slot(kind=Kind.PIECE, error=Error.EIO),
        event(Event.DIED),
        event(Event.LEFT, client=3),
    )
    assert kept(wanted, *slots) == positions


@pytest.mark.parametrize(
    ("offset", "length", "requests", "pieces"),
    [(4096, 1, [1], [0]), (4095, 1, [0], []), (0, 24576, [0, 1, 2], [0, 1]), (16384, 1, [2], [1]), (24575, 9, [], [])],
)
def test_who_touched_these_bytes(offset: int, length: int, requests: list[int], pieces: list[int]) -> None:
    """Requests are held against the bytes of the memory, pieces against what of them is in their server's shard; a
    FLUSH, an event and the map touch none."""
    wanted = Filter(offset=offset, length=length)
    others = (slot(length=0, operation=Command.FLUSH), event(Event.DIED), slot(offset=4096, kind=Kind.MAP))
    whole = (slot(offset=0, length=4096), slot(offset=4096, length=4096), slot(offset=16384, length=4096))
    assert kept(wanted, *whole, *others) == requests
    parts = (slot(offset=0, length=4096, kind=Kind.PIECE), slot(offset=4096, length=4096, kind=Kind.PIECE))
    assert kept(wanted, *parts, *others[:2]) == pieces  # server 1 holds the stripes from 4096 and from 16384 on


@given(
    st.builds(
        Filter,
        since=st.integers(0, 1 << 64 - 1),
        client=st.none() | st.integers(0, 99),
        operations=st.lists(st.sampled_from(["READ", "DIED"])).map(tuple),
        errors=st.booleans(),
        offset=st.integers(0, 1 << 40),
        length=st.integers(0, 1 << 40),
        last=st.integers(0, 10),
    )
)
def test_a_filter_survives_its_journey(wanted: Filter) -> None:
    assert Filter.from_head(json.loads(json.dumps(wanted.to_head()))) == wanted


@pytest.mark.parametrize(
    ("head", "sentence"),
    [
        ({"operations": ["SLEEP"]}, "there is no operation 'sleep'; there are read, write,"),
        ({"operations": "READ"}, "operations must be a list of names"),
        ({"errors": 1}, "errors must be true or false, not 1"),
        ({"client": "x"}, "client must be a whole number"),
        ({"length": -1}, "length must be a whole number"),
    ],
)
def test_what_makes_no_sense_gets_a_sentence(head: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        Filter.from_head(head)
    assert str(caught.value).startswith(sentence)


# -- summaries ---------------------------------------------------------------------------------------------------


def test_a_summary() -> None:
    """Events have no identifier, and say nothing of those that are there."""
    slots = [slot(start=9, identifier=4), slot(start=3, identifier=6), event(Event.READY)]
    assert summarise(b"".join(slots)) == Summary(3, 9, 4, 6)
    assert not has_repeats(b"".join(slots))
    assert has_repeats(slot(flags=REPEATED, kind=Kind.PIECE))


def write(directory: Path, count: int) -> History:
    """A log of many small segments; record n starts at 1000 n."""
    now = [0]
    log = LogWriter(directory, 0, 1 << 22, MIN_SEGMENT, clock=lambda: now[0])
    for number in range(1, count + 1):
        now[0] = number * 1000
        log.append(number * 1000, 1, make_identifier(0, 1, number), 0, 512, 1, Kind.REQUEST, Command.READ, 0, 0)
    log.close()
    return History(directory, 0)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Filter(since=500_000, until=510_000), range(500, 511)),
        (Filter(until=3000), range(1, 4)),
        (Filter(request=make_identifier(0, 1, 700)), range(700, 701)),
        (Filter(since=995_000), range(995, 1001)),
    ],
)
def test_only_the_segments_that_may_hold_it_are_read(tmp_path: Path, wanted: Filter, expected: range) -> None:
    """Of 17 segments two at most, each once for its order and once to be given."""
    history = write(tmp_path, 1000)
    while history.look_ahead():
        pass
    assert len(list(tmp_path.iterdir())) >= 16
    history.read_segments = 0
    found: list[Entry] = [entry for batch in history.read(wanted) for entry in batch]
    assert [entry[0] // 1000 for entry in found] == list(expected)
    assert history.read_segments <= 4


@pytest.mark.parametrize("runs", [(1, 1), (1, 2)], ids=["a restart", "another start"])
def test_what_is_written_after_the_clock_was_set_back_is_found(tmp_path: Path, runs: tuple[int, int]) -> None:
    """By `--since` and by `stats`: an hour's step back while no server ran, in a log of many segments, the first of
    which were all made later than now."""
    now = 5 * HOUR

    def clock() -> int:
        return now

    for life, run in enumerate(runs, start=1):
        log = LogWriter(tmp_path, 0, 1 << 22, MIN_SEGMENT, clock=clock, run=run, incarnation=life)
        for number in range(1, 300):
            now += 1000
            log.append(now, 1, make_identifier(0, life, number), 0, 512, 1, Kind.REQUEST, Command.READ, 0, 0)
        log.close()
        now -= HOUR
    now += HOUR
    history = History(tmp_path, 0, clock=clock, run=runs[-1])
    newer = [make_identifier(0, 2, number) for number in range(1, 300)]
    for wanted in (Filter(since=-200_000), Filter(since=now - 200_000), Filter(since=-200_000, run=-1)):
        found = [entry[2] for batch in history.read(wanted) for entry in batch]
        assert [identifier for identifier in found if identifier in newer] == newer[-201:]
    loop = Loop()
    count = Count(loop, history, 0, Filter(since=-200_000, run=-1), lambda _: loop.stop(), follow=False)
    loop.run()
    assert sum(figures.count for figures in count.tally.figures.values()) >= 201
    loop.close()


def test_a_long_request_is_found_where_it_ended(tmp_path: Path) -> None:
    """It began long before the segment that holds it."""
    log = LogWriter(tmp_path, 0, 1 << 22, MIN_SEGMENT)
    for number in range(2, 300):
        log.append(number * 1000, 1, make_identifier(0, 1, number), 0, 512, 1, Kind.REQUEST, Command.READ, 0, 0)
    log.append(1000, 299_000, make_identifier(0, 1, 1), 0, 512, 1, Kind.REQUEST, Command.READ, 0, 0)
    log.close()
    history = History(tmp_path, 0)
    found = [entry for batch in history.read(Filter(until=2000)) for entry in batch]
    assert [entry[0] for entry in found] == [1000, 2000]


def test_a_request_that_is_older_than_the_process_that_logs_it(tmp_path: Path) -> None:
    """Where servers answer for one another, the one that does may have started since."""
    for numbers in ((2, 3, 4), (5, 1, 6)):
        log = LogWriter(tmp_path, 0, 1 << 22, MIN_SEGMENT)
        for number in numbers:
            log.append(number * 1000, 1, make_identifier(0, 1, number), 0, 512, 1, Kind.REQUEST, Command.READ, 0, 0)
        log.close()
    found = [entry for batch in History(tmp_path, 0).read(Filter()) for entry in batch]
    assert [entry[0] // 1000 for entry in found] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("last", [1, 99, 500, 1000, 5000])
def test_the_last_records_need_not_be_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    monkeypatch.setattr(history_module, "HELD", 10)
    history = write(tmp_path, 1000)
    batches = list(history.read(Filter(last=last)))
    found = [entry[0] // 1000 for batch in batches for entry in batch]
    assert found == list(range(max(1, 1001 - last), 1001))
    assert last < 10 or max(map(len, batches)) <= MIN_SEGMENT // RECORD_SIZE


# -- pieces that were sent twice ---------------------------------------------------------------------------------


def test_a_piece_that_was_repeated_stands_in_the_log_once(tmp_path: Path) -> None:
    """Whether its first record is in the same segment or many before, of this life of its server or the last; and a
    piece that was sent again because it had never come stands there, too."""
    log = LogWriter(tmp_path, 1, 1 << 22, MIN_SEGMENT)

    def piece(number: int, flags: int = 0) -> None:
        identifier = make_identifier(0, 1, number)
        log.append(number * 1000, 1, identifier, 0, 512, 1, Kind.PIECE, Command.WRITE, flags, 0)

    for number in range(1, 201):
        piece(number)
    log.close()
    log = LogWriter(tmp_path, 1, 1 << 22, MIN_SEGMENT)
    for number in (5, 199, 200, 201, 201):  # 201 was lost on the way, then done, then repeated
        piece(number, REPEATED)
    for number in range(202, 400):
        piece(number)
    piece(399, REPEATED)
    log.close()
    history = History(tmp_path, 1)
    found = [entry for batch in history.read(Filter()) for entry in batch]
    assert [entry[2] for entry in found] == [make_identifier(0, 1, number) for number in range(1, 400)]
    late = [entry for batch in history.read(replace(Filter(), after=200)) for entry in batch]
    assert [entry[2] for entry in late] == [make_identifier(0, 1, number) for number in range(201, 400)]
    assert len(found[0][4]) == RECORD_SIZE


@pytest.mark.parametrize("name", ["server0", "logger12"])
def test_subjects_have_names(name: str) -> None:
    assert subject_name(subject_of(name)) == name


@pytest.mark.parametrize("name", ["server", "serverx", "node1", "server1024", ""])
def test_what_is_no_subject(name: str) -> None:
    with pytest.raises(ValueError, match="is no node"):
        subject_of(name)
