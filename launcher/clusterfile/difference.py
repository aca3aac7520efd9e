"""What runs held against what cluster.yaml says now, key by key, and what it takes to have the second. No I/O.

Both are descriptions with every default filled in, as `memcluster config` prints them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from memcluster.client.units import parse_size
from memcluster.node.topology import DEFAULT, load

SHAPE = ("memory", "servers", "topology", "layout", "storage")
"""Shards made with other values of these are not taken: the bytes have to be copied."""
DOORS = "servers' listen"
"""The key, which the file has not, of the addresses of the servers behind the first."""
AT_ONCE = {
    *("fan_out", "insecure_network", "metrics", "stop_timeout", "retry_timeout", "hang_timeout"),
    *(f"clients.{key}" for key in ("limit", "per_address", "handshake_timeout", "stall_timeout")),
    *(f"logs.{key}" for key in ("retain", "retain_age", "level", "sample")),
    *(f"restart.{key}" for key in ("cap", "reset", "deaths", "within")),
}
"""What running nodes can be told."""

REASONS = {
    "storage": "the bytes are copied to a memory that begins empty: `memclient copy` does that",
    "user": "no process that runs becomes another user's",
    "logs": "the log of a run lies in one folder",
}
"""Why a key, or those below it, cannot be changed while the cluster runs, where that is not plain."""


class How(StrEnum):
    """What it takes to have a key as it is written."""

    AT_ONCE = "at once"
    NEXT_START = "next start"


@dataclass(frozen=True)
class Change:
    """A key whose values differ; None: it is not there. `means` says what comes of it, once it is applied."""

    key: str
    running: Any
    written: Any
    how: How
    means: str


def differences(running: str, written: str) -> list[Change]:
    """In the order of the file."""
    before, after = _flat(running), _flat(written)
    found = []
    for key in dict.fromkeys([*before, *after]):
        was, will = before.get(key), after.get(key)
        if was != will:
            how = _how(key, after.get("topology", DEFAULT))
            found.append(Change(key, was, will, how, _means(key, was, will, how)))
    return found


def reshapes(changes: Sequence[Change]) -> bool:
    """Whether the bytes have to be copied."""
    return any(_is_of_shape(change.key) for change in changes)


def _how(key: str, topology: str) -> How:
    if key not in AT_ONCE or (key == "fan_out" and load(topology).every_server_is_a_door):  # clients do it there
        return How.NEXT_START
    return How.AT_ONCE


def _means(key: str, before: Any, after: Any, how: How) -> str:
    if how is How.AT_ONCE:
        return "at once, without a restart"
    if key == "memory" and parse_size(after) < parse_size(before):
        return f"smaller: the bytes from {after} on are lost"
    if _is_of_shape(key):
        return "the bytes are copied to other shards"
    if key in ("listen", DOORS):
        return "clients find it at another address"
    return "from the next start on"


def _is_of_shape(key: str) -> bool:
    return key.partition(".")[0] in SHAPE


def _flat(text: str) -> dict[str, Any]:
    import yaml  # late: the supervisor need not wait for it

    document = yaml.safe_load(text)
    document.pop("name", None)  # another name is another cluster
    servers = document.pop("servers")
    document["servers"] = ", ".join(server["memory"] for server in servers)
    doors = [str(server.get("listen", "")) for server in servers[1:]]  # the first one's is `listen`
    if any(doors):
        document[DOORS] = ", ".join(doors)
    return dict(_leaves("", document))


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(f"{prefix}.{key}" if prefix else str(key), inner)
    else:
        yield prefix, value.replace("$$", "$") if isinstance(value, str) else value
