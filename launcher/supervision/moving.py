"""The bytes of the memory go to the shards of its next shape while every server goes on serving.

Round after round: in the first one all is copied, in each later one what the servers have changed since the last one.
When little is left, or it does not become less, it is time to stop them all and copy the rest. Servers mark what they
change (node/serving/changes.py). What one has changed that was started meanwhile nobody has marked until it answers:
all of its shard is copied again. A server that is down changes nothing.

Until the rest is copied the old shards are the memory, so from any point before there is a way back that loses nothing.
"""

from __future__ import annotations

import itertools
import mmap
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from memcluster.launcher.run.copying import CHUNK, Copying
from memcluster.launcher.run.directory import RunDirectory
from memcluster.launcher.run.memory import Shape, read_claim
from memcluster.launcher.run.reshape import Reshape
from memcluster.launcher.run.steps import step
from memcluster.launcher.supervision.lifecycle import Lifecycle
from memcluster.launcher.supervision.makeup import Makeup
from memcluster.launcher.supervision.nodelife import State
from memcluster.launcher.supervision.process import Process
from memcluster.node.files import open_file
from memcluster.node.serving.cgroup import memory_in_use, memory_limit
from memcluster.node.serving.changes import pages_of
from memcluster.node.transport.loop import Loop

LITTLE: Final = 4 << 20
"""Bytes that may be copied while nothing runs."""
ROUNDS: Final = 4
"""From this one on, one that leaves hardly less than the one before is the last: clients change more than is copied."""
MOST_ROUNDS: Final = 32
HARDLY_LESS: Final = 0.8
OFTEN: Final = 0.1
"""Seconds between two words about how far it is, and two looks at a server that is not back yet."""
_numbers = itertools.count()
SPARE: Final = 64 << 20
"""Bytes of room that are left to others."""


class Cluster(Protocol):
    """What is asked of the supervisor."""

    loop: Loop
    makeup: Makeup
    lifecycle: Lifecycle
    run_directory: RunDirectory

    def child(self, name: str) -> Process | None: ...
    def note(self, event: str, about: str, value: int) -> None: ...


@dataclass
class _Watched:
    """A server's marks; `half` is where it makes them now."""

    marks: mmap.mmap
    pages: int
    half: int = 0

    def take(self, half: int) -> bytes:
        """What is marked there, once."""
        start, end = half * self.pages, (half + 1) * self.pages
        found = self.marks[start:end]
        self.marks[start:end] = bytes(self.pages)
        return found


class Move:
    """`ready()` is called when it is time to stop all servers; `failed(why)` instead, when it cannot be done, and then
    all is as it was."""

    def __init__(
        self,
        cluster: Cluster,
        new: Shape,
        *,
        rate: int | None,
        tell: Callable[[dict[str, Any]], None],
        ready: Callable[[], None],
        failed: Callable[[str], None],
    ) -> None:
        self._cluster = cluster
        self._new = new
        self._rate = rate
        self._tell = tell
        self._ready = ready
        self._failed = failed
        makeup = cluster.makeup
        self._directory = makeup.shards[0].parent
        self._owners = {f"server{index}": index for index in makeup.shape.owners}
        self._watched: dict[str, _Watched] = {}
        self._quiet: set[str] = set()  # whose shard nobody has changed since all of it was last due
        self._waiting: set[str] = set()  # who has not answered
        self._reshape: Reshape | None = None
        self._copying: Copying | None = None
        self._over = False
        self._round = 0
        self._left = 0  # at the end of the last round
        self._began = self._told = self._next = time.monotonic()

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Raises OSError, MemoryMismatch, and then nothing has changed."""
        claim = read_claim(self._directory)
        assert claim is not None
        if claim.new is not None:  # what an earlier one could not take away
            _go_back(Reshape(self._directory, claim))
            claim = read_claim(self._directory)
            assert claim is not None
        self._reshape = Reshape(self._directory, claim, self._new)
        try:
            self._copying = self._reshape.begin_copying()
        except OSError:
            _go_back(self._reshape)
            raise
        self._cluster.note("move_begun", "server0", self._copying.total)
        for name, index in self._owners.items():
            self._copying.changed_all(index)
            if self._cluster.child(name) is None:
                self._quiet.add(name)
            else:
                self._waiting.add(name)
        for name in tuple(self._waiting):
            self._watch(name)
        if not self._waiting:
            self._cluster.loop.soon(self._turn)

    def started(self, name: str) -> None:
        """A process begins: what it changes until it is watched nobody knows."""
        self._quiet.discard(name)
        self._watched.pop(name, None)

    def serving(self, name: str) -> None:
        """It is ready."""
        if name in self._owners and not self._over:
            self._watch(name)

    def finish(self) -> tuple[Reshape, Copying]:
        """Everything has stopped: what is left is due now."""
        assert self._reshape is not None
        assert self._copying is not None
        for name, index in self._owners.items():
            if (watched := self._watched.get(name)) is not None:
                for half in (0, 1):
                    self._copying.changed(index, watched.take(half))
            elif name not in self._quiet:
                self._copying.changed_all(index)
        self._over = True
        self._watched.clear()
        return self._reshape, self._copying

    def drop(self) -> str:
        """All is as it was before; returns what is wrong with that."""
        self._over = True
        self._watched.clear()
        for name in self._owners:
            if (child := self._cluster.child(name)) is not None:
                child.tell({"do": "unwatch"})
        if self._copying is not None:
            self._copying.close()
        assert self._reshape is not None
        try:
            _go_back(self._reshape)
        except OSError as error:
            return f"; {error}: the copy is still there, and goes with the next apply or up"
        return ""

    def cancel(self) -> None:
        """Leave it where it is; memory.json says where that is."""
        self._over = True

    def told(self) -> dict[str, Any]:
        """How far it is, for `status`."""
        assert self._copying is not None
        moved = self._copying.total - self._copying.due
        seconds = round(time.monotonic() - self._began, 3)
        head = {"moved": moved, "total": self._copying.total, "back": False, "seconds": seconds}
        waits = sorted(self._waiting)
        return head | {"copied": self._copying.copied, "round": self._round, "waits_for": waits}

    # -- what servers change ---------------------------------------------------------------------------------------

    def _watch(self, name: str) -> None:
        """Have a server mark what it changes from now on."""
        child = self._cluster.child(name)
        if child is None:
            self._answered(name)
            return
        pages = pages_of(self._cluster.makeup.shape.shards[self._owners[name]])
        path = self._cluster.run_directory.path / f"changes{next(_numbers)}"
        try:
            watched = _Watched(_make_marks(path, pages), pages)
        except OSError as error:
            self._cluster.loop.soon(partial(self._fail, str(error)))
            return

        def answered(answer: dict[str, Any]) -> None:
            path.unlink(missing_ok=True)
            if self._over:
                return
            if "error" not in answer:
                assert self._copying is not None
                self._watched[name] = watched
                self._copying.changed_all(self._owners[name])
            elif child.alive:
                self._fail(answer["error"])
            self._answered(name)

        child.ask({"do": "watch", "path": str(path)}, answered)

    def _answered(self, name: str) -> None:
        if name in self._waiting:
            self._waiting.discard(name)
            if not self._waiting:
                self._cluster.loop.soon(self._decide if self._round else self._turn)

    # -- rounds ----------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Copy a little."""
        if self._over:
            return
        assert self._copying is not None
        try:
            most = CHUNK if self._rate is None else min(CHUNK, int(self._rate * OFTEN))
            count = self._copying.go_on(most)
            if not count:
                self._end_round()
                return
        except OSError as error:
            self._fail(str(error))
            return
        now = time.monotonic()
        if now >= self._told + OFTEN:
            self._told = now
            self._tell(self.told())
        if self._rate is None:
            self._cluster.loop.soon(self._turn)
        else:
            self._next = max(self._next, now - OFTEN) + count / self._rate
            self._cluster.loop.after(max(0.0, self._next - now), self._turn)

    def _end_round(self) -> None:
        """Ask the servers what they have changed meanwhile. Raises OSError."""
        assert self._copying is not None
        self._copying.sync()
        step("reshape")
        self._round += 1
        asked = [(name, child) for name in self._watched if (child := self._cluster.child(name)) is not None]
        self._waiting = {name for name, _ in asked}
        for name, child in asked:
            child.ask({"do": "turn"}, partial(self._turned, name, self._watched[name]))
        if not asked:
            self._cluster.loop.soon(self._decide)

    def _turned(self, name: str, watched: _Watched, answer: dict[str, Any]) -> None:
        if self._over:
            return
        if "error" not in answer and self._watched.get(name) is watched:
            assert self._copying is not None
            self._copying.changed(self._owners[name], watched.take(watched.half))
            watched.half = 1 - watched.half
        self._answered(name)

    def _decide(self) -> None:
        """Another round, or the end."""
        if self._over:
            return
        assert self._copying is not None
        unknown = [name for name in self._owners if name not in self._watched and name not in self._quiet]
        for name in unknown:
            if self._cluster.lifecycle.nodes[name].state in (State.FAILED, State.STOPPED):
                self._quiet.add(name)
                self._copying.changed_all(self._owners[name])
        left = self._copying.due
        stuck = self._round >= ROUNDS and left > HARDLY_LESS * self._left
        self._left = left
        if self._quiet.issuperset(unknown) and (left <= LITTLE or stuck or self._round >= MOST_ROUNDS):
            self._cluster.note("move_switched", "server0", left)
            self._ready()
        elif left > LITTLE:
            self._cluster.note("move_round", "server0", left)
            self._turn()
        else:  # somebody is being started again
            self._cluster.loop.after(OFTEN, self._turn)

    def _fail(self, why: str) -> None:
        if not self._over:
            self._failed(f"{why}{self.drop()}")


def _go_back(reshape: Reshape) -> None:
    for _ in reshape.back():
        pass


def _make_marks(path: Path, pages: int) -> mmap.mmap:
    """None are made. Raises OSError."""
    file = open_file(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.posix_fallocate(file, 0, 2 * pages)
        return mmap.mmap(file, 2 * pages)
    finally:
        os.close(file)


def no_room_for_both(shards: Sequence[Path], *, on_disk: bool) -> str:
    """Why what the shards hold cannot be there twice for a while; nothing if it can. Raises OSError."""
    needed = sum(shard.stat().st_blocks * 512 for shard in shards) + SPARE
    system = os.statvfs(shards[0].parent)
    rooms = [(system.f_bavail * system.f_frsize, f"free room in {shards[0].parent}")]
    if not on_disk:
        import psutil

        rooms.append((psutil.virtual_memory().available, "memory of this machine that is free"))
        if (limit := memory_limit()) is not None:
            rooms.append((int(limit * (1 - memory_in_use())), "what the control group may take yet"))
    room, what_says = min(rooms)
    if room >= needed:
        return ""
    return f"there is no room for a copy of {needed >> 20} MiB while servers serve on ({what_says}: {room >> 20} MiB)"
