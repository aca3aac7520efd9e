"""What the library needs of the system that it runs on, and how it waits: nothing else here waits.

All of it comes in through one object: the kernel (`KERNEL`), or a simulated world (simulator/), in which the same code
runs. What takes several steps, such as connecting, is a generator. It never waits: it yields what its next step waits
for. Who may wait has it finished; who has other things to do takes its steps one by one, as an `Errand`.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Generator, Iterable
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

T = TypeVar("T")
NEVER = float("inf")
Interest: TypeAlias = tuple[dict[int, int], float]
"""What somebody waits for: descriptors with their masks for poll, and the time when there is something to do without
them."""
Steps: TypeAlias = Generator[Interest, None, T]
Place: TypeAlias = "tuple[int, Any]"
"""A family of sockets, and an address there."""


class Poll(Protocol):
    """As select.poll."""

    def register(self, descriptor: int, events: int, /) -> None: ...
    def poll(self, milliseconds: float, /) -> list[tuple[int, int]]: ...


class System(Protocol):
    @property
    def monotonic(self) -> Callable[[], float]:
        """A clock, in seconds."""

    def poll(self) -> Poll: ...

    def make_socket(self, family: int, kind: int) -> socket.socket: ...

    def find(self, host: str, port: int) -> list[Place]:
        """Where a host may be reached: by its name, which may take its time. Raises OSError."""


class Kernel:
    """The real one."""

    def __init__(self) -> None:
        self.monotonic = time.monotonic

    def poll(self) -> Poll:
        return select.poll()

    def make_socket(self, family: int, kind: int) -> socket.socket:
        return socket.socket(family, kind)

    def find(self, host: str, port: int) -> list[Place]:
        name = host.encode() if host.isascii() else host  # what is no text needs no IDNA loaded
        return [(family, address) for family, *_, address in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)]


KERNEL = Kernel()


class Errand(Generic[T]):
    """Steps that are taken one by one, beside other things: `interest` is what the next one waits for, `result` what
    the last one has brought."""

    result: T

    def __init__(self, steps: Steps[T]) -> None:
        self._steps = steps
        self.interest: Interest = {}, 0.0

    def step(self) -> bool:
        """Take the next one; whether it was the last. Raises what it raises, and then it was the last, too."""
        try:
            self.interest = next(self._steps)
        except StopIteration as end:
            self.result = end.value
            return True
        return False

    def close(self) -> None:
        """Take no more of them."""
        self._steps.close()


def finish(system: System, steps: Steps[T]) -> T:
    """What the steps bring, all of them, and however long they wait."""
    errand = Errand(steps)
    try:
        while not errand.step():
            wait(system, errand.interest, NEVER)
    finally:
        errand.close()
    return errand.result


def united(waits: Iterable[Interest]) -> Interest:
    """Whatever comes first."""
    descriptors: dict[int, int] = {}
    until = float("inf")
    for wanted, due in waits:
        descriptors |= wanted
        until = min(until, due)
    return descriptors, until


def wait(system: System, interest: Interest, deadline: float) -> dict[int, int]:
    """Until somebody's time has come, or the deadline; which of the descriptors are ready, and for what."""
    descriptors, until = interest
    poll = system.poll()
    for descriptor, mask in descriptors.items():
        poll.register(descriptor, mask)
    until = min(until, deadline)
    return dict(poll.poll(-1 if until == NEVER else max(0.0, until - system.monotonic()) * 1000))
