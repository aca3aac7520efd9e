"""The map of a cluster as its export cluster.json says it: fetched, and checked before anybody believes it."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass, replace
from typing import Any

from memcluster.client.connection import Connection
from memcluster.client.errors import ClusterError, Timeout
from memcluster.client.handshake import opening
from memcluster.client.pending import Pending
from memcluster.client.system import KERNEL, Steps, System, finish
from memcluster.client.uri import Target
from memcluster.node.layout import Layout, make_layout
from memcluster.node.nbd.printable import printable, shown
from memcluster.node.nbd.wire import MAX_PAYLOAD, Command

MAX_MAP = 1 << 20
"""Bytes of a cluster's map, at most."""
MAX_SERVERS = 1000
"""In a map, at most; ours have less."""
MAX_MEMORY = 1 << 63
MAX_TEXT = 300
"""Characters of any text in a map: an address has the path of a unix socket."""


@dataclass(frozen=True)
class ClusterMap:
    """What a client must know of a cluster to route: `export` is the name under which each server knows this map."""

    export: str
    document: dict[str, Any]
    layout: Layout
    servers: tuple[Target, ...]


def reading_map(system: System, target: Target, seconds: float) -> Steps[bytes]:
    """What the export cluster.json says. Raises ClusterError."""
    deadline = system.monotonic() + seconds
    target = replace(target, export="cluster.json")
    opened = yield from opening(system, target, seconds)
    connection = Connection(target, reconnect=False, opened=opened, system=system)
    try:
        size = connection.session.size
        if not 0 < size <= MAX_MAP:
            return b""
        pending = connection.submit(Pending(Command.READ, 0, min(size, MAX_PAYLOAD)))
        while not pending.done:
            if system.monotonic() >= deadline:
                raise Timeout(target, "answer", seconds)
            descriptors, until = connection.interest
            yield descriptors, min(until, deadline)
        return bytes(pending.wait().data or b"")
    finally:
        connection.close()


def read_document(target: Target, timeout: float) -> dict[str, Any]:
    """The map as it stands there, checked. Raises ClusterError if there is none."""
    return parse_document(finish(KERNEL, reading_map(KERNEL, target, timeout)), target)


def parse_document(content: bytes, entry: Target) -> dict[str, Any]:
    """The map as plain data; of what stands in it all that has a meaning here is as it must be. Raises ClusterError."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):  # some servers have one content under every name
        document = None
    if not isinstance(document, dict) or "servers" not in document:
        raise ClusterError(f"{entry} serves no map of a cluster")
    try:
        _check(document)
    except ValueError as error:
        raise ClusterError(f"{entry} serves a map that cannot be right: {error}") from error
    return document


def parse_map(content: bytes, entry: Target) -> ClusterMap:
    """A map to route by. Raises ClusterError."""
    import hashlib  # late: it loads OpenSSL, and only who routes needs it

    document = parse_document(content, entry)
    try:
        servers = document["servers"]
        if not servers:
            raise ValueError("it has no servers")
        layout = make_layout([server["memory"] for server in servers], document["layout"].get("stripe", 0))
        targets = tuple(_reachable(_target(server["address"]), entry) for server in servers)
    except KeyError as error:
        raise ClusterError(f"{entry} serves a map to which something is missing: {error.args[0]}") from error
    except ValueError as error:
        raise ClusterError(f"{entry} serves a map that cannot be right: {error}") from error
    return ClusterMap(f"part-{hashlib.sha256(content).hexdigest()[:16]}", document, layout, targets)


# -- what must be so; ValueError says what is not ------------------------------------------------------------------


def _check(document: dict[str, Any]) -> None:
    for key in ("cluster", "topology", "fan_out"):
        _check_text(key, document.get(key, ""))
    layout = document.get("layout", {})
    if not isinstance(layout, dict):
        raise ValueError(f"its layout is {shown(layout)}")
    _check_text("layout", layout.get("kind", ""))
    stripe = layout.get("stripe", 0)
    _check_number("stripe", stripe)
    if stripe & (stripe - 1):
        raise ValueError(f"stripes of {stripe} bytes are no power of two")
    servers = document["servers"]
    if not isinstance(servers, list) or len(servers) > MAX_SERVERS or not all(isinstance(one, dict) for one in servers):
        raise ValueError(f"its servers are {shown(servers)}")
    for index, server in enumerate(servers):
        _check_server(f"server {index}'s", server)
    total = sum(server.get("memory", 0) for server in servers)
    _check_number("memory", document.get("memory", total))
    if document.get("memory", total) != total:
        raise ValueError(f"its servers have {total} bytes, and all of it is {document['memory']}")
    if total > MAX_MEMORY:
        raise ValueError(f"its memory is {total} bytes")


def _check_server(whose: str, server: dict[str, Any]) -> None:
    for key in ("name", "role"):
        _check_text(f"{whose} {key}", server.get(key, ""))
    _check_number(f"{whose} memory", server.get("memory", 0))
    if "address" in server:
        _check_text(f"{whose} address", server["address"])
        _target(server["address"])
    span = server.get("range")
    if span is not None:
        if not isinstance(span, list) or len(span) != 2:
            raise ValueError(f"{whose} range is {shown(span)}")
        for end in span:
            _check_number(f"{whose} range", end)


def _check_text(what: str, text: object) -> None:
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        raise ValueError(f"{what} is {shown(text)}")


def _check_number(what: str, number: object) -> None:
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= MAX_MEMORY:
        raise ValueError(f"{what} is {shown(number)}")


def _target(address: str) -> Target:
    """Where a server is."""
    if path := address.removeprefix("unix:") if address.startswith("unix:") else "":
        if "\0" not in path:
            return Target(path=path)
    else:
        host, _, port = address.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if host and port.isascii() and port.isdigit() and 0 < int(port[:6]) < 1 << 16 and len(port) < 6:
            return Target(host, int(port))
    raise ValueError(f"{shown(address)} is no address")


def _reachable(target: Target, entry: Target) -> Target:
    """A server of a cluster that was found at `entry`, with TLS as there; unix sockets are this machine's, and not
    another's to name."""
    if target.path and not (entry.path or entry.host == "localhost" or _number_of(entry.host, "is_loopback")):
        raise ValueError(f"a server of another machine is not at {printable(str(target))}")
    if _number_of(target.host, "is_unspecified"):
        raise ValueError(f"{target.host} is no place to connect to")
    return replace(target, tls=entry.tls)


def _number_of(host: str, what: str) -> bool:
    try:
        return bool(getattr(ipaddress.ip_address(host), what))
    except ValueError:
        return False
