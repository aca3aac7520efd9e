"""Copies between files, pipes and memories: every byte, holes where there were holes, and nothing else touched."""

from __future__ import annotations

import os
import random

import pytest
from peers import nbdkit

import memcluster
from memcluster.client.copy import CHUNK, FileSink, FileSource, MemorySink, MemorySource, copy

MIB = 1 << 20
SIZE = 16 * MIB


@pytest.fixture
def memory():
    """A memory of 16 MiB at nbdkit."""
    with nbdkit("memory", str(SIZE)) as uri, memcluster.connect(uri) as memory:
        yield memory


def content(seed: int) -> tuple[bytes, list[tuple[int, bytes]]]:
    """8 MiB and a bit with data here and there, whole and as (offset, bytes)."""
    chance = random.Random(seed)
    whole, parts = bytearray(8 * MIB + 1234), []
    for _ in range(5):
        offset = chance.randrange(7 * MIB)
        data = chance.randbytes(chance.choice([1, 4096, CHUNK, 600_000]))
        whole[offset : offset + len(data)] = data
        parts.append((offset, data))
    return bytes(whole), parts


def sparse_file(path, seed: int) -> bytes:
    """Write such a file with holes; returns its content."""
    whole, parts = content(seed)
    with open(path, "wb") as file:
        file.truncate(len(whole))
        for offset, data in parts:
            file.seek(offset)
            file.write(data)
    return whole


@pytest.mark.parametrize("seed", range(3))
def test_a_sparse_file_there_and_back(memory, tmp_path, seed):
    """Every byte is the same, and what was a hole takes no room, in the memory and in the file."""
    whole = sparse_file(tmp_path / "in", seed)
    memory.pwrite(b"\xff" * SIZE, 0)
    seen = []
    with open(tmp_path / "in", "rb") as file:
        assert copy(FileSource(file), MemorySink(memory, 777), seen.append) == len(whole)
    assert memory[:] == b"\xff" * 777 + whole + b"\xff" * (SIZE - 777 - len(whole))
    assert seen == sorted(seen)
    assert seen[-1] == len(whole)
    with open(tmp_path / "out", "wb") as file:
        copy(MemorySource(memory, 777, len(whole)), FileSink(file, fresh=True))
    assert (tmp_path / "out").read_bytes() == whole
    assert os.stat(tmp_path / "out").st_blocks * 512 < 6 * MIB


def test_a_hole_at_the_end_has_its_length(memory, tmp_path):
    """A copy of nothing but zeroes is a file of that size, without a block."""
    with open(tmp_path / "out", "wb") as file:
        copy(MemorySource(memory, 5, 2 * MIB), FileSink(file, fresh=True))
    status = os.stat(tmp_path / "out")
    assert (status.st_size, status.st_blocks) == (2 * MIB, 0)


def test_a_memory_into_another(memory):
    """Zeroes overwrite what the other held."""
    whole, parts = content(7)
    for offset, data in parts:
        memory.pwrite(data, offset)
    with nbdkit("memory", str(SIZE)) as uri, memcluster.connect(uri) as other:
        other.pwrite(b"\xff" * SIZE, 0)
        copy(MemorySource(memory, 0, len(whole)), MemorySink(other, 0))
        assert other[:] == memory[: len(whole)] + b"\xff" * (SIZE - len(whole))


def test_pipes(memory, tmp_path):
    """A pipe has no length and no holes; both ends work."""
    whole = sparse_file(tmp_path / "in", 7)
    with os.popen(f"cat {tmp_path / 'in'}") as pipe:
        source = FileSource(pipe.buffer)
        assert source.length is None
        assert copy(source, MemorySink(memory, 0)) == len(whole)
    assert memory[: len(whole)] == whole
    with os.popen(f"cat > {tmp_path / 'out'}", "w") as pipe:
        copy(MemorySource(memory, 0, len(whole)), FileSink(pipe.buffer))
    assert (tmp_path / "out").read_bytes() == whole


@pytest.mark.parametrize("most", [0, 1, CHUNK, 8 * MIB, None])
def test_no_more_than_was_asked_for(memory, tmp_path, most):
    """The length is kept to for files and pipes; a file that was read in part goes on where it was."""
    whole = sparse_file(tmp_path / "in", 7)
    for start in (0, 1000):
        with open(tmp_path / "in", "rb") as file:
            file.seek(start)
            copied = copy(FileSource(file, most), MemorySink(memory, 0))
        expected = whole[start:] if most is None else whole[start:][:most]
        assert copied == len(expected)
        assert memory[: len(expected)] == expected
    with os.popen(f"cat {tmp_path / 'in'}") as pipe:
        assert copy(FileSource(pipe.buffer, most), MemorySink(memory, 0)) == len(whole[:most])


def test_what_does_not_fit_is_an_index_error(memory, tmp_path):
    """Beyond the end of the memory."""
    sparse_file(tmp_path / "in", 7)
    with open(tmp_path / "in", "rb") as file, pytest.raises(IndexError):
        copy(FileSource(file), MemorySink(memory, SIZE - MIB))


def test_what_a_file_held_before_is_not_touched(memory, tmp_path):
    """A file that is not fresh is appended to: holes are written as zeroes, and its length is not cut."""
    memory.pwrite(b"x", MIB)
    path = tmp_path / "out"
    path.write_bytes(b"before")
    with open(path, "ab") as file:
        copy(MemorySource(memory, 0, 2 * MIB), FileSink(file))
    assert path.read_bytes() == b"before" + bytes(MIB) + b"x" + bytes(MIB - 1)
