"""Holds what processes said to one another against their protocols. Pure.

spoken    No client and no server hears what makes no sense: replies are not mixed on a client's stream, and an order
          comes only where it may. All who speak are the cluster's own, so who breaks off for that has found a fault.
"""

from __future__ import annotations

from collections.abc import Iterable

from memcluster.simulator.history import Operation

TO_CLIENTS = "broke the protocol"
"""What the library says of a server."""
TO_SERVERS = "who passes orders on: "
"""What a server says of who passes orders on."""


def check_words(operations: Iterable[Operation], happened: Iterable[tuple[int, tuple[object, ...]]]) -> list[str]:
    """What was not understood, as sentences; from what clients saw, and from a world's trace."""
    told = [
        f"spoken: {one.client} gave up {one.kind} {one.number}: {one.why}"
        for one in operations
        if TO_CLIENTS in one.why
    ]
    for _, words in happened:
        if len(words) == 3 and words[1] == "says" and TO_SERVERS in str(words[2]):
            told.append(f"spoken: {words[0]} says: {words[2]}")
    return told
