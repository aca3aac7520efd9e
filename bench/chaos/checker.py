"""Holds every read against the values that it may return. Pure.

A block may read as a write that began before the read ended, unless it was overwritten for certain: another write that
was acknowledged began after the first one's acknowledgement, and was acknowledged before the read began. A write whose
outcome is unknown may take effect at any time, so it is never overwritten for certain; nor is one that was refused with
an error. Where the requests of one client keep their order (`ordered`), a later write overwrites an earlier one and is
there for a later read of the same client, whether or not one waited for the other. But a request that the client had to
send again, because it lost its connection, may come after later ones that had been answered.

A read of a value that had been overwritten is a lost write: of the one that must have been there. Any other value that
cannot be is a wrong read. A block may be a mix only of writes each of which may be read.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

from bench.chaos.history import BLOCK, WRITING, Operation, pattern

NEVER = 1 << 63
MAX_TOLD = 20


@dataclass
class Verdict:
    """What the checker found; `lost` are the tags of the writes that are gone."""

    blocks_read: int = 0
    lost: set[int] = field(default_factory=set)
    wrong: int = 0
    """Reads with a value that cannot be."""
    late: int = 0
    """Blocks that show a write whose client had given it up before a later one was acknowledged. Allowed."""
    told: list[str] = field(default_factory=list)
    """The first findings, as sentences."""

    def tell(self, sentence: str) -> None:
        if len(self.told) < MAX_TOLD:
            self.told.append(sentence)


class _Write(NamedTuple):
    client: str
    number: int
    tag: int
    invoked: int
    until: int
    """When it was acknowledged; NEVER if it was not."""
    given_up: int
    zeroes: bool
    repeated: bool


_NOTHING = _Write("", -1, 0, -1, -1, -1, True, False)
"""What the memory holds before the first write."""


def _later(one: _Write, other: _Write) -> _Write:
    """Of two the one that began later."""
    return other if other.invoked > one.invoked else one


class _Block:
    """The writes to one block."""

    def __init__(self, writes: list[_Write]) -> None:
        self.writes = [_NOTHING, *writes]
        self.by_tag = {write.tag: [write] for write in writes if not write.zeroes}
        self.by_tag[0] = [write for write in self.writes if write.zeroes]
        acknowledged = sorted((write for write in self.writes if write.until != NEVER), key=lambda write: write.until)
        self._ends = [write.until for write in acknowledged]
        self._latest: list[_Write] = list(accumulate(acknowledged, _later))
        self._by_client: dict[str, list[_Write]] = defaultdict(list)
        for write in acknowledged:
            self._by_client[write.client].append(write)
        for own in self._by_client.values():
            own.sort(key=lambda write: write.number)

    def hider(self, write: _Write, read: Operation, *, ordered: bool) -> _Write | None:
        """The acknowledged write that must have replaced `write` before the read."""
        count = bisect_left(self._ends, read.invoked)
        latest = self._latest[count - 1] if count else _NOTHING
        if latest.invoked > write.until:
            return latest
        if not ordered:
            return None
        if write.until != NEVER and not write.repeated:
            for later in reversed(self._by_client[write.client]):
                if later.number <= write.number:
                    break
                if later.until < read.invoked or (later.client == read.client and later.number < read.number):
                    return later
        for earlier in reversed(self._by_client[read.client]):  # the read's own client
            if earlier.number < read.number:
                return earlier if earlier.invoked > write.until else None
        return None


def check(operations: Iterable[Operation], *, ordered: bool = False) -> Verdict:
    """Check the whole history of a memory that was all zeroes at first."""
    writes: dict[int, list[_Write]] = defaultdict(list)
    reads = []
    for operation in operations:
        if operation.kind in WRITING:
            zeroes = operation.kind != "WRITE"
            until = operation.returned if operation.acknowledged else NEVER
            write = _Write(
                operation.client,
                operation.number,
                operation.tag,
                operation.invoked,
                until,
                operation.returned,
                zeroes,
                operation.repeats > 0,
            )
            for block in _blocks(operation):
                writes[block].append(write)
        elif operation.kind == "READ" and operation.acknowledged:
            reads.append(operation)
    blocks = {block: _Block(found) for block, found in writes.items()}
    empty = _Block([])
    verdict = Verdict()
    for read in reads:
        wrong = False
        for block, value in zip(_blocks(read), read.seen, strict=True):
            verdict.blocks_read += 1
            wrong |= _check_block(blocks.get(block, empty), block, read, value, verdict, ordered)
        verdict.wrong += wrong
    return verdict


def _blocks(operation: Operation) -> Iterator[int]:
    """The blocks of an operation, by their offsets."""
    return iter(range(operation.offset, operation.offset + operation.length, BLOCK))


def _check_block(
    block: _Block, offset: int, read: Operation, value: int | str, verdict: Verdict, ordered: bool
) -> bool:
    """False if the value may be, or is a lost write's doing."""
    if isinstance(value, str):
        return _check_mix(block, offset, bytes.fromhex(value), read, verdict, ordered)
    matching = block.by_tag.get(value, [])
    begun = [write for write in matching if write.invoked < read.returned]
    hider, late = None, ""
    for write in reversed(begun):
        hider = block.hider(write, read, ordered=ordered)
        if hider is None:
            later = _replaced_late(block, write, read)
            if later is None:
                return False
            late = (
                f"late write: {write.tag:#x} of {write.client} (number {write.number}, given up at {write.given_up}) "
                f"is in {_words(read)}, block {offset:#x}, in place of {later.tag:#x} of {later.client} (number "
                f"{later.number}, began at {later.invoked}, acknowledged at {later.until})"
            )
    if late:
        verdict.late += 1
        verdict.tell(late)
        return False
    if hider is None:
        why = "is of a write that had not begun" if matching else "is of no write to this block"
        verdict.tell(f"wrong read: {_words(read)}: block {offset:#x} reads as {value:#x}, which {why}")
        return True
    if hider.tag not in verdict.lost:
        verdict.lost.add(hider.tag)
        verdict.tell(
            f"lost write: {hider.tag:#x} of {hider.client} (number {hider.number}, acknowledged at {hider.until}) is "
            f"not in {_words(read)}: block {offset:#x} reads as {value:#x}"
        )
    return False


def _replaced_late(block: _Block, write: _Write, read: Operation) -> _Write | None:
    """The acknowledged write that a write which had been given up has replaced."""
    if write.until != NEVER:
        return None
    return block.hider(write._replace(until=write.given_up), read, ordered=False)


def _check_mix(block: _Block, offset: int, data: bytes, read: Operation, verdict: Verdict, ordered: bool) -> bool:
    """Every byte must come from some write that may be read."""
    allowed = [
        write
        for write in block.writes
        if write.invoked < read.returned and block.hider(write, read, ordered=ordered) is None
    ]
    contents = [pattern(0 if write.zeroes else write.tag, offset, BLOCK) for write in allowed]
    wrong = [at for at, values in enumerate(zip(data, *contents, strict=True)) if values[0] not in values[1:]]
    if wrong:
        verdict.tell(
            f"wrong read: {_words(read)}: block {offset:#x} is torn: byte {wrong[0]} is of none of the "
            f"{len(allowed)} writes that it may show ({', '.join(f'{write.tag:#x}' for write in allowed[:5])})"
        )
    return bool(wrong)


def _words(read: Operation) -> str:
    return f"READ {read.number} of {read.client} ({read.length} bytes at {read.offset:#x}, began at {read.invoked})"
