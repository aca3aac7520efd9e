"""What a topology makes of the servers of cluster.yaml: the server processes, their roles, and where each listens."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.clusterfile.settings import ClusterConfig
from launcher.run.directory import RunDirectory
from node import topology
from node.transport.address import Address


@dataclass(frozen=True)
class Place:
    """One server process, in the order of their numbers; `memory` in bytes."""

    role: str
    memory: int
    listen: Address


def places(config: ClusterConfig, run: RunDirectory) -> tuple[Place, ...]:
    """A dispatcher comes before the servers that own the memory. Servers that are handed the clients' sockets listen
    in the run directory: sockets can be handed over unix sockets only."""
    shape = topology.load(config.topology)
    found = [(server.memory, server.listen) for server in config.servers]
    if shape.dispatches:
        found.insert(0, (0, config.servers[0].listen))
    if shape.hands_over:
        found[1:] = [
            (memory, Address(path=str(run.path / f"server{index}.sock")))
            for index, (memory, _) in enumerate(found[1:], start=1)
        ]
    return tuple(Place(shape.role(index), memory, listen) for index, (memory, listen) in enumerate(found))
