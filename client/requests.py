"""What can be asked of an export: its facts, and requests by offset and length as futures, whoever carries them out."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from memcluster.client.errors import InvalidRequest, ReadOnly
from memcluster.client.pending import Pending
from memcluster.client.units import LONGEST_WAIT
from memcluster.client.uri import Target
from memcluster.node.nbd import wire
from memcluster.node.nbd.wire import Command, CommandFlag, Error, Status, TransmissionFlag

T = TypeVar("T")
MAX_EFFECT = 1 << 30
"""Bytes that one request without payload (zero, trim, …) covers, at most."""
_ZEROES = memoryview(bytes(1 << 20))


class Extent(NamedTuple):
    """A run of bytes of one kind: a `hole` takes no memory, and reads as zeroes if `zero`."""

    offset: int
    length: int
    hole: bool
    zero: bool


class Future(Generic[T]):
    """A request that is under way; `result()` waits for its outcome. For the thread that began it."""

    def __init__(self, parts: Sequence[Pending], outcome: Callable[[], T]) -> None:
        self.parts = parts
        self._outcome = outcome

    def __repr__(self) -> str:
        missing = sum(part.outcome is None for part in self.parts)  # a repr makes no progress
        return f"<Future {f'under way, {missing} of {len(self.parts)} parts missing' if missing else 'done'}>"

    @property
    def done(self) -> bool:
        """The outcome is known: `result` will not wait. Asking makes progress."""
        return all(part.done for part in self.parts)

    def result(self, timeout: float | None = None) -> T:
        """Wait for the outcome: for `timeout` seconds, or by default the connection's for each part of a request that
        had to be cut. Raises ClusterError; after a Timeout it may be called again."""
        deadline = None if timeout is None else time.monotonic() + min(timeout, LONGEST_WAIT)
        for part in self.parts:
            part.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return self._outcome()


def as_bytes(buffer: Any) -> memoryview:
    """A view of any object with a buffer as bytes, without a copy. Raises TypeError where there is none."""
    view = memoryview(buffer)
    if not view.c_contiguous:
        raise TypeError(
            f"this {type(buffer).__name__} is not contiguous (shape {view.shape}, strides {view.strides}): "
            "give a copy in one piece, such as bytes(…) or numpy.ascontiguousarray(…)"
        )
    if view.format == "B" and view.ndim == 1:
        return view
    if not view.nbytes:  # which cannot be cast where a dimension has none
        return memoryview(b"" if view.readonly else bytearray())
    return view.cast("B")


class Walk:
    """Over the extents of `left` bytes from `at` on, answer by answer: neighbours of one kind become one."""

    def __init__(self, length: int, offset: int) -> None:
        self.left = length
        self._begin = offset
        self._length, self._status = 0, 0  # of the extent that may still go on

    @property
    def at(self) -> int:
        """Up to here it has been told."""
        return self._begin + self._length

    def take(self, runs: Iterable[tuple[int, int]]) -> Iterator[Extent]:
        """The extents that end with these runs of (length, Status)."""
        for length, status in runs:
            if self._length and status != self._status:
                yield self._end()
            self._status = status
            self._length += length
            self.left -= length
        if not self.left:
            yield self._end()

    def _end(self) -> Extent:
        ended = Extent(self._begin, self._length, bool(self._status & Status.HOLE), bool(self._status & Status.ZERO))
        self._begin, self._length = self.at, 0
        return ended


class Session(Protocol):
    """What is known of an export."""

    @property
    def size(self) -> int: ...
    @property
    def flags(self) -> TransmissionFlag: ...
    @property
    def description(self) -> str: ...
    @property
    def minimum(self) -> int: ...
    @property
    def preferred(self) -> int: ...
    @property
    def maximum(self) -> int: ...
    @property
    def contexts(self) -> dict[int, str]: ...


class Carrier(Protocol):
    """Who carries requests out."""

    @property
    def target(self) -> Target: ...
    @property
    def timeout(self) -> float: ...
    @property
    def reconnections(self) -> int: ...
    @property
    def session(self) -> Session: ...
    def submit(self, pending: Pending) -> Pending: ...


C = TypeVar("C", bound=Carrier)


class Export(Generic[C]):
    """The facts of what is open."""

    def __init__(self, carrier: C) -> None:
        self._carrier = carrier

    def __repr__(self) -> str:
        name, read_only = type(self).__name__, " read-only" if self.read_only else ""
        return f"<{name} {self.size} bytes{read_only}, {self._carrier!r}>"

    @property
    def target(self) -> Target:
        """The address and the export; `str` makes its URI."""
        return self._carrier.target

    @property
    def size(self) -> int:
        """Bytes in the memory."""
        return self._carrier.session.size

    @property
    def flags(self) -> TransmissionFlag:
        """What the server says it can do."""
        return self._carrier.session.flags

    @property
    def read_only(self) -> bool:
        """The server takes no writes; they are a ReadOnly error before anything is sent."""
        return bool(self.flags & TransmissionFlag.READ_ONLY)

    @property
    def description(self) -> str:
        """The server's words for the export; empty if it has none."""
        return self._carrier.session.description

    @property
    def block_sizes(self) -> tuple[int, int, int]:
        """(minimum, preferred, maximum) bytes of a request."""
        session = self._carrier.session
        return session.minimum, session.preferred, session.maximum

    @property
    def _longest(self) -> int:
        """Bytes in one READ or WRITE, at most; a server that has no limit of its own says 0xffffffff."""
        return min(self._carrier.session.maximum, wire.MAX_PAYLOAD)

    @property
    def reconnections(self) -> int:
        """How often the connection was lost and made again."""
        return self._carrier.reconnections

    def _check(self, length: int, offset: int, writing: Command | None = None) -> None:
        if operator.index(length) < 0 or operator.index(offset) < 0:
            raise ValueError(f"length {length} at offset {offset}: neither may be negative")
        if offset + length > self.size:
            raise IndexError(f"length {length} at offset {offset} goes beyond the memory of {self.size} bytes")
        if writing is not None and self.read_only:
            raise ReadOnly(writing, offset, length, Error.EPERM, "the export is read-only")


class Requests(Export[C]):
    """Requests of any length at any offset, each begun at once, with a Future of its outcome."""

    def start_pread(self, length: int, offset: int) -> Future[bytes]:
        self._check(length, offset)
        if not length:  # what a READ of no bytes does is unspecified; nbdkit refuses it at the end
            return Future([], lambda: b"")
        if length <= self._longest:
            pending = self._carrier.submit(Pending(Command.READ, offset, length))
            return Future([pending], lambda: bytes(pending.wait().data or b""))
        whole = bytearray(length)
        filled = self.start_readinto(whole, offset)
        return Future(filled.parts, lambda: bytes(whole))

    def start_readinto(self, buffer: bytearray | memoryview, offset: int) -> Future[int]:
        """`buffer` must not be used until the result is there."""
        view = as_bytes(buffer)
        if view.readonly:
            raise TypeError(f"a {type(buffer).__name__} cannot be read into")
        self._check(len(view), offset)
        parts = [
            self._carrier.submit(Pending(Command.READ, offset + start, end - start, destination=view[start:end]))
            for start, end in self._cut(len(view), self._longest)
        ]
        return Future(parts, lambda: len(view))

    def start_pwrite(self, data: bytes | bytearray | memoryview, offset: int, *, fua: bool = False) -> Future[int]:
        """`data` must not be changed until the result is there."""
        view = as_bytes(data)
        self._check(len(view), offset, writing=Command.WRITE)
        flags = CommandFlag.FUA if fua else 0
        parts = [
            self._carrier.submit(Pending(Command.WRITE, offset + start, end - start, flags, (view[start:end],)))
            for start, end in self._cut(len(view), self._longest)
        ]
        return Future(parts, lambda: len(view))

    def start_zero(self, length: int, offset: int, *, no_hole: bool = False, fua: bool = False) -> Future[None]:
        flags = CommandFlag.FUA if fua else 0
        if self.flags & TransmissionFlag.SEND_WRITE_ZEROES:
            return self._start_effect(Command.WRITE_ZEROES, length, offset, flags | CommandFlag.NO_HOLE * no_hole)
        self._check(length, offset, writing=Command.WRITE_ZEROES)
        parts = [
            self._carrier.submit(Pending(Command.WRITE, offset + start, end - start, flags, (_ZEROES[: end - start],)))
            for start, end in self._cut(length, min(len(_ZEROES), self._longest))
        ]
        return Future(parts, lambda: None)

    def start_trim(self, length: int, offset: int) -> Future[None]:
        if not self.flags & TransmissionFlag.SEND_TRIM:
            self._check(length, offset, writing=Command.TRIM)
            raise InvalidRequest(Command.TRIM, offset, length, Error.ENOTSUP, "the server does not know how")
        return self._start_effect(Command.TRIM, length, offset)

    def start_cache(self, length: int, offset: int) -> Future[None]:
        if not self.flags & TransmissionFlag.SEND_CACHE:
            self._check(length, offset)
            return Future([], lambda: None)
        return self._start_effect(Command.CACHE, length, offset)

    def start_flush(self) -> Future[None]:
        if not self.flags & TransmissionFlag.SEND_FLUSH:
            return Future([], lambda: None)
        return Future([self._carrier.submit(Pending(Command.FLUSH, 0, 0))], lambda: None)

    def start_runs(self, length: int, offset: int) -> Future[list[tuple[int, int]]]:
        """(length, Status) of the runs of data and holes from `offset` on, beyond `length` never, up to there perhaps.
        Of servers that cannot tell it is one run."""
        if not self._carrier.session.contexts:
            return Future([], lambda: [(length, Status.DATA)])
        pending = self._carrier.submit(Pending(Command.BLOCK_STATUS, offset, min(length, MAX_EFFECT)))
        return Future([pending], lambda: list(_cut_off(pending.wait().extents or (), length)))

    def _start_effect(self, command: Command, length: int, offset: int, flags: int = 0) -> Future[None]:
        self._check(length, offset, writing=None if command == Command.CACHE else command)
        parts = [
            self._carrier.submit(Pending(command, offset + start, end - start, flags))
            for start, end in self._cut(length, MAX_EFFECT)
        ]
        return Future(parts, lambda: None)

    @staticmethod
    def _cut(length: int, most: int) -> Iterator[tuple[int, int]]:
        return ((start, min(start + most, length)) for start in range(0, length, most))


def _cut_off(runs: Iterable[tuple[int, int]], length: int) -> Iterator[tuple[int, int]]:
    """A server may tell more than it was asked for."""
    for run, status in runs:
        if length:
            yield min(run, length), status
            length -= min(run, length)
