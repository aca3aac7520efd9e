"""The identifiers of a router's requests: a server of the memory lends them, a block at a time, so that no two clients
have the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from memcluster.client.errors import ClusterError, ConnectionProblem
from memcluster.client.handshake import LONGEST_PAUSE, PART, PATIENCE, offering
from memcluster.client.system import Errand, Interest, Steps, System
from memcluster.client.uri import Target

BLOCK = 1 << 16
"""Identifiers that a server lends at a time."""


class Identifiers:
    """`contexts` are those that `entry` has offered, and the first block is among them; `servers` tells who else may be
    asked for the next. Raises ClusterError if there is none."""

    def __init__(
        self, system: System, entry: Target, contexts: Sequence[str], servers: Callable[[], Sequence[Target]]
    ) -> None:
        self.problem: ClusterError | None = None
        """Why there are no more, when the servers were last asked."""
        self._system = system
        self._entry = entry
        self._servers = servers
        self._loan: Errand[list[str]] | None = None
        self._again = 0.0  # when to ask once more
        self.take_block(contexts)

    def take_block(self, contexts: Sequence[str]) -> None:
        """Go on with what a server has lent. Raises ClusterError if it has not."""
        found = next((context.removeprefix(PART) for context in contexts if context.startswith(PART)), "")
        try:
            self._last_used = int(found, 16) - 1
        except ValueError as error:
            raise ClusterError(f"{self._entry} is no part of a memory any more") from error
        self._last = self._last_used + BLOCK

    @property
    def exhausted(self) -> bool:
        return self._last_used == self._last

    def take(self) -> int:
        """The next one, of those that are not exhausted."""
        self._last_used += 1
        return self._last_used

    def borrow(self) -> bool:
        """Go on with asking for more; whether they are here."""
        if self._loan is None:
            if self._system.monotonic() < self._again:
                return False
            self._loan = Errand(self._lending())
        try:
            if not self._loan.step():
                return False
            self.take_block(self._loan.result)
            self._loan = self.problem = None
        except ClusterError as error:
            self._loan, self.problem = None, error
            self._again = self._system.monotonic() + LONGEST_PAUSE
            return False
        return True

    @property
    def interest(self) -> Interest:
        """What `borrow` waits for."""
        return ({}, self._again) if self._loan is None else self._loan.interest

    def close(self) -> None:
        """Ask no more."""
        if self._loan is not None:
            self._loan.close()

    def _lending(self) -> Steps[list[str]]:
        """What the entry offers, or another server if it does not answer. Raises ClusterError."""
        problem: ConnectionProblem | None = None
        for target in (self._entry, *self._servers()):
            try:
                return (yield from offering(self._system, replace(target, export=""), PATIENCE))
            except ConnectionProblem as error:
                problem = problem or error
        assert problem is not None
        raise problem
