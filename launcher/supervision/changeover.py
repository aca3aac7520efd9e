"""The time between two clusters under one supervisor: nothing runs, and the memory gets the shape of the next one, a
little at each turn of the loop, so that the supervisor can be asked how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from memcluster.launcher.run.copying import Copying
from memcluster.launcher.run.memory import MemoryMismatch, Shape, read_claim
from memcluster.launcher.run.reshape import Reshape, first_byte
from memcluster.node.transport.loop import Loop

OFTEN: Final = 0.1
"""Seconds between two words about how far it is."""


class Changeover:
    """`tell(progress)` is called now and then while bytes are moved. `done(problem)` is called once: without a problem
    the memory has the new shape; with one it has the old shape again. `stuck(problem)` is called instead when it can
    have neither now: the next `up` goes on. `begun` is what has been copied while servers served, all but a rest."""

    def __init__(
        self,
        loop: Loop,
        directory: Path,
        new: Shape,
        *,
        discard: bool,
        tell: Callable[[dict[str, Any]], None],
        done: Callable[[str], None],
        stuck: Callable[[str], None],
        begun: tuple[Reshape, Copying] | None = None,
    ) -> None:
        self._loop = loop
        self._directory = directory
        self._new = new
        self._discard = discard
        self._tell = tell
        self._done = done
        self._stuck = stuck
        self.reshape: Reshape | None = None
        """What is being done to the memory; when it has the new shape, what is left over has to be cleaned up."""
        self._copying: Copying | None = None
        if begun is not None:
            self.reshape, self._copying = begun
        self._steps: Iterator[None] = iter(())
        self._problem = ""
        self._over = False
        self._began = self._told = time.monotonic()

    def start(self) -> None:
        reshape = self.reshape
        try:
            if reshape is None:
                claim = read_claim(self._directory)
                assert claim is not None
                reshape = Reshape(self._directory, claim, None if claim.shape == self._new else self._new)
            problem = "" if self._discard else lost_by(self._directory, reshape.claim.shape, self._new)
        except (OSError, MemoryMismatch) as error:
            problem = str(error)
        if problem and self._copying is None:
            self._end(problem)
            return
        assert reshape is not None
        self.reshape = reshape
        self._steps = reshape.forward() if self._copying is None else reshape.end_copying(self._copying)
        if problem:
            self.abort(problem)
        self._turn()

    def abort(self, why: str) -> bool:
        """Go back to the old shape; false if that is not possible any more, or done already."""
        reshape = self.reshape
        if reshape is None or reshape.claim.new is None or self._problem:
            return False
        self._problem = why
        self._steps = reshape.back()
        return True

    def cancel(self) -> None:
        """Leave it where it is; memory.json says where that is."""
        self._over = True

    def told(self) -> dict[str, Any]:
        """How far it is, for `status`."""
        reshape = self.reshape
        if reshape is None or not reshape.moves:
            return {}
        seconds = round(time.monotonic() - self._began, 3)
        moved = reshape.moved if self._copying is None else self._copying.total - self._copying.due
        return {"moved": moved, "total": reshape.total, "back": bool(self._problem), "seconds": seconds}

    def _turn(self) -> None:
        if self._over:
            return
        try:
            next(self._steps)
        except StopIteration:
            self._end(self._problem)
        except (OSError, MemoryMismatch) as error:
            self._failed(str(error))
        else:
            self._loop.soon(self._turn)
            if (now := time.monotonic()) >= self._told + OFTEN and (told := self.told()):
                self._told = now
                self._tell(told)

    def _failed(self, why: str) -> None:
        assert self.reshape is not None
        if self.reshape.claim.new is None:  # all but some rubbish is done
            self._end("")
        elif self._problem:
            self._close()
            self._stuck(f"{self._problem}; and it cannot go back: {why}")
        else:
            self.abort(why)
            self._loop.soon(self._turn)

    def _end(self, problem: str) -> None:
        self._close()
        self._done(problem)

    def _close(self) -> None:
        self._over = True
        if self._copying is not None:
            self._copying.close()


def lost_by(directory: Path, old: Shape, new: Shape) -> str:
    """What is in the part of the memory that goes; nothing if that is empty. Raises OSError."""
    byte = first_byte(directory, old, new.size) if new.size < old.size else None
    if byte is None:
        return ""
    return f"memory: the bytes from {new.size} on go, and that at {byte} is not zero; --discard gives them up"
