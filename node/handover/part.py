"""A server's own part of a request that several servers see: carried out on its shard, and logged as a piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from node.handover.messages import Order
from node.layout import Layout, Piece
from node.log.record import Kind
from node.nbd.wire import EXTENT, Buffer, Command, CommandFlag
from node.serving.server import Server

PIECE = int(Kind.PIECE)
PASSED_ON = 0xFFFF ^ int(CommandFlag.DF)
READ, WRITE, FLUSH, BLOCK_STATUS = (
    int(command) for command in (Command.READ, Command.WRITE, Command.FLUSH, Command.BLOCK_STATUS)
)

Parts = list[tuple[int, Buffer]]
Extents = Sequence[tuple[int, int]]
Then = Callable[[Order, Parts, Extents | None], None]
"""Called with what was read, as (where it begins in the request, bytes) in order, or with extents."""


def own_piece(layout: Layout, server: int, order: Order) -> Piece | None:
    """What of a request falls to a server; None if nothing does."""
    if order.error:
        return None
    if order.command == FLUSH:
        return Piece(server, 0, 0, ())
    return next((piece for piece in layout.split(order.offset, order.length) if piece.server == server), None)


def do_part(server: Server, order: Order, piece: Piece | None, then: Then, payload: memoryview | None = None) -> None:
    """Carry the piece out and log it, or that the request was only passed on: a piece of no bytes. `payload` are the
    piece's bytes of a WRITE, None if they lie in the shard already. A failure is set in the order."""
    began = max(server.now(), order.start)  # never before its request, whatever the two processes' clocks say
    if piece is None:
        _log(server, order, Piece(server.spec.index, 0, 0, ()), began, 0)
        then(order, [], None)
        return
    parts: Parts = []
    extents: Extents | None = None
    shard = server.shard
    failure: OSError | None = None
    try:
        if order.command == READ:
            offset = piece.offset
            for start, end in piece.spans:
                reached = start
                for view in shard.read(offset, end - start):
                    parts.append((reached, view))
                    reached += len(view)
                offset += end - start
        elif order.command == WRITE:
            if payload is not None:
                shard.write(piece.offset, payload)
            if order.flags & CommandFlag.FUA:
                shard.sync(piece.offset, piece.length)
        elif order.command == BLOCK_STATUS:
            extents = shard.extents(piece.offset, piece.length)
            if order.flags & CommandFlag.REQ_ONE:
                extents = extents[:1]
        else:

            def changed(error: OSError | None) -> None:
                _finish(server, order, piece, began, error)
                then(order, [], None)

            server.change_in_slices(order.command, order.flags, piece.offset, piece.length, changed)
            return
    except OSError as error:
        failure = error
    _finish(server, order, piece, began, failure)
    then(order, parts, extents)


def _finish(server: Server, order: Order, piece: Piece, began: int, failure: OSError | None) -> None:
    if failure is not None:
        order.fail(server.wire_error(failure), server.reason(failure))
    _log(server, order, piece, began, order.error)


def _log(server: Server, order: Order, piece: Piece, began: int, error: int) -> None:
    server.log.append(
        began,
        server.now() - began,
        order.identifier,
        piece.offset,
        piece.length,
        0,
        PIECE,
        order.command,
        order.flags & PASSED_ON & 0x3FFF,
        error,
    )


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
