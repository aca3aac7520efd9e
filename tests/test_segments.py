"""The log's files as a reader finds them: each record once, whenever it looks, and what is missing is counted."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_log import SLOTS, append, check, read_segments, records, writer

from memcluster.node.log.record import Record, unpack
from memcluster.node.log.segments import LogReader
from memcluster.node.log.writer import MIN_SEGMENT


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.integers(1, 2 * SLOTS + 3).map(lambda n: ("append", n)),
            st.just(("restart", 0)),
            st.integers(1, 100).map(lambda n: ("read", n)),
        ),
        max_size=30,
    )
)
def test_a_reader_that_follows_sees_each_record_once(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[str, int]]
) -> None:
    """However appends, restarts and reads of any size alternate."""
    directory = tmp_path_factory.mktemp("log")
    log = writer(directory)
    reader = LogReader(directory)
    found: list[Record] = []
    for step, count in history:
        if step == "append":
            append(log, count)
        elif step == "restart":
            log = writer(directory)
        elif block := reader.read(count):
            assert block.last == reader.after
            found += unpack(block.data)
    while block := reader.read():
        found += unpack(block.data)
    check(found, 1, log.sequence)
    assert reader.missing == 0
    reader.close()
    log.close()


@pytest.mark.parametrize("after", [0, 1, SLOTS - 1, SLOTS, SLOTS + 1, 3 * SLOTS, 3 * SLOTS + 1, 3 * SLOTS + 7])
def test_reading_goes_on_anywhere(tmp_path: Path, after: int) -> None:
    append(writer(tmp_path), 3 * SLOTS + 7)
    check(records(read_segments(tmp_path, after)), after + 1, 3 * SLOTS + 7)


def test_what_retention_takes_from_a_reader_is_counted(tmp_path: Path) -> None:
    log = writer(tmp_path, 4 * MIN_SEGMENT)
    reader = LogReader(tmp_path)
    append(log, SLOTS // 2)
    found = records(iter([reader.read() or pytest.fail("nothing to read")]))
    append(log, 10 * SLOTS)
    while block := reader.read():
        found += unpack(block.data)
    assert reader.missing > 0
    assert len(found) + reader.missing == log.sequence
    assert found[-1].sequence == log.sequence
    reader.close()


def test_a_reader_that_is_to_go_on_after_what_there_never_was(tmp_path: Path) -> None:
    """A stranger's question may name any number."""
    log = writer(tmp_path)
    append(log, 3)
    reader = LogReader(tmp_path, after=1 << 62)
    assert reader.read() is None
    append(log, 2)
    block = reader.read()
    assert block is not None
    assert (block.first, block.missing, reader.after) == (4, 0, 5)
    log.close()
    reader.close()
