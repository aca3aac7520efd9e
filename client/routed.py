"""A request to a memory of which each server has a part, as a `Router` sees it: a request for each piece of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memcluster.client.connection import REPEATED, Connection
from memcluster.client.errors import ClusterError
from memcluster.client.pending import Pending
from memcluster.node.layout import Extents, Piece, join_extents
from memcluster.node.nbd.client import Reply
from memcluster.node.nbd.wire import Buffer, Command, CommandFlag

if TYPE_CHECKING:
    from memcluster.client.router import Router


class Routed:
    """It is done when all its pieces are, or when one has failed."""

    __slots__ = ("_begun", "_identifier", "_later", "_more_flags", "_payload", "_router", "pending")

    def __init__(self, router: Router, identifier: int, pending: Pending) -> None:
        """Its pieces have the `identifier` as their cookie."""
        self.pending = pending
        self._router = router
        self._identifier = identifier
        payload = pending.payload
        self._payload = memoryview(payload[0] if len(payload) == 1 else b"".join(payload)) if payload else None
        self._begun: list[tuple[Piece, Pending]] = []
        self._later: list[Piece] = []

    def begin(self, pieces: list[Piece], *, serial: bool) -> None:
        """Send the pieces, or the first of them; once more if there is another map. What servers do again they log
        once."""
        self._more_flags = REPEATED if self._begun else 0
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
        if self.pending.outcome is not None:
            return True
        if any(part.outcome is None for _, part in self._begun):
            return False
        failed = any(isinstance(part.outcome, Reply) and part.outcome.error for _, part in self._begun)
        if self._later and not failed:
            self._send(self._later.pop())
            return False
        self._finish()
        return True

    def waits_for(self) -> list[Connection]:
        """The connections on which pieces are under way."""
        return [self._router.connection(piece.server) for piece, part in self._begun if part.outcome is None]

    def _send(self, piece: Piece) -> None:
        whole = self.pending
        payload: list[Buffer] = []
        if self._payload is not None:
            payload = [self._payload[start:end] for start, end in piece.spans]
        place = None
        if whole.destination is not None and len(piece.spans) == 1:
            place = whole.destination[slice(*piece.spans[0])]
        flags = whole.flags | self._more_flags
        part = Pending(whole.command, piece.offset, piece.length, flags, payload, place)
        self._router.connection(piece.server).submit(part, self._identifier)
        self._begun.append((piece, part))

    def _finish(self) -> None:
        self.pending.settle(self._joined())

    def _joined(self) -> Reply | ClusterError:
        """What the pieces brought."""
        whole = self.pending
        reply = Reply(self._identifier)
        told: dict[int, Extents] = {}
        for piece, part in self._begun:
            outcome = part.outcome
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
        if whole.command == Command.READ:
            reply.data = self._join()
        elif whole.command == Command.BLOCK_STATUS:
            one = bool(whole.flags & CommandFlag.REQ_ONE)
            reply.extents = join_extents(self._router.layout, whole.offset, whole.length, told, one=one)
        return reply

    def _join(self) -> Buffer:
        whole = self.pending.destination
        if whole is None:
            if len(self._begun) == 1 and len(self._begun[0][0].spans) == 1:
                only = self._begun[0][1].outcome
                assert isinstance(only, Reply)
                return only.data or b""
            whole = memoryview(bytearray(self.pending.length))
        for piece, part in self._begun:
            assert isinstance(part.outcome, Reply)
            if part.destination is not None:
                continue
            data, done = memoryview(part.outcome.data or b""), 0
            for start, end in piece.spans:
                whole[start:end] = data[done : done + end - start]
                done += end - start
        return whole
