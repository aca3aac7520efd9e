"""The messages between servers that hand requests over: whole, byte by byte, with large payloads, and rubbish."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcluster.node.handover.messages import (
    DONE,
    ORDER,
    HandoverError,
    Message,
    Order,
    OrderReader,
    decode_done,
    encode_done,
    fresh,
)

U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 64))
FIELDS = ("command", "flags", "error", "client", "ticket", "identifier", "cookie", "offset", "start", "length")
orders = st.builds(
    Order, st.sampled_from([int(message) for message in Message]), U16, U16, U16, U32, U32, U64, U64, U64, U64, U32
)


@dataclass
class Said:
    order: Order
    payload: bytes


def read(data: bytes, step: int, scratch: int = 1 << 12) -> list[Said]:
    """Feed the reader `step` bytes at a time."""
    reader = OrderReader(memoryview(bytearray(scratch)), fresh)
    found = []
    while data:
        room = reader.receive_buffer()
        count = min(step, len(room), len(data))
        room[:count] = data[:count]
        data = data[count:]
        found += [Said(order, bytes(order.payload)) for order in reader.received(count)]
    return found


@given(st.lists(st.tuples(orders, st.binary(max_size=6000)), max_size=8), st.integers(1, 5000))
def test_what_is_said_is_heard(said, step):
    """Round trip, however the bytes are cut; payloads larger than the receive buffer too."""
    found = read(b"".join(order.encode(len(payload)) + payload for order, payload in said), step)
    assert [one.payload for one in found] == [payload for _, payload in said]
    for one, (order, _) in zip(found, said, strict=True):
        assert one.order.kind == order.kind
        assert [getattr(one.order, name) for name in FIELDS] == [getattr(order, name) for name in FIELDS]


@given(st.lists(U64))
def test_many_identifiers_travel_in_one_message(identifiers):
    [said] = read(encode_done(identifiers), 1 << 20, 1 << 16)
    said.order.payload = memoryview(said.payload)
    assert said.order.kind == DONE
    assert decode_done(said.order) == identifiers


@given(st.binary(max_size=300), st.integers(1, 100))
def test_rubbish_raises_nothing_but_its_own_error(data, step):
    try:
        read(data, step)
    except HandoverError:
        pass


def test_a_large_payload_is_received_where_it_belongs():
    place = memoryview(bytearray(5000))
    reader = OrderReader(memoryview(bytearray(1 << 12)), lambda length: place[:length])
    data = Order(ORDER).encode(5000) + b"y" * 5000
    found: list[Order] = []
    while data:
        room = reader.receive_buffer()
        count = min(len(room), len(data))
        room[:count] = data[:count]
        data = data[count:]
        found += reader.received(count)
    assert found[0].owned
    assert bytes(place) == b"y" * 5000


def test_asking_twice_where_bytes_belong_loses_none():
    """A socket that was said to be readable may have nothing after all."""
    data = Order(DONE, identifier=7).encode(20) + b"z" * 20
    reader = OrderReader(memoryview(bytearray(1 << 12)), fresh)
    found: list[Order] = []
    for byte in data:
        reader.receive_buffer()
        reader.receive_buffer()[0] = byte
        found += reader.received(1)
    assert [(order.identifier, bytes(order.payload)) for order in found] == [(7, b"z" * 20)]


def test_half_an_identifier_is_an_error():
    order = Order(DONE)
    order.payload = memoryview(b"1234567")
    with pytest.raises(HandoverError):
        decode_done(order)
