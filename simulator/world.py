"""The simulated world: virtual time, what happens when, the dice, and the trace of it all.

Everything that the real world leaves to chance is drawn from one seed, in one order, so that a seed is a run: on
another machine, with another version of Python, byte for byte. Time moves when something happens, and a little with
each look at a clock, so that no two looks show the same. Nothing here knows a socket or a role.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Protocol, TypeVar

US, MS, S = 1_000, 1_000_000, 1_000_000_000
"""Nanoseconds of them."""
BEGINNING = 1_000 * S
NEVER = 1 << 62
"""Later than whatever is counted here."""
Happening = tuple[int, tuple[object, ...]]
"""When it was, and its words."""
Thing = TypeVar("Thing")
TICK = 97
"""ns that pass between two looks at a clock, at least."""


class Dice:
    """Chance. Only what gives the same numbers in every version of Python is asked of its generator."""

    def __init__(self, seed: int) -> None:
        generator = Random(seed)
        self.bits = generator.getrandbits
        self.roll = generator.random
        """From 0 up to 1."""

    def below(self, end: int) -> int:
        """A number from 0 on, below `end`."""
        return int(self.roll() * end)

    def between(self, first: int, last: int) -> int:
        return first + int(self.roll() * (last - first + 1))

    def chance(self, part: float) -> bool:
        return self.roll() < part

    def pick(self, things: Sequence[Thing]) -> Thing:
        return things[self.below(len(things))]


class Tap(Protocol):
    """Who watches what streams carry."""

    def sent(self, process: str, stream: Any, data: bytes, /) -> None: ...
    def received(self, process: str, stream: Any, count: int, /) -> None: ...


class World:
    """`now` is the monotonic clock of all processes, in ns; `trace` has when each thing happened, and its words. In a
    `calm` one what is sent goes through whole, and buffers are large; in a `narrow` one they hold next to nothing."""

    def __init__(self, seed: int, *, calm: bool = False, narrow: bool = False) -> None:
        self.seed = seed
        self.calm = calm
        self.narrow = narrow
        self.tap: Tap | None = None
        self.dice = Dice(seed)
        self.now = BEGINNING
        self.trace: list[Happening] = []
        self.names: dict[object, object] = {}
        """What listens, or takes datagrams, by its address."""
        self.port = 40_000
        """The last one given to a socket that asked for none."""
        self.full: set[str] = set()
        """The disks on which there is no room."""
        self.cuts: Counter[tuple[str, object]] = Counter()
        """How many times a process is cut off from an address now."""
        self.inside: object = None
        """The process that runs."""
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0

    def __repr__(self) -> str:
        return f"<World {self.seed} at {(self.now - BEGINNING) / S:.6f} s, {len(self._events)} events to come>"

    def note(self, *words: object) -> None:
        """Something happened. The words are put together when somebody reads them."""
        self.trace.append((self.now, words))

    def at(self, time: int, call: Callable[[], None]) -> None:
        """Call when it is that time; what is due at the same time comes in the order in which it was asked for."""
        self._order += 1
        heapq.heappush(self._events, (time, self._order, call))

    def after(self, delay: int, call: Callable[[], None]) -> None:
        """Call in so many ns."""
        self.at(self.now + delay, call)

    @property
    def next(self) -> int | None:
        """When the next thing happens, if anything does."""
        return self._events[0][0] if self._events else None

    def go_on(self) -> bool:
        """Let the next thing happen; false if there is none."""
        if not self._events:
            return False
        time, _, call = heapq.heappop(self._events)
        self.now = max(self.now, time)
        call()
        return True
