"""The map of a cluster as a client that routes needs it: fetched from the export cluster.json, and checked."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from memcluster.client.connection import Connection
from memcluster.client.errors import ClusterError
from memcluster.client.uri import DEFAULT_PORT, Target
from memcluster.node.layout import Layout, make_layout
from memcluster.node.nbd.wire import MAX_PAYLOAD, Command

MAX_MAP = 1 << 24
"""Bytes of a cluster's map, at most."""


@dataclass(frozen=True)
class ClusterMap:
    """What a client must know of a cluster to route: `export` is the name under which each server knows this map."""

    export: str
    document: dict[str, Any]
    layout: Layout
    servers: tuple[Target, ...]


def read_map(target: Target, timeout: float) -> bytes:
    """What the export cluster.json says. Raises ClusterError."""
    connection = Connection(replace(target, export="cluster.json"), timeout=timeout, reconnect=False)
    try:
        size = connection.session.size
        if not 0 < size <= MAX_MAP:
            return b""
        return bytes(connection.submit(Command.READ, 0, min(size, MAX_PAYLOAD)).wait().data or b"")
    finally:
        connection.close()


def read_document(target: Target, timeout: float) -> dict[str, Any]:
    """The map as it stands there. Raises ClusterError if there is none."""
    try:
        found = json.loads(read_map(target, timeout))
    except ValueError:  # some servers have one content under every name
        found = None
    if not isinstance(found, dict) or "servers" not in found:
        raise ClusterError(f"{target} serves no map of a cluster")
    return found


def parse_map(content: bytes, entry: Target) -> ClusterMap:
    """Raises ClusterError if it is none."""
    import hashlib  # late: it loads OpenSSL, and only who routes needs it

    try:
        document = json.loads(content)
        stripe = document["layout"].get("stripe", 0)
        layout = make_layout([int(server["memory"]) for server in document["servers"]], int(stripe))
        servers = tuple(_target(str(server["address"]), entry) for server in document["servers"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ClusterError(f"{entry} serves no map of a cluster") from error
    return ClusterMap(f"part-{hashlib.sha256(content).hexdigest()[:16]}", document, layout, servers)


def _target(address: str, entry: Target) -> Target:
    if address.startswith("unix:"):
        return Target(path=address.removeprefix("unix:"))
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if host in ("0.0.0.0", "::"):  # everywhere: so it is where the entry is
        host = entry.host or "localhost"
    return Target(host, int(port or DEFAULT_PORT))
