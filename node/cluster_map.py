"""The map of a cluster: who serves what, and where. What every node knows, and what the export cluster.json shows.

Nodes know each other only by the addresses in it, so it reads the same on one host and on many.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property

from memcluster.node.layout import Layout, make_layout


@dataclass(frozen=True)
class ServerEntry:
    """A server, its logger and its shard; addresses as text (see node/transport/address.py), `memory` in bytes."""

    address: str
    logger: str
    memory: int
    role: str
    host: str = ""
    """By the name that cluster.yaml has for it; "" is the supervisor's own."""


@dataclass(frozen=True)
class ClusterMap:
    """The whole cluster; `stripe` is 0 for the linear layout."""

    name: str
    topology: str
    fan_out: str
    stripe: int
    servers: tuple[ServerEntry, ...]

    @cached_property
    def layout(self) -> Layout:
        return make_layout([server.memory for server in self.servers], self.stripe)

    @property
    def memory(self) -> int:
        """Bytes in the whole memory."""
        return sum(server.memory for server in self.servers)

    def owned(self, role: str, index: int) -> int:
        """Bytes of the memory that a node owns."""
        return 0 if role == "logger" else self.servers[index].memory

    def range(self, role: str, index: int) -> tuple[int, int] | None:
        """[start, end) of what a node owns of the memory, if that is one range."""
        return self.layout.range(index) if self.owned(role, index) else None

    def to_json(self) -> bytes:
        """The content of the export cluster.json."""
        layout: dict[str, object] = {"kind": "stripe", "stripe": self.stripe} if self.stripe else {"kind": "linear"}
        document = {
            "cluster": self.name,
            "topology": self.topology,
            "fan_out": self.fan_out,
            "memory": self.memory,
            "layout": layout,
            "servers": [
                {
                    "name": f"server{index}",
                    "role": server.role,
                    "address": server.address,
                    "memory": server.memory,
                    "range": self.range(server.role, index),
                }
                | ({"host": server.host} if server.host else {})
                for index, server in enumerate(self.servers)
            ],
        }
        return json.dumps(document, indent=2).encode() + b"\n"
