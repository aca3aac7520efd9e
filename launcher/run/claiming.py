"""The memory that lies in a folder is claimed for a cluster that is about to start: made where there is none, found to
be whole and its own, or brought to the end of a change that was under way when everything died."""

from __future__ import annotations

from pathlib import Path

from memcluster.launcher.run.memory import Claim, MemoryMismatch, Shape, check_whole, make_memory, read_claim
from memcluster.launcher.run.reshape import finish
from memcluster.node.nbd.printable import printable


def claim_memory(directory: Path, cluster: str, sizes: list[int], stripe: int) -> Shape:
    """Raises MemoryMismatch, and then nothing has changed, and OSError."""
    wanted = Shape(tuple(sizes), stripe)
    claim = read_claim(directory)
    if claim is None:
        make_memory(directory, Claim(cluster, wanted))
        return wanted
    own = claim.cluster == cluster
    if own and claim.new is not None and (claim.new.is_like(wanted) or claim.shape.is_like(wanted)):
        check_whole(directory, claim)
        claim = finish(directory, claim, forward=claim.new.is_like(wanted))
    elif own and claim.leftover and claim.shape.is_like(wanted):
        check_whole(directory, claim)
        claim = finish(directory, claim, forward=True)
    if not own or claim.new is not None or not claim.shape.is_like(wanted):
        here, ours = _described(claim), _described(Claim(cluster, wanted))
        raise MemoryMismatch(printable(f"{directory} holds another memory: {here}; this one is {ours}"))
    check_whole(directory, claim)
    return claim.shape


def _described(claim: Claim) -> str:
    way = "" if claim.new is None else f", on the way to {claim.new}"
    return f"cluster {claim.cluster[:60]}, {claim.shape}{way}"
