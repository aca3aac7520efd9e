"""Holds what clients saw against what the README promises about bytes. Pure.

One block of the memory is a register: each write has a value of its own, zeroes have all the same. The rules:

lost      A write that was acknowledged is there until another replaces it: a block may show a write only if no other,
          which began after the first one's acknowledgement, was acknowledged before the read began. Where the requests
          of one client keep their order (`ordered`), its own later write replaces the earlier, too, whether or not it
          waited for it; but not one that was sent again when the later was done. One that is `slow`, as it clears much,
          takes several turns, in which its client's next requests may be carried out: a read may not show it yet, but a
          newer write stays, unless it `outlasts` that: in a chain it may come to the next server after the newer one,
          and a link that was lost sends it again.
wrong     A block shows what was written there, or zeroes: not another block's bytes, nobody's, or the future's. While
          writes overlap it may be made up of those that it may show, and of nothing else.
back      What was replaced does not come back: if a write was acknowledged and a read that began later does not show
          it, no read that begins after that one shows it again.
late      What a lost connection sent does not land on what was written after: a write without an answer, whose client
          has left, does not replace one that began after that and was acknowledged. Nor does one that was refused.
mixed     What is `whole`, a request that lies in one server, is done at once: of two acknowledged writes that overlap,
          one is the later for every byte, and a read shows a write whole or not at all. What spans servers, what was
          not acknowledged, and what is `slow` and not done yet, may be seen in part.
early     Nothing is acknowledged that was not all sent.

A range that is reported as ZERO is a read that shows zeroes, so all of this holds for it: content and extents agree. A
write whose outcome is unknown may take effect at any time, so it is never replaced for certain, but for `late`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, permutations
from operator import attrgetter
from typing import NamedTuple

from memcluster.simulator.history import BLOCK, EARLY, UNKNOWN, WRITING, Operation, pattern

NEVER = 1 << 63
MAX_TOLD = 20
Which = Callable[[Operation], bool]


@dataclass
class Verdict:
    """What the checker found, by rule: the tags of the writes that are gone, came back, landed late, were mixed or were
    acknowledged early; and of wrong values the reads."""

    blocks_read: int = 0
    lost: set[int] = field(default_factory=set)
    wrong: set[tuple[str, int]] = field(default_factory=set)
    back: set[int] = field(default_factory=set)
    late: set[int] = field(default_factory=set)
    mixed: set[tuple[int, ...]] = field(default_factory=set)
    early: set[int] = field(default_factory=set)
    told: list[str] = field(default_factory=list)
    """The first findings, as sentences."""

    def broken(self, rule: str, what: object, sentence: str) -> None:
        """Told and counted once, however many blocks and reads show it."""
        found: set[object] = getattr(self, rule)
        if what not in found:
            found.add(what)
            self.tell(f"{rule}: {sentence}")

    def tell(self, sentence: str) -> None:
        if len(self.told) < MAX_TOLD:
            self.told.append(sentence)


class _Write(NamedTuple):
    operation: Operation
    value: int
    """What a block reads as: the tag, or 0."""
    invoked: int
    until: int
    """When it was acknowledged; NEVER if it was not."""
    whole: bool
    slow: bool
    outlasts: bool

    @classmethod
    def of(cls, operation: Operation, whole: Which, slow: Which, outlasts: Which) -> _Write:
        until = operation.returned if operation.acknowledged else NEVER
        value = operation.tag if operation.kind == "WRITE" else 0
        kind = whole(operation), slow(operation), outlasts(operation)
        return cls(operation, value, operation.invoked, until, *kind)

    def __str__(self) -> str:
        one = self.operation
        if self is _NOTHING:
            return "what was there at first"
        until = one.outcome if one.outcome == UNKNOWN else f"{one.outcome} at {one.returned}"
        return f"{one.kind} {one.tag:#x} (number {one.number} of {one.client}, began at {one.invoked}, {until})"


_UNTIL = attrgetter("until")
_AT_FIRST = Operation("nobody", -1, "WRITE_ZEROES", 0, 0, 0, -1, -1, "acknowledged", 0, [], "")
_NOTHING = _Write(_AT_FIRST, 0, -1, -1, whole=True, slow=False, outlasts=False)
"""What the memory holds before the first write."""


class _Look(NamedTuple):
    """What one read shows of a stretch."""

    read: Operation
    value: int | str


class _Shown(NamedTuple):
    """Of the reads that have returned by some time: when the last to begin did, what it showed, and the same of the
    last that showed something else."""

    invoked: int = -1
    value: int | str = 0
    other: int = -1

    def and_also(self, look: _Look) -> _Shown:
        if look.read.invoked <= self.invoked:
            other = look.read.invoked if look.value != self.value else -1
            return self._replace(other=max(self.other, other))
        other = self.invoked if look.value != self.value else self.other
        return _Shown(look.read.invoked, look.value, other)

    def without(self, value: int) -> int:
        """When the last of those began that did not show the value."""
        return self.other if value == self.value else self.invoked


def _is_before(write: _Write, read: Operation) -> bool:
    """Whether a read of the same client must show it, though that did not wait. Not if it was sent again and the read
    was not: what was answered to neither may have found no room the first time."""
    one = write.operation
    return one.client == read.client and one.number < read.number and one.repeats <= read.repeats and not write.slow


def _later(one: _Write, other: _Write) -> _Write:
    return other if other.invoked > one.invoked else one


class _Stretch:
    """Blocks side by side of which the same is known: the writes there, and what was read."""

    def __init__(self, writes: Sequence[_Write], looks: Sequence[_Look]) -> None:
        self.writes = [_NOTHING, *writes]
        self.looks = looks
        self.by_value: dict[int, list[_Write]] = defaultdict(list)
        acknowledged = []
        for write in self.writes:
            self.by_value[write.value].append(write)
            if write.until != NEVER:
                acknowledged.append(write)
        acknowledged.sort(key=_UNTIL)
        self._ends = [write.until for write in acknowledged]
        self._latest: list[_Write] = list(accumulate(acknowledged, _later))
        self._acknowledged = acknowledged
        self._varies = len({look.value for look in looks}) > 1
        self._by_client: dict[str, list[_Write]] | None = None
        self._shown: tuple[list[int], list[_Shown]] | None = None

    def _of(self, client: str) -> list[_Write]:
        """A client's acknowledged writes, in the order in which they were asked for."""
        if self._by_client is None:
            self._by_client = defaultdict(list)
            for write in sorted(self._acknowledged, key=lambda write: write.operation.number):
                self._by_client[write.operation.client].append(write)
        return self._by_client[client]

    def _shown_before(self, time: int) -> _Shown:
        """By the whole looks that had returned."""
        if self._shown is None:
            whole = [look for look in self.looks if isinstance(look.value, int)]
            whole.sort(key=lambda look: look.read.returned)
            shown = list(accumulate(whole, _Shown.and_also, initial=_Shown()))
            self._shown = [look.read.returned for look in whole], shown
        returns, shown = self._shown
        return shown[bisect_left(returns, time)]

    def replaced(self, write: _Write, read: Operation, *, ordered: bool) -> _Write | None:
        """Rule `lost`: the acknowledged write that must have replaced `write` before the read."""
        latest = self._latest[bisect_left(self._ends, read.invoked) - 1]  # _NOTHING is before all reads
        if latest.invoked > write.until:
            return latest
        if not ordered:
            return None
        again = write.operation.repeats > 0
        if write.until != NEVER and not (write.outlasts or (again and write.slow)):
            for later in reversed(self._of(write.operation.client)):
                if later.operation.number <= write.operation.number:
                    break
                if again and later.until < write.until:
                    continue  # it was answered, and not sent again behind this one
                if _is_before(later, read) or later.until < read.invoked:
                    return later
        for earlier in reversed(self._of(read.client)):  # the read's own client
            if _is_before(earlier, read):
                return earlier if earlier.invoked > write.until else None
        return None

    def came_back(self, write: _Write, read: Operation) -> bool:
        """Rule `back`. What was sent again may have been done again."""
        if not self._varies or write.until == NEVER or write.operation.repeats:
            return False
        return self._shown_before(read.invoked).without(write.value) > write.until

    def landed_late(self, write: _Write, read: Operation) -> _Write | None:
        """Rule `late`: the acknowledged write on which this one landed."""
        if write.until != NEVER:
            return None
        return self.replaced(write._replace(until=write.operation.returned), read, ordered=False)


def check(
    operations: Iterable[Operation],
    *,
    ordered: bool = False,
    whole: Which = lambda _operation: False,
    slow: Which = lambda _operation: False,
    outlasts: Which = lambda _operation: False,
) -> Verdict:
    """Check the whole history of a memory that was all zeroes at first."""
    operations = list(operations)
    verdict = Verdict()
    for one in operations:
        if one.outcome == EARLY:
            verdict.broken("early", one.tag, f"{one.kind} {one.number} of {one.client}: {one.why}")
    reads = [(one, _runs(one)) for one in operations if one.acknowledged and one.seen]
    written = [one for one in operations if one.kind in WRITING]
    ends = {end for one in written for end in (one.offset, one.offset + one.length)}
    cuts = sorted(ends.union(*((run.first, run.end) for _, runs in reads for run in runs)))
    looks: dict[int, list[_Look]] = defaultdict(list)  # what nobody looked at cannot be wrong
    for read, runs in reads:
        for run in runs:
            verdict.blocks_read += (run.end - run.first) // BLOCK
            look = _Look(read, run.value)
            for start in _between(cuts, run.first, run.end):
                looks[start].append(look)
    writes: dict[int, list[_Write]] = defaultdict(list)
    by_tag: dict[int, _Write] = {}
    for one in written:
        write = by_tag[one.tag] = _Write.of(one, whole, slow, outlasts)
        for start in _between(cuts, one.offset, one.offset + one.length):
            writes[start].append(write)
    stretches = {start: _Stretch(writes[start], looks[start]) for start in cuts if start in looks}
    for start, stretch in stretches.items():
        for read, value in stretch.looks:
            if isinstance(value, str):
                _check_mix(stretch, start, bytes.fromhex(value), read, verdict, ordered, whole(read))
            else:
                _check_value(stretch, start, value, read, verdict, ordered)
    for read, runs in reads:
        if read.kind == "READ":
            places: dict[int, list[int]] = defaultdict(list)
            for run in runs:
                if isinstance(run.value, int):
                    places[run.value] += _between(cuts, run.first, run.end)
            _check_whole(read, places, stretches, by_tag, verdict, at_once=whole(read))
    return verdict


class _Run(NamedTuple):
    """Blocks from one offset to another of which a read shows the same."""

    first: int
    end: int
    value: int | str


def _runs(read: Operation) -> list[_Run]:
    """What a read tells something of. Bytes that are kept are of one block."""
    found: list[_Run] = []
    seen, start = read.seen, 0
    while start < len(seen):
        value, end = seen[start], start + 1
        while isinstance(value, int) and end < len(seen) and seen[end] == value:
            end += 1
        if value is not None:
            found.append(_Run(read.offset + start * BLOCK, read.offset + end * BLOCK, value))
        start = end
    return found


def _between(places: list[int], first: int, end: int) -> list[int]:
    """Of places in order, those in a range."""
    at, behind = bisect_left(places, first), bisect_left(places, end)
    return places[at:behind]


def _check_value(stretch: _Stretch, offset: int, value: int, read: Operation, verdict: Verdict, ordered: bool) -> None:
    """A block that shows one value must show it by some write; if not, the last write to have it tells the rule."""
    broken = []
    for write in stretch.by_value.get(value, ()):
        if write.invoked < read.returned:
            rule, by = _broken(stretch, write, read, ordered)
            if not rule:
                return
            broken.append((write, rule, by))
    where = f"{_words(read)}: block {offset:#x} reads as {value:#x}"
    if not broken:
        what = "a write that had not begun" if value in stretch.by_value else "no write there"
        verdict.broken("wrong", (read.client, read.number), f"{where}, which is of {what}")
        return
    write, rule, by = max(broken, key=lambda found: (found[1] == "late", found[1] == "back", found[0].invoked))
    if rule == "late":
        verdict.broken("late", write.operation.tag, f"{where}: {write} has landed on {by}")
    elif rule == "back":
        verdict.broken(
            "back", write.operation.tag, f"{where}: {write} had been replaced, as a read had shown, and is there again"
        )
    elif by is not None:
        verdict.broken("lost", by.operation.tag, f"{where}, of {write}, in place of {by}")


def _broken(stretch: _Stretch, write: _Write, read: Operation, ordered: bool) -> tuple[str, _Write | None]:
    """By which rule the read cannot show the write, and for the sake of which other; '' if it can."""
    by = stretch.replaced(write, read, ordered=ordered)
    if by is not None:
        return "lost", by
    by = stretch.landed_late(write, read)
    if by is not None:
        return "late", by
    return ("back" if stretch.came_back(write, read) else ""), None


def _check_mix(
    stretch: _Stretch, offset: int, data: bytes, read: Operation, verdict: Verdict, ordered: bool, at_once: bool
) -> None:
    """A block that shows several: every byte must be of one that may be read; and of two whole ones, one was last."""
    allowed = [
        write
        for write in stretch.writes
        if write.invoked < read.returned and stretch.replaced(write, read, ordered=ordered) is None
    ]
    contents = [pattern(write.value, offset, BLOCK) for write in allowed]
    strange = [at for at, values in enumerate(zip(data, *contents, strict=True)) if values[0] not in values[1:]]
    where = f"{_words(read)}: block {offset:#x} is made up of several"
    if strange:
        tags = ", ".join(f"{write.operation.tag:#x}" for write in allowed[:5])
        what = f"byte {strange[0]} is of none of the {len(allowed)} writes that it may show ({tags})"
        verdict.broken("wrong", (read.client, read.number), f"{where}: {what}")
    elif all(_is_whole(write, read, at_once=at_once) for write in allowed):
        verdict.broken(
            "mixed",
            tuple(write.operation.tag for write in allowed),
            f"{where}, although each of {'; '.join(map(str, allowed))} was whole",
        )


def _check_whole(
    read: Operation,
    places: dict[int, list[int]],
    stretches: dict[int, _Stretch],
    by_tag: dict[int, _Write],
    verdict: Verdict,
    *,
    at_once: bool,
) -> None:
    """Rule `mixed`, from stretch to stretch; `places` are those at which the read shows a value. A read that spans
    servers is not at once, and shows whole what was done before it began."""
    shown = [by_tag[tag] for tag in places if tag in by_tag]
    for one, other in permutations([write for write in shown if _is_whole(write, read, at_once=at_once)], 2):
        inside = _inside(places[one.value], other)
        if inside and (one.until < other.invoked or _inside(places[other.value], one)):
            what = f"{_words(read)} shows {other} and, in block {inside[0]:#x} of it, {one}"
            verdict.broken("mixed", tuple(sorted((one.value, other.value))), what)
    for write in shown:
        for block in _inside(places[0], write) if _is_whole(write, read, at_once=at_once) else ():
            zeroes = [zero for zero in stretches[block].by_value[0] if zero.until > write.invoked]
            later = [zero for zero in zeroes if _is_whole(zero, read, at_once=at_once) and zero.invoked < read.returned]
            if at_once and not zeroes:
                what = f"{_words(read)} shows {write} and, in block {block:#x} of it, the zeroes from before"
            elif zeroes and later == zeroes and all(_inside(places[write.value], zero) for zero in zeroes):
                what = f"{_words(read)} shows a part of {write} in {zeroes[0]}, and in block {block:#x} zeroes"
            else:
                continue
            verdict.broken("mixed", (write.value,), what)
            break


def _is_whole(write: _Write, read: Operation, *, at_once: bool) -> bool:
    """The read must show all of the write where it shows any. What was sent again may have been done in part before."""
    if write.until < read.invoked:
        return write.whole
    at_once = at_once and not (write.slow or write.operation.repeats)
    return write.whole and write.until != NEVER and at_once


def _inside(places: list[int], write: _Write) -> list[int]:
    """Of places in order, those that the write wrote."""
    return _between(places, write.operation.offset, write.operation.offset + write.operation.length)


def _words(read: Operation) -> str:
    what = "READ" if read.kind == "READ" else "ZERO by BLOCK_STATUS"
    return f"{what} {read.number} of {read.client} ({read.length} bytes at {read.offset:#x}, began at {read.invoked})"
