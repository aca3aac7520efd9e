"""What was appended is never lost or torn, whatever ends the writer; what could not be written is counted."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from numbered_log import RETAIN, SLOTS, append, check, read_segments, records, writer

from memcluster.node.log.record import (
    MAX_INCARNATION,
    RECORD_SIZE,
    Event,
    Kind,
    Record,
    make_identifier,
    signed,
    unpack,
)
from memcluster.node.log.segments import (
    ASIDE,
    HEADER,
    HEADER_SIZE,
    MAGIC,
    VERSION,
    LogReader,
    list_segments,
    segment_paths,
)
from memcluster.node.log.writer import GIVEN, MIN_SEGMENT, RETRY, YOUNG, LogWriter


def sizes(directory: Path) -> list[int]:
    return [path.stat().st_size for path in segment_paths(directory)]


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    """Over several segments, while the writer is open and after it is closed."""
    log = writer(tmp_path)
    append(log, 3 * SLOTS + 5)
    check(records(read_segments(tmp_path)), 1, 3 * SLOTS + 5)
    log.close()
    check(records(read_segments(tmp_path)), 1, 3 * SLOTS + 5)
    assert [segment.first for segment in list_segments(tmp_path)] == [1, SLOTS + 1, 2 * SLOTS + 1, 3 * SLOTS + 1]


def test_close_gives_unused_space_back(tmp_path: Path) -> None:
    log = writer(tmp_path)
    append(log, SLOTS + 2)
    assert sizes(tmp_path) == [MIN_SEGMENT, MIN_SEGMENT]
    log.close()
    log.close()
    assert sizes(tmp_path) == [MIN_SEGMENT, HEADER_SIZE + 2 * RECORD_SIZE]


def test_space_is_reserved_before_it_is_written_to(tmp_path: Path) -> None:
    """Otherwise a full disk would be a SIGBUS."""
    log = writer(tmp_path)
    (path,) = segment_paths(tmp_path)
    assert path.stat().st_blocks * 512 >= MIN_SEGMENT
    log.close()


def test_a_number_that_does_not_fit_is_saturated(tmp_path: Path) -> None:
    """A clock that goes back gives a negative duration; that must not end the server."""
    log = writer(tmp_path)
    log.append(5, -3, 1, 2, 1 << 64, 4, 1, 1, 0, 0)
    append(log)
    (first, _) = records(read_segments(tmp_path))
    assert (first.duration, first.length, first.sequence) == (0, (1 << 64) - 1, 1)
    assert log.lost == 0


def test_a_new_process_goes_on_after_the_last_record(tmp_path: Path) -> None:
    """The sequence has no hole, the incarnation is one more, and the old segment is cut after its last record."""
    first = writer(tmp_path)
    append(first, 10)
    second = writer(tmp_path)  # as after a kill: the first one was never closed
    append(second, 5)
    check(records(read_segments(tmp_path)), 1, 15)
    assert (first.incarnation, second.incarnation) == (1, 2)
    assert sizes(tmp_path)[0] == HEADER_SIZE + 10 * RECORD_SIZE


def test_a_torn_record_is_not_there(tmp_path: Path) -> None:
    """Its fields were written, its mark was not: the next record takes its number."""
    log = writer(tmp_path)
    append(log, 3)
    (path,) = segment_paths(tmp_path)
    with path.open("r+b") as file:
        file.seek(HEADER_SIZE + 3 * RECORD_SIZE)
        file.write(b"\x55" * (RECORD_SIZE - 8))
    check(records(read_segments(tmp_path)), 1, 3)
    log = writer(tmp_path)
    append(log, 2)
    check(records(read_segments(tmp_path)), 1, 5)


def test_many_starts_without_records_leave_one_empty_segment(tmp_path: Path) -> None:
    append(writer(tmp_path), 2)
    for _ in range(10):
        last = writer(tmp_path)
    assert len(segment_paths(tmp_path)) == 2
    assert last.incarnation == 11
    append(last)
    check(records(read_segments(tmp_path)), 1, 3)


def test_no_incarnation_comes_twice(tmp_path: Path) -> None:
    """When the last has been, the log is set aside, and another begins."""
    log = LogWriter(tmp_path, 0, RETAIN, MIN_SEGMENT, cluster="demo", incarnation=MAX_INCARNATION)
    append(log, SLOTS + 1)
    assert (log.incarnation, len(segment_paths(tmp_path))) == (MAX_INCARNATION, 2)
    log = writer(tmp_path)
    append(log)
    assert (log.incarnation, len(segment_paths(tmp_path))) == (1, 1)
    assert len(list(tmp_path.glob(f"*{ASIDE}"))) == 2


def test_a_server_whose_identifiers_are_used_up_becomes_another_incarnation(tmp_path: Path) -> None:
    """Which stands in the log before it is used: a kill -9 right then cannot bring it back."""
    told: list[int] = []
    log = writer(tmp_path, renumbered=lambda: told.append(log.incarnation))
    append(log, 3)
    log.begin_incarnation()
    assert (log.incarnation, told) == (2, [2])
    append(log, 3)
    assert [segment.incarnation for segment in list_segments(tmp_path)] == [1, 2]
    check(records(read_segments(tmp_path)), 1, 6)
    assert writer(tmp_path).incarnation == 3


def test_what_a_supervisor_remembers_is_not_used_again(tmp_path: Path) -> None:
    """Though the log was deleted."""
    assert writer(tmp_path, incarnation=7).incarnation == 7
    assert writer(tmp_path, incarnation=3).incarnation == 8


@pytest.mark.parametrize("starts", [1, 3])
def test_no_incarnation_comes_twice_on_a_full_disk(tmp_path: Path, starts: int) -> None:
    """Where the log cannot even begin a segment that says so."""
    append(writer(tmp_path), 2)
    seen = {1}
    with full_disk():
        for _ in range(starts):
            log = writer(tmp_path)
            append(log, 2)
            assert log.incarnation not in seen
            seen.add(log.incarnation)
    assert writer(tmp_path).incarnation not in seen


def test_a_kill_between_reserving_and_naming_leaves_no_trace(tmp_path: Path) -> None:
    append(writer(tmp_path), 2)
    (tmp_path / "000002.new").write_bytes(bytes(100))
    append(writer(tmp_path), 2)
    check(records(read_segments(tmp_path)), 1, 4)
    assert not list(tmp_path.glob("*.new"))


def test_off(tmp_path: Path) -> None:
    """With nothing to retain nothing is made, and append costs nothing."""
    log = LogWriter(tmp_path / "log", 0, 0)
    append(log, 3)
    log.close()
    assert not (tmp_path / "log").exists()
    assert (log.sequence, log.lost, log.incarnation) == (0, 0, 0)
    assert list(read_segments(tmp_path / "log")) == []


# -- damage ------------------------------------------------------------------------------------------------------


def header(**changed: int) -> bytes:
    """A header as a server writes it, but for one field."""
    fields = {"server": 0, "incarnation": 1, "first": 1, "created": 5, "run": 1, "slots": 62} | changed
    return HEADER.pack(MAGIC, changed.pop("version", VERSION), *(fields[name] for name in list(fields)[:6]), b"demo")


STRANGE = [
    b"",
    b"my thesis" * 1000,
    MAGIC + bytes(120),
    MAGIC + b"\xff" * 120,
    header(version=99),
    header(version=1),
    header(server=1),
    header(server=65_535),
    header(incarnation=MAX_INCARNATION + 1),
    header(first=0),
    header(first=(1 << 64) - 1),
    header(created=(1 << 64) - 1),
]


@pytest.mark.parametrize("content", STRANGE)
def test_what_is_no_segment_of_this_log_is_set_aside_as_it_is(tmp_path: Path, content: bytes) -> None:
    """The log goes on, says so, and uses no number twice, wherever the file stands; readers pass it over."""
    for number in (1, 2, 7):
        folder = tmp_path / str(number)
        first = writer(folder)
        append(first, SLOTS + 5)
        first.close()
        (folder / f"{number:06d}.seg").write_bytes(content)
        log = writer(folder)
        assert log.error is None
        assert (folder / f"{number:06d}{ASIDE}").read_bytes() == content
        assert log.incarnation > first.incarnation
        append(log, 3)
        kept = {1: range(SLOTS + 1, SLOTS + 6), 2: range(1, SLOTS + 1), 7: range(1, SLOTS + 6)}[number]
        found = records(read_segments(folder))
        check(found[: len(kept)], kept[0], kept[-1])
        told, *rest = found[len(kept) :]
        assert (told.kind, told.operation, told.offset) == (Kind.EVENT, Event.LOG_DAMAGED, 1)
        assert told.sequence > first.sequence
        check(rest, told.sequence + 1, told.sequence + 3)
        assert writer(folder).incarnation == log.incarnation + 1


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("no where")])
def test_what_is_no_file_at_all_stops_nothing(tmp_path: Path, make: Callable[[Path], object]) -> None:
    """A reader of a fifo would wait for ever."""
    append(writer(tmp_path), 3)
    make(tmp_path / "000009.seg")
    make(tmp_path / "000003.new")
    make(tmp_path / "٣.seg")
    make(tmp_path / f"{'9' * 200}.seg")
    check(records(read_segments(tmp_path)), 1, 3)
    log = writer(tmp_path)
    append(log, 3)
    assert log.error is None


@pytest.mark.parametrize("size", [0, 100, HEADER_SIZE, HEADER_SIZE + 3 * RECORD_SIZE, HEADER_SIZE + 201])
@pytest.mark.parametrize("closed", [True, False])
def test_a_last_segment_that_was_cut_is_a_gap(tmp_path: Path, size: int, closed: bool) -> None:
    """As people do to free a disk. What was in it is counted as missing, and its numbers are not given out again."""
    log = writer(tmp_path)
    append(log, SLOTS + 10)
    if closed:
        log.close()
    os.truncate(segment_paths(tmp_path)[-1], size)
    left = max(0, size - HEADER_SIZE) // RECORD_SIZE
    log = writer(tmp_path)
    append(log, 2)
    blocks = list(read_segments(tmp_path))
    found = records(iter(blocks))
    check(found[: SLOTS + left], 1, SLOTS + left)
    told, *rest = found[SLOTS + left :]
    assert (told.operation, told.offset) == (Event.LOG_DAMAGED, 1)
    assert told.sequence > SLOTS + 10
    assert sum(block.missing for block in blocks) == told.sequence - 1 - SLOTS - left
    assert len(rest) == 2


@pytest.mark.parametrize("size", [0, HEADER_SIZE, HEADER_SIZE + 3 * RECORD_SIZE])
def test_a_segment_that_is_cut_while_it_is_written_is_left_in_time(tmp_path: Path, size: int) -> None:
    """Where nothing is written between the cut and the next look: that would be a SIGBUS."""
    log = writer(tmp_path)
    append(log, 10)
    os.truncate(segment_paths(tmp_path)[-1], size)
    log.look()
    append(log, 2)
    left = max(0, size - HEADER_SIZE) // RECORD_SIZE
    assert [block.missing for block in read_segments(tmp_path)][-1] == 10 - left
    assert [r.sequence for r in records(read_segments(tmp_path))] == [*range(1, left + 1), 11, 12, 13]


def test_a_log_that_is_deleted_begins_again(tmp_path: Path) -> None:
    """Its folder, too; what was in it is a gap."""
    folder = tmp_path / "log"
    log = writer(folder)
    append(log, 10)
    shutil.rmtree(folder)
    log.look()
    append(log, 2)
    assert [record.sequence for record in records(read_segments(folder))] == [11, 12, 13]
    assert [block.missing for block in read_segments(folder)] == [10]


def test_a_folder_that_cannot_be_used_stops_the_log_until_it_can(tmp_path: Path) -> None:
    """Nothing is raised, what is lost is counted, and the log goes on where it was."""
    folder = tmp_path / "log"
    before = writer(folder)
    append(before, 5)
    os.rename(folder, tmp_path / "away")
    folder.write_text("not a folder")
    renumbered: list[int] = []
    log = writer(folder, renumbered=lambda: renumbered.append(log.incarnation))
    append(log, 3)
    assert isinstance(log.error, OSError)
    assert log.lost == 3
    log.look()
    assert log.error is not None
    folder.unlink()
    os.rename(tmp_path / "away", folder)
    log.look()
    assert log.error is None
    append(log, 2)
    assert renumbered == [2] == [log.incarnation]
    found = records(read_segments(folder))
    check(found[:5], 1, 5)
    assert (found[5].operation, found[5].offset, found[5].sequence) == (Event.LOG_STOPPED, 3, 9)
    check(found[6:], 10, 11)


def test_a_count_of_lost_records_that_was_forged_is_not_believed(tmp_path: Path) -> None:
    append(writer(tmp_path), 5)
    (tmp_path / GIVEN).write_bytes(b"\xff" * 100)
    log = writer(tmp_path)
    append(log)
    assert (log.lost, log.sequence, log.incarnation) == (0, 7, 2)  # the 6th says that a file was damaged


# -- retention, full disks ---------------------------------------------------------------------------------------


def test_no_more_is_kept_than_asked(tmp_path: Path) -> None:
    """And what was dropped is a counted gap."""
    retain = 5 * MIN_SEGMENT
    log = writer(tmp_path, retain)
    for _ in range(20):
        append(log, SLOTS)
        assert sum(sizes(tmp_path)) <= retain
    kept = list(read_segments(tmp_path))
    assert kept[0].missing == kept[0].first - 1 == 15 * SLOTS
    assert [block.missing for block in kept[1:]] == [0] * 4
    check(records(iter(kept)), 15 * SLOTS + 1, 20 * SLOTS)


def numbered_log_are_smaller_where_little_is_kept(tmp_path: Path) -> None:
    """A whole log in one segment would be dropped at once when it is full."""
    log = LogWriter(tmp_path, 0, 64 << 10)
    assert log.segment_size == 16 << 10
    log.close()


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow: what fallocate meets is not quite ENOSPC, but it is an OSError from the kernel."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIN_SEGMENT // 2, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_stops_the_log_and_not_the_service(tmp_path: Path) -> None:
    """Records are lost and counted; when there is room again the log goes on, and the gap shows."""
    log = writer(tmp_path)
    with full_disk():
        append(log, SLOTS + 10)
        assert log.lost == 10
        assert isinstance(log.error, OSError)
        assert "stopped" in repr(log)
        append(log, RETRY)  # it tries in vain
        assert log.lost == RETRY + 10
    assert len(segment_paths(tmp_path)) == 1
    append(log, RETRY + 5)
    assert log.error is None
    lost = 2 * RETRY
    assert log.lost == lost
    found = records(read_segments(tmp_path))
    check([r for r in found if r.sequence <= SLOTS], 1, SLOTS)
    stopped, displaced, *rest = (r for r in found if r.sequence > SLOTS)
    assert (stopped.kind, stopped.operation, stopped.offset) == (Kind.EVENT, Event.LOG_STOPPED, lost)
    assert [stopped.sequence, displaced.sequence] == [SLOTS + lost + 1, SLOTS + lost + 2]
    check(rest, SLOTS + lost + 3, log.sequence)
    assert [block.missing for block in read_segments(tmp_path) if block.missing] == [lost]


@pytest.mark.parametrize("deaths", [1, 3])
def test_what_a_full_disk_lost_is_counted_if_the_server_is_killed_then(tmp_path: Path, deaths: int) -> None:
    """Before it could write that down: the next one does, as a gap and as an event, and once."""
    log = writer(tmp_path)
    with full_disk():
        append(log, SLOTS + 10)
        for _ in range(1, deaths):
            log = writer(tmp_path)  # as after a kill: the one before was never closed
            append(log, 10)
    log = writer(tmp_path)
    lost = 10 * deaths
    assert log.lost == lost
    append(log, 5)
    assert [block.missing for block in read_segments(tmp_path) if block.missing] == [lost]
    found = records(read_segments(tmp_path))
    check(found[:SLOTS], 1, SLOTS)
    stopped = found[SLOTS]
    assert (stopped.operation, stopped.offset, stopped.sequence) == (Event.LOG_STOPPED, lost, SLOTS + lost + 1)
    check(found[SLOTS + 1 :], SLOTS + lost + 2, SLOTS + lost + 6)
    log = writer(tmp_path)
    append(log)
    assert log.lost == 0
    assert [record.operation for record in records(read_segments(tmp_path))].count(Event.LOG_STOPPED) == 1


def test_what_was_lost_is_known_though_no_room_can_be_reserved(tmp_path: Path) -> None:
    """Not even what a file has already, as on a file system that makes a copy of what is written to."""

    def no_room(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    log = writer(tmp_path)
    with full_disk():
        append(log, SLOTS + 10)
    log = writer(tmp_path, allocate=no_room)
    append(log, 5)
    assert log.lost == 15
    log = writer(tmp_path)
    assert (log.lost, log.sequence) == (15, SLOTS + 16)


def test_a_disk_that_is_full_from_the_start(tmp_path: Path) -> None:
    with full_disk():
        log = writer(tmp_path)
        append(log, 3)
    assert (log.lost, log.sequence) == (3, 3)
    log = writer(tmp_path)
    assert (log.lost, log.sequence) == (3, 4)
    (stopped,) = records(read_segments(tmp_path))
    assert (stopped.operation, stopped.offset, stopped.sequence) == (Event.LOG_STOPPED, 3, 4)
    log.close()


# -- what is kept, and for how long ------------------------------------------------------------------------------


def test_events_are_kept_at_any_level(tmp_path: Path) -> None:
    log = LogWriter(tmp_path, 3, 1 << 20, level="errors")
    log.append(1, 1, 1, 0, 512, 1, Kind.REQUEST, 0, 0, 0)
    log.append(2, 1, 2, 0, 512, 1, Kind.REQUEST, 0, 0, 5)
    log.event(Event.DIED, 3, value=-9, start=7)
    assert [(r.start, r.kind, r.error) for r in records(read_segments(tmp_path))] == [
        (2, Kind.REQUEST, 5),
        (7, Kind.EVENT, 0),
    ]
    [_, died] = records(read_segments(tmp_path))
    assert (died.operation, died.length, signed(died.offset), died.sequence) == (Event.DIED, 3, -9, 2)
    assert not [block.missing for block in read_segments(tmp_path) if block.missing]


def test_a_log_that_is_off_has_no_events(tmp_path: Path) -> None:
    LogWriter(tmp_path, 0, 0).event(Event.READY, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sample", [2, 10])
def test_sampling_keeps_whole_stories(tmp_path: Path, sample: int) -> None:
    """Every server makes the same choice, about one in N, whatever pattern the requests have; no gaps are seen."""
    kept = []
    for server in range(3):
        log = LogWriter(tmp_path / str(server), server, 1 << 22, sample=sample)
        for number in range(1, 4001):
            log.append(number, 1, make_identifier(0, 1, number), 0, 512, 1, Kind.PIECE, 0, 0, 0)
        found = records(read_segments(tmp_path / str(server)))
        assert [record.sequence for record in found] == list(range(1, len(found) + 1))
        kept.append([record.identifier for record in found])
    assert kept[0] == kept[1] == kept[2]
    assert 0.8 < len(kept[0]) * sample / 4000 < 1.2
    assert 0.3 < sum(identifier % 2 for identifier in kept[0]) / len(kept[0]) < 0.7


def test_records_go_when_their_time_has_come(tmp_path: Path) -> None:
    """Also those of a server that has nothing to do, and never those that are younger."""
    now = [0]
    log = LogWriter(tmp_path, 0, 1 << 22, MIN_SEGMENT, clock=lambda: now[0], retain_age=80.0)
    for second in range(0, 1000, 5):
        now[0] = second * 10**9
        log.append(now[0], 1, second + 1, 0, 512, 1, Kind.REQUEST, 0, 0, 0)
        log.look()
        ages = [second - record.start // 10**9 for record in records(read_segments(tmp_path, after=0))]
        assert max(ages) <= 80 + 2 * 80 / YOUNG + 5
        assert set(range(0, min(second, 80), 5)) <= set(ages)
    now[0] += 200 * 10**9
    log.look()
    now[0] += 200 * 10**9
    log.look()
    assert records(read_segments(tmp_path)) == []
    assert len(segment_paths(tmp_path)) == 1
    sequence = log.sequence
    log.close()
    assert LogWriter(tmp_path, 0, 1 << 22, MIN_SEGMENT).sequence == sequence


# -- kill -9 -----------------------------------------------------------------------------------------------------

WRITE_FOR_EVER = """
import sys
from pathlib import Path
import numbered_log
log = numbered_log.writer(Path(sys.argv[1]))
while True:
    numbered_log.append(log, 50)
    print(log.sequence, flush=True)
"""


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """A process that appends for ever is killed again and again, and read while it runs.

    Each time all that it said it had appended is there, whole; the next process goes on from there.
    """
    here = Path(__file__).parent
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(here), str(here.parent)]))
    reader = LogReader(tmp_path)
    found: list[Record] = []
    for lines in (1, 3, 40, 100):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE, env=environment, text=True
        )
        with child:
            assert child.stdout is not None
            for _ in range(lines):
                acknowledged = int(child.stdout.readline())
                if block := reader.read():
                    found += unpack(block.data)
            child.kill()
        while block := reader.read():
            found += unpack(block.data)
        assert found[-1].sequence >= acknowledged
        check(found, 1, found[-1].sequence)
    assert reader.missing == 0
    reader.close()
    assert writer(tmp_path).incarnation == 5


def test_a_log_is_turned_on_and_off(tmp_path: Path) -> None:
    """What is written while it is on is kept, in one row of numbers; while it is off nothing is."""
    numbered: list[int] = []
    log = writer(tmp_path, 0, incarnation=3, renumbered=lambda: numbered.append(log.incarnation))
    append(log, 5)
    assert not list(tmp_path.iterdir())
    log.change(RETAIN, "requests", 1, 0.0)
    assert numbered == [3]
    append(log, SLOTS + 2)
    log.change(0, "off", 1, 0.0)
    log.look()
    append(log, 5)
    log.change(RETAIN, "requests", 1, 0.0)
    append(log, 2)
    log.close()
    check(records(read_segments(tmp_path)), 1, SLOTS + 4)
    assert numbered == [3]


def test_another_bound_and_level_hold_at_once(tmp_path: Path) -> None:
    """What is beyond the new bound goes when it is set; segments become smaller with it."""
    log = writer(tmp_path, 40 * MIN_SEGMENT)
    append(log, 20 * SLOTS)
    log.change(8 * MIN_SEGMENT, "requests", 1, 0.0)
    assert sum(sizes(tmp_path)) <= 8 * MIN_SEGMENT
    last = log.sequence
    log.change(8 * MIN_SEGMENT, "errors", 1, 0.0)
    log.append(1, 1, 1, 1, 1, 1, 1, 1, 1, 0)
    log.append(1, 1, 1, 1, 1, 1, 1, 1, 1, 5)
    assert log.sequence == last + 1
    log.change(8 * MIN_SEGMENT, "requests", 1, 0.0)
    append(log)
    assert log.sequence == last + 2
