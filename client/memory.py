"""The memory as a Python program sees it: bytes by offset, slices, and requests in flight."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from memcluster.client.connection import Connection
from memcluster.client.handshake import NAMESPACE, is_part, list_exports, opening
from memcluster.client.requests import Extent, Requests, Walk, as_bytes
from memcluster.client.system import KERNEL, Steps, System, finish
from memcluster.client.units import LONGEST_WAIT
from memcluster.client.uri import Target, parse_uri

if TYPE_CHECKING:
    from memcluster.client.array import Array
    from memcluster.client.file import MemoryFile
    from memcluster.client.router import Router

STRETCH = 1 << 20
"""Bytes that are read at a time where a program goes through the memory byte by byte."""


def connect(
    uri: str | None = None, *, export: str | None = None, timeout: float = 30.0, reconnect: bool = True
) -> Memory:
    """Open the memory at an NBD URI; without one that of MEMCLUSTER_URI, or of the cluster of ./cluster.yaml.

    `export` is opened instead of the one that the URI names. Every wait takes at most `timeout` seconds,
    and 500 h. A lost connection is made again, and what was in flight repeated, unless `reconnect` is false. Raises
    ValueError for a bad URI, DiscoverError, ClusterError.
    """
    return Memory(meant(uri, export), timeout=timeout, reconnect=reconnect)


def meant(uri: str | None, export: str | None) -> Target:
    """What these words of a caller mean. Raises ValueError, DiscoverError."""
    target = parse_uri(uri or default_uri())
    return target if export is None else replace(target, export=export)


def default_uri() -> str:
    """MEMCLUSTER_URI, or where the cluster of cluster.yaml, here or above, is found. Raises DiscoverError."""
    if uri := os.environ.get("MEMCLUSTER_URI"):
        return uri
    from memcluster.client.discover import cluster_file, running_uri  # late: whoever names the memory needs none of it

    return running_uri(cluster_file())


def opening_carrier(system: System, target: Target, *, timeout: float, reconnect: bool) -> Steps[Connection | Router]:
    """The way to a connection, or to one to each server where clients route. Raises ClusterError."""
    timeout = min(timeout, LONGEST_WAIT)
    opened = yield from opening(system, target, timeout, namespace=NAMESPACE)
    connection = Connection(target, timeout=timeout, reconnect=reconnect, opened=opened, system=system)
    if not is_part(connection.session.offered):
        return connection
    from memcluster.client.router import Router  # late: it takes a tenth of the start of a program that does not route

    connection.close()
    offered = connection.session.offered
    return (yield from Router.opening(system, target, offered, timeout=timeout, reconnect=reconnect))


def open_carrier(target: Target, *, timeout: float, reconnect: bool) -> Connection | Router:
    """Waits for it."""
    return finish(KERNEL, opening_carrier(KERNEL, target, timeout=timeout, reconnect=reconnect))


def _connected(target: Target, timeout: float, reconnect: bool) -> Memory:
    return Memory(target, timeout=timeout, reconnect=reconnect)


class Memory(Requests["Connection | Router"]):
    """A flat memory of `size` bytes. Offsets count from 0; a request of any length may be made at any offset.

    Each call waits for its outcome; its `start_` twin returns a Future at once, so that one thread can have many
    requests in flight. Not for several threads at a time.
    """

    def __init__(self, target: Target, *, timeout: float = 30.0, reconnect: bool = True) -> None:
        super().__init__(open_carrier(target, timeout=timeout, reconnect=reconnect))

    # -- reading -----------------------------------------------------------------------------------------------------

    def pread(self, length: int, offset: int) -> bytes:
        """`length` bytes from `offset` on."""
        return self.start_pread(length, offset).result()

    def readinto(self, buffer: bytearray | memoryview, offset: int) -> int:
        """Fill `buffer` from `offset` on; returns its length in bytes."""
        return self.start_readinto(buffer, offset).result()

    # -- writing -----------------------------------------------------------------------------------------------------

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int, *, fua: bool = False) -> int:
        """Write `data` at `offset`; with `fua` it is durable when this returns. Returns its length in bytes."""
        return self.start_pwrite(data, offset, fua=fua).result()

    def zero(self, length: int, offset: int, *, no_hole: bool = False, fua: bool = False) -> None:
        """Write zeroes; with `no_hole` the range keeps its memory. A server that does not know how is sent zeroes."""
        self.start_zero(length, offset, no_hole=no_hole, fua=fua).result()

    def trim(self, length: int, offset: int) -> None:
        """Give the range back: whole pages of it become holes. It reads as zeroes."""
        self.start_trim(length, offset).result()

    def cache(self, length: int, offset: int) -> None:
        """A hint that the range will be read soon; nothing happens at a server that takes none."""
        self.start_cache(length, offset).result()

    def flush(self) -> None:
        """Everything that was answered before is durable when this returns, as far as the server promises that."""
        self.start_flush().result()

    # -- what is where -----------------------------------------------------------------------------------------------

    def extents(self, length: int, offset: int) -> list[Extent]:
        """The runs of data and holes from `offset` on, `length` bytes in all. Servers that cannot tell give one run."""
        return list(self.each_extent(length, offset))

    def each_extent(self, length: int, offset: int) -> Iterator[Extent]:
        """The same one by one, asking the server as it goes."""
        self._check(length, offset)
        return self._walk(Walk(length, offset))

    def _walk(self, walk: Walk) -> Iterator[Extent]:
        while walk.left:
            yield from walk.take(self.start_runs(walk.left, walk.at).result())

    def cluster_map(self) -> dict[str, Any]:
        """The map of the cluster: what its export cluster.json says. Raises ClusterError if there is none."""
        from memcluster.client.cluster_map import read_document

        return read_document(self.target, self._carrier.timeout)

    def exports(self) -> list[tuple[str, str]]:
        """(name, description) of all that the server offers; asked on a connection of its own."""
        return list_exports(self.target, self._carrier.timeout)

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
        return _connected, (self.target, self._carrier.timeout, self._carrier.reconnect)

    # -- life --------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Say goodbye to the server."""
        self._carrier.close()

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
