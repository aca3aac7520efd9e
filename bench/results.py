"""results/latest.json: the last figures of every case, curve and limit. A run replaces what it has measured."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LATEST = Path(__file__).parent / "results" / "latest.json"

Results = dict[str, Any]
"""`machine`, and by section and name: `cases`, `limits`, `curves`, `transports`, `profiles` and others."""
Found = Iterable[tuple[str, dict[str, Any]]]
"""Figures by name, as they are measured."""


def load(path: Path = LATEST) -> Results:
    """What is known; nothing, if there is no such file."""
    if not path.exists():
        return {}
    found: Results = json.loads(path.read_text())
    return found


def put(results: Results, section: str, name: str, figures: dict[str, Any]) -> None:
    """Add figures, with the time they were taken."""
    taken = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    results.setdefault(section, {})[name] = {"taken": taken, **figures}


def save(results: Results, path: Path = LATEST) -> None:
    """All or nothing, for a run may be interrupted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    temporary.replace(path)
