"""What a server finds of its log when it starts, and puts in order: where numbers go on, and what is damaged.

What is no segment of this log, or not any more, is set aside under another name: a log in trouble must not keep its
server from its memory. No number is used twice, whatever is damaged. Of a segment that cannot be read the name still
tells how many there have been; a log has no more incarnations than segments, and a segment no more records than slots.
"""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple

from memcluster.node.files import open_file, rename
from memcluster.node.log.record import RECORD_SIZE
from memcluster.node.log.segments import (
    ASIDE,
    HEADER_SIZE,
    SEGMENT_SIZE,
    SLOTS,
    SLOTS_AT,
    Segment,
    SegmentError,
    SegmentReader,
    list_segments,
    newest_number,
    read_header,
    segment_paths,
)


class Found(NamedTuple):
    """Where a log goes on: the greatest numbers that there have been, or may have been."""

    number: int
    """Of a segment."""
    incarnation: int
    sequence: int
    damaged: int
    """Files set aside, or cut short."""
    empty: Path | None
    """A segment without records, which may go when there is another."""


def take_over(directory: Path, server: int, cluster: bytes) -> Found:
    """Set aside what is no segment of this log, and cut the last one after its last record. Raises OSError."""
    for leftover in directory.glob("*.new"):
        with suppress(OSError):
            leftover.unlink()
    number = newest_number(directory)
    last = None
    damaged = 0
    for path in segment_paths(directory):
        try:
            last = _own_segment(path, server, cluster)
        except SegmentError:
            set_aside(path)
            damaged += 1
    unread = number - (last.number if last is not None else 0)  # the segments after it: it is not known what they held
    unknown = unread * ((SEGMENT_SIZE - HEADER_SIZE) // RECORD_SIZE)
    if last is None:
        return Found(number, unread, unknown, damaged, None)
    with SegmentReader(last) as reader:
        used = reader.committed()
    if last.path.stat().st_size < HEADER_SIZE + last.slots * RECORD_SIZE:
        used = last.slots
        damaged += 1
    else:
        file = open_file(last.path, os.O_RDWR)
        try:
            os.pwrite(file, SLOTS.pack(used), SLOTS_AT)
            os.ftruncate(file, HEADER_SIZE + used * RECORD_SIZE)
        finally:
            os.close(file)
    # A server that starts again and again leaves one empty segment, not a thousand.
    return Found(
        number, last.incarnation + unread, last.first - 1 + used + unknown, damaged, None if used else last.path
    )


def set_aside(path: Path) -> None:
    """Give a file a name by which it is no segment. Raises OSError."""
    names = (path.with_suffix(f"{ASIDE}{number or ''}") for number in count())
    rename(path, next(name for name in names if not name.exists()))


def next_run(folders: list[Path]) -> tuple[int, int, int]:
    """(run, incarnation) with which a cluster that keeps its servers' logs in these folders begins: greater than all
    that there have been, as far as can be seen; and the oldest run of which something is kept."""
    run = incarnation = 0
    runs = set()
    for folder in folders:
        with suppress(OSError):
            for segment in list_segments(folder):
                run, incarnation = max(run, segment.run), max(incarnation, segment.incarnation)
                runs.add(segment.run)
    return run + 1, incarnation + 1, min(runs, default=run + 1)


def _own_segment(path: Path, server: int, cluster: bytes) -> Segment:
    """Raises SegmentError if the file is not one, and OSError."""
    found = read_header(path)
    if (found.cluster, found.server) != (cluster, server):
        whose = f"server {found.server} of cluster {found.cluster.decode(errors='replace')!r}"
        raise SegmentError(path, f"belongs to {whose}")
    return found
