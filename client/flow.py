"""Requests of many tasks on one connection, for an event loop: nothing here waits.

The connection is the one that threads use; its descriptors stand in an epoll, and the loop watches that. What can be
sent and received is, whenever the loop says so. While a connection is lost, the name of its host may have to be looked
up, which may take its time: a thread makes these steps, and nobody else touches the connection meanwhile. What is begun
then queues here, as does what there is no room for.

A request whose task has been cancelled goes on, and its reply is received and dropped; so the connection stays sound.
It must therefore have no bytes in common with its caller: see aio.py.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections import deque
from collections.abc import Sequence

from memcluster.client.connection import Connection
from memcluster.client.errors import ClusterError, Disconnected, Misused, Timeout
from memcluster.client.pending import Pending
from memcluster.client.requests import Session
from memcluster.client.router import Router
from memcluster.client.uri import Target

NEVER = float("inf")


class Waiter:
    """A task that awaits the outcome of `parts`."""

    __slots__ = ("_settled", "deadline", "future", "missing", "parts")

    def __init__(
        self, future: asyncio.Future[None], parts: list[Pending], deadline: float, settled: list[Waiter]
    ) -> None:
        self.future = future
        self.parts = parts
        self.missing = len(parts)
        self.deadline = deadline
        self._settled = settled

    def part_is_settled(self) -> None:
        """Said by whoever makes progress, perhaps in another thread."""
        self._settled.append(self)


class Flow:
    """The carrier of an event loop's requests. To be made and used in the loop."""

    def __init__(self, connection: Connection | Router) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Pending] = deque()  # what has not begun, and nobody owns yet
        self._waiting: dict[Waiter, None] = {}  # whose deadline is next comes first
        self._settled: list[Waiter] = []  # once for each part that is
        self._in_thread = False  # a thread makes a step now
        self._expected = False  # a step is to come in this turn of the loop
        self._timer: asyncio.TimerHandle | None = None
        self._closed: asyncio.Future[None] | None = None
        self._watch_anew()

    def __repr__(self) -> str:
        return f"{self._connection!r}, {len(self._waiting)} awaited"

    @property
    def target(self) -> Target:
        return self._connection.target

    @property
    def timeout(self) -> float:
        return self._connection.timeout

    @property
    def reconnections(self) -> int:
        return self._connection.reconnections

    @property
    def session(self) -> Session:
        return self._connection.session

    # -- requests ----------------------------------------------------------------------------------------------------

    def submit(self, pending: Pending) -> Pending:
        """Begin a request, now or when there is room. Raises Disconnected, Misused."""
        if asyncio.get_running_loop() is not self._loop:
            raise Misused("this memory was opened in another event loop: each needs its own, by memcluster.aconnect()")
        if self._closed is not None:
            raise self._closing()
        if self._in_thread or self._queue or self._connection.full:
            self._queue.append(pending)
        else:
            self._connection.submit(pending)
        self._expect_step()
        return pending

    async def settled(self, parts: Sequence[Pending]) -> None:
        """Wait until all parts have an outcome. Raises Timeout."""
        missing = [part for part in parts if part.outcome is None]
        if not missing:
            return
        waiter = Waiter(self._loop.create_future(), missing, time.monotonic() + self.timeout, self._settled)
        for part in missing:
            part.then = waiter.part_is_settled
        self._waiting[waiter] = None
        try:
            await waiter.future
        finally:
            self._waiting.pop(waiter, None)
            if waiter.missing:  # nobody waits for them any more: what has not begun never will
                for part in missing:
                    if part.owner is None:
                        part.settle(ClusterError("nobody waits for it any more"))

    # -- steps -------------------------------------------------------------------------------------------------------

    def _expect_step(self) -> None:
        """Once for all that is begun in this turn of the loop."""
        if not (self._expected or self._in_thread):
            self._expected = True
            self._loop.call_soon(self._step)

    def _step(self) -> None:
        """Make progress, here or in a thread."""
        self._expected = False
        if self._in_thread or self._closed is not None:
            return
        now = time.monotonic()
        late = []
        for waiter in self._waiting:
            if waiter.deadline > now:
                break
            late.append(waiter)
        if self._connection.lost and (self._waiting or self._queue):
            self._in_thread = True
            self._loop.remove_reader(self._epoll)
            step = self._loop.run_in_executor(None, self._progress, late)
            step.add_done_callback(lambda _: self._back_from_thread(step, late))
        else:
            self._progress(late)
            self._after(late)

    def _progress(self, late: list[Waiter]) -> None:
        self._connection.progress()
        for part in [part for waiter in late for part in waiter.parts]:
            if part.owner is not None and part.outcome is None:
                try:
                    part.wait(0.0)  # which gives up what waits for a lost connection
                except ClusterError:
                    pass

    def _back_from_thread(self, step: asyncio.Future[None], late: list[Waiter]) -> None:
        self._in_thread = False
        self._epoll.close()  # of the descriptors in it some are gone, perhaps, and their numbers others'
        self._watch_anew()
        if self._closed is not None:
            self._close_now(self._closed)
        else:
            self._after(late)
        step.result()

    def _after(self, late: list[Waiter]) -> None:
        """What follows from a step."""
        self._wake()
        for waiter in late:
            if not waiter.future.done():
                begun = all(part.owner is not None for part in waiter.parts)
                what = "answer" if begun else "room for a request"
                waiter.future.set_exception(Timeout(self.target, what, self.timeout))
        while self._queue and not self._connection.full:
            queued = self._queue.popleft()
            if queued.outcome is not None:
                continue
            try:
                self._connection.submit(queued)
            except ClusterError as error:
                queued.settle(error)
            self._expect_step()
        self._wake()
        self._watch()

    def _wake(self) -> None:
        """The tasks whose outcome is known now."""
        for waiter in self._settled:
            waiter.missing -= 1
            if not waiter.missing and not waiter.future.done():
                waiter.future.set_result(None)
        self._settled.clear()

    # -- what is waited for ------------------------------------------------------------------------------------------

    def _watch_anew(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, int] = {}
        self._loop.add_reader(self._epoll, self._step)

    def _watch(self) -> None:
        descriptors, until = self._connection.interest
        watched = self._watched
        if descriptors != watched:
            for descriptor in watched.keys() - descriptors:
                try:
                    self._epoll.unregister(descriptor)
                except OSError:
                    pass  # it was closed
            for descriptor, mask in descriptors.items():
                if descriptor not in watched:
                    self._epoll.register(descriptor, mask)
                elif mask != watched[descriptor]:
                    self._epoll.modify(descriptor, mask)
            self._watched = descriptors
        first = next(iter(self._waiting), None)
        if first is not None:
            until = min(until, first.deadline)
        elif not self._queue:
            until = NEVER
        self._wake_up(until)

    def _wake_up(self, at: float) -> None:
        """Step then; a timer that comes earlier, for what has been settled since, does no harm."""
        if at == NEVER:
            return
        delay = max(0.0, at - time.monotonic())
        due = self._loop.time() + delay
        if self._timer is not None:
            if self._timer.when() <= due and not self._timer.cancelled():
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer = None
        self._step()

    # -- the end -----------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Say goodbye; all that is under way fails."""
        if self._closed is None:
            self._closed = self._loop.create_future()
            if not self._in_thread:
                self._close_now(self._closed)
        await asyncio.shield(self._closed)

    def _close_now(self, closed: asyncio.Future[None]) -> None:
        self._connection.close()
        for queued in self._queue:
            queued.settle(self._closing())
        self._queue.clear()
        self._wake()
        self._loop.remove_reader(self._epoll)
        self._epoll.close()
        if self._timer is not None:
            self._timer.cancel()
        closed.set_result(None)

    def _closing(self) -> Disconnected:
        return Disconnected(self.target, "the connection was closed by this program")
