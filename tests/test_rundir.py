"""launcher/run/directory.py: the memory of a cluster is whole or refused, whatever stops its making."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from memcluster.launcher.run.claiming import claim_memory
from memcluster.launcher.run.memory import MemoryMismatch

SIZES = [8192, 4096]


class Disk:
    """What of a directory would be there after a power cut: names and contents as they were last synced."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.contents: dict[int, bytes] = {}  # by inode
        self.cuts: list[dict[str, bytes]] = []
        self._names: dict[str, int] = {}
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self.sync)

    def sync(self, fd: int) -> None:
        self._fsync(fd)
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if path == self.directory:
            self._names = {entry.name: entry.stat().st_ino for entry in path.iterdir()}
        else:
            self.contents[path.stat().st_ino] = path.read_bytes()
        self.cuts.append({name: self.contents.get(inode, b"") for name, inode in self._names.items()})


def test_a_power_cut_leaves_a_memory_that_is_whole_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each step: what is on the disk then is served as it is, or made again."""
    directory = tmp_path / "data"
    directory.mkdir()
    with monkeypatch.context() as patched:
        disk = Disk(directory, patched)
        claim_memory(directory, "demo", SIZES, 0)
    assert "memory.json" in disk.cuts[-1]
    for number, cut in enumerate(disk.cuts):
        found = tmp_path / f"cut{number}"
        found.mkdir()
        for name, content in cut.items():
            (found / name).write_bytes(content)
        claim_memory(found, "demo", SIZES, 0)
        assert [(found / f"shard{server}").stat().st_size for server in range(2)] == SIZES


def test_an_empty_claim_is_refused(tmp_path: Path) -> None:
    claim_memory(tmp_path, "demo", SIZES, 0)
    (tmp_path / "memory.json").write_text("")
    with pytest.raises(MemoryMismatch, match=r"memory\.json cannot be read"):
        claim_memory(tmp_path, "demo", SIZES, 0)
