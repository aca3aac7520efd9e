"""What a cluster is made up of, as its description and its listening sockets have it: the map, the addresses, and what
each node is told and given when it is started. It starts nothing and asks nobody."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import replace

from memcluster.launcher.clusterfile.settings import ClusterConfig
from memcluster.launcher.run.directory import RunDirectory
from memcluster.launcher.run.maps import keep_map
from memcluster.launcher.run.memory import Shape
from memcluster.launcher.supervision import sockets
from memcluster.launcher.supervision.places import (
    Place,
    cluster_map,
    exposures,
    node_settings,
    node_specs,
    shards,
    target,
)
from memcluster.launcher.supervision.process import Elsewhere
from memcluster.launcher.supervision.sockets import Listeners
from memcluster.node import topology
from memcluster.node.layout import Layout
from memcluster.node.spec import NodeSpec
from memcluster.node.transport.address import Address


class Makeup:
    """`listeners` are server 0's, server 1's …, then the loggers' sockets, then that of the metrics if there is one;
    None for those of a node on one of `hosts`, which has them itself."""

    def __init__(
        self,
        config: ClusterConfig,
        run: RunDirectory,
        places: Sequence[Place],
        listeners: Listeners,
        shape: Shape,
        secret: bytes,
        probe: str,
        hosts: Elsewhere | None = None,
    ) -> None:
        self.config = config
        self.places = places
        self.listeners = list(listeners)
        self._far = hosts.addresses() if hosts else {}
        self.addresses = self._bound()
        self.map = cluster_map(config, places, self.addresses)
        self.uri = str(target(config, Address.parse(self.map.servers[0].address)))
        self.exposed = exposures(config, places, self.addresses)
        """A sentence for each address at which other machines may read and write."""
        self.topology = topology.load(config.topology)
        self.shape = shape
        self.shards = shards(config, run, shape)
        self.specs = {spec.name: spec for spec in node_specs(config, run, self.shards, self.map, secret, probe, hosts)}

    @property
    def count(self) -> int:
        """Servers; there are as many loggers."""
        return len(self.places)

    @property
    def layout(self) -> Layout:
        return self.map.layout

    @property
    def doors(self) -> int:
        """The first so many servers are those that clients connect to."""
        return self.count if self.topology.every_server_is_a_door else 1

    @property
    def roles(self) -> dict[str, str]:
        """The nodes, and what each is."""
        return {name: spec.role for name, spec in self.specs.items()}

    def links(self) -> list[tuple[str, str]]:
        """Who talks to whom, the one that connects first."""
        servers = [(f"server{one}", f"server{other}") for one, other in self.topology.links(self.count)]
        return servers + [("logger0", f"logger{index}") for index in range(1, self.count)]

    def next_life(self, name: str) -> NodeSpec:
        """What a node that begins is told. Whatever becomes of its log, the requests of the life after it must not be
        called as those of this one."""
        spec = self.specs[name]
        self.specs[name] = replace(spec, first=False, run=replace(spec.run, incarnation=spec.run.incarnation + 1))
        return spec

    # -- sockets -----------------------------------------------------------------------------------------------------

    def listener(self, name: str) -> socket.socket | None:
        return self.listeners[self._place(name)]

    def given(self, name: str) -> list[socket.socket]:
        """The sockets that a node gets: logger 0 that of the metrics, too."""
        page = self.listeners[2 * self.count :] if name == "logger0" else []
        return [sock for sock in (self.listener(name), *page) if sock]

    def address(self, name: str) -> str:
        """Where a node listens; clients may be told another host."""
        return str(self.addresses[self._place(name)])

    def _bound(self) -> list[Address]:
        """Where each listener is."""
        names = [f"{kind}{index}" for kind in ("server", "logger") for index in range(self.count)]
        return [
            sockets.bound_address(sock) if sock else Address.parse(self._far[names[index]])
            for index, sock in enumerate(self.listeners)
        ]

    @property
    def paths(self) -> list[str]:
        """Of the unix sockets."""
        return [address.path for address in self.addresses if address.path]

    def questions(self) -> list[tuple[str, Address, int]]:
        """A byte of every shard, at the door where clients ask for it, if that is on this host."""
        owners = [index for index, server in enumerate(self.map.servers) if server.memory]
        if self.topology.every_server_is_a_door:
            return [(f"server{index}", self.addresses[index], 0) for index in owners if not self.places[index].host]
        return [(f"server{index}", self.addresses[0], self.layout.address(index, 0)) for index in owners]

    def far_doors(self) -> list[str]:
        """The servers on other hosts that let clients in."""
        return [f"server{index}" for index in range(self.doors) if self.places[index].host]

    def _place(self, name: str) -> int:
        """Of its listener."""
        spec = self.specs[name]
        return spec.index + (self.count if spec.role == "logger" else 0)

    # -- other settings ----------------------------------------------------------------------------------------------

    def tell_otherwise(self, config: ClusterConfig) -> None:
        """What nodes are told from now on, by a description that is another in what running nodes can be told."""
        settings = node_settings(config)
        self.specs = {name: spec.with_settings(settings) for name, spec in self.specs.items()}

    def settle_on(self, config: ClusterConfig) -> None:
        """All nodes go by it."""
        self.config = config
        self.map = replace(self.map, fan_out=config.fan_out)
        self.exposed = exposures(config, self.places, self.addresses)
        if config.logs.level != "off":
            keep_map(config.logs.directory / config.name, self.specs["server0"].run.number, self.map)

    def replace_page(self, page: socket.socket | None) -> None:
        """Another socket for the metrics, or none."""
        first = 2 * self.count
        for sock in self.listeners[first:]:
            if sock:
                sockets.release(sock)
        self.listeners[first:] = [] if page is None else [page]
        self.addresses = self._bound()
