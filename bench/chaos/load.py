"""Our own clients: processes that write, read, zero and trim, and note each operation with its times and its outcome.

Each uses memcluster's client as it is, which connects again by itself and repeats what was in flight. A client works
mostly on a region of its own, and sometimes on those that all share. Operations begin in rounds, one or several at
once, and a round is over when all of its outcomes are known.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event, Semaphore
from pathlib import Path
from typing import Any

import memcluster
from bench.chaos.places import WIDE, Places, Region
from memcluster.client.memory import Memory
from memcluster.client.requests import Future
from memcluster.simulator.history import (
    ACKNOWLEDGED,
    BLOCK,
    ERROR,
    UNKNOWN,
    Operation,
    Seen,
    identify,
    pattern,
    write_operations,
    zeroes,
)

DEEPEST = 32
"""Operations in one round, at most."""
LONGEST = 32
"""Blocks in one operation, at most."""
RECONNECT = 20.0
"""Seconds after which a lost connection is given up, and what was in flight is unknown."""
IMPATIENT, HASTE = 4, 0.4
"""One client in so many gives up after so many seconds, goes on with a new connection, and leaves much unknown."""
PATIENCE = 90.0
"""Seconds after which an operation without an answer is given up."""
KINDS = {"WRITE": 45, "READ": 41, "WRITE_ZEROES": 5, "TRIM": 4, "FLUSH": 3, "BLOCK_STATUS": 2}
LONG_KINDS = {"WRITE": 35, "READ": 15, "WRITE_ZEROES": 20, "TRIM": 20, "BLOCK_STATUS": 10}
LONG, LONG_BLOCKS = 0.03, 800
"""Of the operations, in the regions for long ones; blocks of one, on average."""
SPOT = 0.04
"""Of the operations, in the spots over which long zeroing goes."""
SHARED = 0.25
"""Of the operations, in the regions that all share."""
HOT = 0.6
"""Of the operations in the client's own region, in a small part of it, so that some overlap in flight."""
HOT_BLOCKS = 24
HOT_ROUNDS = 20
"""Rounds after which another part is hot, on average."""
TAG_SHIFT = 40
FLUSH_EVERY = 1000
"""Operations that are held before they are written to the file."""


@dataclass(frozen=True)
class Job:
    """One client: `rate` is in operations a second; `limit` is when it ends at the latest, by the monotonic clock."""

    uri: str
    number: int
    seed: int
    rate: float
    limit: float
    places: Places
    path: Path

    @property
    def name(self) -> str:
        return f"client{self.number}"

    @property
    def private(self) -> Region:
        return self.places.private[self.number]

    @property
    def reconnect(self) -> float:
        """Seconds in which a lost connection is made again."""
        return HASTE if self.number % IMPATIENT == IMPATIENT - 1 else RECONNECT


class Begun:
    """An operation whose outcome is not known yet. `future` is None if it could not even be sent."""

    def __init__(self, number: int, kind: str, offset: int, length: int, tag: int) -> None:
        self.number = number
        self.kind = kind
        self.offset = offset
        self.length = length
        self.tag = tag
        self.future: Future[Any] | None = None
        self.invoked = time.monotonic_ns()
        self.lost_before = 0


class Client:
    """The loop of one client."""

    def __init__(self, job: Job, begun: Semaphore, stop: Event) -> None:
        self._job = job
        self._begun: Semaphore | None = begun
        self._stop = stop
        self._rng = random.Random(f"client {job.seed} {job.number}")
        self._memory: Memory | None = None
        self._done: list[Operation] = []
        self._number = 0
        self._lost = 0  # connections of earlier memories
        self._hot = job.private

    def run(self) -> None:
        began = time.monotonic()
        try:
            while not self._stop.is_set() and time.monotonic() < self._job.limit:
                if self._connect():
                    self._round()
                    if self._begun is not None:
                        self._begun.release()
                        self._begun = None
                if len(self._done) >= FLUSH_EVERY:
                    self._save()
                self._stop.wait(max(0.0, began + self._number / self._job.rate - time.monotonic()))
        finally:
            self._save()
            if self._memory is not None:
                self._memory.close()

    def _save(self) -> None:
        write_operations(self._job.path, self._done)
        self._done.clear()

    def _connect(self) -> bool:
        if self._memory is None:
            try:
                self._memory = memcluster.connect(self._job.uri, timeout=self._job.reconnect)
            except memcluster.ClusterError:
                self._stop.wait(0.05)
                return False
        return True

    def _round(self) -> None:
        depth = self._rng.choice((1, 1, 2, 4, DEEPEST, DEEPEST))
        if self._rng.random() < 1 / HOT_ROUNDS:
            start = self._rng.randrange(self._job.private.length // BLOCK - HOT_BLOCKS) * BLOCK
            self._hot = Region("hot", self._job.private.offset + start, HOT_BLOCKS * BLOCK)
        begun = [self._begin() for _ in range(depth)]
        done = [self._finish(operation) for operation in begun]
        if any(operation.outcome == UNKNOWN for operation in done):
            self._leave()
            left = time.monotonic_ns()
            done = [one._replace(returned=left) if one.outcome == UNKNOWN else one for one in done]
        self._done += done

    def _leave(self) -> None:
        """Close the connection: what was sent on it and has no answer is given up from then on."""
        assert self._memory is not None
        self._lost += self._memory.reconnections + 1
        self._memory.close()
        self._memory = None

    def _where(self) -> tuple[str, int, int]:
        """What the next operation is, and its bytes."""
        rng, job = self._rng, self._job
        kinds, mean, most = KINDS, 4, LONGEST
        chance = rng.random()
        if chance < LONG:
            kinds, mean, most = LONG_KINDS, LONG_BLOCKS, WIDE // BLOCK
            region = rng.choice(job.places.wide)
        elif chance < LONG + SPOT:
            region = rng.choice(job.places.spots)
        elif chance < LONG + SPOT + SHARED:
            region = rng.choice(job.places.shared)
        else:
            region = self._hot if rng.random() < HOT else job.private
        [kind] = rng.choices(list(kinds), list(kinds.values()))
        if kind == "FLUSH":
            return kind, 0, 0
        blocks = min(most, 1 + int(rng.expovariate(1 / mean)), region.length // BLOCK)
        return kind, region.offset + rng.randrange(region.length // BLOCK - blocks + 1) * BLOCK, blocks * BLOCK

    def _begin(self) -> Begun:
        rng, job, memory = self._rng, self._job, self._memory
        assert memory is not None
        kind, offset, length = self._where()
        self._number += 1
        begun = Begun(self._number, kind, offset, length, (job.number + 1) << TAG_SHIFT | self._number)
        begun.lost_before = self._lost + memory.reconnections
        try:
            if kind == "WRITE":
                data = pattern(begun.tag, offset, length)
                begun.future = memory.start_pwrite(data, offset, fua=rng.random() < 0.05)
            elif kind == "READ":
                begun.future = memory.start_pread(length, offset)
            elif kind == "WRITE_ZEROES":
                begun.future = memory.start_zero(length, offset, no_hole=rng.random() < 0.5)
            elif kind == "TRIM":
                begun.future = memory.start_trim(length, offset)
            elif kind == "FLUSH":
                begun.future = memory.start_flush()
        except memcluster.ClusterError:
            pass  # it may have been sent all the same
        return begun

    def _finish(self, begun: Begun) -> Operation:
        memory = self._memory
        assert memory is not None
        outcome, why, data = UNKNOWN, "could not be sent", None
        if begun.kind == "BLOCK_STATUS":  # the library asks until it has the answers, and has no future for them
            begun.invoked = time.monotonic_ns()
            outcome, why, data = self._wait(partial(memory.extents, begun.length, begun.offset))
        elif begun.future is not None:
            outcome, why, data = self._wait(begun.future.result)
        returned = time.monotonic_ns()
        return Operation(
            self._job.name,
            begun.number,
            begun.kind,
            begun.offset,
            begun.length,
            begun.tag,
            begun.invoked,
            returned,
            outcome,
            self._lost + memory.reconnections - begun.lost_before,
            what_was_seen(begun.kind, begun.offset, begun.length, data),
            why,
        )

    @staticmethod
    def _wait(result: Callable[[], Any]) -> tuple[str, str, Any]:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return ACKNOWLEDGED, "", result()
            except memcluster.Timeout as error:
                if time.monotonic() > deadline:
                    return UNKNOWN, str(error), None
            except memcluster.RequestError as error:
                return ERROR, str(error), None
            except memcluster.ClusterError as error:
                return UNKNOWN, str(error), None


def what_was_seen(kind: str, offset: int, length: int, data: Any) -> Seen:
    """Of the blocks, by the bytes or the extents that came as an answer."""
    if data is None or kind not in ("READ", "BLOCK_STATUS"):
        return []
    if kind == "READ":
        return identify(data, offset)
    return zeroes([(extent.offset, extent.length, extent.zero) for extent in data], offset, length)


def start(context: Any, job: Job, begun: Semaphore, stop: Event) -> SpawnProcess:
    """A process of its own for a client, which releases `begun` when it has had its first answers."""
    process: SpawnProcess = context.Process(target=_main, args=(job, begun, stop), name=job.name, daemon=True)
    process.start()
    return process


def _main(job: Job, begun: Semaphore, stop: Event) -> None:
    Client(job, begun, stop).run()


def read_all(uri: str, regions: list[Region], path: Path) -> None:
    """A last look at every region, by a client of its own: what it sees stands in the history as well."""
    with memcluster.connect(uri) as memory:
        for number, region in enumerate(regions):
            for kind, ask in (("READ", memory.pread), ("BLOCK_STATUS", memory.extents)):
                invoked = time.monotonic_ns()
                seen = what_was_seen(kind, region.offset, region.length, ask(region.length, region.offset))
                operation = Operation(
                    "last", number, kind, region.offset, region.length, 0, invoked, time.monotonic_ns(), ACKNOWLEDGED,
                    memory.reconnections, seen, "",
                )  # fmt: skip
                write_operations(path, [operation])
