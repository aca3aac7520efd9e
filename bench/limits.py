"""The limits: what the kernel and the memory of this machine give to two programs that do nothing but move bytes."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from bench.native import compiled
from bench.pairs import Wire
from bench.processes import run
from memcluster.node.serving.waiting import keep_awake, may_keep_awake

BLOCKS = (4 << 10, 1 << 20)


def wire(shape: Wire, seconds: float, transport: str = "tcp") -> float:
    """Replies a second, with `depth` requests in flight on one connection."""
    numbers = shape.hops, shape.request, shape.reply, shape.depth, seconds
    with keep_awake() if shape.depth == 1 and may_keep_awake() else nullcontext():  # as a server does
        return float(run(compiled("wire.c"), transport, *map(str, numbers), timeout=seconds + 60))


def flood(size: int, count: int) -> float:
    """The share of so many UDP datagrams that arrives if nobody slows the sender down."""
    return float(run(compiled("wire.c"), "flood", str(size), str(count)))


def copies(seconds: float) -> dict[str, Any]:
    """Bytes a second that memcpy moves, by the size of the blocks."""
    return {str(block): float(run(compiled("wire.c"), "memcpy", str(block), str(seconds))) for block in BLOCKS}
