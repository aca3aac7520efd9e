"""The steps of starting, stopping and changing, counted, so that a test can kill the supervisor after each of them.

With MEMCLUSTER_KILL_AT=N in the environment the process kills itself with SIGKILL at its N-th step: what is left then
is what a crash at that moment leaves. PART:N counts the steps of one part alone. MEMCLUSTER_KILL_WITH names another
signal.
"""

from __future__ import annotations

import itertools
import os
import signal
from functools import cache

_count = itertools.count(1)


@cache
def _told() -> tuple[str, int, signal.Signals]:
    """Which part's steps are counted, the last of them, or 0, and what it ends with."""
    part, _, number = os.environ.get("MEMCLUSTER_KILL_AT", "0").rpartition(":")
    return part, int(number), signal.Signals[os.environ.get("MEMCLUSTER_KILL_WITH", "SIGKILL")]


def step(part: str = "") -> None:
    """A step has just been done."""
    counted, last, signum = _told()
    if last and counted in ("", part) and next(_count) == last:
        os.kill(os.getpid(), signum)
