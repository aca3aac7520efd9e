"""A log record's binary form, and the identifiers that tie the records of one request together. No I/O.

A record is 64 bytes, little-endian, and its last field is its commit mark: the sequence number, which grows by one
from record to record of a server. `RECORD.pack_into` clears the slot and then writes the fields in their order, so a
slot whose end holds the number expected there holds a whole record; one that a kill -9 tore is simply not there.

An identifier is 64 bits: the server that took the client's request (10), that server's incarnation (20) and a counter
(34). An incarnation is one more each time its process starts, and each time a counter comes to its end, and stands in
the log before it is used: no identifier is used twice. A request's pieces carry the identifier of the request, on
whatever server they are done. Identifiers of one server grow with time.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple

RECORD: Final = Struct("<QQQQQIBBHH6xQ")
RECORD_SIZE: Final = RECORD.size
KEY: Final = Struct("<Q8xQ20xB19x")
"""What the merge needs of a record: start, identifier, kind."""
REPEATED: Final = 1 << 15
"""A flag of a piece: a link sent it again after it had lost a connection, so it may be in the log already."""

PROBE: Final = 1 << 13
"""A flag of what `up` itself reads, to see that every server answers."""

SERVER_BITS: Final = 10
INCARNATION_BITS: Final = 20
COUNTER_BITS: Final = 34
MAX_SERVERS: Final = 1 << SERVER_BITS
MAX_INCARNATION: Final = (1 << INCARNATION_BITS) - 1
MAX_COUNTER: Final = (1 << COUNTER_BITS) - 1
MAX_IDENTIFIER: Final = (1 << 64) - 1
SERVER_SHIFT: Final = INCARNATION_BITS + COUNTER_BITS
"""`identifier >> SERVER_SHIFT` is the server that took the request."""


class Kind(IntEnum):
    """What a record tells of; in the order in which they stand when they start at the same time."""

    REQUEST = 1  # a client's request, on the server that took it
    PIECE = 2  # a piece of one, on the server that did it; its client is the server that asked for it
    EVENT = 3  # something that happened to a process, or to a client's connection
    MAP = 4  # a client's request on the export cluster.json: it touches no byte of the memory


class Event(IntEnum):
    """The operation of a record of kind EVENT. What its value means stands beside it; most have none."""

    STARTED = 1  # the process's incarnation
    READY = 2
    DRAINING = 3
    STOPPED = 4
    DIED = 5  # status, or minus the signal; 0 where it is not known
    RESTARTED = 6  # how many times so far
    FAILED = 7
    HUNG = 8
    CONNECTED = 9
    REFUSED = 10  # Reason
    LEFT = 11
    BAD_INPUT = 12
    PAUSED = 13  # for how many ms; 0: until somebody ends it
    RESUMED = 14
    KILLED = 15  # stays down for how many ms
    SLOWED = 16  # by how many ms
    PARTITIONED = 17  # from the node of this number
    HEALED = 18
    LOG_STOPPED = 19  # records lost; it is written when there is room again
    HANGING = 20  # on purpose, for how many ms; 0: until its supervisor finds out
    LOG_DAMAGED = 21  # how many of its files were cut short, or were no segments of it (any more)
    APPLIED = 22  # how many keys of cluster.yaml hold otherwise from now on
    MOVE_BEGUN = 23  # bytes that are to go to other shards
    MOVE_ROUND = 24  # bytes that were changed meanwhile, and are copied again
    MOVE_SWITCHED = 25  # bytes that are copied while nothing runs
    MOVE_ABORTED = 26


TROUBLE = frozenset(
    {
        Event.DIED,
        Event.FAILED,
        Event.HUNG,
        Event.REFUSED,
        Event.BAD_INPUT,
        Event.KILLED,
        Event.LOG_STOPPED,
        Event.HANGING,
        Event.LOG_DAMAGED,
    }
)
"""Events that `--errors` shows."""


class Reason(IntEnum):
    """Why a client was refused, or a stranger turned away: the value of a REFUSED."""

    OTHER = 0
    SLOTS = 1
    MEMORY = 2
    DESCRIPTORS = 3
    CPU = 4
    SHUTDOWN = 5
    UNKNOWN_EXPORT = 6
    ADDRESS = 7
    STRANGER = 8
    TLS = 9


LOGGER: Final = 1 << 16
"""Added to the number of a node where a subject is a logger and not a server."""


class Record(NamedTuple):
    """A record as it lies in its slot. (A named tuple of plain numbers: a log has millions.)"""

    start: int
    """Wall clock, ns since 1970."""
    duration: int
    """ns."""
    identifier: int
    offset: int
    """Of an event: its value, a signed number."""
    length: int
    """Of an event: its subject, a server's number or LOGGER and a logger's."""
    client: int
    """The number of the client's connection on this server; 0: none. Of a piece: for how many ns its order was on the
    way, where orders are handed on (dispatcher, chain)."""
    kind: int
    """Kind."""
    operation: int
    """node.nbd.wire.Command, or an Event."""
    flags: int
    """node.nbd.wire.CommandFlag, and REPEATED."""
    error: int
    """node.nbd.wire.Error."""
    sequence: int


class Summary(NamedTuple):
    """What a stretch of records says at a glance: which times and identifiers may be found in it."""

    oldest: int
    latest: int
    """Starts."""
    lowest: int
    highest: int
    """Identifiers; of events, which have none, nothing is known by them."""


def summarise(data: bytes) -> Summary:
    """The summary of a whole number of slots, not none. (Strided views: 0.1 µs a record, on little-endian machines.)"""
    words = memoryview(data).cast("Q")
    starts, identifiers = words[0::8], words[2::8]
    highest = max(identifiers)
    return Summary(min(starts), max(starts), min(filter(None, identifiers), default=0), highest)


def has_repeats(data: bytes) -> bool:
    """Whether any record in a whole number of slots has the flag REPEATED."""
    return max(memoryview(data).cast("H")[23::32], default=0) >= REPEATED


def is_repeat(slot: bytes) -> bool:
    """Whether the record in a slot has the flag REPEATED."""
    return slot[47] >= REPEATED >> 8


def unpack(data: bytes | memoryview) -> Iterator[Record]:
    """The records in `data`, a whole number of slots."""
    return map(Record._make, RECORD.iter_unpack(data))


def clamp(record: Record) -> Record:
    """The record with every number brought within its field's bounds."""
    return Record._make(
        min(max(value, 0), (1 << 8 * size) - 1)
        for value, size in zip(record, (8, 8, 8, 8, 8, 4, 1, 1, 2, 2, 8), strict=True)
    )


# -- events ------------------------------------------------------------------------------------------------------


def subject_of(name: str) -> int:
    """The subject that stands for `server1` or `logger1`. Raises ValueError."""
    for kind, base in (("server", 0), ("logger", LOGGER)):
        number = name.removeprefix(kind)
        if number != name and number.isdecimal() and int(number) < MAX_SERVERS:
            return base + int(number)
    raise ValueError(f"{name!r} is no node")


def subject_name(subject: int) -> str:
    """`server1` or `logger1`."""
    return f"logger{subject - LOGGER}" if subject >= LOGGER else f"server{subject}"


def signed(value: int) -> int:
    """An event's value as it was meant: the field is unsigned."""
    return value - (1 << 64) if value >> 63 else value


# -- identifiers -------------------------------------------------------------------------------------------------


def first_identifier(server: int, incarnation: int) -> int:
    """Where a server that has just started begins to count; each request takes the next number."""
    return make_identifier(server, incarnation, 1)


def last_identifier(server: int, incarnation: int) -> int:
    """The last one that a server has in an incarnation."""
    return make_identifier(server, incarnation, MAX_COUNTER)


def make_identifier(server: int, incarnation: int, counter: int) -> int:
    """Raises ValueError if a part is beyond its bits."""
    if not (0 <= server < MAX_SERVERS and 0 <= incarnation <= MAX_INCARNATION and 0 <= counter <= MAX_COUNTER):
        bounds = f"{MAX_SERVERS - 1}.{MAX_INCARNATION}.{MAX_COUNTER}"
        raise ValueError(f"{server}.{incarnation}.{counter} is beyond {bounds}")
    return server << SERVER_SHIFT | incarnation << COUNTER_BITS | counter


def format_identifier(identifier: int) -> str:
    """`server.incarnation.counter`, as in 0.3.17."""
    return f"{identifier >> SERVER_SHIFT}.{identifier >> COUNTER_BITS & MAX_INCARNATION}.{identifier & MAX_COUNTER}"


def parse_identifier(text: str) -> int:
    """The identifier in `0.3.17`, or in one number as `0x30000000011`. Raises ValueError with a sentence."""
    parts = text.strip().split(".")
    try:
        if len(parts) == 3:
            server, incarnation, counter = (int(part) for part in parts)
            return make_identifier(server, incarnation, counter)
        if len(parts) == 1 and 0 <= (identifier := int(parts[0], 0)) <= MAX_IDENTIFIER:
            return identifier
    except ValueError:
        pass
    raise ValueError(f"{text!r} is not a request's identifier, such as 0.3.17 or 0x30000000011")
