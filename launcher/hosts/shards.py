"""The part of the memory that lies on one host: made once, and afterwards only found again. Zeroes never take the place
of bytes: a host that no longer has what it had is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memcluster.client.units import format_size
from memcluster.launcher.run.memory import claim_path, look_at, make_memory, unfinished_path


class NotThere(Exception):
    """The shards cannot be had on this host; says why."""


@dataclass(frozen=True)
class Part:
    """What of which memory belongs on a host; `shards` are sizes by the number of the server."""

    memory: str
    """The memory's own name, which no other has."""
    cluster: str
    host: str
    shards: Mapping[str, int]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


def find_or_make(part: Part, directory: Path, *, made: bool) -> None:
    """Have the shards in `directory`: they must be there if the memory was `made` before. Raises NotThere, OSError."""
    sizes = {int(server): size for server, size in part.shards.items()}
    files = {f"shard{server}": size for server, size in sizes.items()}
    found = _read(claim_path(directory)) or _read(unfinished_path(directory))
    if found is not None and found.get("memory") == part.memory and found.get("host") != part.host:
        raise NotThere(
            f"{_host(part.host)} and {_host(str(found.get('host')))} share the storage folder {directory}: every host "
            "needs one of its own"
        )
    if claim_path(directory).exists():
        if found is None or found.get("memory") != part.memory or found != json.loads(part.to_json()):
            raise NotThere(
                f"{part.host} holds another memory in {directory}: `memcluster down` discards what an earlier run has "
                "left there"
            )
        if problems := [problem for name, size in files.items() if (problem := look_at(directory / name, {size}))]:
            raise NotThere(f"{part.host} does not hold {_named(sizes)}: in {directory} {', '.join(problems)}")
        return
    if made:
        raise NotThere(f"{part.host} does not hold {_named(sizes)}: there is no memory in {directory}")
    system = os.statvfs(directory)
    room, wanted = system.f_bavail * system.f_frsize, sum(sizes.values())
    if wanted > room:
        raise NotThere(
            f"{part.host} has room for {max(0, room) >> 20} MiB in {directory}, and {_named(sizes)} would take "
            f"{format_size(wanted)}: give it less, or give storage a directory"
        )
    make_memory(directory, part.to_json(), files)


def belongs_elsewhere(directory: Path, memory: str) -> bool:
    """What lies there is a part of a memory of another name."""
    found = _read(claim_path(directory)) or _read(unfinished_path(directory))
    return found is not None and found.get("memory") != memory


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _named(sizes: Mapping[int, int]) -> str:
    names = [f"server{server}" for server in sizes]
    return f"the shard{'s' if len(names) > 1 else ''} of {', '.join(names)}"


def _host(name: str) -> str:
    return name or "the supervisor's host"
