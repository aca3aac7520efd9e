"""What is tried with any bytes: a target says how they are taken and which rules must hold, whatever they are.

Bytes are cut into parts where they have CUT: what comes in one receive. A part that begins with LONG and two bytes
stands for so many zeroes and the rest: a payload is long without being carried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from memcluster.node.nbd.client import ClientSession
from memcluster.node.nbd.server import ServerSession

CUT = b"\xf0CUT\xf0"
LONG = b"\xf0LNG\xf0"
ROOM = "MEMCLUSTER_FUZZ_ROOM"
"""The variable that names a folder for files, of which somebody else disposes: libFuzzer ends its process at once."""
MOST_ZEROES = (1 << 16) - 1
"""Of a part that begins with LONG."""
MOST = 1500
"""Bytes of an input, at most."""


@dataclass(frozen=True)
class Target:
    """`run` raises if bytes break a rule. `seeds` are inputs to begin with, `words` what may mean something."""

    name: str
    what: str
    """For people: whose bytes these are."""
    run: Callable[[bytes], None]
    seeds: Sequence[bytes]
    words: Sequence[bytes] = field(default=())
    share: int = 1
    """Of the executions of a run over all targets."""


def parts(data: bytes) -> Iterator[memoryview]:
    """What comes in one receive each."""
    for part in data.split(CUT):
        found = part
        if found.startswith(LONG):
            head, found = found[len(LONG) : len(LONG) + 2], found[len(LONG) + 2 :]
            found = bytes(int.from_bytes(head, "big")) + found
        yield memoryview(found)


def poured(session: ServerSession | ClientSession, part: memoryview) -> Iterator[int]:
    """As if `part` were received, as much at a time as the session has room for; how many bytes it is to take now."""
    while part and not session.finished:
        room = session.receive_buffer()
        count = min(len(room), len(part))
        assert count, "no room to receive"
        room[:count] = part[:count]
        part = part[count:]
        yield count


def joined(*said: bytes) -> bytes:
    """Parts as one input."""
    return CUT.join(said)
