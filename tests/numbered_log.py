"""A log of small segments, with records whose every field follows from their sequence number."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from memcluster.node.log.record import RECORD_SIZE, Record, unpack
from memcluster.node.log.segments import HEADER_SIZE, Block, LogReader
from memcluster.node.log.writer import MIN_SEGMENT, LogWriter

SLOTS = (MIN_SEGMENT - HEADER_SIZE) // RECORD_SIZE
"""Records in a segment of the least size."""
RETAIN = 1 << 20


def writer(directory: Path, retain: int = RETAIN, **more: object) -> LogWriter:
    return LogWriter(directory, 0, retain, segment_size=MIN_SEGMENT, cluster="demo", **more)  # type: ignore[arg-type]


def append(log: LogWriter, count: int = 1) -> None:
    """Records whose every field follows from their sequence number; `check` knows how."""
    for _ in range(count):
        n = log.sequence + 1
        log.append(n, n * 2, n * 3, n * 5, n % 7919, n % 101, 1, n % 8, n % 31, n % 109)


def read_segments(directory: Path, after: int = 0) -> Iterator[Block]:
    """All records after the one with the sequence number `after`, a segment at a time."""
    reader = LogReader(directory, after)
    try:
        while block := reader.read():
            yield block
    finally:
        reader.close()


def records(blocks: Iterable[Block]) -> list[Record]:
    return [record for block in blocks for record in unpack(block.data)]


def check(found: list[Record], first: int, last: int) -> None:
    """All of [first, last] are there, in order and untorn."""
    assert [record.sequence for record in found] == list(range(first, last + 1))
    for r in found:
        n = r.sequence
        assert r == (n, n * 2, n * 3, n * 5, n % 7919, n % 101, 1, n % 8, n % 31, n % 109, n)
