"""The bytes of a memory are copied into the shards of its next shape while servers change them.

What has been changed since it was copied is copied again. It knows no servers: it is told what they changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from memcluster.launcher.run.memory import Shape
from memcluster.launcher.run.shards import PAGE, Files

CHUNK: Final = 1 << 20
"""Bytes that are copied at a time, at most."""
BRIDGE: Final = 4
"""Pages beside each other that are copied, too, if those before and after them have to be: that is less than another
call."""
SYNC: Final = 32 << 20
"""Bytes after which they are brought to the disk, if there is one: else all would have to be in the pause."""


class Copying:
    """At first nothing is due."""

    def __init__(self, directory: Path, old: Shape, new: Shape) -> None:
        self.total = min(old.size, new.size)
        self._layout = old.layout
        self._shards = old.shards
        self._due = bytearray(-(-self.total // PAGE))
        self._at = 0
        self._unsynced = 0
        self.copied = 0
        """Bytes, whenever they were."""
        self._source = Files(directory, old)
        try:
            self._target = Files(directory, new)
        except OSError:
            self._source.close()
            raise

    @property
    def due(self) -> int:
        """Bytes that have to be copied, or copied again."""
        return min(self._due.count(1) * PAGE, self.total)

    def changed_all(self, server: int) -> None:
        """Any byte of this shard may have been changed."""
        if self._shards[server]:
            self._changed(server, 0, self._shards[server])

    def changed(self, server: int, pages: bytes) -> None:
        """These pages of a shard may have been changed: a byte for each, 0 where it has not been."""
        end = self._shards[server]
        first = pages.find(1)
        while first >= 0:
            last = pages.find(0, first)
            last = len(pages) if last < 0 else last
            self._changed(server, first * PAGE, min(last * PAGE, end))
            first = pages.find(1, last)

    def go_on(self, most: int = CHUNK) -> int:
        """Copy some bytes, at most so many; returns how many there were, 0 when nothing is due. Raises OSError."""
        first = self._due.find(1, self._at)
        if first < 0 and (first := self._due.find(1)) < 0:
            return 0
        last, end = first, min(first + max(1, most // PAGE), len(self._due))
        while last < end:
            clean = self._due.find(0, last, end)
            if clean < 0:
                last = end
                break
            more = self._due.find(1, clean, min(clean + BRIDGE, end))
            if more < 0:
                last = clean
                break
            last = more
        self._due[first:last] = bytes(last - first)
        self._at = last
        start, stop = first * PAGE, min(last * PAGE, self.total)
        self._target.write(start, stop - start, self._source.read(start, stop - start))
        self.copied += stop - start
        self._unsynced += stop - start
        if self._unsynced >= SYNC:
            self.sync()
        return stop - start

    def sync(self) -> None:
        """Bring what was copied to the disk."""
        self._target.sync()
        self._unsynced = 0

    def close(self) -> None:
        self._source.close()
        self._target.close()

    def _changed(self, server: int, start: int, end: int) -> None:
        """[start, end) of a shard. Where that is more than a stripe, what lies between its stripes is due, too."""
        first = self._layout.address(server, start)
        last = min(self._layout.address(server, end - 1) + 1, self.total)
        if first < last:
            low, high = first // PAGE, -(-last // PAGE)
            self._due[low:high] = b"\1" * (high - low)
