"""A request to a memory of which each server has a part: its pieces are requests on the connections of a `Router`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memcluster.client.connection import Connection, Sent
from memcluster.client.errors import ClusterError
from memcluster.client.pending import Pending
from memcluster.node.layout import Extents, Piece, join_extents
from memcluster.node.nbd.client import Reply
from memcluster.node.nbd.wire import Buffer, Command, CommandFlag

if TYPE_CHECKING:
    from memcluster.client.router import Router


class Routed(Pending):
    """It is done when all its pieces are, or when one has failed."""

    __slots__ = ("_begun", "_later", "_router", "identifier", "payload")

    def __init__(
        self,
        router: Router,
        identifier: int,
        command: int,
        offset: int,
        length: int,
        flags: int,
        payload: Sequence[Buffer],
        destination: memoryview | None,
    ) -> None:
        """Its pieces have the `identifier` as their cookie."""
        super().__init__(router, command, offset, length, flags, destination)
        self._router = router
        self.identifier = identifier
        self.payload = memoryview(payload[0] if len(payload) == 1 else b"".join(payload)) if payload else None
        self._begun: list[tuple[Piece, Sent]] = []
        self._later: list[Piece] = []

    def begin(self, pieces: list[Piece], *, serial: bool) -> None:
        """Send the pieces, or the first of them."""
        self._begun = []
        self._later = pieces[::-1]
        if not pieces:
            self._finish()
        while self._later:
            self._send(self._later.pop())
            if serial:
                break

    def look(self) -> bool:
        """Whether it is done now: a piece may just have been."""
        if self.outcome is not None:
            return True
        if any(pending.outcome is None for _, pending in self._begun):
            return False
        failed = any(isinstance(pending.outcome, Reply) and pending.outcome.error for _, pending in self._begun)
        if self._later and not failed:
            self._send(self._later.pop())
            return False
        self._finish()
        return True

    def waits_for(self) -> list[Connection]:
        """The connections on which pieces are under way."""
        return [self._router.connection(piece.server) for piece, pending in self._begun if pending.outcome is None]

    def _send(self, piece: Piece) -> None:
        payload: list[Buffer] = []
        if self.payload is not None:
            payload = [self.payload[start:end] for start, end in piece.spans]
        place = None
        if self.destination is not None and len(piece.spans) == 1:
            place = self.destination[slice(*piece.spans[0])]
        pending = self._router.connection(piece.server).submit(
            self.command, piece.offset, piece.length, self.flags, payload, place, cookie=self.identifier
        )
        self._begun.append((piece, pending))

    def _finish(self) -> None:
        self.settle(self._joined())

    def _joined(self) -> Reply | ClusterError:
        """What the pieces brought."""
        reply = Reply(self.identifier)
        told: dict[int, Extents] = {}
        for piece, pending in self._begun:
            outcome = pending.outcome
            if not isinstance(outcome, Reply):
                assert outcome is not None
                return outcome
            if outcome.error:
                reply.error = reply.error or outcome.error
                reply.message = reply.message or outcome.message or f"server{piece.server}"
            elif outcome.extents:
                told[piece.server] = outcome.extents
        if reply.error:
            return reply
        if self.command == Command.READ:
            reply.data = self._join()
        elif self.command == Command.BLOCK_STATUS:
            one = bool(self.flags & CommandFlag.REQ_ONE)
            reply.extents = join_extents(self._router.layout, self.offset, self.length, told, one=one)
        return reply

    def _join(self) -> Buffer:
        whole = self.destination
        if whole is None:
            if len(self._begun) == 1 and len(self._begun[0][0].spans) == 1:
                only = self._begun[0][1].outcome
                assert isinstance(only, Reply)
                return only.data or b""
            whole = memoryview(bytearray(self.length))
        for piece, pending in self._begun:
            assert isinstance(pending.outcome, Reply)
            if pending.destination is not None:
                continue
            data, done = memoryview(pending.outcome.data or b""), 0
            for start, end in piece.spans:
                whole[start:end] = data[done : done + end - start]
                done += end - start
        return whole
