"""The log of one server on disk: files of records, written through a shared map, read by other processes at any time.

A segment is a header and then slots of one record each. Slot i holds the record with the sequence number
`header.first + i`, or nothing yet. The writer's map is shared, so what it wrote outlives it, whatever kills it, and an
append is no system call; the space is reserved before the map is written to, so that a full disk is an OSError when
the next segment is made and never a SIGBUS in the middle of a request. (The death of the machine is another matter:
nothing is synced.)

A segment belongs to one incarnation of its server: a server that starts again cuts its predecessor's last segment
after the last whole record and begins another. Sequence numbers go on from there. They also count the records that
could not be written, so whatever is missing shows as a gap between two segments.

Readers use pread, not a map: a file may be cut short or deleted while they read it. They first look how far the marks
go, then copy what lies before: a copy that ran along with the writer could have an old field and a new mark.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from node.record import MAX_INCARNATION, RECORD, RECORD_SIZE, Event, Kind, Record, clamp, first_identifier

MAGIC = b"memclog\0"
VERSION = 1
HEADER = Struct("<8sHHIQQ96s")  # MAGIC, VERSION, server, incarnation, first, created, cluster's name
HEADER_SIZE = HEADER.size
SUFFIX = ".seg"

SEGMENT_SIZE = 4 << 20
MIN_SEGMENT = 4096
SEGMENTS_KEPT = 4
"""`retain` has room for this many segments at least: they are made smaller if need be."""
RETRY = 4096
"""Records lost between two attempts to write again."""
YOUNG = 8
"""With a `retain_age` a segment is closed after this part of it, so that it can go when its time has come."""

SEQUENCE = Struct("<Q")
SEQUENCE_AT = RECORD_SIZE - SEQUENCE.size


class SegmentError(Exception):
    """A file in the log's directory is not a segment of this server's log."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path} {self.reason}; move it away, or name another directory for the logs"


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment's file and what its header says; `created` and all times are ns since 1970."""

    path: Path
    server: int
    incarnation: int
    first: int
    """The sequence number of the record in the first slot."""
    created: int
    cluster: bytes

    @property
    def number(self) -> int:
        return int(self.path.stem)


def segment_paths(directory: Path) -> list[Path]:
    """The segments' files, oldest first; none if there is no such directory."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    stems = [name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX)]
    return [directory / f"{stem}{SUFFIX}" for stem in sorted((s for s in stems if s.isdigit()), key=int)]


def list_segments(directory: Path, after: int = 0) -> list[Segment]:
    """The segments whose number is greater than `after`, oldest first. Raises SegmentError and OSError."""
    segments = []
    for path in segment_paths(directory):
        if int(path.stem) > after:
            try:
                segments.append(read_header(path))
            except FileNotFoundError:
                pass  # dropped since it was listed
    return segments


def last_sequence(directory: Path) -> int:
    """The sequence number of the last record there is; 0 if there is none. Raises SegmentError and OSError."""
    paths = segment_paths(directory)
    if not paths:
        return 0
    with SegmentReader(read_header(paths[-1])) as reader:
        return reader.segment.first + reader.committed() - 1


def read_header(path: Path) -> Segment:
    """Raises SegmentError if the file is not a segment, and OSError."""
    with open(path, "rb", buffering=0) as file:
        data = file.read(HEADER_SIZE)
    if len(data) < HEADER_SIZE or not data.startswith(MAGIC):
        raise SegmentError(path, "is not a segment of a memcluster log")
    _, version, server, incarnation, first, created, cluster = HEADER.unpack(data)
    if version != VERSION:
        raise SegmentError(path, f"has version {version} of the log's format, and this program reads {VERSION}")
    return Segment(path, server, incarnation, first, created, cluster.rstrip(b"\0"))


# -- writing -----------------------------------------------------------------------------------------------------


class LogWriter:
    """Appends records; one process writes to a directory at a time.

    `sequence` is the number of the last record, `lost` how many of them could not be written: when the disk is full
    the log stops, the service does not, and every RETRY records the log tries again. With a `retain` of 0 there is no
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

    @property
    def first_identifier(self) -> int:
        """The identifier of the first request of this incarnation; each request takes the next number."""
        return first_identifier(self.server, self.incarnation)

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
            return
        if self.lost > self._lost_before:  # there is room again
            self._lost_before = self.lost
            stopped = Record(
                self._clock(), 0, 0, self.lost, self.server, 0, Kind.EVENT, Event.LOG_STOPPED, 0, 0, self.sequence
            )
            RECORD.pack_into(self._slots, self._position, *stopped)
            self._position += RECORD_SIZE
            self.sequence += 1
            record = record._replace(sequence=self.sequence)
        RECORD.pack_into(self._slots, self._position, *clamp(record))
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
        self._rotate()
        if last is not None and not used and self.error is None:
            last.path.unlink()  # a server that starts again and again leaves one empty segment, not a thousand

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


# -- reading -----------------------------------------------------------------------------------------------------


class Block(NamedTuple):
    """Records that follow one another: `data` holds their slots, `first` is the first one's sequence number.

    `missing` records should have come before them and are not there: dropped, or never written.
    """

    missing: int
    first: int
    data: bytes

    @property
    def last(self) -> int:
        """The last record's sequence number."""
        return self.first + len(self.data) // RECORD_SIZE - 1


class SegmentReader:
    """The slots of one segment; they are numbered from 0."""

    def __init__(self, segment: Segment) -> None:
        """Raises OSError, FileNotFoundError if the segment was dropped."""
        self.segment = segment
        self._descriptor = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> SegmentReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._descriptor)

    def committed(self, known: int = 0) -> int:
        """How many slots hold their record, when `known` of them are known to; slots are filled one after another."""
        low, step = known, 1
        while self._is_whole(low + step - 1):  # further and further ...
            low += step
            step *= 2
        while step > 1:  # ... and back in halves: `low` slots are whole, not all `low + step` are
            step //= 2
            if self._is_whole(low + step - 1):
                low += step
        return low

    def read(self, start: int, stop: int) -> bytes:
        """The slots [start, stop), which must have been committed."""
        return os.pread(self._descriptor, (stop - start) * RECORD_SIZE, HEADER_SIZE + start * RECORD_SIZE)

    def _is_whole(self, slot: int) -> bool:
        mark = os.pread(self._descriptor, SEQUENCE.size, HEADER_SIZE + slot * RECORD_SIZE + SEQUENCE_AT)
        return mark == SEQUENCE.pack(self.segment.first + slot)


class LogReader:
    """Reads a server's log from one end to the other, again and again as it grows.

    `after` is the sequence number of the last record that was read (or passed over), `missing` counts the records
    that should have been there. With `since`, segments that hold only records that ended before it are passed over.
    """

    def __init__(self, directory: str | Path, after: int = 0, since: int | None = None) -> None:
        self.directory = Path(directory)
        self.after = after
        self.missing = 0
        self._since = since
        self._reader: SegmentReader | None = None
        self._slot = 0
        self._number = 0

    def __repr__(self) -> str:
        return f"<LogReader {self.directory} after {self.after}, {self.missing} missing>"

    def read(self, limit: int = SEGMENT_SIZE // RECORD_SIZE) -> Block | None:
        """The next records, at most `limit` and of one segment; None if there are none yet.

        Raises SegmentError and OSError.
        """
        while True:
            if self._reader is not None and (block := self._read_on(limit)):
                return block
            following = self._following()
            if following is None:
                return None
            # The writer may have filled the segment at hand just before it began the next one.
            if self._reader is not None and (block := self._read_on(limit)):
                return block
            self._turn_to(*following)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _read_on(self, limit: int) -> Block | None:
        assert self._reader is not None
        committed = self._reader.committed(self._slot)
        if committed == self._slot:
            return None
        stop = min(committed, self._slot + limit)
        first = self._reader.segment.first + self._slot
        data = self._reader.read(self._slot, stop)
        self._slot = stop
        missing, self.after = first - self.after - 1, first + len(data) // RECORD_SIZE - 1
        self.missing += missing
        return Block(missing, first, data)

    def _following(self) -> tuple[Segment, int] | None:
        """The segment to read next, if there is one, and the last sequence number before what is wanted of it."""
        segments = list_segments(self.directory, after=self._number)
        after = self.after
        for segment, neighbour in zip_longest(segments, segments[1:]):
            if neighbour is None:
                return segment, after
            if neighbour.first > after + 1:
                if not self._is_before_since(segment, neighbour):
                    return segment, after
                after = neighbour.first - 1
        return None

    def _is_before_since(self, segment: Segment, neighbour: Segment) -> bool:
        """Records are written when they end; only within an incarnation is the clock known not to go back."""
        return (
            self._since is not None and neighbour.incarnation == segment.incarnation and neighbour.created < self._since
        )

    def _turn_to(self, segment: Segment, after: int) -> None:
        self.close()
        self._number = segment.number
        self.after = after
        try:
            self._reader = SegmentReader(segment)
        except FileNotFoundError:
            return  # dropped meanwhile; its records will be counted as missing
        self._slot = max(0, after + 1 - segment.first)


def read_segments(directory: str | Path, after: int = 0, since: int | None = None) -> Iterator[Block]:
    """All records after the one with the sequence number `after`, a segment at a time."""
    reader = LogReader(directory, after, since)
    try:
        while block := reader.read():
            yield block
    finally:
        reader.close()
