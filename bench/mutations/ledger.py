"""What was hunted for so far, in a file: so that a hunt of hours can be ended, and goes on later.

What is in it is of one simulator, and of each fault as it was: where either has another text since, it is as if nothing
had been hunted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path

from bench.mutations.faults import Planted
from bench.mutations.marks import MARKS


@dataclass
class Entry:
    """Of one fault: the seeds up to `looked` have been looked at, of which so many `ran`; `seed` found it (0: none)."""

    looked: int = 0
    ran: int = 0
    seed: int = 0
    rules: list[str] = field(default_factory=list)


@dataclass
class Reach:
    """Seeds up to `looked` have run with all marks: which of them `met` each; under "" those that broke a rule."""

    looked: int = 0
    met: dict[str, list[int]] = field(default_factory=dict)

    def add(self, met: dict[str, list[int]]) -> None:
        for name, seeds in met.items():
            self.met[name] = sorted({*self.met.get(name, ()), *seeds})


class Ledger:
    """Of all faults; kept in `path`, if there is one."""

    def __init__(self, root: Path, path: Path | None, marked: Sequence[Planted]) -> None:
        self._path = path
        self._world = b"".join(file.read_bytes() for file in sorted((root / "simulator").glob("*.py")))
        self._entries: dict[str, Entry] = {}
        self._reaches: dict[str, Reach] = {}
        self._marks = self._digest([(fault.name, MARKS[fault.name]) for fault in marked])
        if path is not None and path.exists():
            known = json.loads(path.read_text())
            self._entries = {key: Entry(**entry) for key, entry in known["faults"].items()}
            self._reaches = {key: Reach(**reach) for key, reach in known["marks"].items()}
        self.reach = self._reaches.setdefault(self._marks, Reach())

    def of(self, fault: Planted) -> Entry:
        return self._entries.setdefault(f"{fault.name} {self._digest(fault)}", Entry())

    def keep(self) -> None:
        if self._path is not None:
            document = {
                "faults": {key: asdict(entry) for key, entry in self._entries.items() if entry.looked},
                "marks": {key: asdict(reach) for key, reach in self._reaches.items() if reach.looked},
            }
            new = self._path.with_suffix(".new")
            new.write_text(json.dumps(document, indent=1))
            new.replace(self._path)

    def _digest(self, of: object) -> str:
        return blake2b(self._world + repr(of).encode(), digest_size=8).hexdigest()
