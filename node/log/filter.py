"""Which records of the log are wanted: of a run, a time, a request, a client; operations, bytes, slow, failed. Pure.

A filter travels in a query, so that each logger applies it to its own share and only what is wanted is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from memcluster.node.layout import Layout
from memcluster.node.log.merge import Entry
from memcluster.node.log.record import MAX_IDENTIFIER, RECORD, TROUBLE, Event, Kind, Summary
from memcluster.node.nbd.printable import shown
from memcluster.node.nbd.wire import Command

MAX_LAST = 1_000_000
"""What `last` may ask for: it is held in memory."""
MAX_TIME = (1 << 64) - 1
MAX_RUN = (1 << 32) - 1
REQUEST, PIECE, EVENT = int(Kind.REQUEST), int(Kind.PIECE), int(Kind.EVENT)
_COMMANDS = {command.name: int(command) for command in Command}
_EVENTS = {event.name: int(event) for event in Event}

Range = tuple[int, int]
"""(first byte, end)."""


@dataclass(frozen=True)
class Filter:
    """Which records are wanted: those that pass every test that is set.

    `run` is a run of the cluster, 0: all of them, -1: the newest, -2: the one before. `since` and `until` are times of
    start; a negative one is a time before now, by the clock of whoever holds the log.
    `after` is a sequence number, `last` 0 for all, `news` leaves out all that is in the log already.
    `subjects` are nodes (see node/log/record.py): what a server did, and events about a server or a logger.
    `client` is the number of a connection: it finds requests and events, for a piece does not know its client.
    `operations` are names of NBD commands and of events. `slower` is a duration in ns. `errors` finds what failed, and
    events that mean trouble.
    `offset` and `length` are bytes of the whole memory: requests are held against them as they are, pieces against
    what of them lies in their server's shard.
    """

    since: int = 0
    until: int = MAX_TIME
    request: int | None = None
    last: int = 0
    after: int = 0
    news: bool = False
    client: int | None = None
    operations: tuple[str, ...] = ()
    slower: int = 0
    errors: bool = False
    offset: int = 0
    length: int = 0
    run: int = 0
    subjects: tuple[int, ...] = ()

    @classmethod
    def from_head(cls, head: Mapping[str, Any]) -> Filter:
        """The filter in a query. Raises ValueError with a sentence."""
        request, client = head.get("request"), head.get("client")
        return cls(
            since=_number(head, "since", 0, MAX_TIME, -MAX_TIME),
            until=_number(head, "until", MAX_TIME, MAX_TIME, -MAX_TIME),
            request=None if request is None else _number(head, "request", 0, MAX_IDENTIFIER),
            last=_number(head, "last", 0, MAX_LAST),
            after=_number(head, "after", 0, MAX_TIME),
            news=flag(head, "news"),
            client=None if client is None else _number(head, "client", 0, (1 << 32) - 1),
            operations=_operations(head.get("operations", [])),
            slower=_number(head, "slower", 0, MAX_TIME),
            errors=flag(head, "errors"),
            offset=_number(head, "offset", 0, MAX_TIME),
            length=_number(head, "length", 0, MAX_TIME),
            run=_number(head, "run", 0, MAX_RUN, -MAX_RUN),
            subjects=_subjects(head.get("subjects", [])),
        )

    def to_head(self) -> dict[str, Any]:
        """As a part of a query; only what differs from the default."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in fields.items() if value != getattr(Filter, name)}

    def at(self, now: int, newest: int = 0) -> Filter:
        """The filter with times since 1970, where `now` is what that clock says, and the run's own number, where
        `newest` is that of the newest."""
        since, until = (now + time if time < 0 else time for time in (self.since, self.until))
        run = max(1, newest + 1 + self.run) if self.run < 0 else self.run
        return replace(self, since=max(0, since), until=max(0, until), run=run)

    def onwards(self, after: int) -> Filter:
        """What of all that is added after this record is wanted, whatever its server's clock says."""
        return replace(self, after=after, since=0, last=0, news=False)

    @property
    def is_plain(self) -> bool:
        """Nothing but times and numbers of records is asked for."""
        return self.request is None and not self.subjects and not self._looks_inside

    @property
    def _looks_inside(self) -> bool:
        return bool(self.client is not None or self.operations or self.slower or self.errors or self.length)

    def within(self, layout: Layout | None, server: int) -> Range:
        """Where in a server's shard the wanted bytes lie."""
        if self.length and layout is not None and self.offset < layout.size:
            for piece in layout.split(self.offset, min(self.length, layout.size - self.offset), spans=False):
                if piece.server == server:
                    return piece.offset, piece.offset + piece.length
        return 0, 0

    def may_hold(self, summary: Summary | None) -> bool:
        """Whether there can be something wanted among records with this summary."""
        return (
            summary is not None
            and summary.latest >= self.since
            and summary.oldest <= self.until
            and (self.request is None or summary.lowest <= self.request <= summary.highest)
        )

    def keep(self, batch: list[Entry], here: Range = (0, 0)) -> list[Entry]:
        """The entries that are wanted, whatever `last` and `after` say; `here` is what `within` gave."""
        if self.since or self.until != MAX_TIME:
            batch = [entry for entry in batch if self.since <= entry[0] <= self.until]
        if self.request is not None:
            batch = [entry for entry in batch if entry[2] == self.request and entry[1] != EVENT]
        if self.subjects:
            batch = [entry for entry in batch if subject(entry) in self.subjects]
        if self._looks_inside:
            commands = {_COMMANDS[name] for name in self.operations if name in _COMMANDS}
            events = {_EVENTS[name] for name in self.operations if name in _EVENTS}
            batch = [entry for entry in batch if self._matches(entry[4], commands, events, here)]
        return batch

    def _matches(self, slot: bytes, commands: set[int], events: set[int], here: Range) -> bool:
        _, duration, _, offset, length, client, kind, operation, _, error, _ = RECORD.unpack(slot)
        if self.operations and operation not in (events if kind == EVENT else commands):
            return False
        if self.client is not None and (client != self.client or kind == PIECE):
            return False
        if self.errors and not (operation in TROUBLE if kind == EVENT else error):
            return False
        if kind == EVENT:
            return not (self.slower or self.length)
        if duration < self.slower:
            return False
        if self.length:
            start, end = (self.offset, self.offset + self.length) if kind == REQUEST else here
            return kind in (REQUEST, PIECE) and offset < end and offset + length > start and length > 0
        return True


def _number(head: Mapping[str, Any], name: str, default: int, most: int, least: int = 0) -> int:
    value = head.get(name, default)
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most}, not {shown(value)}")
    return value


def subject(entry: Entry) -> int:
    """The node that an entry is about."""
    return int.from_bytes(entry[4][32:36], "little") if entry[1] == EVENT else entry[3]


def _subjects(found: Any) -> tuple[int, ...]:
    if not isinstance(found, list | tuple) or not all(type(one) is int for one in found):
        raise ValueError(f"subjects must be a list of numbers, not {shown(found)}")
    return tuple(found)


def flag(head: Mapping[str, Any], name: str) -> bool:
    """A switch in a query. Raises ValueError with a sentence."""
    value = head.get(name, False)
    if type(value) is not bool:
        raise ValueError(f"{name} must be true or false, not {shown(value)}")
    return value


def known_operations() -> tuple[str, ...]:
    """The names that `operations` may hold."""
    return (*_COMMANDS, *_EVENTS)


def _operations(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"operations must be a list of names, not {shown(names)}")
    for name in names:
        if name not in _COMMANDS and name not in _EVENTS:
            known = ", ".join(map(str.lower, known_operations()))
            raise ValueError(f"there is no operation {shown(name.lower())}; there are {known}")
    return tuple(names)
