"""The one event loop every process runs: a selector, timers and signals. It knows no protocol and no role.

A turn of the loop waits for ready sockets, calls their handlers, then the timers that are due, then everything that
was put off with `soon` — which is where connections send: one gathered send answers what became ready in this turn.
Handlers must not block. An exception in a handler ends the loop: a process that does not understand itself must not
go on, and its supervisor restarts it.
"""

from __future__ import annotations

import heapq
import itertools
import select
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Final, Protocol

from memcluster.node.native import mypyc_attr
from memcluster.node.transport.system import KERNEL, System

READ: Final = 1
WRITE: Final = 2
_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT
_EVENTS: Final = (0, _IN, _OUT, _IN | _OUT)
"""What epoll is asked for, by the mask of the two."""
EVENTS_A_TURN: Final = 64
"""Sources dealt with in one turn, at most; epoll hands out the others in the next ones."""
LONGEST_WAIT: Final = 86400.0
"""Seconds of one turn at most: epoll counts milliseconds in 31 bits."""
LATE: Final = 0.1
"""Seconds by which a timer is late in a process that did not run: it was stopped, or its whole group was frozen."""


class HasFileno(Protocol):
    def fileno(self) -> int: ...


Source = int | HasFileno
Wait = Callable[[float | None, int], list[tuple[int, int]]]
"""Seconds at most (None: no end) and sources at most to what is ready, as (descriptor, events) of epoll."""


class Timer:
    """A call that waits for its time; `cancel` is enough to be rid of it."""

    __slots__ = ("call", "due")

    def __init__(self, due: float, call: Callable[[], None]) -> None:
        self.due = due
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None

    def __repr__(self) -> str:
        return f"<Timer {'cancelled' if self.call is None else f'due at {self.due:.3f} s'}>"


@mypyc_attr(allow_interpreted_subclasses=True)
class Loop:
    """Watches file descriptors, timers and signals until `stop` is called.

    `turns` counts the turns made: a supervisor that sees it grow knows that the process makes progress.
    """

    def __init__(self, system: System = KERNEL) -> None:
        self.system = system
        self._monotonic = system.monotonic
        self._poller = system.poller()
        self.poll: Wait = self._poller.poll
        self.wait = self.poll
        """How it waits; others may put their own way around `poll`."""
        self._watched: dict[int, tuple[Callable[[int], None], int]] = {}
        self._fresh: set[int] = set()  # watched since this turn began, perhaps under a number that was another's
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()  # equal times run in the order they were set
        self._soon: list[Callable[[], None]] = []
        self._stopped = False
        self._signals: dict[int, Callable[[], None]] = {}
        self._wakeup: tuple[socket.socket, socket.socket] | None = None
        self.turns = 0
        self.missed = 0
        """Nanoseconds in which this process did not run, as far as its timers show: a node has one due every half
        second. Patience with others does not count them."""
        self.lag = 0.0
        """Seconds by which what streams send is held up: a fault that was asked for with `slow`."""
        self._held_up: dict[Callable[[], None], Timer] = {}

    def __repr__(self) -> str:
        return f"<Loop {len(self._watched)} watched, {len(self._timers)} timers, turn {self.turns}>"

    # -- sources -----------------------------------------------------------------------------------------------------

    def watch(self, source: Source, mask: int, ready: Callable[[int], None]) -> None:
        """Call `ready(mask)` whenever `source` is ready for any of READ | WRITE in `mask`; replaces an earlier watch.

        With a mask of 0 the source is no longer watched.
        """
        if not mask:
            self.unwatch(source)
            return
        descriptor = _descriptor(source)
        known = self._watched.get(descriptor)
        if known is None:
            self._poller.register(descriptor, _EVENTS[mask])
            self._fresh.add(descriptor)
        elif known[1] != mask:
            self._poller.modify(descriptor, _EVENTS[mask])
        self._watched[descriptor] = ready, mask

    def unwatch(self, source: Source) -> None:
        """Stop watching; no error if it was not watched. To be called before the source is closed."""
        if self._watched.pop(descriptor := _descriptor(source), None) is not None:
            with suppress(OSError):  # it was closed before
                self._poller.unregister(descriptor)

    # -- time --------------------------------------------------------------------------------------------------------

    def after(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Call once, `seconds` from now."""
        timer = Timer(self._monotonic() + seconds, call)
        heapq.heappush(self._timers, (timer.due, next(self._order), timer))
        return timer

    def awake(self) -> float:
        """Seconds from any time, without those in which this process did not run."""
        return self._monotonic() - self.missed / 1e9

    def slow(self, seconds: float) -> None:
        """Have `lag` be this from now on; what is held up goes on at once."""
        self.lag = seconds
        held_up, self._held_up = self._held_up, {}
        for call, timer in held_up.items():
            timer.cancel()
            self.soon(call)

    def hold_up(self, call: Callable[[], None]) -> None:
        """Call once when `lag` has passed, or when it is changed."""

        def go_on() -> None:
            self._held_up.pop(call, None)
            call()

        self._held_up[call] = self.after(self.lag, go_on)

    def soon(self, call: Callable[[], None]) -> None:
        """Call once at the end of this turn."""
        self._soon.append(call)

    @property
    def wake(self) -> float | None:
        """When there is something to do without any source, by the monotonic clock; None: never."""
        if self._soon:
            return 0.0
        return self._timers[0][0] if self._timers else None

    # -- signals -----------------------------------------------------------------------------------------------------

    def on_signal(self, signum: int, call: Callable[[], None]) -> None:
        """Call in a turn of the loop, never inside the signal handler, when the signal has come.

        Must be used from the main thread.
        """
        if self._wakeup is None:
            reader, writer = socket.socketpair()
            reader.setblocking(False)
            writer.setblocking(False)
            signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            self._wakeup = reader, writer
            self.watch(reader, READ, lambda _: self._signalled(reader))
        self._signals[signum] = call
        signal.signal(signum, _only_wake)

    def _signalled(self, reader: socket.socket) -> None:
        for signum in reader.recv(4096):
            if call := self._signals.get(signum):
                call()

    # -- running -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Turn until `stop`, which may have been called before; what was put off with `soon` until then is done."""
        while not self._stopped:
            self.turn()

    def stop(self) -> None:
        """Let `run` return at the end of this turn."""
        self._stopped = True

    @property
    def stopped(self) -> bool:
        """No other turn is to come."""
        return self._stopped

    def turn(self, timeout: float | None = None) -> None:
        """Wait for something to do, at most `timeout` seconds, and do it."""
        if self._soon:
            timeout = 0
        elif self._timers:
            until_timer = self._timers[0][0] - self._monotonic()
            if timeout is None or until_timer < timeout:
                timeout = 0 if until_timer < 0 else until_timer if until_timer < LONGEST_WAIT else LONGEST_WAIT
        self.turns += 1
        watched, fresh = self._watched, self._fresh
        fresh.clear()
        for descriptor, events in self.wait(timeout, EVENTS_A_TURN):
            source = watched.get(descriptor)
            # A handler before this one may have closed this source, and its number may already be another's.
            if source is None or descriptor in fresh:
                continue
            ready, mask = source
            if events == _IN:
                ready(READ)
            else:  # an error or the other side's end makes a source ready for whatever is asked of it
                ready(mask & ((READ if events & ~_OUT else 0) | (WRITE if events & ~_IN else 0)))
        if self._timers and self._timers[0][0] <= self._monotonic():
            self._run_timers()
        if self._soon:
            calls, self._soon = self._soon, []
            for call in calls:
                call()

    def _run_timers(self) -> None:
        now = self._monotonic()
        late = now - self._timers[0][0]
        if late > LATE:
            self.missed += int(late * 1e9)
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if timer.call is not None:
                timer.call()

    def close(self) -> None:
        """Give the loop's own descriptors back; what it watched is its owners' to close."""
        if self._wakeup is not None:
            signal.set_wakeup_fd(-1)
            for end in self._wakeup:
                end.close()
        self._poller.close()


def _descriptor(source: Source) -> int:
    return source if isinstance(source, int) else source.fileno()


def _only_wake(_signum: int, _frame: FrameType | None) -> None:
    """The wake-up descriptor has done the work; a handler must be set for it to be written to."""


def wait_readable(source: Source, seconds: float) -> bool:
    """Block until `source` is readable or `seconds` have passed; for code that runs outside a loop."""
    poll = select.poll()
    poll.register(source, select.POLLIN)
    return bool(poll.poll(max(0, int(seconds * 1000))))
