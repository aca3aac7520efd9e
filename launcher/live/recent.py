"""The last requests of a cluster, whole, from glances at the end of each server's log.

A glance asks for what was logged since the last one, but for no more than GLANCE records of a server: what it costs
does not grow with the traffic. Where nothing is passed over, every request is found. Where something is, a request is
taken only if all of it must lie in the glance: it began after what was passed over had ended, and ended before the
glance.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from memcluster.launcher.log.timeline import Timeline
from memcluster.node.log.record import PROBE, Kind
from memcluster.node.log.text import LogEntry

GLANCE = 64
SHOWN = 16
"""Requests that are shown."""
EVENTS = 12
UNFINISHED = 512
"""Requests that may wait for their ends; of more the oldest is forgotten."""


@dataclass
class _Story:
    """A request: a record of its own of each server that answered a part of it, and its pieces."""

    entries: list[LogEntry] = field(default_factory=list)

    def span(self) -> tuple[int, int] | None:
        """When it began and ended, ns since 1970; None if its own record has not come yet."""
        own = [record for _, record in self.entries if record.kind == Kind.REQUEST]
        if not own:
            return None
        return min(record.start for record in own), max(record.start + record.duration for record in own)


class Recent:
    """Takes what glances bring; `asked` and `data` say what to ask for and what to show."""

    def __init__(self, cluster: str, topology: str, fan_out: str, homes: Mapping[str, str] | None = None) -> None:
        self._about = cluster, topology, fan_out, homes or {}
        self._seen: dict[str, int] = {}  # by server, the last record that was looked at
        self._skipped: set[str] = set()
        self._coming: dict[int, _Story] = {}
        self._shown: dict[int, _Story] = {}
        self._events: deque[LogEntry] = deque(maxlen=EVENTS)

    @property
    def passes_over(self) -> bool:
        """Whether there was more than the last glance took in."""
        return bool(self._skipped)

    def asked(self, ends: Mapping[str, int]) -> dict[str, int]:
        """After which records to ask, where each server's log ends at `ends`; nothing if nothing is new."""
        after = {server: max(self._seen.get(server, 0), end - GLANCE) for server, end in ends.items()}
        self._skipped = {server for server in after if after[server] > self._seen.get(server, 0)}
        return after if any(end > after[server] for server, end in ends.items()) else {}

    def take(self, entries: Iterable[LogEntry], after: Mapping[str, int], at: int) -> None:
        """What was found behind `after` by a glance that began `at`, ns since 1970."""
        self._seen |= after
        began: dict[str, int] = {}
        for entry in entries:
            node, record = entry.node, entry.record
            self._seen[node] = max(self._seen[node], record.sequence)
            if node in self._skipped:
                ended = record.start + record.duration
                began[node] = min(began.get(node, ended), ended)
            if record.kind == Kind.EVENT:
                self._events.append(entry)
            elif record.kind in (Kind.REQUEST, Kind.PIECE) and not record.flags & PROBE:
                known = self._shown.get(record.identifier) or self._coming.setdefault(record.identifier, _Story())
                known.entries.append(entry)
        self._judge(max(began.values(), default=0), at)

    def _judge(self, since: int, until: int) -> None:
        """Show those that began at `since` or later and ended before `until`; forget those that may not be whole."""
        ripe = []
        for identifier, story in tuple(self._coming.items()):
            span = story.span()
            if span is not None and span[1] <= until:
                del self._coming[identifier]
                if span[0] >= since:
                    ripe.append((span[1], identifier, story))
        for _, identifier, story in sorted(ripe, key=lambda one: one[:2]):
            self._shown[identifier] = story
        for held, most in ((self._shown, SHOWN), (self._coming, UNFINISHED)):
            while len(held) > most:
                del held[next(iter(held))]

    def data(self) -> dict[str, Any]:
        """What the drawing code takes."""
        timeline = Timeline(*self._about)
        for entry in self._events:
            timeline.add(entry)
        for story in self._shown.values():
            for entry in sorted(story.entries, key=lambda entry: (entry.record.start, entry.record.kind)):
                timeline.add(entry)
        return timeline.data()
