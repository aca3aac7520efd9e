"""How a log record reads: a line for people, a line of JSON for programs. Pure.

A piece is marked └ and stands below its request, an event is marked •. Offsets of requests count from the start of the
memory, those of pieces from the start of the server's shard, those of kind MAP from the start of cluster.json.
"""

from __future__ import annotations

import re
import signal
import time
from functools import lru_cache
from typing import NamedTuple

from memcluster.node.log.record import (
    COUNTER_BITS,
    LOGGER,
    MAX_COUNTER,
    MAX_INCARNATION,
    PROBE,
    REPEATED,
    SERVER_SHIFT,
    Event,
    Kind,
    Reason,
    Record,
    signed,
    subject_name,
)
from memcluster.node.nbd.wire import Command, CommandFlag, Error

COLOURS = (36, 33, 32, 35, 34, 31, 96, 93, 92, 95, 94, 91)
"""ANSI colours of server0, server1, …; they begin again when there are more servers."""

SECOND = 10**9
PIECE, EVENT, MAP = int(Kind.PIECE), int(Kind.EVENT), int(Kind.MAP)
_OPERATIONS = {int(command): command.name for command in Command}
_ERRORS = {int(error): error.name for error in Error if error}
_KINDS = {int(kind): kind.name.lower() for kind in Kind}
_EVENTS = {int(event): event.name.lower() for event in Event}
_REASONS = {
    Reason.SLOTS: "all slots are taken",
    Reason.MEMORY: "memory ran short",
    Reason.DESCRIPTORS: "file descriptors ran short",
    Reason.CPU: "processor time ran short",
    Reason.SHUTDOWN: "the cluster is shutting down",
    Reason.UNKNOWN_EXPORT: "no such export",
    Reason.ADDRESS: "too many from one address",
    Reason.STRANGER: "not one of the cluster",
    Reason.TLS: "no TLS, or none that both sides accept",
}
_PADDED = {number: f"{name:<12}" for number, name in _OPERATIONS.items()}


class LogEntry(NamedTuple):
    """A record of the merged log, and the number of the server that wrote it."""

    server: int
    record: Record

    @property
    def node(self) -> str:
        return f"server{self.server}"


def format_text(entry: LogEntry, colour: bool = False, width: int = 0, date: bool = False) -> str:
    """One line without its end; at most `width` columns if that is not 0, and then without the space that makes columns
    where the line has no room for it; `date` puts the day before the time."""
    server, record = entry
    start, duration, identifier, offset, length, client, kind, operation, flags, error, _ = record
    second, fraction = divmod(start, SECOND)
    if kind == EVENT:
        line = (
            f"{_day(second) if date else ''}{_clock(second)}.{fraction // 1000:06d} server{server:<3}"
            f"• {_EVENTS.get(operation, operation):<11} {event_detail(entry)}"
        ).rstrip()
        return _finish(line, server, colour, width)
    counter = f"{identifier >> COUNTER_BITS & MAX_INCARNATION}.{identifier & MAX_COUNTER}"
    mark, who = ("└ ", "") if kind == PIECE else ("", f"client {client}")
    line = (
        f"{_day(second) if date else ''}{_clock(second)}.{fraction // 1000:06d} server{server:<3}"
        f"{f'{mark}{identifier >> SERVER_SHIFT}.{counter}':<11} {who:<9} "
        f"{_PADDED.get(operation) or f'{operation:<12}'} 0x{offset:08x} +{length:<7} "
        f"{_ERRORS.get(error, error) if error else 'ok'} {duration / 1e6:.3f} ms{_flags(flags) if flags else ''}"
        f"{' cluster.json' if kind == MAP else ''}"
    )
    return _finish(line, server, colour, width) if width or colour else line


def _finish(line: str, server: int, colour: bool, width: int) -> str:
    if width and len(line) > width:  # rather without columns than without its end
        line = re.sub("  +", " ", line)[:width]
    return f"\x1b[{COLOURS[server % len(COLOURS)]}m{line}\x1b[0m" if colour else line


def kind_name(kind: int) -> str:
    """`piece`; a number that has no name is shown as it is."""
    return _KINDS.get(kind, str(kind))


def operation_name(operation: int) -> str:
    """`WRITE`; a number that has no name is shown as it is."""
    return _OPERATIONS.get(operation, str(operation))


def event_name(operation: int) -> str:
    """`restarted`; a number that has no name is shown as it is."""
    return _EVENTS.get(operation, str(operation))


def event_detail(entry: LogEntry) -> str:
    """What more there is to say of an event: whom it is about, if not the server itself, and its value in words."""
    record = entry.record
    words = []
    if record.client:
        words.append(f"client {record.client}")
    elif record.length != entry.server:
        words.append(subject_name(record.length))
    if meaning := _meaning(record.operation, signed(record.offset), record.length >= LOGGER):
        words.append(meaning)
    return ": ".join(words)


def _meaning(operation: int, value: int, of_logger: bool) -> str:
    """An event's value in words."""
    match operation:
        case Event.STARTED:
            return f"incarnation {value}"
        case Event.CONNECTED if value:
            return "still, as before the change"
        case Event.DIED if value < 0:
            return f"killed by {_signal_name(-value)}"
        case Event.DIED if value > 0:
            return f"exited with status {value}"
        case Event.RESTARTED:
            return f"{value} time{'s' if value > 1 else ''} so far"
        case Event.REFUSED:
            return _REASONS.get(Reason(value), "") if value in Reason.__members__.values() else ""
        case Event.PAUSED | Event.KILLED | Event.HANGING if value:
            return f"for {value} ms"
        case Event.SLOWED:
            return f"by {value} ms"
        case Event.PARTITIONED:
            return f"from {'logger' if of_logger else 'server'}{value}"
        case Event.HEALED if value:
            return f"the link to {'logger' if of_logger else 'server'}{value}"
        case Event.LOG_STOPPED:
            return f"{value} records lost"
        case Event.APPLIED:
            return f"{value} key{'s' if value > 1 else ''} of cluster.yaml"
        case Event.MOVE_BEGUN:
            return f"{value} bytes go to other shards"
        case Event.MOVE_ROUND:
            return f"{value} bytes were changed meanwhile"
        case Event.MOVE_SWITCHED:
            return f"{value} bytes are copied while nothing runs"
        case Event.LOG_DAMAGED:
            return f"{value} file{'s' if value > 1 else ''} of its log"
        case _:
            return ""


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in signal.Signals.__members__.values() else f"signal {number}"


def format_json(entry: LogEntry) -> str:
    """One JSON object without a line's end."""
    server, record = entry
    start, duration, identifier, offset, length, client, kind, operation, flags, error, sequence = record
    second, fraction = divmod(start, SECOND)
    if kind == EVENT:
        about = f"server{server}" if length == server else subject_name(length)
        return (
            f'{{"time":"{_utc(second)}.{fraction:09d}Z","time_ns":{start},"node":"server{server}","request":null,'
            f'"kind":"event","operation":"{event_name(operation)}","about":"{about}","client":{client or "null"},'
            f'"value":{signed(offset)},"error":null,"sequence":{sequence}}}'
        )
    head, middle, tail = _json_parts(server, kind, operation, flags, error)
    return (
        f'{{"time":"{_utc(second)}.{fraction:09d}Z","time_ns":{start},{head}'
        f'{identifier >> SERVER_SHIFT}.{identifier >> COUNTER_BITS & MAX_INCARNATION}.{identifier & MAX_COUNTER}'
        f'{middle}{offset},"length":{length},"client":{_travelled(client) if kind == PIECE else client}{tail}'
        f'{duration / 1000:.3f},"sequence":{sequence}}}'
    )


def _travelled(ns: int) -> str:
    """What stands in a piece's line in the place of its client."""
    return f'null,"travelled_us":{f"{ns / 1000:.3f}" if ns else "null"}'


@lru_cache(1024)
def _json_parts(server: int, kind: int, operation: int, flags: int, error: int) -> tuple[str, str, str]:
    """The parts of a line that many records share."""
    names = ",".join(f'"{name}"' for name in _flag_names(flags))
    failure = f'"{_ERRORS.get(error, error)}"' if error else "null"
    return (
        f'"node":"server{server}","request":"',
        f'","kind":"{_KINDS.get(kind, kind)}","operation":"{operation_name(operation)}","flags":[{names}],"offset":',
        f',"error":{failure},"duration_us":',
    )


@lru_cache(8)
def _clock(second: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(second))


@lru_cache(8)
def _day(second: int) -> str:
    return time.strftime("%Y-%m-%d ", time.localtime(second))


@lru_cache(8)
def _utc(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


@lru_cache
def _flags(flags: int) -> str:
    return "".join(f" {name}" for name in _flag_names(flags))


def _flag_names(flags: int) -> list[str]:
    names = [str(flag.name) for flag in CommandFlag if flags & flag]
    if flags & REPEATED:
        names.append("REPEATED")
    if flags & PROBE:
        names.append("PROBE")
    unknown = flags & ~(sum(CommandFlag) | REPEATED | PROBE)
    return [*names, f"0x{unknown:x}"] if unknown else names
