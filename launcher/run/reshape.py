"""A memory gets another shape: its bytes are moved to other files, or its files are cut or become longer.

It is done in steps, each of which can be cut short by the death of this process or
of the machine, or by a full disk: memory.json (launcher/run/memory.py) says how far it has come, and is on the disk
before the next step relies on it. From any point it goes on, or back, to the end.

    1. memory.json: both shapes, moved 0
    2. the files of the new shape are made, or become longer, or get another name
    3. where bytes move: a stretch is copied, and is on the disk; memory.json: moved so far; its place in the old files
       is given back, so that hardly more room is needed than before. Nobody has the files open meanwhile. Or, where
       there is room for both shapes: all is copied while servers go on in the old files (launcher/run/copying.py), and
       memory.json goes on saying moved 0, as nothing may rely on the copy before its end
    4. memory.json: the new shape, and what is left over
    5. what is left over of files that are kept is cut off; from here on the new shape may be served
    6. other files that are left over are removed, which takes the system its time
    7. memory.json: the new shape
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

from memcluster.launcher.run.copying import Copying
from memcluster.launcher.run.memory import Claim, Shape, make_shard, sync, write_claim
from memcluster.launcher.run.shards import Files
from memcluster.launcher.run.steps import step
from memcluster.node.files import open_file

CHUNK = 4 << 20
"""Bytes that are copied at a time: some 3 ms."""
STRETCH = 64 << 20
"""Bytes after which is written down how far it has come."""


class Reshape:
    """From the shape that memory.json has to another one, or where it says that one is under way, to that one, or back.
    `forward` and `back` do a little at each turn, and so does `clean_up` after `forward` or `end_copying`; they raise
    OSError."""

    def __init__(self, directory: Path, claim: Claim, new: Shape | None = None) -> None:
        self.directory = directory
        self.claim = claim if new is None else replace(claim, new=new, moved=0)
        self._begun = new is None
        self.moved = self.claim.moved
        """Bytes that are copied; of the last of them memory.json does not know yet."""

    @property
    def moves(self) -> bool:
        """Whether bytes have to be moved."""
        return self.claim.new is not None and self.claim.shape.kept_in(self.claim.new) is None

    @property
    def total(self) -> int:
        """Bytes to be moved."""
        new = self.claim.new
        return min(self.claim.shape.size, new.size) if new is not None and self.moves else 0

    def forward(self) -> Iterator[None]:
        """Have the new shape."""
        if self.claim.new is not None:
            if not self._begun:
                self._write(self.claim)
            yield
            self._make_files(self.claim.shape, self.claim.new)
            if self.moves:
                yield from self._move(self.claim.shape, self.claim.new)
            self._commit(self.claim.new)
        self._cut_off()

    def begin_copying(self) -> Copying:
        """Make the files of the new shape; all of the memory is to be copied there."""
        new, old = self.claim.new, self.claim.shape
        assert new is not None
        self._write(self.claim)
        self._make_files(old, new)
        return Copying(self.directory, old, new)

    def end_copying(self, copying: Copying) -> Iterator[None]:
        """Copy what is left, as nobody has the files open any more, and have the new shape."""
        assert self.claim.new is not None
        while copying.go_on():
            yield
        copying.sync()
        step("reshape")
        self._commit(self.claim.new)

    def clean_up(self) -> Iterator[None]:
        """Remove what is not needed any more."""
        if not self.claim.leftover:
            return
        for name in sorted(set(self.claim.leftover) - set(self.claim.shape.files)):
            (self.directory / name).unlink(missing_ok=True)
            step("reshape")
            yield
        sync(self.directory)
        self._write(replace(self.claim, leftover=()))

    def back(self) -> Iterator[None]:
        """Have the old shape again."""
        new, old = self.claim.new, self.claim.shape
        assert new is not None
        if self.moves and self.claim.moved:
            yield from self._move_back(old, new)
        for name, size in zip(old.files, old.shards, strict=True):
            _resize(self.directory / name, size)
        for name in set(new.files) - set(old.files):
            (self.directory / name).unlink(missing_ok=True)
        sync(self.directory)
        step("reshape")
        self._write(replace(self.claim, new=None, moved=0))

    # -- steps -------------------------------------------------------------------------------------------------------

    def _write(self, claim: Claim) -> None:
        write_claim(self.directory, claim)
        self.claim, self._begun = claim, True

    def _make_files(self, old: Shape, new: Shape) -> None:
        """Those of the new shape: other names of old ones, which become longer, or empty ones."""
        kept = old.kept_in(new) or {}
        for server, (name, size) in enumerate(zip(new.files, new.shards, strict=True)):
            path = self.directory / name
            if server in kept:
                before = self.directory / old.files[kept[server]]
                if not path.exists() or not path.samefile(before):
                    path.unlink(missing_ok=True)
                    os.link(before, path)
                _resize(path, max(size, old.shards[kept[server]]))
            elif not self.claim.moved:
                make_shard(path, size)
            step("reshape")
        sync(self.directory)

    def _move(self, old: Shape, new: Shape) -> Iterator[None]:
        with Files(self.directory, old) as source, Files(self.directory, new) as target:
            while (done := self.claim.moved) < self.total:
                end = min(done + STRETCH, self.total)
                for start in range(done, end, CHUNK):
                    _copy(source, target, start, min(start + CHUNK, end))
                    self.moved = min(start + CHUNK, end)
                    yield
                target.sync()
                step("reshape")
                self._write(replace(self.claim, moved=end))
                source.give_up(done, end)

    def _move_back(self, old: Shape, new: Shape) -> Iterator[None]:
        with Files(self.directory, new) as source, Files(self.directory, old) as target:
            while done := self.claim.moved:
                begin = max(0, done - STRETCH)
                for start in range(begin, done, CHUNK):
                    _copy(source, target, start, min(start + CHUNK, done))
                    self.moved = done - (min(start + CHUNK, done) - begin)
                    yield
                target.sync()
                step("reshape")
                self._write(replace(self.claim, moved=begin))
                source.give_up(begin, done)

    def _commit(self, new: Shape) -> None:
        """From here on there is no way back."""
        old = self.claim.shape
        sizes = dict(zip(new.files, new.shards, strict=True))
        left = set(old.files) - set(new.files)
        left |= {name for name, size in sizes.items() if (self.directory / name).stat().st_size != size}
        left |= set(self.claim.leftover)  # of an earlier change, if it could not be removed
        self._write(Claim(self.claim.cluster, new, leftover=tuple(sorted(left))))

    def _cut_off(self) -> None:
        for name, size in zip(self.claim.shape.files, self.claim.shape.shards, strict=True):
            if name in self.claim.leftover:
                _resize(self.directory / name, size)
                step("reshape")


def finish(directory: Path, claim: Claim, forward: bool) -> Claim:
    """Bring a change that was under way to its end. Raises OSError."""
    reshape = Reshape(directory, claim)
    for _ in chain(reshape.forward(), reshape.clean_up()) if forward else reshape.back():
        pass
    return reshape.claim


def first_byte(directory: Path, shape: Shape, begin: int) -> int | None:
    """The address of the first byte from `begin` on that is not zero; None if there is none. Raises OSError."""
    with Files(directory, shape) as files:
        for start in range(begin, shape.size, CHUNK):
            length = min(CHUNK, shape.size - start)
            content = files.read(start, length)
            if content is not None and any(content):
                return start + len(content) - len(bytes(content).lstrip(b"\0"))
    return None


def _copy(source: Files, target: Files, start: int, end: int) -> None:
    target.write(start, end - start, source.read(start, end - start))


def _resize(path: Path, size: int) -> None:
    if path.stat().st_size != size:
        file = open_file(path, os.O_RDWR)
        try:
            os.ftruncate(file, size)
            os.fsync(file)
        finally:
            os.close(file)
