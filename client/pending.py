"""A request under way: what memory.py asks and waits for, whoever carries it out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from memcluster.client.errors import ClusterError, request_error
from memcluster.node.nbd.client import Reply
from memcluster.node.nbd.wire import Command


class Owner(Protocol):
    """Who carries requests out, those of its own kind."""

    def progress(self) -> None: ...
    def wait_for(self, pending: Any, timeout: float | None) -> None: ...


class Pending:
    """Its owner settles it. Plain slots: this is the data path."""

    __slots__ = ("_owner", "command", "destination", "flags", "length", "offset", "outcome", "then")

    def __init__(
        self, owner: Owner, command: int, offset: int, length: int, flags: int, destination: memoryview | None
    ) -> None:
        self._owner = owner
        self.command = command
        self.offset = offset
        self.length = length
        self.flags = flags
        self.destination = destination
        self.outcome: Reply | ClusterError | None = None
        self.then: Callable[[], object] | None = None  # called when the outcome is known, by whoever finds it out

    def __repr__(self) -> str:
        state = "under way" if self.outcome is None else "done"
        return f"<{type(self).__name__} {Command(self.command).name} {self.offset} +{self.length} {state}>"

    def settle(self, outcome: Reply | ClusterError) -> None:
        self.outcome = outcome
        if self.then is not None:
            self.then()

    @property
    def done(self) -> bool:
        """The outcome is known. Asking makes progress; only connecting to a lost server may take its time."""
        if self.outcome is None:
            self._owner.progress()
        return self.outcome is not None

    def wait(self, timeout: float | None = None) -> Reply:
        """The successful reply. Raises RequestError, Disconnected, Refused, Timeout."""
        if self.outcome is None:
            self._owner.wait_for(self, timeout)
        outcome = self.outcome
        if isinstance(outcome, ClusterError):
            raise outcome
        assert outcome is not None
        if outcome.error:
            raise request_error(self.command, self.offset, self.length, outcome.error, outcome.message)
        return outcome
