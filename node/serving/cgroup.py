"""How much of the memory that this process's control group may use is in use: in a container less than the machine has.

Groups lie within groups, and a limit of any of them holds. Version 2 of the kernel's interface, or version 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
_VERSION_2 = ("memory.max", "memory.current", "")


def memory_in_use(root: Path = Path("/")) -> float:
    """The part in use of the tightest limit, 0 to 1; 0 where there is none."""
    return max((_part(group, *names) for group, names in _groups(root)), default=0.0)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes of the tightest limit; None where there is none."""
    limits = []
    for group, (limit, *_) in _groups(root):
        with suppress(OSError, ValueError):  # "max" is no number, and no limit
            limits.append(int((group / limit).read_text()))
    return min(limits, default=None)


def _groups(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """This process's group and those that it lies in, each with the names of its files."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        group = top / path.lstrip("/")  # in a container not always there, but its own group is: at the top
        for directory in (group, *group.parents):
            yield directory, _VERSION_1 if controllers else _VERSION_2
            if directory == top:
                break


def _part(group: Path, limit: str, usage: str, prefix: str) -> float:
    """Of one group. Pages of files do not count: they are given back when something else needs the room."""
    try:
        most = int((group / limit).read_text())  # "max" is no number, and no limit
        used = int((group / usage).read_text())
        fields = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        files = sum(int(fields.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
    except (OSError, ValueError):
        return 0.0
    return max(0, used - files) / max(1, most)
