"""What runs held against what cluster.yaml says now, key by key, and what it takes to have the second. Pure.

Both are descriptions with every default filled in, as `memcluster config` prints them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from memcluster.client.units import parse_size

SHAPE = ("memory", "servers", "topology", "layout", "storage")
"""Shards made with other values of these are not taken: the bytes have to be copied."""
DOORS = "servers' listen"
"""The key, which the file has not, of the addresses of the servers behind the first."""


@dataclass(frozen=True)
class Change:
    """A key whose values differ; None: it is not there. `means` says what comes of it, once it is applied."""

    key: str
    running: Any
    written: Any
    means: str


def differences(running: str, written: str) -> list[Change]:
    """In the order of the file."""
    before, after = _flat(running), _flat(written)
    return [
        Change(key, before.get(key), after.get(key), _means(key, before.get(key), after.get(key)))
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    ]


def reshapes(changes: Sequence[Change]) -> bool:
    """Whether the bytes have to be copied."""
    return any(_is_of_shape(change.key) for change in changes)


def _means(key: str, before: Any, after: Any) -> str:
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
