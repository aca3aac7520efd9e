"""The steps of starting and stopping, counted, so that a test can kill the supervisor after each of them.

With MEMCLUSTER_KILL_AT=N in the environment the process kills itself with SIGKILL at its N-th step: what is left then
is what a crash at that moment leaves. MEMCLUSTER_KILL_WITH names another signal.
"""

from __future__ import annotations

import itertools
import os
import signal

_kill_at = int(os.environ.get("MEMCLUSTER_KILL_AT", "0"))
_signal = signal.Signals[os.environ.get("MEMCLUSTER_KILL_WITH", "SIGKILL")]
_count = itertools.count(1)


def step() -> None:
    """A step has just been done."""
    if _kill_at and next(_count) == _kill_at:
        os.kill(os.getpid(), _signal)
