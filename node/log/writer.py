"""Writes the log of one server: appends records to segments (node/log/segments.py) through a shared map.

The writer's map is shared, so what it wrote outlives it, whatever kills it, and an append is no system call; the space
is reserved before the map is written to, so that a full disk is an OSError when the next segment is made and never a
SIGBUS in the middle of a request. (The death of the machine is another matter: nothing is synced.)

A segment belongs to one incarnation of its server: a server that starts again cuts its predecessor's last segment
after the last whole record and begins another. Sequence numbers go on from there. They also count the records that
could not be written, so whatever is missing shows as a gap between two segments. While the log is stopped the last
number given out stands in a file of a few bytes, for the next incarnation, should a kill -9 come first.
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

from memcluster.node.log.record import MAX_INCARNATION, RECORD, RECORD_SIZE, Event, Kind, Record, clamp
from memcluster.node.log.segments import (
    HEADER,
    HEADER_SIZE,
    MAGIC,
    SEGMENT_SIZE,
    SEQUENCE,
    SUFFIX,
    VERSION,
    SegmentError,
    SegmentReader,
    list_segments,
    segment_paths,
)

MIN_SEGMENT = 4096
SEGMENTS_KEPT = 4
"""`retain` has room for this many segments at least: they are made smaller if need be."""
GIVEN = "given"
"""The file that holds the last sequence number given out while the log was stopped."""
RETRY = 4096
"""Records lost between two attempts to write again."""
YOUNG = 8
"""With a `retain_age` a segment is closed after this part of it, so that it can go when its time has come."""


class LogWriter:
    """Appends records; one process writes to a directory at a time.

    `sequence` is the number of the last record, `lost` how many of them could not be written (by incarnations before,
    too, if they could not write that down): when the disk is full the log stops, the service does not, and every RETRY
    records the log tries again. With a `retain` of 0 there is no
    log: nothing is written and nothing counted. `clock` (ns since 1970) must be the one the records' times come from.

    `level` "errors" keeps what failed, and `sample` N the stories of one request in N: what is left out is not counted
    either, so it is no gap. Events are always kept. With a `retain_age` (seconds) `expire` is to be called regularly.
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
    ) -> None:
        """Raises SegmentError if the directory holds another log, and OSError if it cannot be used at all."""
        self.directory = Path(directory)
        self.server = server
        self.retain = retain
        self.segment_size = max(MIN_SEGMENT, min(segment_size, retain // SEGMENTS_KEPT)) // RECORD_SIZE * RECORD_SIZE
        self.cluster = cluster
        self.sequence = 0
        self.lost = 0
        self.incarnation = 0
        self.error: OSError | None = None
        """Why the log stopped, while it is stopped."""
        self.sample = sample
        self.retain_age = retain_age
        self._clock = clock
        self._created = 0
        self._lost_before = 0
        self._pack = RECORD.pack_into
        self._number = 0
        self._descriptor = -1
        self._given = -1
        self._map: mmap.mmap | None = None
        self._slots = memoryview(bytearray())  # of the map; empty while the log is stopped
        self._position = 0
        if not retain:
            self.append = _no_append  # type: ignore[method-assign, assignment]
            return
        self._open()
        if level == "errors":
            self.append = self._append_error  # type: ignore[method-assign, assignment]
        elif sample > 1:
            self.append = self._append_sample  # type: ignore[method-assign, assignment]

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
        """Write a record. (The hot path: 0.4 µs, and an end of segment costs only those who meet it.)"""
        sequence = self.sequence + 1
        position = self._position
        try:
            self._pack(
                self._slots, position, start, duration, identifier, offset, length,
                client, kind, operation, flags, error, sequence,
            )  # fmt: skip
        except struct.error:
            self._append_slowly(
                Record(start, duration, identifier, offset, length, client, kind, operation, flags, error, sequence)
            )
        else:
            self.sequence = sequence
            self._position = position + RECORD_SIZE

    def event(self, event: Event, subject: int, *, client: int = 0, value: int = 0, start: int | None = None) -> None:
        """Write what happened to a node or a client, now or at `start`."""
        if self.retain:
            start = self._clock() if start is None else start
            value &= (1 << 64) - 1
            LogWriter.append(self, start, 0, 0, value, subject, client, Kind.EVENT, event, 0, 0)

    def expire(self) -> None:
        """Drop the segments whose last record is older than `retain_age`."""
        if not (self.retain and self.retain_age):
            return
        age = int(self.retain_age * 1e9)
        now = self._clock()
        if self._map is not None and self._position > HEADER_SIZE and now - self._created > age // YOUNG:
            self._rotate()
        try:
            segments = list_segments(self.directory)
            for segment, neighbour in pairwise(segments):
                if neighbour.created < now - age:  # which is when its last record was written
                    segment.path.unlink(missing_ok=True)
        except (OSError, SegmentError):
            pass  # the next time perhaps

    def close(self) -> None:
        """Give back the space that was reserved and not used."""
        self._let_go()
        if self._given >= 0:
            os.close(self._given)
            self._given = -1

    def _append_error(self, *fields: int) -> None:
        if fields[9]:
            LogWriter.append(self, *fields)

    def _append_sample(self, *fields: int) -> None:
        if is_sampled(fields[2], self.sample):
            LogWriter.append(self, *fields)

    # -- segments --------------------------------------------------------------------------------------------------

    def _append_slowly(self, record: Record) -> None:
        """The record did not fit: the segment is full, the log stopped, or a number is out of its field's bounds."""
        full = self._position + RECORD_SIZE > len(self._slots)
        if full and (self.error is None or self.lost % RETRY == 0):
            self._rotate()
        self.sequence = record.sequence
        if self.error:
            self.lost += 1
            with suppress(OSError):  # there was no room for it from the start
                os.pwrite(self._given, SEQUENCE.pack(self.sequence), 0)
            return
        if self.lost > self._lost_before:  # there is room again
            self._tell_lost()
            self.sequence += 1
            record = record._replace(sequence=self.sequence)
        RECORD.pack_into(self._slots, self._position, *clamp(record))
        self._position += RECORD_SIZE

    def _tell_lost(self) -> None:
        """Write down, as record `sequence`, how many were lost."""
        self._lost_before = self.lost
        stopped = Record(
            self._clock(), 0, 0, self.lost, self.server, 0, Kind.EVENT, Event.LOG_STOPPED, 0, 0, self.sequence
        )
        RECORD.pack_into(self._slots, self._position, *stopped)
        self._position += RECORD_SIZE

    def _open(self) -> None:
        """Go on where the last incarnation stopped."""
        self.directory.mkdir(parents=True, exist_ok=True)
        name = self._cluster_name()
        last = None
        for last in list_segments(self.directory):
            if (last.cluster, last.server) != (name, self.server):
                whose = f"server {last.server} of cluster {last.cluster.decode(errors='replace')!r}"
                raise SegmentError(last.path, f"belongs to {whose}, not to server {self.server} of {self.cluster!r}")
        for leftover in self.directory.glob("*.new"):
            leftover.unlink()
        self.incarnation = 1
        used = 0
        if last is not None:
            with SegmentReader(last) as reader:
                used = reader.committed()
            os.truncate(last.path, HEADER_SIZE + used * RECORD_SIZE)
            self._number = last.number
            self.incarnation = (last.incarnation + 1) & MAX_INCARNATION
            self.sequence = last.first + used - 1
        self._open_given()
        self._rotate()
        if last is not None and not used and self.error is None:
            last.path.unlink()  # a server that starts again and again leaves one empty segment, not a thousand
        if self.lost and self.error is None:
            self.sequence += 1
            self._tell_lost()

    def _open_given(self) -> None:
        """See what was lost and not written down, and reserve the room to say so should the log stop."""
        with suppress(OSError):  # no room even for that: then the count lives as long as the process
            self._given = os.open(self.directory / GIVEN, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            os.posix_fallocate(self._given, 0, SEQUENCE.size)
            (given,) = SEQUENCE.unpack(os.pread(self._given, SEQUENCE.size, 0))
            self.lost = max(0, given - self.sequence)
            self.sequence += self.lost

    def _rotate(self) -> None:
        """Begin the next segment; if that cannot be, the log stops."""
        self._let_go()
        path = self.directory / f"{self._number + 1:06d}{SUFFIX}"
        new = path.with_suffix(".new")  # a segment has its name only when it has its header
        created = self._clock()
        try:
            self._drop_oldest()
            descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            try:
                os.posix_fallocate(descriptor, 0, self.segment_size)
                mapped = mmap.mmap(descriptor, self.segment_size)
                HEADER.pack_into(
                    mapped, 0, MAGIC, VERSION, self.server, self.incarnation, self.sequence + 1, created,
                    self._cluster_name(),
                )  # fmt: skip
                os.rename(new, path)
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

    def _let_go(self) -> None:
        """Close the segment at hand, cut after its last record."""
        if self._map is None:
            return
        self._slots.release()
        self._slots = memoryview(bytearray())
        self._map.close()
        self._map = None
        if self._position < self.segment_size:
            os.ftruncate(self._descriptor, self._position)
        os.close(self._descriptor)
        self._position = 0

    def _drop_oldest(self) -> None:
        """Make room for one more segment within `retain`."""
        paths = segment_paths(self.directory)
        sizes = [path.stat().st_size for path in paths]
        excess = sum(sizes) + self.segment_size - self.retain
        for path, size in zip(paths, sizes, strict=True):
            if excess <= 0:
                return
            path.unlink()
            excess -= size

    def _cluster_name(self) -> bytes:
        return self.cluster.encode()[:96]


def _no_append(*_: int) -> None:
    """The log is off."""


def is_sampled(identifier: int, sample: int) -> bool:
    """Whether a story is among the one in `sample` that is kept: the same answer on every server, and no pattern in
    the numbers of requests."""
    return (identifier * 0x9E3779B97F4A7C15 >> 32 & 0xFFFFFFFF) % sample == 0
