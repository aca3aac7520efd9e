"""Heartbeats: which node's loop turned last when, and which has stopped turning though it lives.

A beat is sent from a timer of the node's own loop, so it proves progress. A node that was stopped by a signal is
paused, not hung; and a supervisor that was held up itself blames nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from memcluster.launcher.supervision.process import Process
from memcluster.node.transport.loop import Loop

PERIOD = 0.5
"""Seconds between two beats, and between two looks, at most."""
BEATS = 4
"""Of a node in its hang_timeout, at least."""
MISSED = 2
"""Periods without a beat after which something is the matter; and without a look, the supervisor's own fault."""


def period(timeout: float) -> float:
    """Seconds between two beats of a node that is hung after `timeout` seconds without one."""
    return min(PERIOD, timeout / BEATS)


class Heartbeats:
    """Calls `hung(name, how)` for a child of `children()` that has not beaten for `timeout` seconds."""

    def __init__(
        self,
        loop: Loop,
        timeout: float,
        children: Callable[[], Iterable[Process]],
        hung: Callable[[str, str], None],
    ) -> None:
        self.loop = loop
        self.timeout = timeout
        self._period = period(timeout)
        self._children = children
        self._hung = hung
        self._last: dict[int, float] = {}  # by pid: a node that was started again begins afresh
        self._looked = time.monotonic()

    def start(self) -> None:
        self._looked = time.monotonic()
        self.loop.after(self._period, self._look)

    def change(self, timeout: float) -> None:
        """From now on; all children beat at the new pace already."""
        self.timeout, self._period = timeout, period(timeout)

    def beat(self, child: Process) -> None:
        """The child's loop has turned."""
        self._last[child.pid] = time.monotonic()

    def _look(self) -> None:
        now = time.monotonic()
        late = now - self._looked > MISSED * self._period
        self._looked = now
        children = list(self._children())
        self._last = {child.pid: now if late else self._last.get(child.pid, now) for child in children}
        for child in children:
            silent = now - self._last[child.pid]
            if silent < MISSED * self._period:
                continue
            if child.stopped:  # asked early: one that goes on has half its timeout left to beat, at any look
                self._last[child.pid] = now
            elif silent >= self.timeout:
                self._hung(child.spec.name, f"no progress for {silent:.1f} s")
        self.loop.after(self._period, self._look)


def where_it_stands(output: Path) -> str:
    """The innermost frame of the last traceback that faulthandler wrote into a node's output: `read (memory.py:70)`."""
    try:
        lines = output.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for index in range(len(lines) - 1, 0, -1):
        if "most recent call first" in lines[index - 1]:
            file, _, rest = lines[index].strip().removeprefix('File "').partition('", line ')
            line, _, function = rest.partition(" in ")
            return f"{function} ({Path(file).name}:{line})" if function else ""
    return ""
