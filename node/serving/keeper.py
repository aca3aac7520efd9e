"""A shard and its log, and what the commands of the protocol do to them. It knows no clients and answers nobody."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from time import monotonic_ns

from memcluster.node.layout import Extents, Piece
from memcluster.node.log.clock import clock_epoch
from memcluster.node.log.record import Kind
from memcluster.node.log.writer import LogWriter
from memcluster.node.nbd.wire import Buffer, Command, CommandFlag, Error
from memcluster.node.serving.memory import MAX_EXTENTS, Shard
from memcluster.node.spec import NodeSpec
from memcluster.node.transport.loop import Loop

# Plain numbers for the data path: comparing with a member of an enum costs 90 ns (Python 3.11).
READ, WRITE, BLOCK_STATUS = int(Command.READ), int(Command.WRITE), int(Command.BLOCK_STATUS)
FUA, REQ_ONE = int(CommandFlag.FUA), int(CommandFlag.REQ_ONE)
PIECE = int(Kind.PIECE)
ZEROING = (int(Command.TRIM), int(Command.WRITE_ZEROES))
SLICE = 64 << 20
"""Bytes that a TRIM or WRITE_ZEROES clears in one turn of the loop; longer ones take several."""
WIRE_ERRORS = {
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


class Keeper:
    """Keeps the shard and the log that `spec` names."""

    def __init__(self, loop: Loop, spec: NodeSpec) -> None:
        self.loop = loop
        self.spec = spec
        self.shard = Shard(spec.shard, spec.cluster.servers[spec.index].memory, durable=spec.durable)
        self._epoch = clock_epoch()
        self.log = LogWriter(
            spec.log_directory,
            spec.index,
            spec.log_retain,
            cluster=spec.cluster.name,
            clock=self.now,
            level=spec.log_level,
            sample=spec.log_sample,
            retain_age=spec.log_retain_age,
        )
        self.no_space = 0
        """Requests that found no room."""

    def now(self) -> int:
        """The time as the log has it, ns since 1970."""
        return self._epoch + monotonic_ns()

    def carry_out_piece(self, command: int, flags: int, piece: Piece, payload: Sequence[Buffer], done: Done) -> None:
        """Carry out a command on this server's piece of a request and call `done`, perhaps in a later turn of the loop.
        `payload` are the bytes of a WRITE, in order, none if they lie in the shard already."""
        parts: Parts = []
        extents: Extents | None = None
        shard, offset = self.shard, piece.offset
        try:
            if command == READ:
                for start, end in piece.spans:
                    reached = start
                    for view in shard.read(offset, end - start):
                        parts.append((reached, view))
                        reached += len(view)
                    offset += end - start
            elif command == WRITE:
                for buffer in payload:
                    shard.write(offset, buffer)
                    offset += len(buffer)
                if flags & FUA:
                    shard.sync(piece.offset, piece.length)
            elif command == BLOCK_STATUS:
                extents = shard.extents(offset, piece.length, 1 if flags & REQ_ONE else MAX_EXTENTS)
            else:
                self.change_in_slices(command, flags, offset, piece.length, lambda error: done(error, [], None))
                return
        except OSError as error:
            done(error, [], None)
        else:
            done(None, parts, extents)

    def log_piece(self, began: int, identifier: int, piece: Piece, command: int, flags: int, error: int) -> None:
        """Write down that this server has done its piece of a request."""
        duration = self.now() - began
        self.log.append(began, duration, identifier, piece.offset, piece.length, 0, PIECE, command, flags, error)

    def change_in_slices(
        self,
        command: int,
        flags: int,
        offset: int,
        length: int,
        changed: Callable[[OSError | None], None],
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """As `change`, a slice a turn of the loop, so that nobody waits long. `changed` is called at the end, or when
        it is not `wanted` any more."""
        if not wanted():
            changed(None)
            return
        size = min(SLICE, length)
        try:
            self.change(command, flags, offset, size)
        except OSError as error:
            changed(error)
            return
        if size == length:
            changed(None)
        else:
            rest = offset + size, length - size
            self.loop.soon(lambda: self.change_in_slices(command, flags, *rest, changed, wanted))

    def change(self, command: int, flags: int, offset: int, length: int) -> None:
        """Carry out a command on the shard that takes and gives no bytes. Raises OSError."""
        if command == Command.FLUSH:
            self.shard.sync_all()
        elif command in ZEROING and length:
            self.shard.zero(offset, length, keep=bool(flags & CommandFlag.NO_HOLE))
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
