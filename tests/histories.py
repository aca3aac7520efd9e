"""What clients did, for tests: an operation in a word or two."""

from __future__ import annotations

from memcluster.simulator.history import BLOCK, Operation


def write(tag: int, begin: int, end: int, outcome: str = "acknowledged", *, client: str = "one", number: int = 0,
          kind: str = "WRITE", block: int = 0, blocks: int = 1, repeats: int = 0) -> Operation:  # fmt: skip
    """A write of `blocks` blocks."""
    return Operation(
        client, number or begin, kind, block * BLOCK, blocks * BLOCK, tag, begin, end, outcome, repeats, [], ""
    )
