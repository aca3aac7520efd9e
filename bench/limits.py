"""The limits: what the kernel and the memory of this machine give to two programs that do nothing but move bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from bench.native import compiled
from bench.pairs import Wire
from bench.processes import run
from node.serving.waiting import DEVICE

BLOCKS = (4 << 10, 1 << 20)


def wire(shape: Wire, seconds: float, transport: str = "tcp") -> float:
    """Replies a second, with `depth` requests in flight on one connection."""
    numbers = shape.hops, shape.request, shape.reply, shape.depth, seconds
    with _awake() if shape.depth == 1 else nullcontext():
        return float(run(compiled("wire.c"), transport, *map(str, numbers), timeout=seconds + 60))


@contextmanager
def _awake() -> Iterator[None]:
    """Keep idle processors awake, as a server does at depth 1, and where it may."""
    if not os.access(DEVICE, os.W_OK):
        yield
        return
    with open(DEVICE, "wb", buffering=0) as request:
        request.write(bytes(4))
        yield


def flood(size: int, count: int) -> float:
    """The share of so many UDP datagrams that arrives if nobody slows the sender down."""
    return float(run(compiled("wire.c"), "flood", str(size), str(count)))


def copies(seconds: float) -> dict[str, Any]:
    """Bytes a second that memcpy moves, by the size of the blocks."""
    return {str(block): float(run(compiled("wire.c"), "memcpy", str(block), str(seconds))) for block in BLOCKS}
