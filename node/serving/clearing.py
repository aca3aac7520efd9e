"""What a long TRIM or WRITE_ZEROES has still to clear. Pure arithmetic: ranges of bytes."""

from __future__ import annotations


class Clearing:
    """The [start, end) that are left, in order."""

    def __init__(self, start: int, end: int) -> None:
        self.left = [(start, end)]

    def __repr__(self) -> str:
        return f"<Clearing {sum(end - start for start, end in self.left)} bytes left>"

    def take(self, most: int) -> tuple[int, int]:
        """The next range, to the next multiple of `most` at most, so that no page is cut in two; an empty one at the
        end."""
        if not self.left:
            return 0, 0
        start, end = self.left[0]
        stop = start - start % most + most
        if end <= stop:
            return self.left.pop(0)
        self.left[0] = stop, end
        return start, stop

    def leave(self, start: int, end: int) -> None:
        """Leave this range alone."""
        self.left = [
            part
            for begin, stop in self.left
            for part in ((begin, min(stop, start)), (max(begin, end), stop))
            if part[0] < part[1]
        ]
