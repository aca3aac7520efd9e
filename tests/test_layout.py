"""node/layout.py: every byte has one place, and pieces say the same as bytes."""

from __future__ import annotations

import tracemalloc
from itertools import groupby, pairwise, takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcluster.node.layout import Linear, Piece, Striped, join_extents, make_layout

sizes = st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any).map(lambda rows: [row * 8 for row in rows])
layouts = st.builds(make_layout, sizes, st.sampled_from([0, 4, 8]))


def places(layout) -> list[tuple[int, int]]:
    """(server, offset there) of every byte, one by one."""
    return [(piece.server, piece.offset) for offset in range(layout.size) for piece in layout.split(offset, 1)]


@given(layouts)
def test_every_byte_has_exactly_one_place_within_its_shard(layout):
    """No two bytes share a place, none lies beyond its shard, and every place is used."""
    found = places(layout)
    assert len(found) == len(set(found)) == layout.size
    assert all(0 <= offset < layout.sizes[server] for server, offset in found)
    assert [server for server, _ in found] == [layout.owner(offset) for offset in range(layout.size)]


@given(layouts, st.data())
def test_a_request_splits_into_the_places_of_its_bytes(layout, data):
    """The pieces' spans, laid out byte by byte, are the bytes' own places; one piece a server at most."""
    offset = data.draw(st.integers(0, layout.size))
    length = data.draw(st.integers(0, layout.size - offset))
    pieces = layout.split(offset, length)
    found = {}
    for piece in pieces:
        at = piece.offset
        for start, end in piece.spans:
            for byte in range(start, end):
                found[byte] = piece.server, at
                at += 1
        assert at - piece.offset == piece.length > 0
    assert [found[byte] for byte in range(length)] == places(layout)[offset : offset + length]
    assert len({piece.server for piece in pieces}) == len(pieces)


@given(layouts, st.data())
def test_the_holder_of_a_request_is_the_server_of_its_only_piece(layout, data):
    """`holder` never says other than `split`, and for linear shards it knows every request that is one piece."""
    offset = data.draw(st.integers(0, layout.size - 1))
    length = data.draw(st.integers(1, layout.size - offset))
    server, there = layout.holder(offset, length)
    pieces = layout.split(offset, length)
    if server >= 0:
        assert pieces == [Piece(server, there, length, ((0, length),))]
    elif isinstance(layout, Linear):
        assert len(pieces) > 1


@given(layouts, st.data())
def test_the_owners_of_a_range_are_those_of_its_bytes(layout, data):
    """Run by run, and never two runs of one server beside each other but at the end of a round of one."""
    offset = data.draw(st.integers(0, layout.size))
    length = data.draw(st.integers(0, layout.size - offset))
    runs = list(layout.owners(offset, length))
    assert [server for count, server in runs for _ in range(count)] == [
        layout.owner(at) for at in range(offset, offset + length)
    ]
    assert all(one[1] != other[1] for one, other in pairwise(runs))


def test_linear_by_hand():
    """A request over a border has a piece on either side."""
    layout = Linear((10, 20, 30))
    assert layout.range(1) == (10, 30)
    assert layout.split(8, 4) == [Piece(0, 8, 2, ((0, 2),)), Piece(1, 0, 2, ((2, 4),))]
    assert layout.split(60, 0) == []


def test_stripes_by_hand():
    """Stripes go round; a full server is passed over; a server's stripes are one piece."""
    layout = Striped((8, 4, 12), 4)
    assert [layout.owner(offset) for offset in range(0, 24, 4)] == [0, 1, 2, 0, 2, 2]
    assert layout.split(2, 20) == [
        Piece(0, 2, 6, ((0, 2), (10, 14))),
        Piece(1, 0, 4, ((2, 6),)),
        Piece(2, 0, 10, ((6, 10), (14, 20))),
    ]


def test_a_shard_of_half_a_stripe_is_refused():
    """Shards are whole stripes."""
    with pytest.raises(ValueError, match="whole stripes"):
        Striped((6, 8), 4)


@given(layouts)
def test_an_address_and_its_place_are_the_same_byte(layout):
    """`address` is the inverse of `split`."""
    for address in sorted({0, layout.size - 1, *range(0, layout.size, max(1, layout.size // 50))}):
        [piece] = layout.split(address, 1)
        assert layout.address(piece.server, piece.offset) == address


@given(layouts, st.data())
def test_pieces_without_spans_are_the_same_pieces(layout, data):
    offset = data.draw(st.integers(0, layout.size))
    length = data.draw(st.integers(0, layout.size - offset))
    assert [piece.place for piece in layout.split(offset, length, spans=False)] == [
        piece.place for piece in layout.split(offset, length)
    ]


@given(layouts, st.data())
def test_joined_extents_say_of_every_byte_what_its_server_says(layout, data):
    """Whatever the pieces' runs are, and if one ends early so does the answer: where that byte lies."""
    offset = data.draw(st.integers(0, layout.size - 1))
    length = data.draw(st.integers(1, layout.size - offset))
    found, told = {}, {}
    for piece in layout.split(offset, length):
        kinds = data.draw(st.lists(st.sampled_from("aab"), min_size=piece.length, max_size=piece.length))
        runs = [(len(list(group)), ord(kind)) for kind, group in groupby(kinds)]
        if data.draw(st.booleans()) and len(runs) > 1:
            runs.pop()
        found[piece.server] = runs
        shown = [status for count, status in runs for _ in range(count)]
        places = [byte for start, end in piece.spans for byte in range(start, end)]
        told |= dict(zip(places, shown, strict=False))
    expected = [told[byte] for byte in takewhile(lambda byte: byte in told, range(length))]
    joined = join_extents(layout, offset, length, found)
    assert [status for count, status in joined for _ in range(count)] == expected
    assert all(one[1] != other[1] for one, other in pairwise(joined))
    assert join_extents(layout, offset, length, found, one=True) == joined[:1]


def test_eight_gibibytes_in_stripes_of_a_sector_are_no_work():
    """A TRIM or BLOCK_STATUS of all 16 million has no tuple for each, and an empty memory is one extent."""
    layout = make_layout([2 << 30] * 4, 512)
    tracemalloc.start()
    pieces = layout.split(512, (8 << 30) - 1024, spans=False)
    assert sum(piece.length for piece in pieces) == (8 << 30) - 1024
    holes = {piece.server: [(piece.length, 3)] for piece in pieces}
    assert join_extents(layout, 512, (8 << 30) - 1024, holes) == [((8 << 30) - 1024, 3)]
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()
