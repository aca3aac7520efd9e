"""The memory as a Python program sees it: bytes by offset, slices, and requests in flight."""

from __future__ import annotations

import json
import operator
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from memcluster.client.cluster_map import read_map
from memcluster.client.connection import Connection
from memcluster.client.discover import cluster_file, running_uri
from memcluster.client.errors import ClusterError, InvalidRequest, ReadOnly
from memcluster.client.handshake import list_exports
from memcluster.client.pending import Pending
from memcluster.client.router import NAMESPACE, Router, is_part
from memcluster.client.units import LONGEST_WAIT
from memcluster.client.uri import Target, parse_uri
from memcluster.node.nbd import wire
from memcluster.node.nbd.wire import Command, CommandFlag, Error, Status, TransmissionFlag

if TYPE_CHECKING:
    from memcluster.client.array import Array
    from memcluster.client.file import MemoryFile

T = TypeVar("T")
MAX_EFFECT = 1 << 30
"""Bytes that one request without payload (zero, trim, …) covers, at most."""
STRETCH = 1 << 20
"""Bytes that are read at a time where a program goes through the memory byte by byte."""
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
        self._parts = parts
        self._outcome = outcome

    def __repr__(self) -> str:
        missing = sum(part.outcome is None for part in self._parts)  # a repr makes no progress
        return f"<Future {f'under way, {missing} of {len(self._parts)} parts missing' if missing else 'done'}>"

    @property
    def done(self) -> bool:
        """The outcome is known: `result` will not wait. Asking makes progress."""
        return all(part.done for part in self._parts)

    def result(self, timeout: float | None = None) -> T:
        """Wait for the outcome: for `timeout` seconds, or by default the connection's for each part of a request that
        had to be cut. Raises ClusterError; after a Timeout it may be called again."""
        deadline = None if timeout is None else time.monotonic() + min(timeout, LONGEST_WAIT)
        for part in self._parts:
            part.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return self._outcome()


def connect(
    uri: str | None = None, *, export: str | None = None, timeout: float = 30.0, reconnect: bool = True
) -> Memory:
    """Open the memory at an NBD URI; without one that of MEMCLUSTER_URI, or of the cluster of ./cluster.yaml.

    `export` is opened instead of the one that the URI names. Every wait takes at most `timeout` seconds,
    and 500 h. A lost connection is made again, and what was in flight repeated, unless `reconnect` is false. Raises
    ValueError for a bad URI, DiscoverError, ClusterError.
    """
    target = parse_uri(uri or default_uri())
    if export is not None:
        target = replace(target, export=export)
    return Memory(target, timeout=timeout, reconnect=reconnect)


def _connected(target: Target, timeout: float, reconnect: bool) -> Memory:
    return Memory(target, timeout=timeout, reconnect=reconnect)


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


def default_uri() -> str:
    """MEMCLUSTER_URI, or where the cluster of cluster.yaml, here or above, is found. Raises DiscoverError."""
    return os.environ.get("MEMCLUSTER_URI") or running_uri(cluster_file())


class Memory:
    """A flat memory of `size` bytes. Offsets count from 0; a request of any length may be made at any offset.

    Each call waits for its outcome; its `start_` twin returns a Future at once, so that one thread can have many
    requests in flight. Not for several threads at a time.
    """

    def __init__(self, target: Target, *, timeout: float = 30.0, reconnect: bool = True) -> None:
        self._connection: Connection | Router
        timeout = min(timeout, LONGEST_WAIT)
        connection = Connection(target, timeout=timeout, reconnect=reconnect, namespace=NAMESPACE)
        if is_part(connection.session.offered):
            connection.close()
            self._connection = Router(target, connection.session.offered, timeout=timeout, reconnect=reconnect)
        else:
            self._connection = connection

    def __repr__(self) -> str:
        return f"<Memory {self.size} bytes{' read-only' if self.read_only else ''}, {self._connection!r}>"

    @property
    def target(self) -> Target:
        """The address and the export; `str` makes its URI."""
        return self._connection.target

    @property
    def size(self) -> int:
        """Bytes in the memory."""
        return self._connection.session.size

    @property
    def flags(self) -> TransmissionFlag:
        """What the server says it can do."""
        return self._connection.session.flags

    @property
    def read_only(self) -> bool:
        """The server takes no writes; they are a ReadOnly error before anything is sent."""
        return bool(self.flags & TransmissionFlag.READ_ONLY)

    @property
    def description(self) -> str:
        """The server's words for the export; empty if it has none."""
        return self._connection.session.description

    @property
    def block_sizes(self) -> tuple[int, int, int]:
        """(minimum, preferred, maximum) bytes of a request."""
        session = self._connection.session
        return session.minimum, session.preferred, session.maximum

    @property
    def _longest(self) -> int:
        """Bytes in one READ or WRITE, at most; a server that has no limit of its own says 0xffffffff."""
        return min(self._connection.session.maximum, wire.MAX_PAYLOAD)

    @property
    def reconnections(self) -> int:
        """How often the connection was lost and made again."""
        return self._connection.reconnections

    # -- reading -----------------------------------------------------------------------------------------------------

    def pread(self, length: int, offset: int) -> bytes:
        """`length` bytes from `offset` on."""
        return self.start_pread(length, offset).result()

    def start_pread(self, length: int, offset: int) -> Future[bytes]:
        self._check(length, offset)
        if not length:  # what a READ of no bytes does is unspecified; nbdkit refuses it at the end
            return Future([], lambda: b"")
        if length <= self._longest:
            pending = self._connection.submit(Command.READ, offset, length)
            return Future([pending], lambda: bytes(pending.wait().data or b""))
        whole = bytearray(length)
        filled = self.start_readinto(whole, offset)
        return Future(filled._parts, lambda: bytes(whole))

    def readinto(self, buffer: bytearray | memoryview, offset: int) -> int:
        """Fill `buffer` from `offset` on; returns its length in bytes."""
        return self.start_readinto(buffer, offset).result()

    def start_readinto(self, buffer: bytearray | memoryview, offset: int) -> Future[int]:
        """`buffer` must not be used until the result is there."""
        view = as_bytes(buffer)
        if view.readonly:
            raise TypeError(f"a {type(buffer).__name__} cannot be read into")
        self._check(len(view), offset)
        parts = [
            self._connection.submit(Command.READ, offset + start, end - start, destination=view[start:end])
            for start, end in self._cut(len(view), self._longest)
        ]
        return Future(parts, lambda: len(view))

    # -- writing -----------------------------------------------------------------------------------------------------

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int, *, fua: bool = False) -> int:
        """Write `data` at `offset`; with `fua` it is durable when this returns. Returns its length in bytes."""
        return self.start_pwrite(data, offset, fua=fua).result()

    def start_pwrite(self, data: bytes | bytearray | memoryview, offset: int, *, fua: bool = False) -> Future[int]:
        """`data` must not be changed until the result is there."""
        view = as_bytes(data)
        self._check(len(view), offset, writing=Command.WRITE)
        flags = CommandFlag.FUA if fua else 0
        parts = [
            self._connection.submit(Command.WRITE, offset + start, end - start, flags, (view[start:end],))
            for start, end in self._cut(len(view), self._longest)
        ]
        return Future(parts, lambda: len(view))

    def zero(self, length: int, offset: int, *, no_hole: bool = False, fua: bool = False) -> None:
        """Write zeroes; with `no_hole` the range keeps its memory. A server that does not know how is sent zeroes."""
        self.start_zero(length, offset, no_hole=no_hole, fua=fua).result()

    def start_zero(self, length: int, offset: int, *, no_hole: bool = False, fua: bool = False) -> Future[None]:
        flags = CommandFlag.FUA if fua else 0
        if self.flags & TransmissionFlag.SEND_WRITE_ZEROES:
            return self._start_effect(Command.WRITE_ZEROES, length, offset, flags | CommandFlag.NO_HOLE * no_hole)
        self._check(length, offset, writing=Command.WRITE_ZEROES)
        parts = [
            self._connection.submit(Command.WRITE, offset + start, end - start, flags, (_ZEROES[: end - start],))
            for start, end in self._cut(length, min(len(_ZEROES), self._longest))
        ]
        return Future(parts, lambda: None)

    def trim(self, length: int, offset: int) -> None:
        """Give the range back: whole pages of it become holes. It reads as zeroes."""
        self.start_trim(length, offset).result()

    def start_trim(self, length: int, offset: int) -> Future[None]:
        if not self.flags & TransmissionFlag.SEND_TRIM:
            self._check(length, offset, writing=Command.TRIM)
            raise InvalidRequest(Command.TRIM, offset, length, Error.ENOTSUP, "the server does not know how")
        return self._start_effect(Command.TRIM, length, offset)

    def cache(self, length: int, offset: int) -> None:
        """A hint that the range will be read soon; nothing happens at a server that takes none."""
        self.start_cache(length, offset).result()

    def start_cache(self, length: int, offset: int) -> Future[None]:
        if not self.flags & TransmissionFlag.SEND_CACHE:
            self._check(length, offset)
            return Future([], lambda: None)
        return self._start_effect(Command.CACHE, length, offset)

    def flush(self) -> None:
        """Everything that was answered before is durable when this returns, as far as the server promises that."""
        self.start_flush().result()

    def start_flush(self) -> Future[None]:
        if not self.flags & TransmissionFlag.SEND_FLUSH:
            return Future([], lambda: None)
        return Future([self._connection.submit(Command.FLUSH, 0, 0)], lambda: None)

    def _start_effect(self, command: Command, length: int, offset: int, flags: int = 0) -> Future[None]:
        self._check(length, offset, writing=None if command == Command.CACHE else command)
        parts = [
            self._connection.submit(command, offset + start, end - start, flags)
            for start, end in self._cut(length, MAX_EFFECT)
        ]
        return Future(parts, lambda: None)

    # -- what is where -----------------------------------------------------------------------------------------------

    def extents(self, length: int, offset: int) -> list[Extent]:
        """The runs of data and holes from `offset` on, `length` bytes in all. Servers that cannot tell give one run."""
        return list(self.each_extent(length, offset))

    def each_extent(self, length: int, offset: int) -> Iterator[Extent]:
        """The same one by one, asking the server as it goes."""
        self._check(length, offset)
        return self._merged(self._runs(length, offset), offset)

    def _runs(self, length: int, offset: int) -> Iterator[tuple[int, int]]:
        """(length, Status), as they come."""
        end = offset + length
        if not self._connection.session.contexts:
            yield length, Status.DATA
            return
        while offset < end:
            asked = min(end - offset, MAX_EFFECT)
            for run, status in self._connection.submit(Command.BLOCK_STATUS, offset, asked).wait().extents or ():
                size = min(run, end - offset)  # a server may tell more than it was asked for
                yield size, status
                offset += size

    @staticmethod
    def _merged(runs: Iterator[tuple[int, int]], offset: int) -> Iterator[Extent]:
        """Neighbours of one kind become one."""
        length, status = 0, 0
        for run, found in runs:
            if length and found != status:
                yield Extent(offset, length, bool(status & Status.HOLE), bool(status & Status.ZERO))
                offset += length
                length = 0
            length += run
            status = found
        if length:
            yield Extent(offset, length, bool(status & Status.HOLE), bool(status & Status.ZERO))

    def cluster_map(self) -> dict[str, Any]:
        """The map of the cluster: what its export cluster.json says. Raises ClusterError if there is none."""
        try:
            found = json.loads(read_map(self.target, self._connection.timeout))
        except ValueError:  # some servers have one content under every name
            found = None
        if not isinstance(found, dict) or "servers" not in found:
            raise ClusterError(f"{self.target} serves no map of a cluster")
        return found

    def exports(self) -> list[tuple[str, str]]:
        """(name, description) of all that the server offers; asked on a connection of its own."""
        return list_exports(self.target, self._connection.timeout)

    # -- as a sequence of bytes --------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int | slice) -> Any:
        """`memory[10]` is a number from 0 to 255, `memory[10:20]` bytes, as with a bytes object."""
        if isinstance(index, slice):
            start, stop = self._slice(index)
            return self.pread(stop - start, start)
        return self.pread(1, self._index(index))[0]

    def __setitem__(self, index: int | slice, value: Any) -> None:
        """`memory[10] = 7`, `memory[10:15] = b"hello"`; a memory does not grow or shrink, so lengths must agree."""
        if isinstance(index, slice):
            start, stop = self._slice(index)
            data = as_bytes(value)
            if len(data) != stop - start:
                raise ValueError(f"{len(data)} bytes do not fit a slice of {stop - start}")
            self.pwrite(data, start)
        else:
            self.pwrite(bytes([value]), self._index(index))

    def __contains__(self, wanted: object) -> bool:
        """`b"x" in memory`: whether these bytes, or a byte of this number, are somewhere in it. Reads up to there."""
        if isinstance(wanted, int):
            pattern = bytes([wanted])
        elif isinstance(wanted, bytes | bytearray | memoryview):
            pattern = bytes(wanted)
        else:
            raise TypeError(
                f"a memory is searched for bytes or a number from 0 to 255, not for a {type(wanted).__name__}"
            )
        tail = b""
        for start, end in self._cut(self.size, STRETCH):
            stretch = tail + self.pread(end - start, start)
            if pattern in stretch:
                return True
            tail = stretch[-(len(pattern) - 1) :] if len(pattern) > 1 else b""
        return not pattern

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """All of it for NumPy, as numbers from 0 to 255: `numpy.asarray(memory)`."""
        return self.array(self.size, "uint8").__array__(dtype, copy)

    def __iter__(self) -> Iterator[int]:
        """The bytes as numbers, each as it is about when its turn comes."""
        for start, end in self._cut(self.size, STRETCH):
            yield from self.pread(end - start, start)

    def __bytes__(self) -> bytes:
        return self.pread(self.size, 0)

    def _slice(self, index: slice) -> tuple[int, int]:
        start, stop, step = index.indices(self.size)
        if step != 1:
            raise ValueError("a memory has no slices with a step")
        return start, max(start, stop)

    def _index(self, index: int) -> int:
        index = operator.index(index)
        if not -self.size <= index < self.size:
            raise IndexError(f"offset {index} is beyond the memory of {self.size} bytes")
        return index % self.size

    # -- as other libraries know it ----------------------------------------------------------------------------------

    def open(self, offset: int = 0, length: int | None = None) -> MemoryFile:
        """A raw binary file of `length` bytes from `offset` on, by default all to the end; it cannot grow. Closing it
        does not close the memory."""
        from memcluster.client.file import MemoryFile

        return MemoryFile(self, offset, self.size - offset if length is None else length)

    def array(self, shape: int | Sequence[int], dtype: Any = "uint8", offset: int = 0) -> Array:
        """The bytes from `offset` on as an array for NumPy, which must be installed: its slices are read and written
        where they lie."""
        from memcluster.client.array import Array

        return Array(self, shape, dtype, offset)

    def __reduce__(self) -> tuple[Callable[..., Memory], tuple[Target, float, bool]]:
        """A copy, and what another process unpickles, has a connection of its own."""
        return _connected, (self.target, self._connection.timeout, self._connection.reconnect)

    # -- life --------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Say goodbye to the server."""
        self._connection.close()

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _check(self, length: int, offset: int, writing: Command | None = None) -> None:
        if operator.index(length) < 0 or operator.index(offset) < 0:
            raise ValueError(f"length {length} at offset {offset}: neither may be negative")
        if offset + length > self.size:
            raise IndexError(f"length {length} at offset {offset} goes beyond the memory of {self.size} bytes")
        if writing is not None and self.read_only:
            raise ReadOnly(writing, offset, length, Error.EPERM, "the export is read-only")

    @staticmethod
    def _cut(length: int, most: int) -> Iterator[tuple[int, int]]:
        return ((start, min(start + most, length)) for start in range(0, length, most))
