"""Holds the merged log, and what the nodes keep in memory, against what the README promises of them. Pure.

once      A request that was acknowledged stands in the log exactly once, and so does each of its pieces, on every
          server that has done one. What was not acknowledged stands there as often as it was sent, at most.
before    A cause stands before its effects: no piece before its request.
rest      When all clients have gone nothing of them is left: no slot, no bytes of a budget, no ticket, no gate, nothing
          in flight.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from memcluster.node.layout import Layout
from memcluster.node.log.record import Kind, Record, format_identifier
from memcluster.node.nbd.wire import Command
from memcluster.node.serving.server import CLIENTS_MEMORY
from memcluster.simulator.history import Operation

NEVER = 1 << 63
REQUEST, PIECE = int(Kind.REQUEST), int(Kind.PIECE)
Entry = tuple[int, Record]
"""The server that wrote it, and the record."""
Time = Callable[[int, Record], int]
Nodes = Callable[[Operation, int], list[int]]
"""The servers on which pieces of an operation must stand that this server has answered."""


def check_log(
    entries: Iterable[Entry], operations: Iterable[Operation], nodes: Nodes, time: Time, missing: int = 0
) -> list[str]:
    """What is wrong with the log, as sentences; `time` tells when a record began by the clock of the operations. So
    many records are `missing`, and the log says so."""
    told: list[str] = []
    absent: list[str] = []
    requests: set[int] = set()
    by_key: dict[tuple[int, int, int], list[tuple[Record, int]]] = defaultdict(list)
    counts: Counter[tuple[int, int, int]] = Counter()
    early: set[int] = set()
    for server, record in entries:
        if record.kind not in (REQUEST, PIECE):
            continue
        name = format_identifier(record.identifier)
        counts[record.kind, record.identifier, server] += 1
        if record.kind == PIECE:
            if record.identifier not in requests:
                early.add(record.identifier)
            continue
        if record.identifier in early:
            told.append(f"before: a piece of {name} stands before it")
        requests.add(record.identifier)
        if not record.error:
            by_key[record.operation, record.offset, record.length].append((record, server))
    for (kind, identifier, server), count in counts.items():
        if count > 1:
            what = "request" if kind == REQUEST else "piece"
            told.append(f"once: the {what} {format_identifier(identifier)} stands {count} times on server{server}")
    asked: dict[tuple[int, int, int], list[Operation]] = defaultdict(list)
    for operation in operations:
        asked[int(Command[operation.kind]), operation.offset, operation.length].append(operation)
    for key, found in asked.items():
        told += _check_key(found, by_key.pop(key, []), counts, nodes, time, absent)
    for (operation_code, offset, length), left in by_key.items():
        what = f"{Command(operation_code).name} of {length} bytes at {offset:#x}"
        told.append(f"once: {len(left)} records of {what}, which nobody asked for")
    return told + (absent if len(absent) > missing else [])


def _check_key(
    operations: list[Operation],
    records: list[tuple[Record, int]],
    counts: Counter[tuple[int, int, int]],
    nodes: Nodes,
    time: Time,
    absent: list[str],
) -> list[str]:
    """The operations of one kind on the same bytes: each record is given to the one that ends first of those that can
    have it, to the acknowledged ones before the others. What is not there is `absent`."""
    told = []
    must = sorted((one for one in operations if one.acknowledged), key=lambda one: one.returned)
    more = {id(one): one.repeats + (not one.acknowledged) for one in operations}
    for record, server in sorted(records):
        began = time(server, record)
        own = next((one for one in must if one.invoked <= began <= one.returned), None)
        name = format_identifier(record.identifier)
        if own is not None:
            must.remove(own)
            for node in nodes(own, server):
                if not counts[PIECE, record.identifier, node]:
                    absent.append(f"once: no piece of {name} ({_words(own)}) stands on server{node}")
            continue
        other = next(
            (
                one
                for one in operations
                if more[id(one)] and one.invoked <= began <= (one.returned if one.acknowledged else NEVER)
            ),
            None,
        )
        if other is None:
            told.append(f"once: {name} is one record too many of {_words(operations[0])}")
        else:
            more[id(other)] -= 1
    absent += [f"once: no record of {_words(one)}, which was acknowledged" for one in must]
    return told


def _words(operation: Operation) -> str:
    where = f"{operation.length} bytes at {operation.offset:#x}"
    return f"{operation.kind} {operation.number} of {operation.client}, {where}"


def routed(layout: Layout, operation: Operation) -> list[Operation]:
    """What the client that routes makes of an operation: one on each server, logged under the address of its first byte
    in the whole memory. What is sent again is logged once: it has the same identifier."""
    operation = operation._replace(repeats=0)
    if operation.kind == "FLUSH":
        return [operation._replace(offset=layout.address(server, 0)) for server in range(len(layout.sizes))]
    return [
        operation._replace(offset=layout.address(piece.server, piece.offset), length=piece.length)
        for piece in layout.split(operation.offset, operation.length, spans=False)
    ]


def logged_at(topology: str, layout: Layout, operation: Operation, answered: int) -> list[int]:
    """Where pieces of an operation stand: with a primary nowhere if it carries it out alone; in a chain on all servers,
    unless there was none and the head answered; a dispatcher's own record is of no bytes; clients that route make
    requests without pieces."""
    if topology == "client-routed" or (topology == "chain" and answered == 0):
        return []
    if topology == "chain" or operation.kind == "FLUSH":
        return list(range(len(layout.sizes)))
    servers = [piece.server for piece in layout.split(operation.offset, operation.length, spans=False)]
    if topology == "dispatcher":
        servers = [0, *servers]
    return [] if servers == [0] else servers


def unrest(name: str, role: Any) -> list[str]:
    """Rule `rest`: what a server still holds of its clients, as sentences."""
    found: list[tuple[str, object]] = [
        ("clients", len(role.connections) if not role.private else 0),
        ("bytes of the clients' budget", CLIENTS_MEMORY - role.budget.left if not role.private else 0),
        ("slots", len(role.admission._slots._taken) if not role.private else 0),
        ("requests that take several turns", len(role.under_way)),
        ("payloads on their way into the shard", role._landing._sender is not None),
    ]
    for server, link in getattr(role, "_links", {}).items():
        found.append((f"requests to server{server}", len(link._in_flight)))
    for server, sent in getattr(role, "_sent", {}).items():
        found.append((f"orders to server{server}", len(sent) + len(role._waiting[server])))
    for what, table in (("tickets", "_free_tickets"), ("gates", "_free_gates")):
        if (slots := getattr(role, table, None)) is not None:
            found.append((what, len(slots._taken)))
    found.append(("clients that leave", len(getattr(role, "_leaving", ()))))
    found.append(("clients' sockets", len(getattr(role, "_sockets", ()))))
    found.append(("clients that were handed over", sum(map(len, getattr(role, "_adopted", {}).values()))))
    return [f"rest: {name} still has {count} {what}" for what, count in found if count]


def first_of(rules: Sequence[str]) -> str:
    """The rule that the first finding is of."""
    return rules[0].partition(":")[0] if rules else ""
