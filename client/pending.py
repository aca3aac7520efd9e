"""A request of a client, from when it is asked to its outcome, whoever carries it out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from memcluster.client.errors import ClusterError, request_error
from memcluster.node.nbd.client import Reply
from memcluster.node.nbd.wire import Buffer, Command

REQUEST_COST = 4096
"""Bytes that a request counts for beside its data: bounds how many small ones are in flight."""


class Owner(Protocol):
    """Who carries requests out."""

    def progress(self) -> None: ...
    def wait_for(self, pending: Pending, timeout: float | None) -> None: ...


class Pending:
    """Its owner, once it has one, settles it. Payload and destination must stay as they are until then. Plain slots:
    this is the data path."""

    __slots__ = (
        "command", "cost", "destination", "flags", "length", "offset", "outcome", "owner", "payload", "then"
    )  # fmt: skip

    def __init__(
        self,
        command: int,
        offset: int,
        length: int,
        flags: int = 0,
        payload: Sequence[Buffer] = (),
        destination: memoryview | None = None,
    ) -> None:
        self.command = command
        self.offset = offset
        self.length = length
        self.flags = flags
        self.payload = payload
        self.destination = destination
        self.cost = REQUEST_COST + (length if command <= Command.WRITE else 0)
        self.owner: Owner | None = None
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
        if self.outcome is None and self.owner is not None:
            self.owner.progress()
        return self.outcome is not None

    def wait(self, timeout: float | None = None) -> Reply:
        """The successful reply. Raises RequestError, Disconnected, Refused, Timeout."""
        if self.outcome is None:
            assert self.owner is not None
            self.owner.wait_for(self, timeout)
        outcome = self.outcome
        if isinstance(outcome, ClusterError):
            raise outcome
        assert outcome is not None
        if outcome.error:
            raise request_error(self.command, self.offset, self.length, outcome.error, outcome.message)
        return outcome
