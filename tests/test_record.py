"""The record's binary form and the identifiers: what is written is what is read, and what is torn is not there."""

import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcluster.node.log.record import (
    MAX_COUNTER,
    MAX_IDENTIFIER,
    MAX_INCARNATION,
    RECORD,
    RECORD_SIZE,
    SERVER_SHIFT,
    Kind,
    Record,
    clamp,
    first_identifier,
    format_identifier,
    make_identifier,
    parse_identifier,
    unpack,
)

U64 = st.integers(0, MAX_IDENTIFIER)
RECORDS = st.builds(
    Record,
    start=U64,
    duration=U64,
    identifier=U64,
    offset=U64,
    length=st.integers(0, (1 << 64) - 1),
    client=st.integers(0, (1 << 32) - 1),
    kind=st.sampled_from(Kind),
    operation=st.integers(0, 255),
    flags=st.integers(0, 65535),
    error=st.integers(0, 65535),
    sequence=U64,
)


def test_layout() -> None:
    """A record is 64 bytes, and its sequence number is the last 8 of them: the docs and other readers rely on it."""
    data = RECORD.pack(*Record(1, 2, 3, 4, 5, 6, 1, 1, 7, 8, 0x1122334455667788))
    assert RECORD_SIZE == len(data) == 64
    assert data[-8:] == bytes.fromhex("8877665544332211")
    assert data[:8] == b"\1" + bytes(7)


@given(st.lists(RECORDS, max_size=5))
def test_round_trip(records: list[Record]) -> None:
    assert list(unpack(b"".join(RECORD.pack(*record) for record in records))) == records


@given(RECORDS)
def test_a_torn_record_has_no_sequence_number(record: Record) -> None:
    """The field that cannot be packed stands for the moment of the kill: nothing of the slot's old mark is left."""
    slot = bytearray(b"\xff" * RECORD_SIZE)
    torn = record._replace(error=1 << 16)
    with pytest.raises(struct.error):
        RECORD.pack_into(slot, 0, *torn)
    assert slot[-8:] == bytes(8)
    assert int.from_bytes(slot[:8], "little") == record.start


@given(RECORDS)
def test_clamp_leaves_what_fits(record: Record) -> None:
    assert clamp(record) == record


def test_clamp_saturates() -> None:
    record = clamp(Record(-1, 1 << 70, 1, 2, 1 << 64, -5, 300, 1, 1 << 16, -1, 9))
    assert record == (0, MAX_IDENTIFIER, 1, 2, (1 << 64) - 1, 0, 255, 1, 65535, 0, 9)
    RECORD.pack(*record)


@given(U64)
def test_identifier_text_round_trip(identifier: int) -> None:
    assert parse_identifier(format_identifier(identifier)) == identifier
    assert parse_identifier(hex(identifier)) == identifier
    assert parse_identifier(str(identifier)) == identifier


def test_identifier_parts() -> None:
    identifier = make_identifier(0, 3, 17)
    assert format_identifier(identifier) == "0.3.17"
    assert identifier == 3 << 34 | 17
    assert first_identifier(5, 2) >> SERVER_SHIFT == 5
    assert first_identifier(5, 2) + 1 == make_identifier(5, 2, 2)


@given(st.integers(0, 1023), st.integers(0, MAX_INCARNATION - 1), st.integers(0, MAX_COUNTER))
def test_identifiers_of_a_later_incarnation_are_greater(server: int, incarnation: int, counter: int) -> None:
    """The merge relies on it: a server's identifiers grow with time, restarts included."""
    assert make_identifier(server, incarnation, counter) < first_identifier(server, incarnation + 1)


@pytest.mark.parametrize(
    "text",
    ["", "x", "1.2", "1.2.3.4", "1024.0.0", "0.1048576.0", "-1.0.0", "-5", "0.0.-1", "0x", str(1 << 64), "1.2.x"],
)
def test_bad_identifiers_are_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{text!r} is not a request's identifier")):
        parse_identifier(text)


def test_parts_beyond_their_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="beyond"):
        make_identifier(1024, 0, 0)
