"""A server's own part of a request that several servers see: carried out on its shard, and logged as a piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from memcluster.node.handover.messages import EXTENT, SEND_BACK, Order
from memcluster.node.layout import Extents, Layout, Piece
from memcluster.node.log.record import REPEATED
from memcluster.node.nbd.wire import Buffer, Command, CommandFlag
from memcluster.node.serving.keeper import Parts
from memcluster.node.serving.server import Server

LOGGED: Final = 0xFFFF & ~(REPEATED | SEND_BACK | int(CommandFlag.DF))
"""The flags of an order that its pieces have in the log: whether the answer is cut up is the client's affair."""
FLUSH: Final = int(Command.FLUSH)
WRITE: Final = int(Command.WRITE)

Then = Callable[[Order, Parts, Extents | None], None]
"""Called with what was read, as (where it begins in the request, bytes) in order, or with extents."""


def own_piece(layout: Layout, server: int, order: Order) -> Piece | None:
    """What of a request falls to a server; None if nothing does."""
    if order.error:
        return None
    if order.command == FLUSH:
        return Piece(server, 0, 0, ())
    for piece in layout.split(order.offset, order.length, spans=order.command <= WRITE):
        if piece.server == server:
            return piece
    return None


def do_part(
    server: Server,
    order: Order,
    piece: Piece | None,
    then: Then,
    payload: memoryview | None = None,
    wanted: Callable[[], bool] = lambda: True,
) -> None:
    """Carry the piece out and log it, or that the request was only passed on: a piece of no bytes. `payload` are the
    piece's bytes of a WRITE. What takes several turns is given up when it is not `wanted` any more. A failure is set in
    the order."""
    clock = server.monotonic_ns()
    began = max(server.epoch + clock, order.start)  # never before its request, whatever the two processes' clocks say
    travelled = clock - order.sent if order.sent else 0
    here = piece or Piece(server.spec.index, 0, 0, ())

    def done(failure: OSError | None, parts: Parts, extents: Extents | None) -> None:
        error = 0
        if failure is not None:
            order.fail(server.wire_error(failure), server.reason(failure))
            error = order.error
        server.log_piece(began, order.identifier, here, order.command, order.flags & LOGGED, error, travelled)
        then(order, parts, extents)

    if piece is None:
        done(None, [], None)
    else:
        server.carry_out_piece(order.command, order.flags, piece, () if payload is None else (payload,), done, wanted)


def encode_result(order: Order, parts: Parts, extents: Extents | None) -> list[Buffer]:
    """What a part has brought, as a message's payload: bytes, extents, or why there are none."""
    if order.error:
        return [order.message.encode()]
    if extents is not None:
        return [EXTENT.pack(*extent) for extent in extents]
    return [buffer for _, buffer in parts]


def join_parts(returned: Sequence[tuple[Piece, memoryview]], parts: Parts) -> Parts:
    """The bytes of a read in their order: those of pieces done elsewhere, and those that are parts already."""
    joined = list(parts)
    for piece, data in returned:
        done = 0
        for start, end in piece.spans:
            joined.append((start, data[done : done + end - start]))
            done += end - start
    joined.sort(key=lambda part: part[0])
    return joined
