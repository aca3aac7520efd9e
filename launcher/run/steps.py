"""The steps of starting, stopping and changing, counted, so that a test can kill the supervisor after each of them.

With MEMCLUSTER_KILL_AT=N in the environment the process kills itself with SIGKILL at its N-th step: what is left then
is what a crash at that moment leaves. PART:N counts the steps of one part alone. MEMCLUSTER_KILL_WITH names another
signal.
"""

from __future__ import annotations

import itertools
import os
import signal

_part, _, _number = os.environ.get("MEMCLUSTER_KILL_AT", "0").rpartition(":")
_kill_at = int(_number)
_signal = signal.Signals[os.environ.get("MEMCLUSTER_KILL_WITH", "SIGKILL")]
_count = itertools.count(1)


def step(part: str = "") -> None:
    """A step has just been done."""
    if _kill_at and _part in ("", part) and next(_count) == _kill_at:
        os.kill(os.getpid(), _signal)
