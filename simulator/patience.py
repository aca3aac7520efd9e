"""Holds how soon servers that begin again let clients in, and why requests are refused, against who was there. Pure.

waits     A server that starts again does not wait for the others: it is ready within `WITHIN`, not counting the time in
          which it was stopped itself. When the whole cluster starts, all wait for one another.
refused   A request is refused for a reason: there was no room; or it waited for the cluster's `retry_timeout`, and a
          server was away, stopped, cut off or slow until `LATELY` before (where clocks jump, any time may seem to have
          passed); or the cluster was shut down.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from memcluster.node.nbd.wire import Error
from memcluster.simulator.faults import Fault
from memcluster.simulator.history import ERROR, Operation
from memcluster.simulator.world import MS, NEVER, Happening, S

WITHIN = 1500 * MS
SAID = frozenset({"running", "ready", "begins", "goes on", "ends:"})
"""What is looked at, and who says it before that, or of whom it is said behind it."""
LATELY = 500 * MS


def check_patience(happened: Iterable[Happening]) -> list[str]:
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


def check_refusals(
    operations: Iterable[Operation], happened: Sequence[Happening], began: int, retry_timeout: int
) -> list[str]:
    """What was refused without need, as sentences; of faults `began` is the time from which theirs counts."""
    refused = [one for one in operations if one.outcome == ERROR]
    if not refused:
        return []
    faults = [words[1] for _, words in happened if words[0] == "fault:" and isinstance(words[1], Fault)]
    away = [(began + one.at, began + one.end + LATELY) for one in faults if one.kind in ("pause", "partition", "slow")]
    away += _absences(happened)
    full = [(began + one.at, began + one.end) for one in faults if one.kind == "full"]
    shut_down = any(one.target == "supervisor" for one in faults)
    jumps = any(one.kind == "clock" for one in faults)
    told = []
    for one in refused:
        code = int(one.why.split()[1].rstrip(":"))
        if code == Error.ENOSPC:
            reason = any(start <= one.returned and one.invoked <= end for start, end in full)
        elif code == Error.EIO:
            waited = one.returned - one.invoked >= retry_timeout
            reason = jumps or (waited and any(start <= one.returned <= end for start, end in away))
        else:
            reason = code == Error.ESHUTDOWN and shut_down
        if not reason:
            told.append(f"refused: {one.kind} {one.number} of {one.client}, without need: {one.why}")
    return told


def _absences(happened: Iterable[Happening]) -> list[tuple[int, int]]:
    """From when to when servers were dead, and a while longer."""
    found = []
    since: dict[str, int] = {}
    for when, words in happened:
        match words:
            case str(server), "ends:", *_ if server.startswith("server"):
                since[server] = when
            case "supervisor:", "ready", str(server), *_ if server in since:
                found.append((since.pop(server), when + LATELY))
    return [*found, *((start, NEVER) for start in since.values())]
