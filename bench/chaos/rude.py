"""A client that behaves as no library does, beside one that is polite, in a process of its own.

It sends half of a request and lets others write there, leaves in the middle, leaves requests unread in the socket, or a
long zeroing under way. The polite one then writes to the same place, and looks at it again and again. What both did is
in the history like every other operation; the checker judges it. Two moves are made when the breaker asks for them, at
the time of its own fault: a crowd of reads that must wait, and a zeroing during which the first server dies.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple

import memcluster
from bench.chaos.load import TAG_SHIFT, what_was_seen
from bench.chaos.places import PAGE, WIDE, Places, Region
from bench.chaos.wire import Lost, Wire
from memcluster.client.memory import Memory
from memcluster.node.layout import Layout
from memcluster.node.nbd.wire import REQUEST, REQUEST_MAGIC, Command, CommandFlag
from memcluster.simulator.history import (
    ACKNOWLEDGED,
    BLOCK,
    EARLY,
    ERROR,
    UNKNOWN,
    Operation,
    pattern,
    write_operations,
)

PATIENCE = 8.0
"""Seconds to wait for an answer; nobody is owed one here."""
BURST = 8 << 20
"""Bytes that are sent without waiting, at most: more than a server reads in a turn."""
CROWD, FEW = 3000, 50
"""Reads that wait together for a server that is stopped; and reads that begin later and do not wait."""
NEWCOMERS = 40
"""Clients that begin a write at a server that has just begun."""
WITNESSES = 8
"""Connections made before, so that who zeroes has a number that one of the newcomers will have."""
WATCH = 4.0
"""Seconds in which nothing may come to those."""
PAUSE = 0.05
"""Seconds between two moves."""


class Part(NamedTuple):
    """Bytes that are asked for at one door, where they have another offset if every server is one."""

    uri: str
    offset: int
    length: int
    door_offset: int

    def cut(self, start: int, length: int) -> Part:
        return self._replace(offset=self.offset + start, length=length, door_offset=self.door_offset + start)


@dataclass(frozen=True)
class Job:
    """`doors` are the URIs by server where every server is a door, else there is one."""

    uri: str
    doors: tuple[str, ...]
    layout: Layout
    number: int
    seed: int
    limit: float
    places: Places
    path: Path


class Rude:
    """The loop of the two. `asked` brings the words of the breaker, and takes the answer that it has begun."""

    def __init__(self, job: Job, stop: Event, asked: Pipe) -> None:
        self._job = job
        self._stop = stop
        self._asked = asked
        self._rng = random.Random(f"rude {job.seed}")
        self._number = 0
        self._memory: Memory | None = None
        self._done: list[Operation] = []
        self._moves: dict[str, Callable[[], None]] = {"crowd": self._crowd, "zeroes": self._newcomers}

    def run(self) -> None:
        moves = [self._beside, self._beside, self._leave_half, self._leave_unread, self._leave_zeroing]
        while not self._stop.is_set() and time.monotonic() < self._job.limit:
            move = self._rng.choice(moves)
            if self._asked.poll(PAUSE):
                move = self._moves[self._asked.recv()]
            with suppress(Lost, memcluster.ClusterError):
                move()
            write_operations(self._job.path, self._done)
            self._done.clear()
        if self._memory is not None:
            self._memory.close()

    # -- moves -------------------------------------------------------------------------------------------------------

    def _beside(self) -> None:
        """The second half of a long write is sent when others have changed what the first half was for."""
        part, wire = self._open()
        try:
            # Whoever comes in later waits for the payload, and in the end is let in amid it: that is no fault.
            self._polite("READ", part.cut(0, BLOCK))
        except memcluster.ClusterError:
            wire.close()
            raise
        write, payload = self._begin("WRITE", part)
        half = self._rng.randrange(len(payload))
        try:
            wire.send(self._frame(write, part) + payload[:half], PATIENCE)
            self._overwrite(part)
            self._look(part)
            if half < len(payload) and wire.speaks(0):
                wire.reply(PATIENCE)  # a connection that was lost is no answer
                self._note(write, EARLY, f"answered when {half} of {len(payload)} bytes had been sent")
                return
            wire.send(payload[half:], PATIENCE)
            _, error = wire.reply(PATIENCE)
            self._note(write, ERROR if error else ACKNOWLEDGED, f"error {error}" if error else "")
        except (Lost, memcluster.ClusterError) as lost:
            wire.close()
            self._note(write, UNKNOWN, str(lost))
        finally:
            wire.close()
        self._look(part)
        block = part.cut(self._rng.randrange(part.length // BLOCK) * BLOCK, BLOCK)
        self._polite("WRITE", block)
        self._look(part)

    def _leave_half(self) -> None:
        """Most of a long write is sent, and then nothing but the end."""
        part, wire = self._open()
        write, payload = self._begin("WRITE", part)
        with suppress(Lost):
            wire.send(self._frame(write, part) + payload[: self._rng.randrange(len(payload))], PATIENCE)
        wire.close()
        self._note(write, UNKNOWN, "left")
        self._overwrite(part)
        self._look(part)

    def _leave_unread(self) -> None:
        """More requests than the server has read yet; some across two servers, some behind a long zeroing."""
        spanning = self._rng.random() < 0.5
        part, wire = self._open(self._job.places.shared[0] if spanning else None)
        began: list[Operation] = []
        if self._rng.random() < 0.3:
            rest = self._part(self._job.places.rest, part.uri)
            if rest is not None:
                zero, _ = self._begin("WRITE_ZEROES", rest)
                began.append(zero)
                wire.send_now(self._frame(zero, rest))
        sent = 0
        while sent < BURST:
            write, payload = self._begin("WRITE", part)
            began.append(write)
            frame = self._frame(write, part) + payload
            now = wire.send_now(frame)
            sent += now
            if now < len(frame) or (spanning and len(began) > 3):
                break
        wire.close()
        for operation in began:
            self._note(operation, UNKNOWN, "left")
        self._overwrite(part)
        for _ in range(3):
            self._look(part)

    def _leave_zeroing(self) -> None:
        """A zeroing that takes several turns has lost its client when others write there."""
        part, wire = self._open(self._job.places.rest, whole=True)
        zero, _ = self._begin("WRITE_ZEROES", part)
        wire.send(self._frame(zero, part), PATIENCE)
        wire.speaks(self._rng.choice((0.0, 0.005, 0.02)))  # it has begun by then, or not
        wire.close()
        self._note(zero, UNKNOWN, "left")
        spots = [spot for spot in self._job.places.spots if part.offset <= spot.offset < part.offset + part.length]
        for _ in range(2):
            for spot in spots[:1] + spots[-4:]:
                place = Part("", spot.offset, PAGE, 0)
                self._polite("WRITE", place)
                self._polite("READ", place)
        for spot in spots:
            self._polite("READ", Part("", spot.offset, PAGE, 0))

    def _crowd(self) -> None:
        """Reads across two servers, of which the last one is stopped then; others begin later, and do not wait."""
        last = len(self._job.layout.sizes) - 1
        places = self._job.places
        part, wire = self._open(places.shared[0], whole=True)
        there, other = self._open(places.shared[1], whole=True)
        self._asked.send("begun")
        if not self._asked.poll(PATIENCE):
            raise Lost("the breaker has not said that the server is stopped")
        self._asked.recv()
        crowd = self._send_reads(wire, self._find(part, 4 * BLOCK, lambda servers: servers > {last}), CROWD)
        meanwhile = self._send_reads(other, self._find(there, BLOCK, lambda servers: last not in servers), FEW)
        self._take_reads(other, meanwhile)
        self._take_reads(wire, crowd)

    def _find(self, part: Part, length: int, wanted: Callable[[set[int]], bool]) -> Part:
        """So many bytes of a part, of servers that are wanted if there are such."""
        cuts = (part.cut(start, length) for start in range(0, part.length - length, BLOCK))
        split = self._job.layout.split
        found = (cut for cut in cuts if wanted({piece.server for piece in split(cut.offset, cut.length)}))
        return next(found, part.cut(0, length))

    def _send_reads(self, wire: Wire, part: Part, count: int) -> dict[int, Operation]:
        """By number, as many of them as go without waiting."""
        reads: dict[int, Operation] = {}
        for _ in range(count):
            read, _ = self._begin("READ", part)
            frame = self._frame(read, part)
            sent = wire.send_now(frame)
            if sent:
                reads[read.number] = read
            if sent < len(frame):
                break
        return reads

    def _take_reads(self, wire: Wire, waiting: dict[int, Operation]) -> None:
        with suppress(Lost):
            while waiting:
                cookie, error = wire.reply(PATIENCE)
                read = waiting[cookie]
                data = None if error else wire.data(read.length, PATIENCE)
                del waiting[cookie]
                seen = what_was_seen("READ", read.offset, read.length, data)
                self._note(
                    read._replace(seen=seen), ERROR if error else ACKNOWLEDGED, f"error {error}" if error else ""
                )
        wire.close()
        for read in waiting.values():
            self._note(read, UNKNOWN, "left")

    def _newcomers(self) -> None:
        """The first server dies while another zeroes; new clients at once begin what they never end."""
        # The first server alone has the sockets of those that ask for nothing: they see its end.
        witnesses = [Wire(self._job.uri) for _ in range(WITNESSES)]
        part, wire = self._open(self._job.places.rest, whole=True)
        zero, _ = self._begin("WRITE_ZEROES", part)
        wire.send(self._frame(zero, part), PATIENCE)
        wire.speaks(self._rng.uniform(0.0, 0.05))
        self._asked.send("begun")
        witnesses[0].speaks(PATIENCE)
        for witness in witnesses:
            witness.close()
        newcomers = []
        for _ in range(NEWCOMERS):
            with suppress(Lost):
                newcomers.append(self._newcomer())
        self._asked.send("come")
        end = time.monotonic() + WATCH
        for newcomer, read, write in newcomers:
            self._watch(newcomer, read, write, end)
        wire.close()
        self._note(zero, UNKNOWN, "left")

    def _newcomer(self) -> tuple[Wire, Operation, Operation]:
        """One that reads a block, and sends the first bytes of a long write, before it has heard anything."""
        place, wire = self._open(self._job.places.shared[1], hasty=True)
        block = place.cut(0, BLOCK)
        read, _ = self._begin("READ", block)
        write, payload = self._begin("WRITE", place)
        wire.send_now(self._frame(read, block) + self._frame(write, place) + payload[:BLOCK])
        return wire, read, write

    def _watch(self, wire: Wire, read: Operation, write: Operation, end: float) -> None:
        """Only the read may be answered."""
        outcome, why = UNKNOWN, "left"
        try:
            wire.shake_hands()
            while wire.speaks(max(0.0, end - time.monotonic())):
                cookie, error = wire.reply(PATIENCE)
                if error or cookie != read.number:
                    outcome, why = EARLY, f"{cookie} is answered when {BLOCK} of {write.length} bytes had been sent"
                    break
                seen = what_was_seen("READ", read.offset, BLOCK, wire.data(BLOCK, PATIENCE))
                self._note(read._replace(seen=seen), ACKNOWLEDGED, "")
                read = read._replace(number=-1)
        except Lost as lost:
            why = str(lost)
        wire.close()
        self._note(write, outcome, why)
        if read.number >= 0:
            self._note(read, UNKNOWN, "left")

    # -- what moves are made of --------------------------------------------------------------------------------------

    def _open(self, region: Region | None = None, *, whole: bool = False, hasty: bool = False) -> tuple[Part, Wire]:
        """Bytes to work on, in a wide region if in none that is named, and a connection to where they are asked for."""
        chosen = region or self._rng.choice(self._job.places.wide)
        part = self._part(chosen)
        assert part is not None
        if not whole:
            blocks = part.length // BLOCK
            length = min(blocks, self._rng.choice((128, 512, 1024, WIDE // BLOCK)))
            start = (blocks - length) // 2 if region else self._rng.randrange(blocks - length + 1)
            part = part.cut(start * BLOCK, length * BLOCK)
        return part, Wire(part.uri, hasty=hasty)

    def _part(self, region: Region, uri: str = "") -> Part | None:
        """Of the region what can be asked for at one door, whole blocks; at this one, if one is named."""
        job = self._job
        if len(job.doors) == 1:
            return Part(job.uri, region.offset, region.length, region.offset)
        parts = [
            Part(job.doors[piece.server], region.offset + start, end - start, offset)
            for piece in job.layout.split(region.offset, region.length)
            for offset, (start, end) in zip(_offsets(piece.offset, piece.spans), piece.spans, strict=True)
        ]
        parts = [whole for part in parts if (whole := _whole_blocks(part, region)).length and uri in ("", part.uri)]
        longest = [part for part in parts if part.length == max(part.length for part in parts)]
        return self._rng.choice(longest) if longest else None

    def _begin(self, kind: str, part: Part, client: str = "rude") -> tuple[Operation, bytes]:
        self._number += 1
        tag = (self._job.number + 1) << TAG_SHIFT | self._number
        payload = pattern(tag, part.offset, part.length) if kind == "WRITE" else b""
        now = time.monotonic_ns()
        operation = Operation(client, self._number, kind, part.offset, part.length, tag, now, now, UNKNOWN, 0, [], "")
        return operation, payload

    @staticmethod
    def _frame(operation: Operation, part: Part) -> bytes:
        command = Command[operation.kind]
        flags = CommandFlag.NO_HOLE if command is Command.WRITE_ZEROES else 0
        return REQUEST.pack(REQUEST_MAGIC, flags, command, operation.number, part.door_offset, part.length)

    def _note(self, operation: Operation, outcome: str, why: str) -> None:
        self._done.append(operation._replace(returned=time.monotonic_ns(), outcome=outcome, why=why))

    def _overwrite(self, part: Part) -> None:
        """By the polite one, a part or all of it."""
        blocks = part.length // BLOCK
        length = self._rng.choice((blocks, 1 + self._rng.randrange(blocks)))
        start = self._rng.randrange(blocks - length + 1)
        kind = self._rng.choice(("TRIM", "TRIM", "WRITE_ZEROES", "WRITE"))
        self._polite(kind, part.cut(start * BLOCK, length * BLOCK))

    def _look(self, part: Part) -> None:
        self._polite("BLOCK_STATUS", part)
        self._polite("READ", part)

    def _polite(self, kind: str, part: Part) -> None:
        """An ordinary client's operation, waited for. Raises ClusterError when it leaves."""
        if self._memory is None:
            self._memory = memcluster.connect(self._job.uri, timeout=PATIENCE)
        memory = self._memory
        lost = memory.reconnections
        operation, payload = self._begin(kind, part, "polite")
        data: Any = None
        try:
            if kind == "WRITE":
                memory.pwrite(payload, part.offset)
            elif kind == "READ":
                data = memory.pread(part.length, part.offset)
            elif kind == "TRIM":
                memory.trim(part.length, part.offset)
            elif kind == "WRITE_ZEROES":
                memory.zero(part.length, part.offset)
            else:
                data = memory.extents(part.length, part.offset)
        except memcluster.RequestError as error:
            self._note(operation._replace(repeats=memory.reconnections - lost), ERROR, str(error))
            raise
        except memcluster.ClusterError as error:
            self._memory.close()
            self._memory = None
            self._note(operation._replace(repeats=memory.reconnections - lost), UNKNOWN, str(error))
            raise
        seen = what_was_seen(kind, part.offset, part.length, data)
        self._note(operation._replace(repeats=memory.reconnections - lost, seen=seen), ACKNOWLEDGED, "")


def _offsets(first: int, spans: Iterable[tuple[int, int]]) -> Iterator[int]:
    """Where in its shard each span of a piece lies."""
    for start, end in spans:
        yield first
        first += end - start


def _whole_blocks(part: Part, region: Region) -> Part:
    """Blocks are counted from where the region begins."""
    skip = -(part.offset - region.offset) % BLOCK
    return part.cut(skip, max(0, part.length - skip) // BLOCK * BLOCK)


def start(context: Any, job: Job, stop: Event, asked: Pipe) -> SpawnProcess:
    """A process of its own for it."""
    process: SpawnProcess = context.Process(target=_main, args=(job, stop, asked), name="rude", daemon=True)
    process.start()
    return process


def _main(job: Job, stop: Event, asked: Pipe) -> None:
    Rude(job, stop, asked).run()
