"""The memory that lies in a folder is claimed for a cluster that is about to start: made where there is none, found to
be whole and its own, or brought to the end of a change that was under way when everything died."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from memcluster.launcher.run.memory import (
    MOST_SHOWN,
    Claim,
    MemoryMismatch,
    Shape,
    check_whole,
    make_memory,
    name_begun,
    read_claim,
)
from memcluster.launcher.run.reshape import finish
from memcluster.node.nbd.printable import printable


def claim_memory(
    directory: Path,
    cluster: str,
    sizes: list[int],
    stripe: int,
    hosts: Sequence[str] = (),
    elsewhere: Callable[[str, bool], None] = lambda _memory, _made: None,
) -> Shape:
    """Raises MemoryMismatch, and then nothing has changed, and OSError.

    Where `hosts` names that of each server, "" for this one, the memory has a name, and `elsewhere(name, made)` sees to
    the other hosts' shards: before this host says that all are made, or after it has found its own."""
    wanted = Shape(tuple(sizes), stripe)
    claim = read_claim(directory)
    if claim is None:
        memory = (name_begun(directory) or secrets.token_hex(16)) if hosts else ""
        made = Claim(cluster, wanted, hosts=tuple(hosts), memory=memory)
        make_memory(directory, made.encode(), made.here, lambda: elsewhere(memory, False))
        return wanted
    own = claim.cluster == cluster and claim.hosts == tuple(hosts)
    if own and claim.new is not None and (claim.new.is_like(wanted) or claim.shape.is_like(wanted)):
        check_whole(directory, claim)
        claim = finish(directory, claim, forward=claim.new.is_like(wanted))
    elif own and claim.leftover and claim.shape.is_like(wanted):
        check_whole(directory, claim)
        claim = finish(directory, claim, forward=True)
    if not own or claim.new is not None or not claim.shape.is_like(wanted):
        here, ours = _described(claim), _described(Claim(cluster, wanted, hosts=tuple(hosts)))
        raise MemoryMismatch(printable(f"{directory} holds another memory: {here}; this one is {ours}"))
    check_whole(directory, claim)
    elsewhere(claim.memory, True)
    return claim.shape


def _described(claim: Claim) -> str:
    way = "" if claim.new is None else f", on the way to {claim.new}"
    at = ", ".join(host[:60] or "this host" for host in claim.hosts[:MOST_SHOWN])
    return f"cluster {claim.cluster[:60]}, {claim.shape}{way}{f', on {at}' if at else ''}"
