"""Holds the merged log against what clients were told. Pure.

Each acknowledged request must be in the log, with the same operation, offset and length, at a time between its
beginning and its acknowledgement. A request that was sent again because its connection was lost may be there once
more for each time; any other record of a request in our clients' regions is one too many. Of each acknowledged
request, every server that holds bytes of it must have logged its piece exactly once. Where clients route by themselves
a part that one server holds is a request of its own there. And a cause stands before its effects: in the order of the
log no piece comes before its request, whatever the clocks show.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, NamedTuple

from bench.chaos.places import Region
from memcluster.node.layout import Layout
from memcluster.simulator import logrules
from memcluster.simulator.history import Operation

SLACK = 50_000_000
"""ns by which the clocks of processes may disagree."""
MAX_TOLD = 20
PROBE = 1
"""Bytes that `up` reads of each server, to see that it answers: not a request of a client of ours."""
Key = tuple[str, int, int]


@dataclass
class LogVerdict:
    """What is wrong with the log. Doubles are records that nothing explains."""

    requests: int = 0
    pieces: int = 0
    missing: int = 0
    missing_pieces: int = 0
    double: int = 0
    double_pieces: int = 0
    before: int = 0
    """Pieces that stand before their request."""
    told: list[str] = field(default_factory=list)

    def tell(self, sentence: str) -> None:
        if len(self.told) < MAX_TOLD:
            self.told.append(sentence)


class _Span(NamedTuple):
    """When an operation may have been logged, and how often."""

    begin: int
    end: int
    times: int
    operation: Operation


def check_log(
    entries: Iterable[Mapping[str, Any]],
    operations: Iterable[Operation],
    regions: Sequence[Region],
    nodes: Callable[[Operation, str, int], list[str]],
    clock: int,
    slack: int = SLACK,
    *,
    kept: bool = True,
    split_again: bool = False,
) -> LogVerdict:
    """`nodes` tells where pieces of an operation must be logged that began at a time (see `logged_at`); `clock` is
    what must be added to the operations' times to get the log's. If not all is `kept`, what may be gone need not be
    there: what began before the end of the first that some server still has, as records are written when they end.
    Where clients route and the map changes, what was in flight is `split_again` under its identifier."""
    verdict = LogVerdict()
    first: dict[str, int] = {}
    records: dict[Key, list[tuple[int, str]]] = defaultdict(list)
    pieces: Counter[tuple[str, str]] = Counter()
    requests: Counter[tuple[str, str]] = Counter()
    alone: Counter[str] = Counter()  # pieces whose request has not come yet
    seen: set[str] = set()
    for entry in entries:
        end = entry["time_ns"] + int(1000 * entry.get("duration_us", 0))
        first[entry["node"]] = min(end, first.get(entry["node"], end))
        if entry["kind"] == "request":
            seen.add(entry["request"])
            if early := alone.pop(entry["request"], 0):
                verdict.before += early
                verdict.tell(f"{early} pieces of {entry['request']} stand before it")
        if entry["kind"] == "piece":
            verdict.pieces += 1
            pieces[entry["request"], entry["node"]] += 1
            if entry["request"] not in seen:
                alone[entry["request"]] += 1
        elif entry["kind"] == "request" and entry["error"] is None:
            verdict.requests += 1
            requests[entry["request"], entry["node"]] += 1
            key = entry["operation"], entry["offset"], entry["length"]
            records[key].append((entry["time_ns"], entry["request"]))
    answered = dict(requests.keys())
    since = -1 if kept else max(first.values(), default=0) - clock + slack
    issued: dict[Key, list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.kind == "BLOCK_STATUS":  # the library asks as often as it needs to
            continue
        issued[operation.kind, operation.offset, operation.length].append(operation)
    for key, found in issued.items():
        _check_key(key, found, records.pop(key, []), pieces, nodes, answered, clock, slack, since, verdict)
    for (kind, offset, length), left in records.items():
        ours = any(region.offset <= offset < region.offset + region.length for region in regions)
        if ours and length != PROBE and kind not in ("FLUSH", "BLOCK_STATUS"):
            verdict.double += len(left)
            verdict.tell(f"{len(left)} records of {kind} {length} bytes at {offset:#x}, which nobody asked for")
    if not split_again:
        verdict.double += _twice("record", requests, verdict)
    verdict.double_pieces = _twice("piece", pieces, verdict)
    return verdict


def _twice(what: str, counts: Mapping[tuple[str, str], int], verdict: LogVerdict) -> int:
    """How many there are beyond the first under each identifier on each server."""
    doubles = [(identity, count) for identity, count in counts.items() if count > 1]
    for (request, node), count in doubles[:5]:
        verdict.tell(f"the {what} of {request} on {node} is there {count} times")
    return sum(count - 1 for _, count in doubles)


def _check_key(
    key: Key,
    operations: list[Operation],
    records: list[tuple[int, str]],
    pieces: Mapping[tuple[str, str], int],
    nodes: Callable[[Operation, str, int], list[str]],
    answered: Mapping[str, str],
    clock: int,
    slack: int,
    since: int,
    verdict: LogVerdict,
) -> None:
    """The operations of one kind on the same bytes."""

    def span(operation: Operation, times: int) -> _Span:
        return _Span(operation.invoked + clock - slack, operation.returned + clock + slack, times, operation)

    must = [span(operation, 1) for operation in operations if operation.acknowledged and operation.invoked > since]
    matched, _, absent = _match(must, sorted(records))
    verdict.missing += len(absent)
    for operation in absent:
        verdict.tell(f"no record of {key[0]} {operation.number} of {operation.client}, acknowledged")
    for operation, time, request in matched:
        for node in nodes(operation, answered[request], time):
            if not pieces.get((request, node)):
                verdict.missing_pieces += 1
                verdict.tell(f"no piece of {request} ({key[0]} {key[2]} bytes at {key[1]:#x}) on {node}")
    # Where each that must be there can have its record, and each record its operation, both can be had at once. A
    # request whose outcome is not known may still be carried out when its client has given up.
    may = [span(operation, operation.repeats + 1) for operation in operations]
    may = [one if one.operation.acknowledged else one._replace(end=1 << 63) for one in may]
    _, doubles, _ = _match(may, sorted(records))
    if key[0] != "FLUSH":  # others flush, too, and their flushes look the same
        verdict.double += len(doubles)
        for _, request in doubles:
            verdict.tell(f"{request} ({key[0]} {key[2]} bytes at {key[1]:#x}) is one record too many")


def _match(
    spans: list[_Span], records: list[tuple[int, str]]
) -> tuple[list[tuple[Operation, int, str]], list[tuple[int, str]], list[Operation]]:
    """Give each record, in order of time, to the open span that ends first; returns who got which, the records left
    over, and the operations that got none of theirs."""
    waiting = sorted(spans, key=lambda span: span.begin, reverse=True)
    opened: list[tuple[int, int, _Span]] = []
    pairs, left, absent = [], [], []
    for time, request in records:
        while waiting and waiting[-1].begin <= time:
            span = waiting.pop()
            heappush(opened, (span.end, len(waiting), span))
        while opened and (opened[0][0] < time or not opened[0][2].times):
            span = heappop(opened)[2]
            if span.times:
                absent.append(span.operation)
        if opened:
            end, order, span = heappop(opened)
            pairs.append((span.operation, time, request))
            if span.times > 1:
                heappush(opened, (end, order, span._replace(times=span.times - 1)))
        else:
            left.append((time, request))
    absent += [span.operation for span in (*waiting, *(span for *_, span in opened)) if span.times]
    return pairs, left, absent


def logged_at(
    topology: str, layout: Callable[[int], Layout], operation: Operation, answered: str, time: int
) -> list[str]:
    """Where pieces of the request that a node `answered` are logged, by the rule of the simulated clusters; `layout` is
    told the time at which it began."""
    number = int(answered.removeprefix("server"))
    return [f"server{server}" for server in logrules.logged_at(topology, layout(time), operation, number)]
