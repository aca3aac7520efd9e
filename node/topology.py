"""What a topology is to those who start it. Each lies in a file of its own in topologies/, under its name, and says
there where a client's request goes and who answers it; nothing else in the code knows one from another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

PACKAGE = "memcluster.node.topologies"
DEFAULT = "primary-secondary"
"""What `topology` is where cluster.yaml does not say."""


@dataclass(frozen=True)
class Topology:
    """`roles` are the classes of its servers: that of server 0 first, then that of the others, then that of the last
    one if it is called otherwise."""

    roles: dict[str, Callable[..., Any]]
    links: Callable[[int], Sequence[tuple[int, int]]]
    """Which servers of so many talk to one another, the one that connects first."""
    dispatches: bool = False
    """Server 0 owns no memory: it comes before those that cluster.yaml speaks of."""
    hands_over: bool = False
    """Servers give one another the clients' sockets: they must share a kernel, and all but server 0 listen on unix
    sockets. Whoever answers a client logs its request; elsewhere that is the server that took it."""
    every_server_is_a_door: bool = False
    """Clients connect to all servers, and not to server 0 alone."""
    fans_out: bool = True
    """Pieces may go out one after the other or all at once: `fan_out` makes a difference."""

    shares: bool = False
    """Servers may share memory over their links: `links` makes a difference."""

    def role(self, server: int, count: int) -> str:
        """What a server is called, of so many."""
        first, *others = self.roles
        if not server or not others:
            return first
        return others[-1] if server == count - 1 else others[0]


def names() -> tuple[str, ...]:
    """What `topology` may be in cluster.yaml."""
    found = (path.stem for path in (Path(__file__).parent / "topologies").glob("*.py"))
    return tuple(sorted(name.replace("_", "-") for name in found if name != "__init__"))


def module(name: str) -> str:
    """Where a topology lies, for those who import it ahead of time."""
    return f"{PACKAGE}.{name.replace('-', '_')}"


def load(name: str) -> Topology:
    """The topology of this name, which must be one of `names()`."""
    found: Topology = import_module(module(name)).TOPOLOGY
    return found
