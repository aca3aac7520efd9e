"""The staging area: memory that the servers of one host share, for the payloads of writes on their way to a shard.

The primary receives a payload here, or copies it here, and tells a secondary where it lies; the secondary, which can
only read here, copies it into its shard by itself. So nobody but its server ever writes to a shard. All of the area is
given room when it is made, so that it can be written to however full the file system is. A server that starts makes a
new one: what the last one has announced stays as it was for those who still have that one mapped.
"""

from __future__ import annotations

import mmap
import os
import secrets
from contextlib import suppress
from struct import Struct
from typing import Final

from memcluster.node.files import open_file
from memcluster.node.nbd.server import Request
from memcluster.node.serving.pool import users_of

BLOCK: Final = 1 << 20
"""Bytes of a block: the longest payload that is staged. Longer ones go to their server as they are."""
LEAST: Final = 1 << 15
"""Bytes of the shortest: what is shorter costs less to send than to be told where it lies (4 KiB: 1 us less)."""
BLOCKS: Final = 16
HEAD: Final = 4096
"""Bytes before the first block, of which the first ones are the token."""
TOKEN: Final = 16
SIZE: Final = HEAD + BLOCKS * BLOCK
GRAIN: Final = 64
"""Payloads begin at multiples of so many bytes."""
MOST_SPANS: Final = 256
"""Of a payload that is announced in parts."""

SPAN: Final = Struct(">II")
"""Where a part of a payload lies in the area, and its bytes."""
IN_PLACE: Final = 1 << 12
"""The flag of a READ that may be answered "the bytes are where they are", and of a WRITE whose payload on the link is
the spans of the real one in the staging area. It is not logged."""

_NOTHING: Final = memoryview(b"")


def agreement(token: bytes, identity: tuple[int, int]) -> str:
    """The word by which both sides of a link know that they share memory: who says it has read the token in the staging
    area, and has the file of this device and inode as the shard."""
    return f"x-memcluster:shared/{token.hex()}/{identity[0]:x}/{identity[1]:x}"


class Staging:
    """The area as the one that fills it has it. A block is used again when the last view of it is gone."""

    def __init__(self, path: str) -> None:
        """Make it, in the place of an earlier one. Raises OSError when there is no room."""
        self.token = secrets.token_bytes(TOKEN)
        with suppress(FileNotFoundError):
            os.unlink(path)
        file = open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(file, 0, SIZE)
            os.pwrite(file, self.token, 0)
            # Each block is mapped by itself, so that who refers to it can be counted.
            self._blocks = [mmap.mmap(file, BLOCK, offset=HEAD + index * BLOCK) for index in range(BLOCKS)]
        except OSError:
            with suppress(OSError):
                os.unlink(path)
            raise
        finally:
            os.close(file)
        self._current = _NOTHING
        self._begin = 0  # of the current block in the area
        self._used = BLOCK  # bytes of it

    def __repr__(self) -> str:
        return f"<Staging {sum(self._is_free(index) for index in range(BLOCKS))} of {BLOCKS} blocks free>"

    def take(self, length: int) -> tuple[memoryview, int] | None:
        """Room for a payload, and where it lies; None if there is none."""
        start = self._used
        if start + length > BLOCK:
            if length > BLOCK or not self._next_block():
                return None
            start = 0
        self._used = start + length + GRAIN - 1 & -GRAIN
        return self._current[start : start + length], self._begin + start

    def stow(self, request: Request) -> None:
        """The payload of a WRITE that lies in the receive buffer: copy it, if there is room. Else it stays there."""
        payload, taken = request.payload, self.take(request.length)
        if payload is not None and taken is not None:
            request.payload, request.at = taken
            request.payload[:] = payload
            request.owned, request.placed = True, False

    def close(self) -> None:
        """Unmap the area, each block now or when nobody refers to it any more."""
        self._current = _NOTHING
        for block in self._blocks:
            with suppress(BufferError):
                block.close()

    def _next_block(self) -> bool:
        self._current = _NOTHING  # it may be the next one
        self._used = BLOCK
        for index in range(BLOCKS):
            if self._is_free(index):
                self._current = memoryview(self._blocks[index])
                self._begin = HEAD + index * BLOCK
                return True
        return False

    def _is_free(self, index: int) -> bool:
        return not users_of(self._blocks, index)


class Staged:
    """The area as the one that copies out of it has it."""

    def __init__(self, path: str) -> None:
        """Raises OSError if there is none."""
        file = open_file(path, os.O_RDONLY)
        try:
            if os.fstat(file).st_size != SIZE:
                raise OSError(f"{path} is no staging area")
            self._view = memoryview(mmap.mmap(file, SIZE, prot=mmap.PROT_READ))
        finally:
            os.close(file)
        self.token = bytes(self._view[:TOKEN])

    def find(self, spans: memoryview) -> tuple[list[memoryview], int]:
        """The parts of a payload, and their bytes in all. Raises ValueError if it cannot be one."""
        if not spans or len(spans) % SPAN.size:
            raise ValueError(f"{len(spans)} bytes of spans")
        found, total = [], 0
        for at, length in SPAN.iter_unpack(spans):
            if not length or at < HEAD or at + length > SIZE:
                raise ValueError(f"a span of {length} bytes at {at} in the staging area")
            found.append(self._view[at : at + length])
            total += length
        return found, total
