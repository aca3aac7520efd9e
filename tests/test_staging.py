"""The staging area: payloads that lie in it at the same time are apart, and who copies out of it finds them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memcluster.node.forwarding.staging import BLOCK, BLOCKS, SIZE, SPAN, Staged, Staging
from memcluster.node.nbd.server import Request
from memcluster.node.nbd.wire import Command


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("staging") / "staging"


steps = st.lists(
    st.one_of(st.tuples(st.just("take"), st.integers(1, BLOCK)), st.tuples(st.just("give back"), st.integers(0, 99))),
    max_size=80,
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_what_is_taken_at_the_same_time_is_apart_and_found(path: Path, steps: list[tuple[str, int]]) -> None:
    """Whatever is taken and given back, in any order: each payload is what was written there, for the reader too."""
    staging = Staging(str(path))
    staged = Staged(str(path))
    assert staged.token == staging.token
    held: list[tuple[memoryview, int, bytes]] = []
    for number, (step, value) in enumerate(steps):
        if step == "take":
            taken = staging.take(value)
            if taken is None:
                assert held, "all is free, and there is no room"
                continue
            view, at = taken
            assert len(view) == value
            filled = bytes([number % 251]) * value
            view[:] = filled
            held.append((view, at, filled))
        elif held:
            held.pop(value % len(held))
        for view, _, filled in held:
            assert view[:8] == filled[:8]
            assert view[-8:] == filled[-8:]
    for view, at, filled in held:
        assert view == filled
        assert staged.find(memoryview(SPAN.pack(at, len(view)))) == ([filled], len(view))


def test_a_block_is_used_again_when_its_last_view_is_gone(path: Path) -> None:
    """Views of views count, too."""
    staging = Staging(str(path))
    taken = [staging.take(BLOCK) for _ in range(BLOCKS)]
    assert staging.take(1) is None
    assert taken[3] is not None
    view, at = taken[3]
    part = view[10:20]
    del view
    taken[3] = None
    assert staging.take(BLOCK) is None
    del part
    again = staging.take(BLOCK)
    assert again is not None
    assert again[1] == at
    assert staging.take(BLOCK + 1) is None


def test_what_was_announced_stays_when_the_next_one_makes_its_own(path: Path) -> None:
    """A server that starts again has new memory, full of its own payloads: those of the one before are as they were."""
    first = Staging(str(path))
    view, at = first.take(1000) or pytest.fail("no room")
    view[:] = b"a" * 1000
    staged = Staged(str(path))
    second = Staging(str(path))
    assert second.token != first.token
    assert Staged(str(path)).token == second.token
    other, there = second.take(1000) or pytest.fail("no room")
    assert there == at
    other[:] = b"b" * 1000
    assert staged.find(memoryview(SPAN.pack(at, 1000))) == ([b"a" * 1000], 1000)


def test_all_of_it_has_room(path: Path) -> None:
    """However full the file system becomes, it can be written to."""
    Staging(str(path))
    assert os.stat(path).st_blocks * 512 >= SIZE


@pytest.mark.parametrize(
    "spans", [b"", b"1234567", SPAN.pack(4096, 0), SPAN.pack(0, 10), SPAN.pack(SIZE - 10, 11), SPAN.pack(SIZE, 1)]
)
def test_spans_that_are_none_are_refused(path: Path, spans: bytes) -> None:
    Staging(str(path))
    with pytest.raises(ValueError, match="span"):
        Staged(str(path)).find(memoryview(spans))


def test_another_file_is_no_staging_area(tmp_path: Path) -> None:
    (tmp_path / "staging").write_bytes(bytes(100))
    with pytest.raises(OSError, match="no staging area"):
        Staged(str(tmp_path / "staging"))


def test_a_payload_in_the_receive_buffer_is_copied_if_there_is_room(path: Path) -> None:
    """Else it is left for its sender to copy."""
    staging = Staging(str(path))
    buffer = bytearray(b"payload!")
    held = [staging.take(BLOCK) for _ in range(BLOCKS - 1)]
    for room in (True, False):
        if not room:
            held.append(staging.take(BLOCK - 64))  # all that is left
        request = Request(Command.WRITE, 0, 1, 0, 8)
        request.payload = memoryview(buffer)
        staging.stow(request)
        assert request.owned == room
        assert not room or request.at >= 0
        buffer[:] = b"another!"
        assert request.payload == (b"payload!" if room else b"another!")
        buffer[:] = b"payload!"
