"""What `memclient bench` measures: a running cluster, as a Python program would use it.

Each client is a process with one connection, which keeps `depth` requests in flight at random offsets of a region, all
of the same length. The requests of a connection are awaited in the order they were sent, so one that overtakes another
counts as just behind it.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from ctypes import c_bool, c_uint64
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import RawArray, RawValue
from typing import Any

from memcluster.client.console import EXIT_ERROR, EXIT_TIMEOUT, Failure
from memcluster.client.errors import ClusterError, Timeout
from memcluster.client.memory import Memory
from memcluster.client.requests import Future

BITS = 7
"""Bits of a latency that are kept: percentiles are exact to 1 in 64."""
PERCENTILES = (50.0, 90.0, 99.0, 99.9)
TICK = 0.1
"""Seconds between two looks at how far the clients are."""
KINDS = ("read", "write")

Opened = Callable[[], Memory]


class Histogram:
    """How often each latency (ns) was seen, in buckets that grow with it: constant memory, however long it goes on."""

    def __init__(self, counts: Sequence[int] | None = None, greatest: int = 0) -> None:
        self.counts = array("Q", counts or bytes(8 * (64 << BITS)))
        self.greatest = greatest

    def add(self, latency: int) -> None:
        shift = max(0, latency.bit_length() - BITS)
        self.counts[shift << BITS | latency >> shift] += 1
        self.greatest = max(self.greatest, latency)

    def merge(self, other: Histogram) -> None:
        for index, count in enumerate(other.counts):
            if count:
                self.counts[index] += count
        self.greatest = max(self.greatest, other.greatest)

    @property
    def total(self) -> int:
        return sum(self.counts)

    def percentile(self, percent: float) -> int:
        """The latency that so many of the requests did not pass; 0 if there were none."""
        wanted = self.total * percent / 100
        seen = 0
        for index, count in enumerate(self.counts):
            seen += count
            if count and seen >= wanted:
                shift = index >> BITS
                return min(((index & (1 << BITS) - 1) + 1 << shift) - 1, self.greatest)
        return 0


@dataclass(frozen=True)
class Load:
    """What each client asks for, and where."""

    block: int
    depth: int
    writes: float
    offset: int
    length: int


@dataclass
class Result:
    """What the clients got: requests, by kind."""

    load: Load
    clients: int
    seconds: float = 0.0
    latencies: dict[str, Histogram] = field(default_factory=lambda: {kind: Histogram() for kind in KINDS})

    @property
    def requests(self) -> int:
        return sum(histogram.total for histogram in self.latencies.values())

    def rate(self, kind: str) -> float:
        """Requests of that kind a second."""
        return self.latencies[kind].total / self.seconds if self.seconds else 0.0

    def add(self, other: Result) -> None:
        """What the same clients got in another turn."""
        self.seconds += other.seconds
        for kind, histogram in other.latencies.items():
            self.latencies[kind].merge(histogram)

    def to_json(self) -> dict[str, Any]:
        load = self.load
        return {
            "block": load.block,
            "depth": load.depth,
            "clients": self.clients,
            "offset": load.offset,
            "length": load.length,
            "seconds": self.seconds,
            **{kind: self._kind(kind, histogram) for kind, histogram in self.latencies.items()},
        }

    def _kind(self, kind: str, histogram: Histogram) -> dict[str, Any] | None:
        requests = histogram.total
        if not requests:
            return None
        latency = {f"p{percent:g}": histogram.percentile(percent) / 1000 for percent in PERCENTILES}
        return {
            "requests": requests,
            "iops": self.rate(kind),
            "bytes_per_second": self.rate(kind) * self.load.block,
            "latency_us": latency | {"max": histogram.greatest / 1000},
        }


# -- one client --------------------------------------------------------------------------------------------------


class _Shared:
    """What the clients and the command see of one another while the benchmark runs."""

    def __init__(self, clients: int) -> None:
        self.done = RawArray(c_uint64, clients)
        self.stop = RawValue(c_bool, False)


def drive(memory: Memory, load: Load, until: float, shared: _Shared, number: int) -> dict[str, Histogram]:
    """Keep requests in flight until that time (time.monotonic) or until told to stop; returns the latencies."""
    latencies = {kind: Histogram() for kind in KINDS}
    reads, writes = latencies["read"], latencies["write"]
    buffers = deque(memoryview(bytearray(load.block)) for _ in range(load.depth))
    payload = os.urandom(load.block)
    waiting: deque[tuple[int, Future[int], memoryview | None]] = deque()
    places, clock, chance = load.length // load.block, time.perf_counter_ns, random.random
    done = 0

    def submit() -> None:
        at = load.offset + int(chance() * places) * load.block
        if load.writes and chance() < load.writes:
            waiting.append((clock(), memory.start_pwrite(payload, at), None))
        else:
            buffer = buffers.popleft()
            waiting.append((clock(), memory.start_readinto(buffer, at), buffer))

    for _ in range(load.depth):
        submit()
    while waiting:
        began, future, buffer = waiting.popleft()
        future.result()
        latency = clock() - began
        if buffer is None:
            writes.add(latency)
        else:
            reads.add(latency)
            buffers.append(buffer)
        done += 1
        shared.done[number] = done
        if time.monotonic() < until and not shared.stop.value:
            submit()
    return latencies


def _client(
    opened: Opened, load: Load, runtime: float, shared: _Shared, number: int, pipe: Connection, other_end: Connection
) -> None:
    """The process of one client: connects, says so, waits for the word, drives, sends what it found."""
    other_end.close()  # else the command's death, or its giving up, would not be an end of file
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the command, which then tells all clients to stop
    outcome: Any
    try:
        with opened() as memory:
            pipe.send(None)
            pipe.recv()
            began = time.monotonic()
            latencies = drive(memory, load, began + runtime, shared, number)
            passed = time.monotonic() - began
        outcome = passed, {kind: (histogram.counts, histogram.greatest) for kind, histogram in latencies.items()}
    except Failure as error:
        outcome = error
    except (ClusterError, OSError) as error:
        outcome = Failure(str(error), EXIT_TIMEOUT if isinstance(error, Timeout) else EXIT_ERROR)
    except EOFError:
        return  # the command has given up
    with suppress(BrokenPipeError):
        pipe.send(outcome)


# -- all of them -------------------------------------------------------------------------------------------------


def measure(
    opened: Opened,
    load: Load,
    clients: int,
    runtime: float,
    progress: Callable[[float, int], object] = lambda _seconds, _requests: None,
) -> tuple[Result, bool]:
    """Run the clients; returns what they got, and whether Ctrl-C ended it early. `progress(seconds, requests so far)`
    is called now and then. Raises Failure."""
    context = multiprocessing.get_context("fork")  # a client needs no more than this process has loaded
    shared = _Shared(clients)
    result = Result(load, clients)
    with ExitStack() as stack:
        pipes = []
        for number in range(clients):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_client, args=(opened, load, runtime, shared, number, theirs, ours), daemon=True
            )
            process.start()
            theirs.close()
            stack.callback(process.join)
            pipes.append(stack.enter_context(closing(ours)))
        stack.callback(setattr, shared.stop, "value", True)  # whatever happens, they end before they are waited for
        for pipe in pipes:
            _receive(pipe)
        for pipe in pipes:
            pipe.send(None)
        interrupted = _watch(pipes, shared, progress)
        for pipe in pipes:
            passed, found = _receive(pipe)
            result.seconds = max(result.seconds, passed)
            for kind, (counts, greatest) in found.items():
                result.latencies[kind].merge(Histogram(counts, greatest))
    return result, interrupted


def _watch(pipes: Sequence[Connection], shared: _Shared, progress: Callable[[float, int], object]) -> bool:
    """Wait until every client has something to say; true if Ctrl-C came before."""
    began = time.monotonic()
    busy = list(pipes)
    interrupted = False
    while busy:
        try:
            for ready in multiprocessing.connection.wait(busy, TICK):
                assert isinstance(ready, Connection)
                busy.remove(ready)
            progress(time.monotonic() - began, sum(shared.done))
        except KeyboardInterrupt:
            interrupted = True
            shared.stop.value = True
    return interrupted


def _receive(pipe: Connection) -> Any:
    """What a client says. Raises its Failure."""
    try:
        found = pipe.recv()
    except (EOFError, OSError) as error:
        raise Failure("a client of the benchmark died") from error
    if isinstance(found, Failure):
        raise found
    return found
