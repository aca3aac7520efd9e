"""The memory as a program with an event loop sees it: what memory.py does, awaited.

Many tasks use one connection, and what they begin in a turn of the loop leaves together. A task may be cancelled at any
time: what is written is copied first if it can change, and what is read gets into its caller's buffer at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from memcluster.client.cluster_map import read_document
from memcluster.client.connection import Connection
from memcluster.client.flow import Flow
from memcluster.client.handshake import list_exports
from memcluster.client.memory import meant, open_carrier
from memcluster.client.requests import Export, Extent, Future, Requests, Walk, as_bytes
from memcluster.client.router import Router

T = TypeVar("T")


def aconnect(
    uri: str | None = None, *, export: str | None = None, timeout: float = 30.0, reconnect: bool = True
) -> Opening:
    """`async with aconnect() as memory`, or `memory = await aconnect()`; for the rest see `connect`."""
    return Opening(lambda: open_carrier(meant(uri, export), timeout=timeout, reconnect=reconnect))


class Opening:
    """A memory that is about to be opened."""

    def __init__(self, connect: Callable[[], Connection | Router]) -> None:
        self._connect = connect
        self._memory: AsyncMemory | None = None

    def __await__(self) -> Generator[Any, None, AsyncMemory]:
        return self._open().__await__()

    async def __aenter__(self) -> AsyncMemory:
        self._memory = await self
        return self._memory

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        assert self._memory is not None
        await self._memory.close()

    async def _open(self) -> AsyncMemory:
        connecting = asyncio.get_running_loop().run_in_executor(None, self._connect)
        try:
            return AsyncMemory(Flow(await asyncio.shield(connecting)))
        except asyncio.CancelledError:
            connecting.add_done_callback(_close_unwanted)
            raise


def _close_unwanted(connecting: asyncio.Future[Connection | Router]) -> None:
    if connecting.exception() is None:
        connecting.result().close()


class AsyncMemory(Export[Flow]):
    """A flat memory of `size` bytes, for the tasks of the event loop in which it was opened. Each method does what its
    namesake of Memory does."""

    def __init__(self, flow: Flow) -> None:
        super().__init__(flow)
        self._requests = Requests(flow)

    async def pread(self, length: int, offset: int) -> bytes:
        """`length` bytes from `offset` on."""
        return await self._outcome(self._requests.start_pread(length, offset))

    async def readinto(self, buffer: bytearray | memoryview, offset: int) -> int:
        """Fill `buffer` from `offset` on, when all of it has come; returns its length in bytes."""
        view = as_bytes(buffer)
        if view.readonly:
            raise TypeError(f"a {type(buffer).__name__} cannot be read into")
        view[:] = await self.pread(len(view), offset)
        return len(view)

    async def pwrite(self, data: bytes | bytearray | memoryview, offset: int, *, fua: bool = False) -> int:
        """Write `data`, as it is now, at `offset`; with `fua` it is durable when this returns. Returns its length in
        bytes."""
        kept = data if isinstance(data, bytes) else bytes(as_bytes(data))
        return await self._outcome(self._requests.start_pwrite(kept, offset, fua=fua))

    async def zero(self, length: int, offset: int, *, no_hole: bool = False, fua: bool = False) -> None:
        """Write zeroes; with `no_hole` the range keeps its memory. A server that does not know how is sent zeroes."""
        await self._outcome(self._requests.start_zero(length, offset, no_hole=no_hole, fua=fua))

    async def trim(self, length: int, offset: int) -> None:
        """Give the range back: whole pages of it become holes. It reads as zeroes."""
        await self._outcome(self._requests.start_trim(length, offset))

    async def cache(self, length: int, offset: int) -> None:
        """A hint that the range will be read soon; nothing happens at a server that takes none."""
        await self._outcome(self._requests.start_cache(length, offset))

    async def flush(self) -> None:
        """Everything that was answered before is durable when this returns, as far as the server promises that."""
        await self._outcome(self._requests.start_flush())

    async def extents(self, length: int, offset: int) -> list[Extent]:
        """The runs of data and holes from `offset` on, `length` bytes in all. Servers that cannot tell give one run."""
        return [extent async for extent in self.each_extent(length, offset)]

    def each_extent(self, length: int, offset: int) -> AsyncIterator[Extent]:
        """The same one by one, asking the server as it goes: `async for`."""
        self._check(length, offset)
        return self._walk(Walk(length, offset))

    async def _walk(self, walk: Walk) -> AsyncIterator[Extent]:
        while walk.left:
            told = await self._outcome(self._requests.start_runs(walk.left, walk.at))
            for extent in walk.take(told):
                yield extent

    async def cluster_map(self) -> dict[str, Any]:
        """The map of the cluster: what its export cluster.json says. Raises ClusterError if there is none."""
        return await asyncio.to_thread(partial(read_document, self.target, self._carrier.timeout))

    async def exports(self) -> list[tuple[str, str]]:
        """(name, description) of all that the server offers; asked on a connection of its own."""
        return await asyncio.to_thread(partial(list_exports, self.target, self._carrier.timeout))

    async def close(self) -> None:
        """Say goodbye to the server. What is under way fails."""
        await self._carrier.close()

    async def __aenter__(self) -> AsyncMemory:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _outcome(self, future: Future[T]) -> T:
        await self._carrier.settled(future.parts)
        return future.result()
