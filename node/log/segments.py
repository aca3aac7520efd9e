"""The log of one server on disk: files of records, read by other processes at any time; node/log/writer.py writes them.

A segment is a header and then slots of one record each. Slot i holds the record with the sequence number
`header.first + i`, or nothing yet. Where the next segment begins with a greater number than would follow, records are
missing: dropped, or never written.

Readers use pread, not a map: a file may be cut short or deleted while they read it. They first look how far the marks
go, then copy what lies before: a copy that ran along with the writer could have an old field and a new mark.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from memcluster.node.log.record import MAX_INCARNATION, MAX_SERVERS, RECORD_SIZE

MAGIC = b"memclog\0"
VERSION = 2
HEADER = Struct("<8sHHIQQII88s")  # MAGIC, VERSION, server, incarnation, first, created, run, slots, cluster's name
SLOTS = Struct("<I")
SLOTS_AT = 36
HEADER_SIZE = HEADER.size
SUFFIX = ".seg"

SEGMENT_SIZE = 4 << 20
MAX_SEQUENCE = 1 << 63
"""More than any log comes to: what is beyond was never written by a server."""
MAX_TIME = 1 << 63
ASIDE = ".damaged"
"""What a file that was set aside is called, in the place of SUFFIX."""
_NAME = re.compile(r"[0-9]{1,18}\.seg")
_ANY_NAME = re.compile(r"([0-9]{1,18})\.(?:seg|damaged[0-9]*)")

SEQUENCE = Struct("<Q")
SEQUENCE_AT = RECORD_SIZE - SEQUENCE.size

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # it may be a link, or a fifo


class SegmentError(Exception):
    """A file in the log's directory is not a segment of this server's log."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment's file and what its header says; `created` and all times are ns since 1970."""

    path: Path
    server: int
    incarnation: int
    first: int
    """The sequence number of the record in the first slot."""
    created: int
    run: int
    """The run of the cluster: one more each time it is started."""
    slots: int
    """How many it has room for, while it is written; then how many it holds. There are less if the file was cut."""
    cluster: bytes

    @property
    def number(self) -> int:
        return _number(self.path.name)


def segment_paths(directory: Path) -> list[Path]:
    """The segments' files, oldest first; none if there is no such directory."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return [directory / name for name in sorted(filter(_NAME.fullmatch, names), key=_number)]


def _number(name: str) -> int:
    return int(name.removesuffix(SUFFIX))


def newest_number(directory: Path) -> int:
    """The greatest number that a segment had, were it set aside since. Raises OSError."""
    return max((int(found[1]) for name in os.listdir(directory) if (found := _ANY_NAME.fullmatch(name))), default=0)


def list_segments(directory: Path, after: int = 0) -> list[Segment]:
    """The segments whose number is greater than `after`, oldest first, without those that are damaged. Raises
    OSError."""
    segments = []
    for path in segment_paths(directory):
        if _number(path.name) > after:
            with suppress(OSError, SegmentError):  # dropped since, or damaged: its records are counted as missing
                segments.append(read_header(path))
    return segments


def last_sequence(directory: Path) -> int:
    """The sequence number of the last record there is; 0 if there is none. Raises OSError."""
    segments = list_segments(directory)
    if not segments:
        return 0
    with SegmentReader(segments[-1]) as reader:
        return reader.segment.first + reader.committed() - 1


def read_header(path: Path) -> Segment:
    """Raises SegmentError if the file is not a segment, and OSError."""
    try:
        descriptor = os.open(path, _READ)
    except FileNotFoundError:
        raise SegmentError(path, "is not there") from None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise SegmentError(path, "is a link") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise SegmentError(path, "is not a file")
        data = os.pread(descriptor, HEADER_SIZE, 0)
    finally:
        os.close(descriptor)
    if len(data) < HEADER_SIZE or not data.startswith(MAGIC):
        raise SegmentError(path, "is not a segment of a memcluster log")
    _, version, server, incarnation, first, created, run, slots, cluster = HEADER.unpack(data)
    if version != VERSION:
        raise SegmentError(path, f"has version {version} of the log's format, and this program reads {VERSION}")
    if server >= MAX_SERVERS or incarnation > MAX_INCARNATION or not 0 < first < MAX_SEQUENCE or created > MAX_TIME:
        raise SegmentError(path, "has a header that no server writes")
    return Segment(path, server, incarnation, first, created, run, slots, cluster.rstrip(b"\0"))


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
        self._descriptor = os.open(segment.path, _READ)

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

    `after` is the sequence number of the last record that was read, `missing` counts the records that should have been
    there.
    """

    def __init__(self, directory: str | Path, after: int = 0) -> None:
        self.directory = Path(directory)
        self.after = after
        self.missing = 0
        self._reader: SegmentReader | None = None
        self._slot = 0
        self._number = 0

    def __repr__(self) -> str:
        return f"<LogReader {self.directory} after {self.after}, {self.missing} missing>"

    def read(self, limit: int = SEGMENT_SIZE // RECORD_SIZE) -> Block | None:
        """The next records, at most `limit` and of one segment; None if there are none yet.

        Raises OSError.
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
            self._turn_to(following)

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

    def _following(self) -> Segment | None:
        """The segment to read next, if there is one: the first that may hold something after `after`."""
        segments = list_segments(self.directory, after=self._number)
        for segment, neighbour in pairwise(segments):
            if neighbour.first > self.after + 1:
                return segment
        return segments[-1] if segments else None

    def _turn_to(self, segment: Segment) -> None:
        self.close()
        self._number = segment.number
        try:
            self._reader = SegmentReader(segment)
        except FileNotFoundError:
            return  # dropped meanwhile; its records will be counted as missing
        self._slot = min(max(0, self.after + 1 - segment.first), self._reader.committed())
        self.after = min(self.after, segment.first + self._slot - 1)  # a stranger may ask for what comes after anything
