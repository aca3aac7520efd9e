"""What a run has in the file system, and whether it is still there: others may remove it, logind does at a logout
(RemoveIPC), and people tidy up. What can be mended is mended, and the rest is told for as long as it is so.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from memcluster.launcher.run.directory import RunDirectory
from memcluster.node.transport.loop import Loop

PERIOD = 1.0
"""Seconds between two looks."""


class Belongings:
    """Calls `lost(problem)` once for each thing that is missed, `restore()` when the run directory has been made again;
    `problems` are those that are left."""

    def __init__(
        self,
        loop: Loop,
        run: RunDirectory,
        *,
        sockets: Sequence[str],
        shards: Sequence[Path],
        logs: Path,
        restore: Callable[[], None],
        lost: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._run = run
        self._sockets = {path: _inode(Path(path)) for path in sockets}
        self._shards = {path: _inode(path) for path in shards}
        self._logs = logs
        self._log_folder = os.open(logs, os.O_PATH | os.O_DIRECTORY)  # held, so that no other gets its number
        self._restore = restore
        self._lost = lost
        self.problems: list[str] = []

    def watch_sockets(self, paths: Sequence[str]) -> None:
        """Look for these from now on."""
        self._sockets = {path: _inode(Path(path)) for path in paths}

    def start(self) -> None:
        self._timer = self._loop.after(PERIOD, self._look)

    def stop(self) -> None:
        """Look no more."""
        self._timer.cancel()

    def _look(self) -> None:
        before, self.problems = self.problems, []
        if not self._run.ours:
            self._make_again()
        gone = [path.name for path, inode in self._shards.items() if _inode(path) != inode]
        if gone:
            folder = next(iter(self._shards)).parent
            self.problems.append(
                f"{folder}/{', '.join(gone)} {'is' if len(gone) == 1 else 'are'} gone: the bytes are in the servers "
                "alone now, and lost with each that ends; `memclient copy memory: FILE` saves them (did a logout "
                "remove them? See RemoveIPC in docs/faults.md)"
            )
        for path, inode in self._sockets.items():
            if _inode(Path(path)) != inode:
                self.problems.append(f"the socket {path} is gone: nobody can connect there now; restart the cluster")
        if not _leads_to(self._logs, self._log_folder):  # or to one that a node made again for what it has to write
            self.problems.append(f"{self._logs} was removed, and with it the log up to then")
        for problem in self.problems:
            if problem not in before:
                self._lost(problem)
        self._timer = self._loop.after(PERIOD, self._look)

    def _make_again(self) -> None:
        """The run directory was removed: without it nobody finds this cluster any more."""
        if self._run.make_again():
            self._restore()
        else:
            self.problems.append(f"{self._run.path} is another cluster's now: this one can only be ended by its pid")


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) or stat.S_ISSOCK(found.st_mode) else None


def _leads_to(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False
