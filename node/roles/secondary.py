"""A secondary: serves its shard to the primary, and logs each piece under the identifier of the client's request."""

from __future__ import annotations

from collections.abc import Sequence

from node.connection import Connection
from node.nbd.server import Export, Request
from node.nbd.wire import Error
from node.record import REPEATED, Kind
from node.server import MEMORY_FLAGS, Route, Server

PIECE = int(Kind.PIECE)


class Secondary(Server):
    """Every request on its one export is a piece: the cookie is the identifier."""

    def exports(self) -> Sequence[Export]:
        description = f"shard {self.spec.index} of the memory"
        return [Export("shard", self.shard.size, MEMORY_FLAGS, description, own_flags=REPEATED)]

    def route(self, connection: Connection, export: Export) -> Route:  # noqa: ARG002 - there is one
        return self._piece

    def place(self, connection: Connection, request: Request) -> memoryview | None:  # noqa: ARG002
        return self.place_here(request, request.offset)

    def turn_away(self, connection: Connection, request: Request, start: int) -> None:
        """A link repeats what was shut out, so that is not in the log: the piece has not been done yet."""
        if request.error == Error.ESHUTDOWN:
            connection.session.reply_error(request, request.error, request.message)
        else:
            self.complete(connection, request, start, request.cookie, kind=PIECE)

    def _piece(self, connection: Connection, request: Request, start: int) -> None:
        self.carry_out(connection, request, start, request.cookie, request.offset, PIECE)
