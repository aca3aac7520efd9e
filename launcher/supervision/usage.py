"""What a process takes of its machine: memory now, and processor time since the last look."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psutil


class Usage:
    """Knows the processes it has seen before, so that CPU% is that of the time since. (psutil is imported late: `up`
    need not wait for it.)"""

    def __init__(self) -> None:
        self._seen: dict[int, psutil.Process] = {}

    def of(self, pid: int) -> dict[str, Any]:
        """As `status` has it."""
        import psutil

        try:
            process = self._seen.get(pid) or self._seen.setdefault(pid, psutil.Process(pid))
            return {"rss_bytes": process.memory_info().rss, "cpu_percent": process.cpu_percent()}
        except psutil.Error:
            return {"rss_bytes": 0, "cpu_percent": 0.0}

    def forget_all_but(self, pids: set[int]) -> None:
        """Of a process that is gone."""
        self._seen = {pid: process for pid, process in self._seen.items() if pid in pids}
