"""launcher/run/reshape.py: a memory gets another shape; whatever cuts that short, the next who comes has all bytes."""

from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Iterator
from itertools import chain, permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcluster.launcher.run import memory as files
from memcluster.launcher.run import reshape
from memcluster.launcher.run.claiming import claim_memory
from memcluster.launcher.run.memory import Claim, MemoryMismatch, Shape, read_claim
from memcluster.launcher.run.reshape import Reshape, first_byte
from memcluster.launcher.run.shards import Files
from memcluster.node.layout import Layout, make_layout, same_places

KIB = 1024
SHAPES = {
    "linear": ([40 * KIB, 40 * KIB, 40 * KIB], 0),
    "more servers": ([24 * KIB] * 5, 0),
    "striped": ([40 * KIB, 40 * KIB, 40 * KIB], 4 * KIB),
    "tiny stripes": ([40 * KIB, 40 * KIB, 40 * KIB], 512),
    "unequal": ([8 * KIB, 64 * KIB, 48 * KIB], 8 * KIB),
    "longer": ([40 * KIB, 40 * KIB, 80 * KIB], 0),
    "behind a dispatcher": ([0, 40 * KIB, 40 * KIB, 40 * KIB], 0),
    "shorter": ([40 * KIB, 40 * KIB, 20 * KIB], 0),
}


class Killed(BaseException):
    """As a kill -9 would: nothing catches it."""


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many stretches of a small memory."""
    monkeypatch.setattr(reshape, "CHUNK", 12 * KIB)
    monkeypatch.setattr(reshape, "STRETCH", 24 * KIB)


def make(folder: Path, name: str) -> bytes:
    """A memory of this shape, with holes; returns its bytes."""
    sizes, stripe = SHAPES[name]
    claim_memory(folder, "demo", sizes, stripe)
    content = bytearray(random.Random(1).randbytes(sum(sizes)))
    content[16 * KIB : 32 * KIB] = bytes(16 * KIB)
    content[100 * KIB :] = bytes(sum(sizes) - 100 * KIB)
    claim = read_claim(folder)
    assert claim is not None
    with Files(folder, claim.shape) as shards:
        shards.write(0, len(content), memoryview(content))
    return bytes(content)


def content_of(folder: Path, name: str) -> bytes:
    """What the next `up` finds that wants this shape."""
    sizes, stripe = SHAPES[name]
    shape = claim_memory(folder, "demo", sizes, stripe)
    assert {path.name for path in folder.iterdir()} == {"memory.json", *shape.files}
    with Files(folder, shape) as shards:
        return bytes(shards.read(0, shape.size) or bytes(shape.size))


def change(folder: Path, name: str, way: str = "forward") -> None:
    """Have this shape; `back`: the old one again after half of it; `live`: as while servers serve, if bytes move."""
    claim = read_claim(folder)
    assert claim is not None
    sizes, stripe = SHAPES[name]
    work = Reshape(folder, claim, claim.shape.becoming(tuple(sizes), stripe))
    if way == "live" and work.moves:
        copying = work.begin_copying()
        for server in claim.shape.owners:
            copying.changed_all(server)
        copying.go_on()
        for _ in chain(work.end_copying(copying), work.clean_up()):
            pass
        copying.close()
        return
    forward = work.forward()
    steps: Iterator[None] = chain(forward, work.clean_up())
    if way == "back":
        for _ in range(7):
            next(steps, None)
        if work.claim.new is None:
            return
        forward.close()
        steps = work.back()
    for _ in steps:
        pass


def cut_to(content: bytes, name: str) -> bytes:
    size = sum(SHAPES[name][0])
    return content[:size].ljust(size, b"\0")


@pytest.mark.parametrize("old", SHAPES)
@pytest.mark.parametrize("new", SHAPES)
def test_every_shape_becomes_every_other(tmp_path: Path, old: str, new: str) -> None:
    """And is itself again after that, as far as both have the bytes; no file is left over."""
    content = make(tmp_path, old)
    change(tmp_path, new)
    content = cut_to(content, new)
    assert content_of(tmp_path, new) == content
    change(tmp_path, old)
    assert content_of(tmp_path, old) == cut_to(content, old)


def kills(folder: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, way: str) -> Iterator[tuple[Path, bytes]]:
    """The memory as it lies there when it was killed after step 1, 2, 3 … of the change, until they are used up."""
    for kill_at in range(1, 1000):
        place = folder / str(kill_at)
        place.mkdir()
        content = make(place, old)
        count = 0

        def step(_part: str, kill_at: int = kill_at) -> None:
            nonlocal count
            count += 1
            if count == kill_at:
                raise Killed

        with monkeypatch.context() as patched:
            patched.setattr(reshape, "step", step)
            patched.setattr(files, "step", step)
            try:
                change(place, new, way)
            except Killed:
                yield place, content
            else:
                assert kill_at > 3
                return


@pytest.mark.parametrize("way", ["forward", "back", "live"])
@pytest.mark.parametrize(("old", "new"), [("linear", "more servers"), ("tiny stripes", "unequal"),
                                          ("linear", "longer"), ("linear", "behind a dispatcher")])  # fmt: skip
def test_killed_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, way: str) -> None:
    """The next who comes has every byte, in the shape that is wanted then: the new one, or the old one as long as there
    is a way back; and whoever wants a third one changes nothing."""
    for place, content in kills(tmp_path, monkeypatch, old, new, way):
        before = {path.name: path.read_bytes() for path in place.iterdir()}
        with pytest.raises(MemoryMismatch, match="holds another memory"):
            claim_memory(place, "demo", [4096], 0)
        assert {path.name: path.read_bytes() for path in place.iterdir()} == before
        claim = read_claim(place)
        assert claim is not None
        wanted = old if claim.shape.is_like(Shape(*_shape(old))) and place.name[-1] in "02468" else new
        if claim.new is None and claim.shape.is_like(Shape(*_shape(old))):
            wanted = old
        assert content_of(place, wanted) == cut_to(content, wanted)


def _shape(name: str) -> tuple[tuple[int, ...], int]:
    sizes, stripe = SHAPES[name]
    return tuple(sizes), stripe


@pytest.mark.parametrize("calls", range(1, 14))
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Wherever there is no room, it goes back, and what was there is there."""
    content = make(tmp_path, "linear")
    write, left = os.pwrite, iter(range(calls))

    def full(descriptor: int, data: bytes, offset: int) -> int:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data, offset)

    claim = read_claim(tmp_path)
    assert claim is not None
    work = Reshape(tmp_path, claim, claim.shape.becoming(*_shape("striped")))
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            for _ in work.forward():
                pass
    for _ in work.back():
        pass
    assert content_of(tmp_path, "linear") == content


def test_a_move_takes_hardly_more_room(tmp_path: Path) -> None:
    """What has been copied is given up where it was, and holes stay holes."""
    content = make(tmp_path, "linear")
    used = sum(path.stat().st_blocks for path in tmp_path.glob("shard*"))
    claim = read_claim(tmp_path)
    assert claim is not None
    work = Reshape(tmp_path, claim, claim.shape.becoming(*_shape("striped")))
    most = 0
    for _ in work.forward():
        most = max(most, sum(path.stat().st_blocks for path in tmp_path.glob("shard*")))
    assert most <= used + (reshape.STRETCH + 8 * 4096) // 512
    assert sum(path.stat().st_blocks for path in tmp_path.glob("shard*")) <= used + 8
    assert content_of(tmp_path, "striped") == content


@pytest.mark.parametrize("more", [{"leftover": ["shard0", "shard7"]}, {"new": {"shards": [8192], "stripe": 0,
                                  "generation": 1, "moved": 4096}}])  # fmt: skip
def test_a_memory_that_is_not_whole_is_left_alone(tmp_path: Path, more: dict[str, object]) -> None:
    """Whatever memory.json says of a change that was under way."""
    document = {"cluster": "demo", "shards": [4096, 4096], "stripe": 0} | more
    (tmp_path / "memory.json").write_text(json.dumps(document))
    (tmp_path / "shard0").write_bytes(bytes(4096))
    with pytest.raises(MemoryMismatch, match="is not whole: shard1 is missing"):
        claim_memory(tmp_path, "demo", [4096, 4096], 0)
    assert {path.name for path in tmp_path.iterdir()} == {"memory.json", "shard0"}


def test_the_first_byte_of_what_goes(tmp_path: Path) -> None:
    make(tmp_path, "linear")
    shape = Shape(*_shape("linear"))
    assert first_byte(tmp_path, shape, 100 * KIB) is None
    with Files(tmp_path, shape) as shards:
        shards.write(101 * KIB, 1, memoryview(b"\1"))
    assert first_byte(tmp_path, shape, 100 * KIB) == 101 * KIB
    assert first_byte(tmp_path, shape, 101 * KIB + 1) is None


@pytest.mark.parametrize(
    "document",
    [
        "[]", "{}", '{"cluster": "demo"}', '{"cluster": "demo", "shards": [], "stripe": 0}',
        '{"cluster": "demo", "shards": [-1], "stripe": 0}', '{"cluster": "demo", "shards": [100], "stripe": 512}',
        '{"cluster": "demo", "shards": [1], "stripe": 0, "new": {"shards": 1}}',
        '{"cluster": "demo", "shards": [1], "stripe": 0, "leftover": ["../shard0"]}',
        '{"cluster": "demo", "shards": [1], "stripe": 0, "leftover": [["shard0"]]}',
    ],
)  # fmt: skip
def test_a_damaged_memory_json_is_refused(tmp_path: Path, document: str) -> None:
    """With a sentence, and nothing is touched that it might name."""
    (tmp_path / "memory.json").write_text(document)
    with pytest.raises(MemoryMismatch, match=r"memory\.json cannot be read"):
        claim_memory(tmp_path, "demo", [1], 0)
    assert [path.name for path in tmp_path.iterdir()] == ["memory.json"]


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.booleans(),
    st.booleans(),
)
def test_same_places_means_that_every_byte_is_where_it_was(
    one: list[int], other: list[int], striped: bool, other_striped: bool
) -> None:
    """Held against the layouts, stripe by stripe; what it does not see only costs a move."""

    def layout(sizes: list[int], with_stripes: bool) -> Layout:
        return make_layout([size * 512 for size in sizes], 512 if with_stripes else 0)

    a, b = layout(one, striped), layout(other, other_striped)
    end = min(a.size, b.size)
    same = all(a.holder(at, 1) == b.holder(at, 1) for at in range(0, end, 512))
    assert same or not same_places(a, b)
    assert not same or striped != other_striped or same_places(a, b)


def test_a_claim_is_read_as_it_was_written() -> None:
    """With all that it may say, and as the first version wrote it."""
    claim = Claim("demo", Shape((512, 0), 512, 3), Shape((1024,), 0, 4), 7)
    assert Claim.decode(claim.encode()) == claim
    left = Claim("demo", Shape((512,), 0), leftover=("shard0.1", "shard1"))
    assert Claim.decode(left.encode()) == left
    assert json.loads(Claim("demo", Shape((512,), 0)).encode()) == {"cluster": "demo", "shards": [512], "stripe": 0}


@pytest.mark.parametrize(
    ("old", "new"), [*permutations(("linear", "more servers", "tiny stripes", "unequal"), 2), ("unequal", "shorter")]
)
def test_a_copy_has_what_is_changed_meanwhile(tmp_path: Path, old: str, new: str) -> None:
    """Written, and made zero, at any time: before, while and after it is copied, and while nothing runs."""
    content = bytearray(make(tmp_path, old))
    claim = read_claim(tmp_path)
    assert claim is not None
    before, after = claim.shape, claim.shape.becoming(*_shape(new))
    work = Reshape(tmp_path, claim, after)
    copying = work.begin_copying()
    for server in before.owners:
        copying.changed_all(server)
    chance = random.Random(11)
    marks = [bytearray(-(-size // 4096)) for size in before.shards]

    def change(shards: Files) -> None:
        """As servers do, which mark the pages."""
        length = chance.choice([1, 512, 4096, 9 * KIB])
        start = chance.randrange(before.size - length)
        data = chance.choice([bytes(length), chance.randbytes(length)])
        content[start : start + length] = data
        shards.write(start, length, memoryview(data))
        for piece in before.layout.split(start, length):
            pages = range(piece.offset // 4096, (piece.offset + piece.length - 1) // 4096 + 1)
            marks[piece.server][pages.start : pages.stop] = b"\1" * len(pages)

    with Files(tmp_path, before) as shards:
        for _ in range(6):
            while copying.go_on(8 * KIB):
                change(shards)
                if chance.random() < 0.5:
                    break
            for server, pages in enumerate(marks):
                copying.changed(server, bytes(pages))
                pages[:] = bytes(len(pages))
    for _ in work.end_copying(copying):
        pass
    copying.close()
    assert content_of(tmp_path, new) == cut_to(bytes(content), new)


def test_trimmed_pages_become_holes_in_a_copy(tmp_path: Path) -> None:
    content = make(tmp_path, "linear")
    claim = read_claim(tmp_path)
    assert claim is not None
    work = Reshape(tmp_path, claim, claim.shape.becoming(*_shape("more servers")))
    copying = work.begin_copying()
    for again in (False, True):
        for server in claim.shape.owners:
            copying.changed_all(server)
        while copying.go_on():
            pass
        if not again:
            with Files(tmp_path, claim.shape) as shards:
                shards.write(0, len(content), None)
    for _ in chain(work.end_copying(copying), work.clean_up()):
        pass
    copying.close()
    assert not sum(path.stat().st_blocks for path in tmp_path.glob("shard*"))
    assert content_of(tmp_path, "more servers") == bytes(len(content))
