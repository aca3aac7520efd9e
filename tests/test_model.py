"""A real cluster against a bytearray: whatever is done to both, in any order and anywhere, they hold the same bytes.

hypothesis makes up the histories and shrinks those that fail. Two connections do the work in turn, so that every step
also proves CAN_MULTI_CONN: what one was told is done, the other sees at once.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import Cluster, clusters
from hypothesis import HealthCheck, Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from memcluster import Memory

IN_CI = bool(os.environ.get("MEMCLUSTER_REQUIRE_CLIENTS"))
pytestmark = pytest.mark.timeout(120 if IN_CI else 400)  # hypothesis takes up to 300 s to shrink what it has found

SIZE = 768 << 10
STRIPE = 4096
STRIPES = {"layout": {"stripe": STRIPE}}
UNEQUAL = [100_001, 400_000, 286_431]
COMBINATIONS: dict[str, dict[str, Any]] = {
    "parallel-linear": {"fan_out": "parallel"},
    "parallel-stripe": {"fan_out": "parallel", **STRIPES},
    "serial-linear": {"fan_out": "serial"},
    "serial-stripe": {"fan_out": "serial", **STRIPES},
    "shared-stripe": {"links": "shared", **STRIPES},
    "shared-unequal": {"links": "shared", "servers": [{"memory": size} for size in UNEQUAL]},
    "unequal": {"servers": [{"memory": size} for size in UNEQUAL]},
    "unequal-stripe": {"servers": [{"memory": size << 10} for size in (64, 512, 192)], **STRIPES},
    "dispatcher-unequal": {"topology": "dispatcher", "servers": [{"memory": size} for size in UNEQUAL]},
    "dispatcher-serial-stripe": {"topology": "dispatcher", "fan_out": "serial", **STRIPES},
    "dispatcher-stripe": {"topology": "dispatcher", **STRIPES},
    "chain-unequal": {"topology": "chain", "servers": [{"memory": size} for size in UNEQUAL]},
    "chain-stripe": {"topology": "chain", **STRIPES},
    "routed-unequal": {"topology": "client-routed", "servers": [{"memory": size} for size in UNEQUAL]},
    "routed-serial-stripe": {"topology": "client-routed", "fan_out": "serial", **STRIPES},
    "chain-alone": {"topology": "chain", "servers": 1},
}
SETTINGS = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    derandomize=IN_CI,
    phases=[phase for phase in Phase if phase not in (Phase.shrink, Phase.explain) or not IN_CI],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
"""In CI the same histories are tried each time, so that whoever reads of a failure there can repeat and shrink it."""

# -- where, and what ---------------------------------------------------------------------------------------------

LANDMARKS = sorted({0, 256 << 10, 512 << 10, SIZE, *UNEQUAL[:1], sum(UNEQUAL[:2]), 64 << 10, 576 << 10, 3 * STRIPE})
"""Borders between servers in one combination or another, and ends."""
offsets = st.one_of(
    st.builds(
        lambda mark, off: min(max(mark + off, 0), SIZE),
        st.sampled_from(LANDMARKS),
        st.integers(-STRIPE - 2, STRIPE + 2),
    ),
    st.integers(0, SIZE),
    st.integers(0, SIZE // STRIPE).map(lambda page: page * STRIPE),
)
lengths = st.one_of(
    st.integers(0, 3),
    st.integers(0, 3 * STRIPE),
    st.integers(0, SIZE),
    st.integers(1, SIZE // STRIPE).map(lambda pages: pages * STRIPE),
    st.just(SIZE),
)
ranges = st.builds(lambda offset, length: (offset, min(length, SIZE - offset)), offsets, lengths)
"""(offset, length) within the memory; the last byte and lengths of 0 are among them."""
fillings = st.one_of(st.integers(0, 255).map(lambda byte: (byte,)), st.integers(0, 1 << 16).map(lambda seed: (seed, 0)))
"""What to write: one byte again and again (zeroes, too), or random bytes."""
sides = st.integers(0, 1)
small = st.builds(lambda offset, length: (offset, min(length, SIZE - offset)), offsets, st.integers(0, 5 * STRIPE))


def filling(what: tuple[int, ...], length: int) -> bytes:
    return bytes(what) * length if len(what) == 1 else random.Random(what[0]).randbytes(length)


operations = st.one_of(
    st.tuples(st.just("read"), small, st.none()),
    st.tuples(st.just("write"), small, fillings),
    st.tuples(st.just("zero"), small, st.booleans()),
    st.tuples(st.just("trim"), small, st.none()),
    st.tuples(st.just("read"), ranges, st.none()),
    st.tuples(st.just("write"), ranges, fillings),
)
batches = st.lists(st.tuples(sides, operations), min_size=2, max_size=30)
orders = st.randoms(use_true_random=False)


# -- the machine -------------------------------------------------------------------------------------------------


class Machine(RuleBasedStateMachine):
    """`model` is what the memory must hold; `ends` are two connections to it."""

    def __init__(self, connect: Callable[[], Memory]) -> None:
        super().__init__()
        self.connect = connect
        self.ends = [connect(), connect()]
        self.model = bytearray(SIZE)

    @initialize(side=sides)
    def forget(self, side: int) -> None:
        """What the history before this one has left."""
        self.ends[side].zero(SIZE, 0)

    @rule(side=sides, where=ranges)
    def read(self, side: int, where: tuple[int, int]) -> None:
        offset, length = where
        assert self.ends[side].pread(length, offset) == self.model[offset : offset + length]

    @rule(side=sides, where=ranges)
    def read_in_place(self, side: int, where: tuple[int, int]) -> None:
        offset, length = where
        buffer = bytearray(b"\xa5" * (length + 2))
        assert self.ends[side].readinto(memoryview(buffer)[1 : length + 1], offset) == length
        assert buffer == b"\xa5" + self.model[offset : offset + length] + b"\xa5"

    @rule(side=sides, where=ranges, what=fillings, fua=st.booleans())
    def write(self, side: int, where: tuple[int, int], what: tuple[int, ...], fua: bool) -> None:
        offset, length = where
        data = filling(what, length)
        assert self.ends[side].pwrite(data, offset, fua=fua) == length
        self.model[offset : offset + length] = data
        assert self.ends[1 - side].pread(length, offset) == data

    @rule(side=sides, index=st.integers(-SIZE, SIZE - 1), byte=st.integers(0, 255))
    def write_a_byte(self, side: int, index: int, byte: int) -> None:
        self.ends[side][index] = byte
        self.model[index] = byte
        assert self.ends[1 - side][index] == byte

    @rule(side=sides, where=ranges, no_hole=st.booleans(), fua=st.booleans())
    def zero(self, side: int, where: tuple[int, int], no_hole: bool, fua: bool) -> None:
        offset, length = where
        self.ends[side].zero(length, offset, no_hole=no_hole, fua=fua)
        self.model[offset : offset + length] = bytes(length)
        self.look_around(1 - side, offset, length)
        if no_hole:
            assert not any(extent.hole for extent in self.ends[side].extents(length, offset))

    @rule(side=sides, where=ranges)
    def trim(self, side: int, where: tuple[int, int]) -> None:
        offset, length = where
        self.ends[side].trim(length, offset)
        self.model[offset : offset + length] = bytes(length)
        self.look_around(1 - side, offset, length)

    def look_around(self, side: int, offset: int, length: int) -> None:
        """The pages at both ends of a change, neighbours included."""
        start, end = max(0, offset - STRIPE), min(SIZE, offset + length + STRIPE)
        assert self.ends[side].pread(end - start, start) == self.model[start:end]

    @rule(side=sides)
    def flush(self, side: int) -> None:
        self.ends[side].flush()

    @rule(side=sides, where=ranges)
    def cache(self, side: int, where: tuple[int, int]) -> None:
        self.ends[side].cache(where[1], where[0])

    @rule(side=sides, where=ranges)
    def extents(self, side: int, where: tuple[int, int]) -> None:
        """They cover the range without a gap, and what is called zero is zero."""
        offset, length = where
        position = offset
        for extent in self.ends[side].extents(length, offset):
            assert extent.offset == position
            assert extent.length > 0
            position += extent.length
            assert extent.zero or not extent.hole
            if extent.zero:
                assert not any(self.model[extent.offset : position])
        assert position == offset + length

    @rule(batch=batches, order=orders)
    def pipeline(self, batch: list[tuple[int, Any]], order: random.Random) -> None:
        """Operations that touch different bytes are in flight together, on both connections."""
        changed: list[tuple[int, int]] = []
        seen: list[tuple[int, int]] = []
        before = bytes(self.model)
        begun = []
        for side, (kind, (offset, length), detail) in batch:
            span = offset, offset + length
            if any(start < span[1] and span[0] < end for start, end in changed):
                continue
            if kind != "read" and any(start < span[1] and span[0] < end for start, end in seen):
                continue
            (seen if kind == "read" else changed).append(span)
            memory = self.ends[side]
            if kind == "read":
                begun.append((memory.start_pread(length, offset), before[slice(*span)]))
            elif kind == "write":
                data = filling(detail, length)
                begun.append((memory.start_pwrite(data, offset), length))
                self.model[slice(*span)] = data
            else:
                start = memory.start_trim if kind == "trim" else memory.start_zero
                options = {"no_hole": detail} if kind == "zero" else {}
                begun.append((start(length, offset, **options), None))
                self.model[slice(*span)] = bytes(length)
        event(f"up to {-(-len(begun) // 4) * 4} in flight")
        order.shuffle(begun)
        outcomes = [(future.result(), expected) for future, expected in begun]
        assert [outcome for outcome, _ in outcomes] == [expected for _, expected in outcomes]

    @rule(side=sides)
    def leave_and_come_back(self, side: int) -> None:
        self.ends[side].close()
        self.ends[side] = self.connect()

    def teardown(self) -> None:
        """At the end of a history both see every byte of it."""
        try:
            for memory in self.ends:
                assert memory[:] == self.model
        finally:
            for memory in self.ends:
                memory.close()


@pytest.fixture(scope="module", params=COMBINATIONS)
def standing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cluster for all the histories of a combination; at the end nothing of it is left."""
    with clusters() as new:
        cluster = new(tmp_path_factory.mktemp(request.param), memory=SIZE, **COMBINATIONS[request.param])
        cluster.up()
        yield cluster


def test_the_cluster_is_a_bytearray(standing):
    """Reads, writes, zeroes and trims of any size at any place, one by one and in flight together."""
    run_state_machine_as_test(lambda: Machine(lambda: standing.connect(reconnect=False)), settings=SETTINGS)
