"""The clock of records."""

from __future__ import annotations

from time import monotonic_ns, time_ns


def clock_epoch() -> int:
    """What `monotonic_ns` is behind the wall clock: records' times are the wall clock's as it was once, and steady, so
    that spans cannot be negative. Looked at ten times: a process that is interrupted between the two clocks gets too
    little, and would be behind the others."""
    return max(time_ns() - monotonic_ns() for _ in range(10))
