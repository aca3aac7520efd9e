"""What clients did and saw, and the bytes that tell who wrote them. Pure, but for the files of operations.

Every write has a tag of its own and fills whole blocks with cells of 16 bytes: the tag, and where the cell lies. So a
read tells of each block which write it comes from; a block that is made up of several, or is in the wrong place, is
kept as it was. Tag 0 stands for zeroes: what was never written, trimmed or zeroed.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

BLOCK = 512
CELL = 16
ACKNOWLEDGED, UNKNOWN, ERROR = "acknowledged", "unknown", "error"
EARLY = "early"
"""The outcome of a request that was answered before it was all sent."""
WRITING = ("WRITE", "WRITE_ZEROES", "TRIM")
"""Operations, by their names in the log, that change bytes."""
_PLACES = array("Q", range(0, 1 << 20, CELL))
"""Of the cells in the first MiB, for `pattern`: they take longer to count than to copy."""
Seen = list[int | str | None]
"""Of each block the tag, or its bytes in hexadecimal if it is not one write's; None where nothing is told."""


class Operation(NamedTuple):
    """One operation of one client. Times are those of the monotonic clock, ns."""

    client: str
    number: int
    kind: str
    offset: int
    length: int
    tag: int
    invoked: int
    returned: int
    outcome: str
    repeats: int
    """How often the client's connection was lost meanwhile: each time the request was sent again."""
    seen: Seen
    """Of an acknowledged READ, and of a BLOCK_STATUS, which tells of zeroes alone."""
    why: str
    """Of an outcome that is not `acknowledged`."""

    @property
    def acknowledged(self) -> bool:
        return self.outcome == ACKNOWLEDGED


def pattern(tag: int, offset: int, length: int) -> bytes:
    """What the write `tag` puts into these bytes, whole cells."""
    words = array("Q", bytes(length))
    if tag:
        words[0::2] = array("Q", [tag]) * (length // CELL)
        words[1::2] = _places(offset, offset + length)
    return words.tobytes()


def _places(first: int, end: int) -> array[int]:
    """Where the cells of a range lie."""
    if first % CELL or end > len(_PLACES) * CELL:
        return array("Q", range(first, end, CELL))
    return _PLACES[first // CELL : end // CELL]


def identify(data: bytes, offset: int) -> Seen:
    """Who wrote the blocks that were read at `offset`."""
    seen: Seen = []
    tags = memoryview(data).cast("Q")[:: BLOCK // 8].tolist()
    start = 0
    while start < len(tags):
        end = start + 1
        while end < len(tags) and tags[end] == tags[start]:
            end += 1
        first, last = start * BLOCK, end * BLOCK
        if data[first:last] == pattern(tags[start], offset + first, last - first):
            seen += tags[start:end]
        else:
            seen += [_identify_block(data[at : at + BLOCK], offset + at) for at in range(first, last, BLOCK)]
        start = end
    return seen


def zeroes(extents: Iterable[tuple[int, int, bool]], offset: int, length: int) -> Seen:
    """The blocks that (offset, length, zero) report as zeroes, whole."""
    known = bytearray(length)
    for start, size, zero in extents:
        if zero:
            known[start - offset : start - offset + size] = bytes([1]) * min(size, length - (start - offset))
    return [0 if known[at : at + BLOCK].count(1) == BLOCK else None for at in range(0, length, BLOCK)]


def _identify_block(block: bytes, offset: int) -> int | str:
    tag = int.from_bytes(block[:8], "little")
    return tag if block == pattern(tag, offset, BLOCK) else block.hex()


def write_operations(path: Path, operations: Iterable[Operation]) -> None:
    """Append them as lines of JSON."""
    with path.open("a") as file:
        file.writelines(json.dumps(operation) + "\n" for operation in operations)


def read_operations(paths: Iterable[Path]) -> Iterator[Operation]:
    for path in paths:
        with path.open() as file:
            for line in file:
                yield Operation(*json.loads(line))
