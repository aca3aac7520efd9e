"""`memcluster logs`: reads the merged log from logger 0 over a blocking socket, and renders it.

The order is logger 0's work and the look node/log/text.py's; here is the asking, and what is told beside the records:
which loggers are missing, and how many records.
"""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from functools import partial
from typing import Any

from memcluster.client.console import NobodyReads
from memcluster.node.log.record import RECORD_SIZE, Kind, format_identifier, subject_of, unpack
from memcluster.node.log.text import COLOURS, LogEntry, format_json, format_text
from memcluster.node.nbd.printable import shown
from memcluster.node.transport.address import Address
from memcluster.node.transport.frames import Frame, FrameError, FrameReader
from memcluster.node.transport.proof import NONCE_SIZE, Opener, Pass, ProofError, Who

RECEIVE = 1 << 18
REMEMBERED = 1 << 17
"""Records of a followed log that are remembered as shown."""
ATTEMPTS = 60
"""To reach a logger 0 that was lost, some two minutes."""
TIMEOUT = 15.0
"""Seconds of silence: more than logger 0 itself waits for another logger."""
_UNITS = {"ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86400 * 10**9}
_OF_DAY = re.compile(r"\d\d:\d\d(:\d\d([.,]\d{1,6})?)?")
_AGO = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


class LogsError(Exception):
    """The log cannot be shown; the text says why."""


def parse_since(text: str) -> int:
    """A time in ISO 8601, local unless it says otherwise, as ns since 1970; `04:32:35.5`, as the log prints it, is the
    last time that it was so late; `5m`, `1.5h` (ago) is a negative number: each logger takes that off what its own
    clock says. Raises ValueError."""
    if ago := _AGO.fullmatch(text.strip()):
        return -max(1, int(float(ago[1]) * _UNITS[ago[2]]))
    try:
        if _OF_DAY.fullmatch(text.strip()):
            now = datetime.now()
            found = datetime.combine(now.date(), time.fromisoformat(text.strip()))
            return round((found if found <= now else found - timedelta(days=1)).timestamp() * 1e6) * 1000
        return round(datetime.fromisoformat(text.strip()).timestamp() * 1e6) * 1000
    except (ValueError, OverflowError, OSError):
        raise ValueError(
            f"{text!r} is neither a time ago, such as 30s, 5m or 2h, nor a time such as 04:32:35 or 2026-01-31T12:00:00"
        ) from None


@dataclass(frozen=True)
class Wanted:
    """Which part of the log: times in ns since 1970 or, negative, before now; `slower` in ns, `span` bytes of the
    memory as (offset, length), `run` 0 for all and -1 for the newest. The loggers sort out what does not fit, so it is
    not even sent."""

    last: int | None = None
    since: int | None = None
    until: int | None = None
    nodes: Sequence[str] = ()
    run: int = 0
    request: int | None = None
    client: int | None = None
    operations: Sequence[str] = ()
    slower: int | None = None
    errors: bool = False
    span: tuple[int, int] | None = None
    after: Mapping[str, int] | None = None
    """By server, the record after which to begin."""

    def to_head(self) -> dict[str, Any]:
        """As a part of a query."""
        head: dict[str, Any] = {}
        for name in ("last", "since", "until", "run", "client", "slower", "request"):
            value = getattr(self, name)
            if value is not None and (value or name in ("client", "request")):
                head[name] = value
        if self.operations:
            head["operations"] = [name.upper() for name in self.operations]
        if self.nodes:
            head["subjects"] = [subject_of(name) for name in self.nodes]
        if self.errors:
            head["errors"] = True
        if self.span is not None:
            head["offset"], head["length"] = self.span
        if self.after is not None:
            head["after"] = dict(self.after)
        return head


def read_log(address: str, secret: bytes, **wanted: Any) -> Iterator[LogEntry]:
    """The entries that `read_batches` gives."""
    for batch in read_batches(address, secret, **wanted):
        yield from batch


def read_batches(
    address: str,
    secret: bytes,
    *,
    follow: bool = False,
    output: int | None = None,
    timeout: float = TIMEOUT,
    told: Callable[[str], object] = lambda _: None,
    **wanted: Any,
) -> Iterator[list[LogEntry]]:
    """The merged log, as it comes from the logger 0 at `address`, to whom the run's `secret` is shown to be known; when
    it is followed it has no end.

    `wanted` are the fields of Wanted. `told` is called with sentences about what is not there. When logger 0 is lost
    while it is followed, it is tried again, and the log goes on where it stopped. Raises LogsError, and NobodyReads
    when nobody is left at the other end of `output`, a descriptor.
    """
    part = Wanted(**wanted)
    if part.last == 0 and not follow:
        return
    head = part.to_head()
    if part.last == 0:
        head["news"] = True
    seen = _Seen()
    attempts = 0
    while True:
        live = False
        try:
            for batch in _ask(address, secret, head, follow, output, timeout, told):
                if isinstance(batch, dict):
                    live, attempts = True, 0
                    seen.advance(batch)
                    if seen.lost:
                        seen.lost = False
                        told("logger0 is back; the log goes on")
                elif follow:
                    if fresh := seen.add(batch):
                        yield fresh
                else:
                    yield batch
        except _LostError as error:
            if not follow or not (live or seen.lost) or attempts > ATTEMPTS:
                raise
            if not seen.lost:
                told(f"{error}; trying again until it is back")
            seen.lost = True
            head["after"] = seen.after
            with suppress(TimeoutError):
                _wait(None, output, min(2.0, 0.05 * 2**attempts))
            attempts += 1
        else:
            return


class _Seen:
    """What has been shown of a log that is followed, so that after a loss nothing is shown twice; bounded."""

    def __init__(self) -> None:
        self.lost = False
        self.after: dict[str, int] = {}
        """By server, the record up to which everything has been shown: from there on to ask again."""
        self._shown: dict[tuple[str, int], None] = {}  # servers and sequence numbers, the latest last

    def add(self, batch: list[LogEntry]) -> list[LogEntry]:
        """The entries that are new."""
        shown = self._shown
        fresh = [entry for entry in batch if (entry.node, entry.record.sequence) not in shown]
        for entry in fresh:
            shown[entry.node, entry.record.sequence] = None
        while len(shown) > REMEMBERED:
            node, sequence = next(iter(shown))
            del shown[node, sequence]
            self.advance({node: sequence})
        return fresh

    def advance(self, after: dict[str, int]) -> None:
        """What comes up to these records will not be asked for again."""
        for node, sequence in after.items():
            self.after[node] = max(sequence, self.after.get(node, 0))


class _LostError(LogsError):
    """The connection to logger 0 is gone, or there is none."""


def _ask(
    address: str,
    secret: bytes,
    head: dict[str, Any],
    follow: bool,
    output: int | None,
    timeout: float,
    told: Callable[[str], object],
) -> Iterator[list[LogEntry] | dict[str, int]]:
    """One connection's batches; where a history ends and what happens now begins, up to where it is given."""
    reader = FrameReader()
    with in_words(address, timeout), connect(address, secret, timeout) as sock:
        sock.sendall(Frame({"ask": "merged", "follow": follow, **head}).encode())
        patience: float | None = timeout
        while data := _receive(sock, output, patience):
            for frame in reader.receive(data):
                check_answer(frame)
                head = frame.head
                if "error" in head:
                    raise LogsError(f"logger0: {head['error']}")
                if batch := _entries(frame):
                    yield batch
                for sentence in _sentences(head):
                    told(sentence)
                if head.get("end"):
                    return
                if "after" in head:
                    patience = None
                    yield head["after"]
    raise _LostError(f"logger0 at {address} ended in the middle of the log")


def _receive(sock: socket.socket, output: int | None, seconds: float | None) -> bytes:
    _wait(sock.fileno(), output, seconds)
    return sock.recv(RECEIVE)


def _wait(source: int | None, output: int | None, seconds: float | None) -> None:
    """Until `source` can be read. Raises TimeoutError, NobodyReads."""
    poll = select.poll()
    if source is not None:
        poll.register(source, select.POLLIN)
    if output is not None:
        poll.register(output, 0)  # which still tells of an error, such as a pipe without a reader
    ready = [descriptor for descriptor, _ in poll.poll(None if seconds is None else seconds * 1000)]
    if output in ready:
        raise NobodyReads
    if not ready:
        raise TimeoutError


def render(
    batches: Iterable[list[LogEntry]], *, as_json: bool = False, colour: bool = False, width: int = 0
) -> Iterator[str]:
    """Each batch as lines, every one with its end."""
    line = format_json if as_json else partial(format_text, colour=colour, width=width)
    for batch in batches:
        yield "\n".join(map(line, batch)) + "\n"


BAR = 32
"""Columns of the picture of a request's time, at most."""
BESIDE = 71
"""Columns that a line of the tree needs beside it where there is no room."""


def tree(story: Sequence[LogEntry], *, colour: bool = False, width: int = 0) -> str:
    """One request with its pieces below it: when each began after the first, how long it took, and what it did; `width`
    as format_text has it."""
    begin = min(record.start for _, record in story)
    whole = max(1, max(record.start + record.duration for _, record in story) - begin)
    columns = min(BAR, max(8, width - BESIDE)) if width else BAR
    lines = []
    for index, entry in enumerate(story):
        server, record = entry
        piece = record.kind == Kind.PIECE
        branch = ("└ " if index == len(story) - 1 else "├ ") if piece else ""
        first = (record.start - begin) * columns // whole
        last = max(first + 1, -(-(record.start + record.duration - begin) * columns // whole))
        bar = (" " * first + "█" * (last - first))[:columns]
        what = format_text(entry).partition(format_identifier(record.identifier))[2].lstrip()
        if piece:
            what = " " * 10 + what  # below the client
        if width and columns < BAR:
            what = " ".join(what.split())
        after = f"+{(record.start - begin) / 1e6:.3f} ms"
        line = f"{branch + f'server{server}':<11}▕{bar:<{columns}}▏{after:<12} {what}"
        line = line[: width or None]
        lines.append(f"\x1b[{COLOURS[server % len(COLOURS)]}m{line}\x1b[0m" if colour else line)
    return "\n".join(lines) + "\n"


@contextmanager
def in_words(address: str, timeout: float) -> Iterator[None]:
    """What goes wrong while the logger 0 at `address` is asked, as a LogsError."""
    try:
        yield
    except TimeoutError:
        raise _LostError(f"logger0 at {address} is silent for {timeout:g} s") from None
    except (FrameError, ProofError) as error:
        raise LogsError(f"what answers at {address} is not logger0: {error}") from error
    except OSError as error:
        raise _LostError(f"logger0 at {address} cannot be reached: {error.strerror or error}") from error


def connect(address: str, secret: bytes, timeout: float) -> socket.socket:
    """A connection to logger 0, on which both sides have shown that they know the secret. Raises LogsError, ProofError
    and OSError."""
    try:
        parsed = Address.parse(address)
    except ValueError as error:
        raise LogsError(str(error)) from error
    sock = socket.socket(parsed.family, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.connect(parsed.sockaddr)
        introduce(sock, Pass(secret, Who.OWNER, "logger0"))
    except BaseException:
        sock.close()
        raise
    return sock


def introduce(sock: socket.socket, key: Pass) -> None:
    """Prove oneself at the door of a node, and have it prove itself. Raises ProofError, OSError."""
    side = Opener(key, os.urandom(NONCE_SIZE))
    while side.needs:
        data = sock.recv(side.needs)
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "it hung up before it was known")
        side.received(data)
        sock.sendall(side.outgoing)
        side.outgoing = b""


def check_answer(frame: Frame) -> None:
    """What a logger says, and nothing else. Raises FrameError."""
    for name, value in frame.head.items():
        if name in _ANSWER and not _ANSWER[name](value):
            raise FrameError(f"it says {name}: {shown(value)}")


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _are_reasons(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(why, str) for why in value.values())


def _are_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(type(number) is int for number in value.values())


def _are_gaps(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(gap, dict) and isinstance(gap.get("node"), str) and type(gap.get("records")) is int for gap in value
    )


_ANSWER: dict[str, Callable[[Any], bool]] = {
    "error": lambda value: isinstance(value, str),
    "back": _are_names,
    "missing": _are_names,
    "trouble": _are_reasons,
    "gaps": _are_gaps,
    "after": _are_numbers,
    "stats": lambda value: isinstance(value, dict),
}
"""What the parts of an answer must be."""


def _entries(frame: Frame) -> list[LogEntry]:
    count = frame.head.get("records", 0)
    if type(count) is not int or count < 0 or len(frame.body) != count * (RECORD_SIZE + 2):
        raise FrameError("the records are not of the size that was announced")
    cut = count * RECORD_SIZE
    servers = struct.unpack_from(f"<{count}H", frame.body, cut)
    return list(map(LogEntry, servers, unpack(frame.body[:cut])))


def _sentences(head: dict[str, Any]) -> Iterator[str]:
    """What is to be told of a frame that says what is not there."""
    for name in head.get("back", []):
        yield f"{name} is back; its share follows"
    trouble = head.get("trouble", {})
    for name in head.get("missing", []):
        yield f"{name} is missing ({trouble.get(name, 'no reason known')}); the log is without its share"
    yield from gap_sentences(head.get("gaps", []))


def gap_sentences(gaps: Iterable[dict[str, Any]]) -> Iterator[str]:
    """How many records are not there, by node."""
    lost: dict[str, int] = {}
    for gap in gaps:
        lost[gap["node"]] = lost.get(gap["node"], 0) + gap["records"]
    for node, count in lost.items():
        yield f"{count} records of {node} are not there: no longer kept, damaged, or never written"
