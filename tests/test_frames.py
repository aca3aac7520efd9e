"""Frames: what memcluster's own processes say to one another, as bytes, however they are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcluster.node.transport.frames import MAX_FRAME, PREFIX, Frame, FrameError, FrameReader

LEAVES = st.none() | st.booleans() | st.integers() | st.text()
HEADS = st.dictionaries(st.text(), st.recursive(LEAVES, st.lists, max_leaves=10))
FRAMES = st.lists(st.builds(Frame, HEADS, st.binary()))


@given(FRAMES, st.data())
def test_frames_come_as_they_were_sent_however_they_are_cut(frames: list[Frame], data: st.DataObject) -> None:
    stream = b"".join(frame.encode() for frame in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    reader = FrameReader()
    got: list[Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += reader.receive(stream[start:end])
    assert got == frames


@given(st.binary())
def test_what_is_no_frame_is_an_error_or_waited_for(data: bytes) -> None:
    try:
        frames = FrameReader().receive(data)
    except FrameError:
        return
    assert all(isinstance(frame.head, dict) for frame in frames)


def test_a_frame_has_a_bound_and_its_head_may_be_most_of_it() -> None:
    """The figures of many servers are one head."""
    whole = Frame({"stats": "x" * (MAX_FRAME - 100)})
    assert FrameReader().receive(whole.encode()) == [whole]
    for lengths in ((MAX_FRAME, 0), (0, MAX_FRAME), (0xFFFFFFFF, 0xFFFFFFFF)):
        with pytest.raises(FrameError, match="beyond all bounds"):
            FrameReader().receive(PREFIX.pack(*lengths))


def test_who_reads_questions_bounds_them() -> None:
    with pytest.raises(FrameError, match="beyond all bounds"):
        FrameReader(100).receive(PREFIX.pack(90, 10))
    assert FrameReader(100).receive(PREFIX.pack(90, 2)) == []
