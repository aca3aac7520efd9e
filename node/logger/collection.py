"""The merged log as a file of text: what logger 0 writes when the cluster stops."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from memcluster.node.files import make_folder, open_file, rename
from memcluster.node.log.filter import Filter
from memcluster.node.log.history import History
from memcluster.node.log.merge import Entry
from memcluster.node.log.record import RECORD, Record
from memcluster.node.log.text import LogEntry, format_text
from memcluster.node.logger.gathering import Gathering
from memcluster.node.spec import NodeSpec
from memcluster.node.transport.loop import Loop

COLLECTED = 600_000
"""Records in the merged log that is written at the stop, at most: some 3 s of the time that a stop may take."""

LATE = "it was not done within {:.1f} s"


class Collection:
    """Writes the merged log to a file, as text; the file has its name only when it is whole. It gives up after `within`
    seconds: a stop does not wait for a log that can be read from its segments, too."""

    ready = True

    def __init__(
        self,
        loop: Loop,
        spec: NodeSpec,
        history: History,
        answer: Callable[[dict[str, Any]], None],
        done: Callable[[Collection], None],
        within: float | None = None,
    ) -> None:
        self.loop = loop
        self.spec = spec
        self.history = history
        self.path = Path(spec.merged_log)
        self._answer = answer
        self._done = done
        self._count = 0
        self._new = self.path.with_name(f".{self.path.name}.{os.getpid()}.{id(self):x}")
        self._file: TextIO | None = None
        self._gathering: Gathering | None = None
        self._patience = None if within is None else loop.after(within, lambda: self._fail(LATE.format(within)))

    def start(self) -> None:
        servers = range(len(self.spec.cluster.servers))
        wanted = Filter(last=max(1, COLLECTED // len(servers)))
        try:
            make_folder(self.path.parent)
            new = open_file(self._new, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            self._file = open(new, "w", encoding="utf-8", buffering=1 << 20)  # noqa: SIM115 - until `finish`
        except OSError as error:
            self._fail(f"{self.path}: {error.strerror}")
        else:
            self._gathering = Gathering(
                self.loop, self.spec, self.history, wanted, servers, False, self, last_of_each=True
            )

    def write(self, batch: Sequence[Entry]) -> None:
        assert self._file is not None
        lines = [
            format_text(LogEntry(server, Record._make(RECORD.unpack(slot))), date=True)
            for _, _, _, server, slot in batch
        ]
        try:
            self._file.write("\n".join(lines) + "\n")
        except OSError as error:
            self._fail(f"{self.path}: {error.strerror}")
        else:
            self._count += len(lines)

    def tell(self, head: dict[str, Any]) -> None:
        """Nothing is told: a file is not followed."""

    def finish(self, head: dict[str, Any]) -> None:
        assert self._file is not None
        try:
            self._file.close()
            rename(self._new, self.path)
        except OSError as error:
            self._fail(f"{self.path}: {error.strerror}")
            return
        self._end({"collected": self._count, "path": str(self.path), **head})

    def close(self) -> None:
        """Give up. What an earlier collection wrote stays as it is."""
        if self._patience is not None:
            self._patience.cancel()
        if self._gathering is not None:
            self._gathering.close()
        if self._file is not None:
            with suppress(OSError):  # what was buffered has no room, and does not matter any more
                self._file.close()
            self._new.unlink(missing_ok=True)

    def _fail(self, why: str) -> None:
        self.close()
        self._end({"collected": 0, "path": str(self.path), "missing": [], "error": why})

    def _end(self, answer: dict[str, Any]) -> None:
        if self._patience is not None:
            self._patience.cancel()
        self._answer(answer)
        self._done(self)
