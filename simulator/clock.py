"""The clock of one host, where hosts do not share one: it may jump ahead, and go faster or slower than the world's.

A monotonic clock never goes back. Times are ns.
"""

from __future__ import annotations

MILLION = 1_000_000


class Clock:
    """At first it is the world's."""

    def __init__(self) -> None:
        self._spans = [(0, 0, MILLION)]
        """Since when by the world's time, what it showed then, and how far it goes in a million ns."""

    def read(self, now: int) -> int:
        """What it shows at a time of the world."""
        since, shown, pace = self._spans[-1]
        return shown + (now - since) * pace // MILLION

    def when(self, shows: int) -> int:
        """When it shows that, or showed it, by the world's time."""
        later: int | None = None
        for since, shown, pace in reversed(self._spans):
            time = since - (shown - shows) * MILLION // pace  # rounded up
            if shown <= shows:
                return time if later is None else min(time, later)
            later = since
        raise ValueError("before the beginning")

    def change(self, now: int, ahead: int, pace: int) -> None:
        """It jumps so far ahead, and goes at another pace from now on."""
        self._spans.append((now, self.read(now) + ahead, pace))
