"""Writes the log of one server: appends records to segments (node/log/segments.py) through a shared map.

The writer's map is shared, so what it wrote outlives it, whatever kills it, and an append is no system call; the space
is reserved before the map is written to, so that a full disk is an OSError when the next segment is made and never a
SIGBUS in the middle of a request. (The death of the machine is another matter: nothing is synced.)

A segment belongs to one incarnation of its server: a server that starts again cuts its predecessor's last segment
after the last whole record and begins another. Sequence numbers go on from there. They also count the records that
could not be written, so whatever is missing shows as a gap between two segments. While the log is stopped the last
number given out stands in a file of a few bytes, for the next incarnation, should a kill -9 come first.

A log in trouble stops the log and not the service. What is no segment of it, or was damaged, is set aside under another
name, and the log goes on. No number is used twice, whatever is damaged: of a segment that cannot be read the name still
tells how many there have been, and a log has no more incarnations than segments.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from struct import Struct
from typing import Final

from memcluster.node.files import make_folder, open_file, rename
from memcluster.node.log.record import MAX_INCARNATION, RECORD, RECORD_SIZE, Event, Kind, Record, clamp
from memcluster.node.log.segments import (
    HEADER,
    HEADER_SIZE,
    MAGIC,
    SEGMENT_SIZE,
    SLOTS,
    SLOTS_AT,
    SUFFIX,
    VERSION,
    list_segments,
    segment_paths,
)
from memcluster.node.log.takeover import set_aside, take_over

MIN_SEGMENT: Final = 4096
SEGMENTS_KEPT: Final = 4
"""`retain` has room for this many segments at least: they are made smaller if need be."""
GIVEN: Final = "given"
"""The file that holds what was given out while the log was stopped: the last sequence number, and the incarnation."""
_GIVEN: Final = Struct("<QQ")
_pack_record: Final = RECORD.pack_into
GAP: Final = 1 << 48
"""More than can have been lost: a `given` beyond was never written here."""
RETRY: Final = 4096
"""Records lost between two attempts to write again."""
YOUNG: Final = 8
"""With a `retain_age` a segment is closed after this part of it, so that it can go when its time has come."""


class LogWriter:
    """Appends records; one process writes to a directory at a time.

    `sequence` is the number of the last record, `lost` how many of them could not be written (by incarnations before,
    too, if they could not write that down): when the disk is full the log stops, the service does not, and every RETRY
    records, and at every `look`, the log tries again. With a `retain` of 0 there is no log: nothing is written or
    counted. `clock` (ns since 1970) must be the one the records' times come from. `run` is the cluster's.

    `level` "errors" keeps what failed, and `sample` N the stories of one request in N: what is left out is not counted
    either, so it is no gap. Events are always kept. Records are kept for `retain_age` seconds (0: as long as there is
    room); `look` is to be called now and then.
    """

    def __init__(
        self,
        directory: str | Path,
        server: int,
        retain: int,
        segment_size: int = SEGMENT_SIZE,
        cluster: str = "",
        clock: Callable[[], int] = time.time_ns,
        level: str = "requests",
        sample: int = 1,
        retain_age: float = 0.0,
        run: int = 1,
        incarnation: int = 1,
        renumbered: Callable[[], object] = lambda: None,
        allocate: Callable[[int, int, int], None] = os.posix_fallocate,
    ) -> None:
        """`incarnation` is the least that this process may be; `renumbered` is called when it has become another;
        `allocate(file, offset, length)` makes room. What the directory holds can stop the log, but not its server."""
        self.directory = Path(directory)
        self.server = server
        self.retain = retain
        self._largest = segment_size
        self.segment_size = self._fitting(retain)
        self.cluster = cluster
        self.sequence = 0
        self.lost = 0
        self.incarnation = incarnation if retain else 0
        self._first_incarnation = incarnation
        self.run = run
        self.error: OSError | None = None
        """Why the log stopped, while it is stopped."""
        self.sample = sample
        self.retain_age = retain_age
        self._clock = clock
        self._allocate = allocate
        self._renumbered: Callable[[], object] = lambda: None
        self._taken_over = False
        self._empty: Path | None = None  # a segment that may go once there is another
        self._damaged = 0  # files, not told yet
        self._created = 0
        self._lost_before = 0
        self._number = 0
        self._descriptor = -1
        self._given = -1
        self._map: mmap.mmap | None = None
        self._slots = memoryview(bytearray())  # of the map; empty while the log is stopped
        self._position = 0
        self._choose(level)
        if retain:
            self._rotate()
        self._renumbered = renumbered

    def __repr__(self) -> str:
        state = "off" if not self.retain else f"stopped: {self.error}" if self.error else "writing"
        return f"<LogWriter {self.directory} {state}, record {self.sequence}, {self.lost} lost>"

    def append(
        self,
        start: int,
        duration: int,
        identifier: int,
        offset: int,
        length: int,
        client: int,
        kind: int,
        operation: int,
        flags: int,
        error: int,
    ) -> None:
        """Write a record, if it is one of those that are kept. (The hot path: 0.4 µs, and an end of segment costs only
        those who meet it.)"""
        if self._choosy and not self._keeps(identifier, error):
            return
        sequence = self.sequence + 1
        position = self._position
        try:
            _pack_record(
                self._slots, position, start, duration, identifier, offset, length,
                client, kind, operation, flags, error, sequence,
            )  # fmt: skip
        except struct.error:
            self._append_record(
                Record(start, duration, identifier, offset, length, client, kind, operation, flags, error, sequence)
            )
        else:
            self.sequence = sequence
            self._position = position + RECORD_SIZE

    def event(self, event: Event, subject: int, *, client: int = 0, value: int = 0, start: int | None = None) -> None:
        """Write what happened to a node or a client, now or at `start`; one that is yet to come is another clock's."""
        if self.retain:
            now = self._clock()
            start = now if start is None else min(start, now)
            value &= (1 << 64) - 1
            self._append_record(Record(start, 0, 0, value, subject, client, Kind.EVENT, event, 0, 0, 0))

    def change(self, retain: int, level: str, sample: int, retain_age: float) -> None:
        """Go on with other settings, from now on. A log that was off begins; one that is turned off keeps what it has.
        """
        self.sample, self.retain_age = sample, retain_age
        was, self.retain = self.retain, retain
        if not retain:
            self._let_go()
            self.error = None
        elif not was and not self._taken_over:
            self.incarnation, self.segment_size = self._first_incarnation, self._fitting(retain)
            self._rotate()
            self._renumbered()
        elif retain != was:
            self._let_go()  # which has to know how large it was
            self.segment_size = self._fitting(retain)
            self._rotate()
        self._choose(level)

    def _fitting(self, retain: int) -> int:
        """Bytes of a segment of which there are some in `retain`."""
        return max(MIN_SEGMENT, min(self._largest, retain // SEGMENTS_KEPT)) // RECORD_SIZE * RECORD_SIZE

    def _choose(self, level: str) -> None:
        """What is kept of what is appended."""
        self._errors_only = level == "errors"
        self._choosy = not self.retain or self._errors_only or self.sample > 1  # not every record is kept

    def look(self) -> None:
        """See to the files, now and then: that the segment at hand is there and whole, as people delete and cut files,
        and that none is older than `retain_age`."""
        if self._map is not None:
            found = os.fstat(self._descriptor)
            if not found.st_nlink or found.st_size < self.segment_size:
                self._leave_segment(found.st_size if found.st_nlink else -1)
        elif self.error is not None:
            self._rotate()
        if self.retain_age:
            self._expire()

    def begin_incarnation(self) -> None:
        """The identifiers of this one are used up: become the next, which stands in the log before it is used."""
        if self.retain:  # else there is nothing that knows the old ones
            self.incarnation += 1
            if self.incarnation > MAX_INCARNATION:
                self._begin_anew()
            self._rotate()
        self._renumbered()

    def _expire(self) -> None:
        """Drop the segments whose last record is too old."""
        age = int(self.retain_age * 1e9)
        now = self._clock()
        if self._map is not None and self._position > HEADER_SIZE and now - self._created > age // YOUNG:
            self._rotate()
        with suppress(OSError):  # the next time perhaps
            for segment, neighbour in pairwise(list_segments(self.directory)):
                if neighbour.created < now - age:  # which is when its last record was written
                    segment.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Give back the space that was reserved and not used."""
        self._let_go()
        if self._given >= 0:
            os.close(self._given)
            self._given = -1

    def _keeps(self, identifier: int, error: int) -> bool:
        if not self.retain:
            return False
        return error != 0 if self._errors_only else is_sampled(identifier, self.sample)

    def _append_record(self, record: Record) -> None:
        """Write a record, however the log stands: the segment may be full, the log stopped, or a number out of its
        field's bounds."""
        full = self._position + RECORD_SIZE > len(self._slots)
        if full and (self.error is None or self.lost % RETRY == 0):
            self._rotate()
        if self.error:
            self.sequence += 1
            self.lost += 1
            with suppress(OSError):  # there was no room for it from the start
                os.pwrite(self._given, _GIVEN.pack(self.sequence, self.incarnation), 0)
            return
        self._put(record)

    def _put(self, record: Record) -> None:
        """Write a record, whatever is in it, into a segment that has room for it."""
        self.sequence += 1
        RECORD.pack_into(self._slots, self._position, *clamp(record._replace(sequence=self.sequence)))
        self._position += RECORD_SIZE

    def _tell_trouble(self) -> None:
        """Write down how many records were lost, and how many files were set aside."""
        told = []
        if self.lost > self._lost_before:
            told.append((Event.LOG_STOPPED, self.lost))
        if self._damaged:
            told.append((Event.LOG_DAMAGED, self._damaged))
        self._lost_before, self._damaged = self.lost, 0
        for event, value in told:
            self._put(Record(self._clock(), 0, 0, value, self.server, 0, Kind.EVENT, event, 0, 0, 0))

    def _take_over(self) -> None:
        """Go on where the last incarnation stopped. Raises OSError."""
        found = take_over(self.directory, self.server, self._cluster_name())
        least = self.incarnation
        self._number = found.number
        self._empty = found.empty
        self._damaged += found.damaged
        self.incarnation = max(found.incarnation + 1, least)
        self.sequence += found.sequence
        self._open_given()
        if self.incarnation > MAX_INCARNATION:
            self._begin_anew()
        self._taken_over = True
        if self.incarnation != least:
            self._renumbered()

    def _begin_anew(self) -> None:
        """Set the whole log aside: there are no more numbers for its incarnations."""
        self.incarnation = 1
        with suppress(OSError):
            for path in segment_paths(self.directory):
                set_aside(path)
                self._damaged += 1

    def _open_given(self) -> None:
        """See what was lost and not written down, and reserve the room to say so should the log stop."""
        with suppress(OSError):  # no room even for that: then the count lives as long as the process
            self._given = open_file(self.directory / GIVEN, os.O_RDWR | os.O_CREAT)
            told = os.pread(self._given, _GIVEN.size, 0).ljust(_GIVEN.size, b"\0")
            given, incarnation = _GIVEN.unpack(told)
            lost = given - (self.sequence - self.lost)
            if lost >= GAP or incarnation > MAX_INCARNATION:
                self._damaged += 1
            elif lost > 0:
                self.lost += lost
                self.sequence += lost
                self.incarnation = max(self.incarnation, min(incarnation, MAX_INCARNATION) + 1)
            self._allocate(self._given, 0, _GIVEN.size)  # last: who dies while the disk is full is told of all the same

    # -- segments --------------------------------------------------------------------------------------------------

    def _rotate(self) -> None:
        """Begin the next segment; if that cannot be, the log stops."""
        self._let_go()
        created = self._clock()
        try:
            make_folder(self.directory)
            if not self._taken_over:
                self._take_over()
            path = self.directory / f"{self._number + 1:06d}{SUFFIX}"
            new = path.with_suffix(".new")  # a segment has its name only when it has its header
            self._drop_oldest()
            descriptor = open_file(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            try:
                self._allocate(descriptor, 0, self.segment_size)
                mapped = mmap.mmap(descriptor, self.segment_size)
                HEADER.pack_into(
                    mapped, 0, MAGIC, VERSION, self.server, self.incarnation, self.sequence + 1, created, self.run,
                    (self.segment_size - HEADER_SIZE) // RECORD_SIZE, self._cluster_name(),
                )  # fmt: skip
                rename(new, path)
            except BaseException:
                os.close(descriptor)
                new.unlink(missing_ok=True)
                raise
        except OSError as error:
            self.error = error
            return
        self.error = None
        self._created = created
        self._number += 1
        self._descriptor = descriptor
        self._map = mapped
        self._slots = memoryview(mapped)
        self._position = HEADER_SIZE
        if self._empty is not None:
            with suppress(OSError):
                self._empty.unlink()
            self._empty = None
        self._tell_trouble()

    def _let_go(self) -> None:
        """Close the segment at hand, cut after its last record."""
        if self._map is None:
            return
        used = self._position
        if used < self.segment_size:
            SLOTS.pack_into(self._slots, SLOTS_AT, (used - HEADER_SIZE) // RECORD_SIZE)
            os.ftruncate(self._descriptor, used)
        self._unmap()

    def _leave_segment(self, size: int) -> None:
        """The segment at hand was cut to this size, or deleted (-1). What was in it is gone; to write on there would be
        the end of this process (SIGBUS)."""
        self._unmap()
        if 0 <= size < HEADER_SIZE:
            with suppress(OSError):
                set_aside(self.directory / f"{self._number:06d}{SUFFIX}")
        self._damaged += 1
        self._rotate()

    def _unmap(self) -> None:
        self._slots.release()
        self._slots = memoryview(bytearray())
        assert self._map is not None
        self._map.close()
        self._map = None
        self._position = 0
        os.close(self._descriptor)

    def _drop_oldest(self) -> None:
        """Make room for one more segment within `retain`."""
        sizes = {}
        for path in segment_paths(self.directory):
            with suppress(FileNotFoundError):
                sizes[path] = path.stat().st_size
        excess = sum(sizes.values()) + self.segment_size - self.retain
        for path, size in sizes.items():
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size

    def _cluster_name(self) -> bytes:
        return self.cluster.encode()[:96]


def is_sampled(identifier: int, sample: int) -> bool:
    """Whether a story is among the one in `sample` that is kept: the same answer on every server, and no pattern in
    the numbers of requests."""
    return (identifier * 0x9E3779B97F4A7C15 >> 32 & 0xFFFFFFFF) % sample == 0
