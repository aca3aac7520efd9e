"""Holds how soon servers that begin again let clients in against who was there. Pure.

waits     A server that starts again does not wait for the others: it is ready within `WITHIN`, not counting the time in
          which it was stopped itself. When the whole cluster starts, all wait for one another.
"""

from __future__ import annotations

from collections.abc import Iterable

from memcluster.simulator.world import MS, S

WITHIN = 1500 * MS
SAID = frozenset({"running", "ready", "begins", "goes on", "ends:"})
"""What is looked at, and who says it before that, or of whom it is said behind it."""


def check_patience(happened: Iterable[tuple[int, tuple[object, ...]]]) -> list[str]:
    """What took too long, as sentences; from a world's trace."""
    told: list[str] = []
    waiting: dict[str, int] = {}
    """Servers that are not ready yet, and since when they run."""
    together = True
    for when, words in happened:
        if len(words) > 1 and words[1] not in SAID:
            continue  # nearly all of it
        match words:
            case ("the cluster is started again",):
                together = True
                waiting.clear()
            case "supervisor:", "running", *_:
                together = False
            case "supervisor:", "ready", str(server), *_:
                since = waiting.pop(server, when)
                if when - since > WITHIN:
                    told.append(f"waits: {server} was there for {(when - since) / S:.1f} s before it let clients in")
            case str(server), ("begins" | "goes on") as what if server.startswith("server") and not together:
                if what == "begins" or server in waiting:
                    waiting[server] = when
            case str(server), "ends:", *_:
                waiting.pop(server, None)
    return told
