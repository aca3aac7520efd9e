"""node/serving/memory.py: bytes, holes, and a full disk."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest
from harness import run_in_small_room
from hypothesis import given, settings
from hypothesis import strategies as st

from memcluster.node.nbd.wire import Status
from memcluster.node.serving.changes import PAGE, Changes, pages_of
from memcluster.node.serving.memory import Shard, ShardError

SIZE = 10 * PAGE + 100
HOLE = int(Status.HOLE | Status.ZERO)


@pytest.fixture
def shard(tmp_path):
    shard = new(tmp_path / "shard0")
    yield shard
    shard.close()


def new(path: Path, size: int = SIZE) -> Shard:
    """A shard of a file that holds nothing yet."""
    path.touch()
    os.truncate(path, size)
    return Shard(str(path), size)


def read(shard: Shard, offset: int = 0, length: int = SIZE) -> bytes:
    return b"".join(shard.read(offset, length))


def test_a_new_shard_is_one_hole_of_zeroes(shard):
    """It takes no room and reads as zeroes; reading does not fill it."""
    assert read(shard) == bytes(SIZE)
    assert shard.extents(0, SIZE) == [(SIZE, HOLE)]
    assert os.stat(shard.path).st_blocks == 0


def test_what_is_written_is_read_and_takes_its_pages_only(shard):
    """Data at any alignment; extents in whole pages."""
    shard.write(PAGE - 2, b"four")
    assert read(shard, PAGE - 3, 6) == b"\0four\0"
    assert shard.extents(0, SIZE) == [(2 * PAGE, 0), (SIZE - 2 * PAGE, HOLE)]
    assert shard.used == 2 * PAGE


def test_trimmed_pages_become_holes_and_the_rest_zeroes(shard):
    """A trim frees whole pages; the edges are cleared."""
    shard.write(0, b"x" * SIZE)
    shard.zero(PAGE // 2, 3 * PAGE)
    assert read(shard) == b"x" * (PAGE // 2) + bytes(3 * PAGE) + b"x" * (SIZE - PAGE // 2 - 3 * PAGE)
    assert shard.extents(0, SIZE) == [(PAGE, 0), (2 * PAGE, HOLE), (SIZE - 3 * PAGE, 0)]


def test_zeroes_that_keep_their_room(shard):
    """With `keep` (NO_HOLE) the range is data afterwards."""
    shard.zero(0, 3 * PAGE, keep=True)
    assert shard.extents(0, SIZE) == [(3 * PAGE, 0), (SIZE - 3 * PAGE, HOLE)]
    assert os.stat(shard.path).st_blocks * 512 >= 3 * PAGE


def test_the_last_part_of_a_page_can_become_a_hole(shard):
    """The end of the shard counts as the end of a page."""
    shard.write(SIZE - 200, b"x" * 200)
    shard.zero(10 * PAGE, 100)
    assert shard.extents(9 * PAGE, PAGE + 100) == [(PAGE, 0), (100, HOLE)]


def test_a_shard_is_found_again_with_its_holes(tmp_path):
    """The file is the memory: a new process sees the same bytes and the same holes."""
    first = new(tmp_path / "s")
    first.write(3 * PAGE, b"still here")
    second = Shard(str(tmp_path / "s"), SIZE)
    assert read(second, 3 * PAGE, 10) == b"still here"
    assert second.extents(0, SIZE) == first.extents(0, SIZE) == [(3 * PAGE, HOLE), (PAGE, 0), (6 * PAGE + 100, HOLE)]


def test_a_file_of_another_size_is_refused_and_left_as_it_is(tmp_path):
    """Never overwritten."""
    (tmp_path / "s").write_bytes(b"somebody's")
    with pytest.raises(ShardError, match="has 10 bytes"):
        Shard(str(tmp_path / "s"), SIZE)
    assert (tmp_path / "s").read_bytes() == b"somebody's"


def test_a_file_that_is_gone_or_empty_is_not_made_anew(tmp_path):
    """Zeroes would take the place of what was acknowledged."""
    with pytest.raises(ShardError, match="is gone"):
        Shard(str(tmp_path / "s"), SIZE)
    (tmp_path / "s").touch()
    with pytest.raises(ShardError, match="has 0 bytes"):
        Shard(str(tmp_path / "s"), SIZE)
    assert (tmp_path / "s").stat().st_size == 0


def test_extents_can_be_bounded(shard):
    """An answer may end early, never be empty."""
    for page in range(0, 10, 2):
        shard.write(page * PAGE, b"x")
    assert shard.extents(0, SIZE, most=3) == [(PAGE, 0), (PAGE, HOLE), (PAGE, 0)]


def test_extents_are_looked_for_only_as_far_as_they_are_told(shard):
    """Of a memory in a million pieces one answer tells a few: looking at all would hold up the others for 0.6 s."""

    class Pages(bytearray):
        looks = 0

        def find(self, *where):
            self.looks += 1
            return super().find(*where)

    shard._pages = Pages(b"\1\0" * 5 + b"\1")
    assert len(shard.extents(0, SIZE, most=1)) == 1
    assert shard._pages.looks == 1


operations = st.lists(
    st.tuples(
        st.sampled_from(["write", "zero", "keep"]),
        st.integers(0, SIZE - 1),
        st.integers(1, 4 * PAGE),
        st.integers(1, 255),
    ),
    max_size=15,
)


@settings(max_examples=60)
@given(operations)
def test_a_shard_is_a_bytearray_with_holes(tmp_path_factory, steps):
    """After any operations the bytes are a bytearray's, and what the extents call a hole is zero."""
    shard = new(tmp_path_factory.mktemp("shard") / "s")
    model = bytearray(SIZE)
    for what, offset, wanted, value in steps:
        length = min(wanted, SIZE - offset)
        if what == "write":
            shard.write(offset, bytes([value]) * length)
            model[offset : offset + length] = bytes([value]) * length
        else:
            shard.zero(offset, length, keep=what == "keep")
            model[offset : offset + length] = bytes(length)
    assert read(shard) == model
    position = 0
    for length, status in shard.extents(0, SIZE):
        if status:
            assert not any(model[position : position + length])
        position += length
    assert position == SIZE
    shard.close()


FULL_DISK = """
import errno, os, sys
from memcluster.node.serving.memory import Shard
open(sys.argv[1], "w").truncate(64 << 20)
shard = Shard(sys.argv[1], 64 << 20)
written = 0
try:
    for offset in range(0, 64 << 20, 1 << 20):
        shard.write(offset, b"x" * (1 << 20))
        written += 1
except OSError as error:
    assert error.errno == errno.ENOSPC, error
    assert b"".join(shard.read((written - 1) << 20, 5)) == b"xxxxx"
    print("ENOSPC after", written)
"""


def test_a_full_disk_is_an_error_and_not_a_signal(tmp_path):
    """ENOSPC where the room ends; what was written stays, and the process lives."""
    code = f"mount -t tmpfs -o size=4m tmpfs {tmp_path} && {sys.executable} -c '{FULL_DISK}' {tmp_path}/s"
    done = run_in_small_room(tmp_path, code)
    assert done.stdout.startswith(b"ENOSPC after")


class Reader:
    """A stream that has sent a part of what it was lent."""

    def __init__(self, settled: list[int]) -> None:
        self._settled = settled

    def settle(self) -> None:
        self._settled.append(1)


@pytest.mark.parametrize("seed", range(3))
def test_every_page_that_is_changed_is_marked(tmp_path: Path, seed: int) -> None:
    """For one who copies the shard meanwhile: since it is watched, in one half and then in the other; and what is lent
    is settled as ever."""
    size = 40 * PAGE + 100
    chance = random.Random(seed)
    path, marks = tmp_path / "shard", tmp_path / "changes"
    path.write_bytes(chance.randbytes(size))
    marks.write_bytes(bytes(2 * pages_of(size)))
    shard = Shard(str(path), size)
    changes = Changes(str(marks), size)
    shard.write(0, b"before it is watched")
    shard.watch(changes)
    for half in (0, 1, 0):
        settled: list[int] = []
        before = path.read_bytes()
        shard.readers.add(Reader(settled))
        for _ in range(chance.randrange(1, 9)):
            length = chance.choice([1, 600, PAGE, 3 * PAGE])
            offset = chance.randrange(size - length)
            if chance.random() < 0.5:
                shard.write(offset, chance.randbytes(length))
            else:
                shard.zero(offset, length, keep=chance.random() < 0.5)
        assert settled == [1]
        changes.turn()
        found = marks.read_bytes()[half * pages_of(size) :][: pages_of(size)]
        after = path.read_bytes()
        changed = {
            page for page in range(pages_of(size)) if before[page * PAGE :][:PAGE] != after[page * PAGE :][:PAGE]
        }
        assert changed <= {page for page in range(pages_of(size)) if found[page]}
        assert sum(found) < pages_of(size)
        _wipe(marks)
    shard.watch(None)
    shard.write(0, b"after it was")
    assert not any(marks.read_bytes())
    shard.close()


def _wipe(path: Path) -> None:
    """In its place: somebody has it mapped."""
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
