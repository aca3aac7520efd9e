"""What runs held against what cluster.yaml says now, key by key, and what it takes to have the second. No I/O.

Both are descriptions with every default filled in, as `memcluster config` prints them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from memcluster.client.units import format_size, parse_size
from memcluster.node.layout import Layout, make_layout, same_places
from memcluster.node.topology import DEFAULT, load

SHAPE = ("memory", "servers", "servers' host", "layout", "storage")
"""Shards made with other values of these are not taken: the bytes have to be copied."""
DOORS = "servers' listen"
"""The key, which the file has not, of the addresses of the servers behind the first."""
HOMES = "servers' host"
"""The same for where they run."""
AT_ONCE = {
    *("fan_out", "insecure_network", "metrics", "stop_timeout", "retry_timeout", "hang_timeout"),
    *(f"clients.{key}" for key in ("limit", "per_address", "handshake_timeout", "stall_timeout")),
    *(f"logs.{key}" for key in ("retain", "retain_age", "level", "sample")),
    *(f"restart.{key}" for key in ("cap", "reset", "deaths", "within")),
}
"""What running nodes can be told."""

ANEW = {"topology", "links", "listen", DOORS, "advertise", "sockets.mode", "sockets.group"} | {
    f"tls.{key}" for key in ("mode", "certificates", "verify", "psk")
}
"""What takes every node a new start; the bytes stay where they are."""
ENDING = {"topology"} | {key for key in ANEW if key.startswith("tls.")}
"""What ends the connections of clients."""
REASONS = {
    "storage": "the bytes are copied to a memory that begins empty: `memclient copy` does that",
    "user": "no process that runs becomes another user's",
    "logs": "the log of a run lies in one folder",
}
"""Why a key, or those below it, cannot be changed while the cluster runs, where that is not plain."""
OVER_HOSTS = "over several hosts only what running nodes can be told is changed while the cluster runs"
"""The same for the other keys of a cluster with hosts."""


class How(StrEnum):
    """What it takes to have a key as it is written."""

    AT_ONCE = "at once"
    RESTART = "restart"
    MOVE = "move"
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
    old, new = _layout(before), _layout(after)
    moved = 0 if same_places(old, new) else min(old.size, new.size)
    several = HOMES in before or HOMES in after
    routed = load(after.get("topology", DEFAULT)).every_server_is_a_door
    found = []
    for key in dict.fromkeys([*before, *after]):
        was, will = before.get(key), after.get(key)
        if was != will:
            how = _how(key, moved > 0, after.get("topology", DEFAULT), several)
            ends = key in ENDING or (routed and (moved > 0 or key == "fan_out"))
            found.append(Change(key, was, will, how, _means(key, was, will, how, moved, ends)))
    return found


def reshapes(changes: Sequence[Change]) -> bool:
    """Whether the shards become others."""
    return any(_is_of_shape(change.key) for change in changes)


def _how(key: str, moves: bool, topology: str, several: bool) -> How:
    by_clients = key == "fan_out" and load(topology).every_server_is_a_door  # by the map that they have
    if key in AT_ONCE and not by_clients:
        return How.AT_ONCE
    if several:
        return How.NEXT_START
    if by_clients:
        return How.RESTART
    if _is_of_shape(key) and key != "storage":
        return How.MOVE if moves else How.RESTART
    return How.RESTART if key in ANEW else How.NEXT_START


def _means(key: str, before: Any, after: Any, how: How, moved: int, ends: bool) -> str:
    """`ends` says whether the connections of clients do."""
    if how is How.AT_ONCE:
        return "at once, without a restart"
    again = {How.RESTART: "restart: ", How.MOVE: "move: "}.get(how, "")
    clients = "clients connect again" if ends else "clients wait for a moment"
    if key == "memory" and parse_size(after) < parse_size(before):
        return f"{again}smaller: the bytes from {after} on are lost"
    if key == "memory":
        return f"{again}larger, at the end"
    if how is How.MOVE:
        return f"{again}{format_size(moved)} go to other shards; {clients} when they are there"
    if key in ("listen", DOORS, "advertise"):
        return f"{again}clients find it at another address"
    if again:
        return f"{again}{clients}"
    return "the bytes are copied to another memory" if _is_of_shape(key) else "from the next start on"


def _layout(flat: dict[str, Any]) -> Layout:
    sizes = [parse_size(size) for size in flat["servers"].split(", ")]
    stripe = flat.get("layout.stripe")
    return make_layout(sizes, 0 if stripe is None else parse_size(str(stripe)))


def _is_of_shape(key: str) -> bool:
    return key.partition(".")[0] in SHAPE


def _flat(text: str) -> dict[str, Any]:
    import yaml  # late: the supervisor need not wait for it

    document = yaml.safe_load(text)
    document.pop("name", None)  # another name is another cluster
    servers = document.pop("servers")
    document["servers"] = ", ".join(server["memory"] for server in servers)
    doors = [str(server.get("listen", "")) for server in servers[1:]]  # the first one's is `listen`
    if any(door and not door.endswith(":0") for door in doors):  # else they are where there is room
        document[DOORS] = ", ".join(doors)
    hosts = [str(server.get("host", "")) for server in servers]
    if any(hosts):
        document[HOMES] = ", ".join(host or "here" for host in hosts)
    return dict(_leaves("", document))


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(f"{prefix}.{key}" if prefix else str(key), inner)
    else:
        yield prefix, value.replace("$$", "$") if isinstance(value, str) else value
