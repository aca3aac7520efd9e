"""A shard and its log, and what the commands of the protocol do to them. It knows no clients and answers nobody."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import Final

from memcluster.node.layout import MAX_EXTENTS, Extents, Piece
from memcluster.node.log.record import Kind
from memcluster.node.log.writer import LogWriter
from memcluster.node.native import mypyc_attr
from memcluster.node.nbd.wire import Buffer, Command, CommandFlag, Error
from memcluster.node.serving.clearing import Clearing
from memcluster.node.serving.memory import Shard
from memcluster.node.spec import NodeSpec
from memcluster.node.transport.loop import Loop

# Plain numbers for the data path: comparing with a member of an enum costs 90 ns (Python 3.11).
READ: Final = int(Command.READ)
WRITE: Final = int(Command.WRITE)
BLOCK_STATUS: Final = int(Command.BLOCK_STATUS)
FLUSH: Final = int(Command.FLUSH)
WRITE_ZEROES: Final = int(Command.WRITE_ZEROES)
FUA: Final = int(CommandFlag.FUA)
REQ_ONE: Final = int(CommandFlag.REQ_ONE)
NO_HOLE: Final = int(CommandFlag.NO_HOLE)
PIECE: Final = int(Kind.PIECE)
MAX_TRAVEL: Final = (1 << 32) - 1
ZEROING: Final = (int(Command.TRIM), int(Command.WRITE_ZEROES))
SLICE, KEEPING_SLICE = 64 << 20, 4 << 20
"""Bytes that a TRIM or WRITE_ZEROES clears in one turn of the loop, and one that keeps the room (NO_HOLE): some 3 ms of
either. Longer ones take several turns."""
WIRE_ERRORS: Final = {
    errno.EPERM: Error.EPERM,
    errno.ENOMEM: Error.ENOMEM,
    errno.EINVAL: Error.EINVAL,
    errno.ENOSPC: Error.ENOSPC,
    errno.EDQUOT: Error.ENOSPC,
}

Parts = list[tuple[int, Buffer]]
"""(where they begin in the request, bytes) of a READ, in order."""
Done = Callable[[OSError | None, Parts, Extents | None], None]
"""Told once how a piece went, and what it brought."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Keeper:
    """Keeps the shard and the log that `spec` names."""

    def __init__(self, loop: Loop, spec: NodeSpec) -> None:
        self.loop = loop
        self.spec = spec
        system = loop.system
        self.shard = Shard(
            spec.shard, spec.cluster.servers[spec.index].memory, durable=spec.durable, allocate=system.allocate
        )
        self.under_way: list[Clearing] = []
        """Long TRIMs and WRITE_ZEROES that are not at their end."""
        self.epoch = spec.run.epoch
        """What the log's time is behind the monotonic clock, ns."""
        self.monotonic_ns = system.monotonic_ns
        self.log = LogWriter(
            spec.log_directory,
            spec.index,
            spec.log_retain,
            cluster=spec.cluster.name,
            clock=self.now,
            level=spec.log_level,
            sample=spec.log_sample,
            retain_age=spec.log_retain_age,
            run=spec.run.number,
            incarnation=spec.run.incarnation,
            renumbered=self.renumbered,
            allocate=system.allocate,
        )
        self.no_space = 0
        """Requests that found no room."""

    def now(self) -> int:
        """The time as the log has it, ns since 1970."""
        return self.epoch + self.monotonic_ns()

    def renumbered(self) -> None:
        """The log has another incarnation from now on."""

    def carry_out_piece(
        self,
        command: int,
        flags: int,
        piece: Piece,
        payload: Sequence[Buffer],
        done: Done,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Carry out a command on this server's piece of a request and call `done`, perhaps in a later turn of the loop;
        one that takes several turns is given up when it is not `wanted` any more. `payload` are the bytes of a WRITE,
        in order."""
        parts: Parts = []
        extents: Extents | None = None
        shard, offset = self.shard, piece.offset
        try:
            if command == READ:
                for start, end in piece.spans:
                    at = start
                    for buffer in shard.read(offset, end - start):
                        parts.append((at, buffer))
                        at += len(buffer)
                    offset += end - start
            elif command == WRITE:
                for buffer in payload:
                    shard.write(offset, buffer)
                    offset += len(buffer)
                if self.under_way:
                    self.overtake(piece.offset, piece.length)
                if flags & FUA:
                    shard.sync(piece.offset, piece.length)
            elif command == BLOCK_STATUS:
                extents = shard.extents(offset, piece.length, 1 if flags & REQ_ONE else MAX_EXTENTS)
            else:
                self.change_in_slices(command, flags, offset, piece.length, lambda error: done(error, [], None), wanted)
                return
        except OSError as error:
            done(error, [], None)
        else:
            done(None, parts, extents)

    def log_piece(
        self, began: int, identifier: int, piece: Piece, command: int, flags: int, error: int, travelled: int = 0
    ) -> None:
        """Write down that this server has done its piece of a request; its order was on the way for `travelled` ns."""
        duration = self.now() - began
        travelled = min(travelled, MAX_TRAVEL)
        self.log.append(
            began, duration, identifier, piece.offset, piece.length, travelled, PIECE, command, flags, error
        )

    def change_in_slices(
        self,
        command: int,
        flags: int,
        offset: int,
        length: int,
        changed: Callable[[OSError | None], None],
        wanted: Callable[[], bool],
    ) -> None:
        """As `change`, a slice a turn of the loop, so that nobody waits long. `changed` is called at the end, or when
        it is not `wanted` any more."""
        size = self.slice_of(command, flags)
        if length <= size:
            try:
                self.change(command, flags, offset, length)
            except OSError as error:
                changed(error)
            else:
                self.overtake(offset, length)
                changed(None)
            return
        clearing = Clearing(offset, offset + length)
        self.under_way.append(clearing)

        def step() -> None:
            failure = None if wanted() else OSError(errno.ECANCELED, "nobody waits for it any more")
            start, end = clearing.take(size)
            if failure is None and start < end:
                try:
                    self.change(command, flags, start, end - start)
                except OSError as error:
                    failure = error
                else:
                    self.overtake(start, end - start, clearing)
                    self.loop.soon(step)
                    return
            self.under_way.remove(clearing)
            changed(failure)

        step()

    def slice_of(self, command: int, flags: int) -> int:
        """Bytes that a command may clear in one turn."""
        return KEEPING_SLICE if command == WRITE_ZEROES and flags & NO_HOLE else SLICE

    def overtake(self, offset: int, length: int, newer: Clearing | None = None) -> None:
        """These bytes have just been changed by a newer request: what is left of older ones that take long leaves them
        alone, as if it had come to them before. So it never lands over a newer one that was answered. Where the newer
        one failed the older ones go on: they will be answered, too."""
        for clearing in self.under_way:
            if clearing is newer:
                return
            clearing.leave(offset, offset + length)

    def change(self, command: int, flags: int, offset: int, length: int) -> None:
        """Carry out a command on the shard that takes and gives no bytes. Raises OSError."""
        if command == FLUSH:
            self.shard.sync_all()
        elif command in ZEROING and length:
            self.shard.zero(offset, length, keep=bool(flags & NO_HOLE))
            if flags & FUA:
                self.shard.sync_all()

    def wire_error(self, error: OSError) -> int:
        """What the system's failure is called in the protocol; counted if it is want of room."""
        code = WIRE_ERRORS.get(error.errno or 0, Error.EIO)
        self.no_space += code == Error.ENOSPC
        return int(code)

    def reason(self, error: OSError) -> str:
        """The system's failure in words."""
        return f"{self.spec.name}: {os.strerror(error.errno or errno.EIO)}"
