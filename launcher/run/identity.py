"""Which process is meant: pid and start time. A pid alone may be somebody else's by now; no signal is sent by it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

_GROUP = 4
"""PIDFD_SIGNAL_PROCESS_GROUP, since Linux 6.9."""


def kill(pidfd: int) -> None:
    """SIGKILL to the group that this very process leads, and to it alone if it leads none (yet) or the kernel is older:
    no number is sent to that could be somebody else's by now. Raises ProcessLookupError."""
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL, None, _GROUP)
    except OSError:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


@dataclass(frozen=True)
class Identity:
    """A process: its pid and when it started, in clock ticks since boot (field 22 of /proc/PID/stat, proc(5))."""

    pid: int
    start: int

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """Who has this pid now; None if nobody has."""
        fields = _stat(pid)
        return cls(pid, int(fields[19])) if fields else None

    @property
    def alive(self) -> bool:
        """The same process is still there; a zombie is not."""
        fields = _stat(self.pid)
        return fields is not None and int(fields[19]) == self.start and fields[0] not in ("Z", "X")

    @property
    def age(self) -> float:
        """Seconds since the process started."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.start / os.sysconf("SC_CLK_TCK")

    @property
    def stopped(self) -> bool:
        """The process is there and was stopped with a signal."""
        fields = _stat(self.pid)
        return fields is not None and int(fields[19]) == self.start and fields[0] in ("T", "t")

    def open(self) -> int | None:
        """A pidfd of this very process, or None if it is gone: readable when the process ends."""
        if not self.pid:
            return None  # nobody's: it runs on another host
        try:
            pidfd = os.pidfd_open(self.pid)
        except (ProcessLookupError, FileNotFoundError):  # gone, or (Linux 6.16) just being buried
            return None
        if self.alive:  # the pid was not given to another one before the pidfd pinned it
            return pidfd
        os.close(pidfd)
        return None

    def signal(self, *signums: int) -> bool:
        """Send the signals to this very process; false if it is gone."""

        def send(pidfd: int) -> None:
            for signum in signums:
                signal.pidfd_send_signal(pidfd, signum)

        return self._send(send)

    def kill(self) -> bool:
        """End the process and its group; false if it is gone."""
        return self._send(kill)

    def _send(self, send: Callable[[int], None]) -> bool:
        pidfd = self.open()
        if pidfd is None:
            return False
        try:
            send(pidfd)
        except ProcessLookupError:
            return False
        finally:
            os.close(pidfd)
        return True


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third, the state, on: the second may contain anything."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].decode().split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def describe_exit(status: int | None) -> str:
    """An exit status in words."""
    if status is None:
        return "is gone; its exit status is not known"
    if status < 0:
        return f"killed by {signal_name(-status)}"
    return f"exited with status {status}"


def signal_name(number: int) -> str:
    """Real-time signals have no name."""
    return signal.Signals(number).name if number in signal.Signals.__members__.values() else f"signal {number}"
