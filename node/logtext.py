"""How a log record reads: a line for people, a line of JSON for programs. Pure.

A piece is marked └ and stands below its request. Offsets of requests count from the start of the memory, those of
pieces from the start of the server's shard.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import NamedTuple

from node.nbd.wire import Command, CommandFlag, Error
from node.record import COUNTER_BITS, MAX_COUNTER, MAX_INCARNATION, SERVER_SHIFT, Kind, Record

COLOURS = (36, 33, 32, 35, 34, 31, 96, 93, 92, 95, 94, 91)
"""ANSI colours of server0, server1, …; they begin again when there are more servers."""

SECOND = 10**9
PIECE = int(Kind.PIECE)
_OPERATIONS = {int(command): command.name for command in Command}
_KINDS = {int(kind): kind.name.lower() for kind in Kind}
_ERRORS = {int(error): error.name for error in Error if error}
_PADDED = {number: f"{name:<6}" for number, name in _OPERATIONS.items()}


class LogEntry(NamedTuple):
    """A record of the merged log, and the number of the server that wrote it."""

    server: int
    record: Record

    @property
    def node(self) -> str:
        return f"server{self.server}"


def format_text(entry: LogEntry, colour: bool = False, width: int = 0, date: bool = False) -> str:
    """One line without its end; at most `width` columns if that is not 0; `date` puts the day before the time."""
    server, record = entry
    start, duration, identifier, offset, length, client, kind, operation, flags, error, _ = record
    second, fraction = divmod(start, SECOND)
    counter = f"{identifier >> COUNTER_BITS & MAX_INCARNATION}.{identifier & MAX_COUNTER}"
    mark, who = ("└ ", "") if kind == PIECE else ("", f"client {client}")
    line = (
        f"{_day(second) if date else ''}{_clock(second)}.{fraction // 1000:06d} server{server:<3}"
        f"{f'{mark}{identifier >> SERVER_SHIFT}.{counter}':<11} {who:<9} "
        f"{_PADDED.get(operation) or f'{operation:<6}'} 0x{offset:08x} +{length:<7} "
        f"{_ERRORS.get(error, error) if error else 'ok'} {duration / 1e6:.3f} ms{_flags(flags) if flags else ''}"
    )
    if width:
        line = line[:width]
    if colour:
        return f"\x1b[{COLOURS[server % len(COLOURS)]}m{line}\x1b[0m"
    return line


def format_json(entry: LogEntry) -> str:
    """One JSON object without a line's end."""
    server, record = entry
    start, duration, identifier, offset, length, client, kind, operation, flags, error, sequence = record
    second, fraction = divmod(start, SECOND)
    return (
        f'{{"time":"{_utc(second)}.{fraction:09d}Z","time_ns":{start},"node":"server{server}","request":'
        f'"{identifier >> SERVER_SHIFT}.{identifier >> COUNTER_BITS & MAX_INCARNATION}.{identifier & MAX_COUNTER}",'
        f'"kind":"{_KINDS.get(kind, kind)}","operation":"{_OPERATIONS.get(operation, operation)}",'
        f'"flags":[{_json_flags(flags) if flags else ""}],"offset":{offset},"length":{length},'
        f'"client":{"null" if kind == PIECE else client},"error":{_json_error(error) if error else "null"},'
        f'"duration_us":{duration / 1000:.3f},"sequence":{sequence}}}'
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


@lru_cache
def _json_flags(flags: int) -> str:
    return ",".join(f'"{name}"' for name in _flag_names(flags))


def _flag_names(flags: int) -> list[str]:
    names = [str(flag.name) for flag in CommandFlag if flags & flag]
    unknown = flags & ~sum(CommandFlag)
    return [*names, f"0x{unknown:x}"] if unknown else names


@lru_cache
def _json_error(error: int) -> str:
    return f'"{_ERRORS.get(error, error)}"'
