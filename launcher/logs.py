"""`memcluster logs`: reads the merged log from logger 0 over a blocking socket, and renders it.

The order is logger 0's work and the look node/logtext.py's; here is the asking, and what is told beside the records:
which loggers are missing, and how many records.
"""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import partial
from typing import Any

from node.address import Address
from node.frames import Frame, FrameError, FrameReader
from node.logtext import LogEntry, format_json, format_text
from node.record import RECORD_SIZE, parse_identifier, unpack

RECEIVE = 1 << 18
TIMEOUT = 15.0
"""Seconds of silence: more than logger 0 itself waits for another logger."""
_UNITS = {"ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86400 * 10**9}
_AGO = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


class LogsError(Exception):
    """The log cannot be shown; the text says why."""


def parse_since(text: str, now: int | None = None) -> int:
    """`5m`, `1.5h` (ago) or a time in ISO 8601, local unless it says otherwise, as ns since 1970. Raises ValueError."""
    if ago := _AGO.fullmatch(text.strip()):
        return (time.time_ns() if now is None else now) - int(float(ago[1]) * _UNITS[ago[2]])
    try:
        return round(datetime.fromisoformat(text.strip()).timestamp() * 1e6) * 1000
    except (ValueError, OverflowError, OSError):
        raise ValueError(
            f"{text!r} is neither a time ago, such as 30s, 5m or 2h, nor a time such as 2026-01-31T12:00:00"
        ) from None


def read_log(address: str, **wanted: Any) -> Iterator[LogEntry]:
    """The entries that `read_batches` gives."""
    for batch in read_batches(address, **wanted):
        yield from batch


def read_batches(
    address: str,
    *,
    follow: bool = False,
    last: int | None = None,
    since: int | None = None,
    node: str | None = None,
    request: str | None = None,
    timeout: float = TIMEOUT,
    told: Callable[[str], object] = lambda _: None,
) -> Iterator[list[LogEntry]]:
    """The merged log, as it comes from the logger 0 at `address`; when it is followed it has no end.

    `since` is in ns since 1970, `request` an identifier as text. `told` is called with sentences about what is not
    there. Raises LogsError.
    """
    ask: dict[str, Any] = {"ask": "merged", "follow": follow}
    if last == 0:
        if not follow:
            return
        since = max(since or 0, time.time_ns())
    for name, value in (("last", last or None), ("since", since), ("node", node)):
        if value is not None:
            ask[name] = value
    if request is not None:
        try:
            ask["request"] = parse_identifier(request)
        except ValueError as error:
            raise LogsError(str(error)) from error
    reader = FrameReader()
    try:
        with _connect(address, timeout) as sock:
            sock.sendall(Frame(ask).encode())
            while data := sock.recv(RECEIVE):
                for frame in reader.receive(data):
                    head = frame.head
                    if "error" in head:
                        raise LogsError(f"logger0: {head['error']}")
                    if batch := _entries(frame):
                        yield batch
                    for sentence in _sentences(head):
                        told(sentence)
                    if head.get("end"):
                        return
                    if head.get("live"):
                        sock.settimeout(None)
    except TimeoutError:
        raise LogsError(f"logger0 at {address} is silent for {timeout:g} s") from None
    except FrameError as error:
        raise LogsError(f"what answers at {address} is not logger0: {error}") from error
    except OSError as error:
        raise LogsError(f"logger0 at {address} cannot be reached: {error.strerror or error}") from error
    raise LogsError(f"logger0 at {address} ended in the middle of the log")


def render(
    batches: Iterable[list[LogEntry]], *, as_json: bool = False, colour: bool = False, width: int = 0
) -> Iterator[str]:
    """Each batch as lines, every one with its end."""
    line = format_json if as_json else partial(format_text, colour=colour, width=width)
    for batch in batches:
        yield "\n".join(map(line, batch)) + "\n"


def _connect(address: str, timeout: float) -> socket.socket:
    try:
        parsed = Address.parse(address)
    except ValueError as error:
        raise LogsError(str(error)) from error
    sock = socket.socket(parsed.family, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.connect(parsed.sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock


def _entries(frame: Frame) -> list[LogEntry]:
    count = frame.head.get("records", 0)
    if type(count) is not int or len(frame.body) != count * (RECORD_SIZE + 2):
        raise FrameError("the records are not of the size that was announced")
    cut = count * RECORD_SIZE
    servers = struct.unpack_from(f"<{count}H", frame.body, cut)
    return list(map(LogEntry, servers, unpack(frame.body[:cut])))


def _sentences(head: dict[str, Any]) -> Iterator[str]:
    """What is to be told of a frame that says what is not there."""
    trouble = head.get("trouble", {})
    for name in head.get("missing", []):
        yield f"{name} is missing ({trouble.get(name, 'no reason known')}); the log is without its share"
    lost: dict[str, int] = {}
    for gap in head.get("gaps", []):
        lost[gap["node"]] = lost.get(gap["node"], 0) + gap["records"]
    for node, count in lost.items():
        yield f"{count} records of {node} are not there: no longer kept, or never written"
