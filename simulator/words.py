"""Holds what processes said to one another against their protocols. Pure.

spoken    No client and no server hears what makes no sense: replies are not mixed on a client's stream, and an order
          comes only where it may. All who speak are the cluster's own, so who breaks off for that has found a fault.
kept      No client loses its connection for the death of a server that was over before it came.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from memcluster.node.log.record import Event, Kind
from memcluster.simulator.history import Operation
from memcluster.simulator.logrules import Entry
from memcluster.simulator.world import Happening

TO_CLIENTS = "broke the protocol"
"""What the library says of a server."""
TO_SERVERS = "who passes orders on: "
"""What a server says of who passes orders on."""
TORN = re.compile(r"client (\d+): server\d+ (?:died in the middle of a reply|cannot send it anything)")
"""What the first server says of a client on whose stream somebody died."""


def check_words(operations: Iterable[Operation], happened: Iterable[Happening]) -> list[str]:
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


def check_torn(entries: Iterable[Entry], happened: Iterable[Happening], epoch: int) -> list[str]:
    """Who lost the connection for nothing, as sentences; the log's times are `epoch` after the trace's."""
    told: list[str] = []
    torn: list[tuple[int, int, str]] = []
    deaths: list[int] = []
    for when, words in happened:
        if len(words) == 3 and words[1] == "says" and (found := TORN.search(str(words[2]))):
            torn.append((when, int(found[1]), found[0]))
        elif len(words) == 3 and words[1] == "ends:" and str(words[0]).startswith("server"):
            deaths.append(when)
    for when, client, sentence in torn:
        came = [
            record.start - epoch
            for server, record in entries
            if (record.kind, record.operation, record.client) == (Kind.EVENT, Event.CONNECTED, client)
            and not server
            and record.start - epoch <= when
        ]
        if came and not any(max(came) <= death <= when for death in deaths):
            told.append(f"kept: nobody has died since it came: {sentence}")
    return told
