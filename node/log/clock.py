"""The clock of records, which all processes of a run share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic_ns, time_ns


def clock_epoch() -> int:
    """What `monotonic_ns` is behind the wall clock. Looked at ten times: a process that is interrupted between the two
    clocks gets too little."""
    return max(time_ns() - monotonic_ns() for _ in range(10))


@dataclass(frozen=True)
class Run:
    """A run of the cluster, from its start to its stop, as the log has it. Its times are the wall clock's as it was
    when the run began, and steady: whatever becomes of the wall clock, an effect's is not before its cause's."""

    number: int = 1
    """One more each time the cluster is started."""
    epoch: int = field(default_factory=clock_epoch)
    """What the monotonic clock was behind the wall clock, in ns, when the run began."""
    incarnation: int = 1
    """The least by which a server may call its requests."""

    def now(self) -> int:
        """The time as the log has it, ns since 1970."""
        return self.epoch + monotonic_ns()

    def clock(self, monotonic_ns: Callable[[], int]) -> Callable[[], int]:
        """The same, as a function, by a monotonic clock that is given."""
        epoch = self.epoch
        return lambda: epoch + monotonic_ns()
