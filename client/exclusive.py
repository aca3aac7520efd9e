"""What belongs to one thread at a time and to the process that made it: misuse is an exception at once, instead of the
puzzles that two readers of one socket make of each other's replies."""

from __future__ import annotations

import os
from _thread import allocate_lock, get_ident
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar
from weakref import WeakSet

from memcluster.client.errors import Misused

S = TypeVar("S", bound="Exclusive")
P = ParamSpec("P")
T = TypeVar("T")
_alive: WeakSet[Exclusive] = WeakSet()


class Exclusive:
    """Has methods that are `exclusive`. After a fork nobody gets through its turnstile in the child."""

    def __init__(self) -> None:
        self._turnstile = allocate_lock()
        self._user = 0
        self._process = os.getpid()
        _alive.add(self)

    def close(self) -> None:
        """Say goodbye. What is still in flight fails. In a fork this is silent: the parent's connection goes on."""
        if self._inherited:
            self._abandon()
        else:
            self._say_goodbye()

    def _say_goodbye(self) -> None:
        raise NotImplementedError

    def _abandon(self) -> None:
        raise NotImplementedError

    @property
    def _inherited(self) -> bool:
        """This process is a fork of the one whose connection it is."""
        return os.getpid() != self._process

    def _misused(self) -> Misused:
        if self._inherited:
            return Misused("this memory was opened before a fork, and is the parent's: connect again in this process")
        if self._user == get_ident():
            return Misused("this memory is in use right now, below this very call: a signal handler needs its own")
        return Misused(
            "this memory is in use by another thread right now: give each thread its own, by memcluster.connect() or "
            "copy.copy(memory)"
        )


def exclusive(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """A method that is not entered while another one of the same object is. Raises Misused, and does not wait."""

    @wraps(method)
    def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if not self._turnstile.acquire(False):
            raise self._misused()
        try:
            self._user = get_ident()
            return method(self, *args, **kwargs)
        finally:
            self._user = 0
            self._turnstile.release()

    return guarded


def _forked() -> None:
    for each in tuple(_alive):
        each._turnstile = allocate_lock()
        each._turnstile.acquire()


os.register_at_fork(after_in_child=_forked)
