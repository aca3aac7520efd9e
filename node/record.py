"""A log record's binary form, and the identifiers that tie the records of one request together. No I/O.

A record is 64 bytes, little-endian, and its last field is its commit mark: the sequence number, which grows by one
from record to record of a server. `RECORD.pack_into` clears the slot and then writes the fields in their order, so a
slot whose end holds the number expected there holds a whole record; one that a kill -9 tore is simply not there.

An identifier is 64 bits: the server that took the client's request (10), that server's incarnation (14; one more each
time its process starts, so that identifiers are never used twice) and a counter (40). A request's pieces carry the
identifier of the request, on whatever server they are done. Identifiers of one server grow with time.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

RECORD = Struct("<QQQQIIBBHH10xQ")
RECORD_SIZE = RECORD.size
KEY = Struct("<Q8xQ16xB23x")
"""What the merge needs of a record: start, identifier, kind."""

SERVER_BITS = 10
INCARNATION_BITS = 14
COUNTER_BITS = 40
MAX_SERVERS = 1 << SERVER_BITS
MAX_INCARNATION = (1 << INCARNATION_BITS) - 1
MAX_COUNTER = (1 << COUNTER_BITS) - 1
MAX_IDENTIFIER = (1 << 64) - 1
SERVER_SHIFT = INCARNATION_BITS + COUNTER_BITS
"""`identifier >> SERVER_SHIFT` is the server that took the request."""


class Kind(IntEnum):
    """What a record tells of; in the order in which they stand when they start at the same time."""

    REQUEST = 1  # a client's request, on the server that took it
    PIECE = 2  # a piece of one, on the server that did it; its client is the server that asked for it
    EVENT = 3  # for later: something that happened to a process


class Record(NamedTuple):
    """A record as it lies in its slot. (A named tuple of plain numbers: a log has millions.)"""

    start: int
    """Wall clock, ns since 1970."""
    duration: int
    """ns."""
    identifier: int
    offset: int
    length: int
    client: int
    """The number of the client's connection on this server; 0: none."""
    kind: int
    """Kind."""
    operation: int
    """node.nbd.wire.Command."""
    flags: int
    """node.nbd.wire.CommandFlag."""
    error: int
    """node.nbd.wire.Error."""
    sequence: int


def unpack(data: bytes | memoryview) -> Iterator[Record]:
    """The records in `data`, a whole number of slots."""
    return map(Record._make, RECORD.iter_unpack(data))


def clamp(record: Record) -> Record:
    """The record with every number brought within its field's bounds."""
    return Record._make(
        min(max(value, 0), (1 << 8 * size) - 1)
        for value, size in zip(record, (8, 8, 8, 8, 4, 4, 1, 1, 2, 2, 8), strict=True)
    )


# -- identifiers -------------------------------------------------------------------------------------------------


def first_identifier(server: int, incarnation: int) -> int:
    """Where a server that has just started begins to count; each request takes the next number."""
    return make_identifier(server, incarnation, 1)


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
