"""What becomes of the servers of cluster.yaml: the processes, their roles, where each listens, and what it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from memcluster.client.uri import Security, Target
from memcluster.launcher.clusterfile.settings import ClusterConfig
from memcluster.launcher.reach import beyond
from memcluster.launcher.run.directory import RunDirectory
from memcluster.launcher.run.maps import keep_map
from memcluster.launcher.run.memory import Shape
from memcluster.launcher.supervision.heartbeats import period
from memcluster.launcher.supervision.process import Elsewhere
from memcluster.launcher.supervision.sockets import Access
from memcluster.node import topology
from memcluster.node.cluster_map import ClusterMap, ServerEntry
from memcluster.node.log.clock import Run
from memcluster.node.log.takeover import next_run
from memcluster.node.spec import Bounds, NodeSpec
from memcluster.node.transport.address import Address


@dataclass(frozen=True)
class Place:
    """One server process, in the order of their numbers; `memory` in bytes."""

    role: str
    memory: int
    listen: Address
    host: str = ""
    """Where it runs; "" is the supervisor's own."""


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
    hosts = [""] * shape.dispatches + [server.host for server in config.servers]
    return tuple(
        Place(shape.role(index, len(found)), memory, listen, host)
        for index, ((memory, listen), host) in enumerate(zip(found, hosts, strict=True))
    )


def door_count(config: ClusterConfig, servers: int) -> int:
    """How many of the addresses, the first ones, are the clients' doors."""
    return servers if topology.load(config.topology).every_server_is_a_door else 1


def addresses(config: ClusterConfig, found: Sequence[Place]) -> list[Address | None]:
    """Where is to be listened: the servers', then one on loopback for each logger, then that of the metrics if there is
    one; None for a node on another host, which listens there."""
    servers = [None if place.host else place.listen for place in found]
    loggers = [None if place.host else Address("127.0.0.1", 0) for place in found]
    return [*servers, *loggers, *([config.metrics] if config.metrics else [])]


def listening(config: ClusterConfig, found: Sequence[Place], owner: int = -1) -> list[tuple[Address, Access] | None]:
    """The same, and who may connect there. Root may say whose unix sockets are."""
    access = Access(config.sockets.mode, config.sockets.group, owner, config.insecure_network)
    over_tls = door_count(config, len(found)) if config.tls.mode == "require" else 0
    return [
        None if address is None else (address, replace(access, network=True) if index < over_tls else access)
        for index, address in enumerate(addresses(config, found))
    ]


def advertised(config: ClusterConfig, places: Sequence[Place], addresses: Sequence[Address]) -> list[Address]:
    """Where clients are told to find each server, of the addresses that they are bound to: the doors on TCP are at the
    host that cluster.yaml advertises, if that is the supervisor's."""
    own = [not place.host and index < door_count(config, len(places)) for index, place in enumerate(places)]
    return [
        replace(address, host=config.advertise) if config.advertise and is_own and not address.path else address
        for is_own, address in zip(own, addresses, strict=False)
    ]


def exposures(config: ClusterConfig, places: Sequence[Place], addresses: Sequence[Address]) -> list[str]:
    """A sentence for each address that other machines reach: server 0's, server 1's …, the loggers', the metrics'."""
    count = len(places)
    who = "whoever gets there"
    may = [f"{who} may read and write the memory"] * count + [f"{who} may read the log"] * count
    may += [f"{who} may read the figures"]
    may = [f"{sentence} (insecure_network)" for sentence in may]
    doors = door_count(config, count)
    if config.tls.mode == "require":
        anybody = config.tls.certificates is not None and not config.tls.verify
        may[:doors] = [f"{who} may read and write the memory, over TLS (tls.verify)" * anybody] * doors
    for index, place in enumerate(places):
        if place.host:  # there nobody but the cluster's own is let in, and clients where they come to every server
            may[count + index] = ""
            if index >= doors:
                may[index] = ""
    return [
        f"{address} can be reached from other machines: {sentence}"
        for address, sentence in zip(addresses, may, strict=False)
        if sentence and beyond(address)
    ]


def cluster_map(config: ClusterConfig, places: Sequence[Place], addresses: Sequence[Address]) -> ClusterMap:
    """What nodes and clients know of the cluster; the addresses are server 0's, server 1's …, then the loggers'."""
    count = len(places)
    known = advertised(config, places, addresses)
    entries = tuple(
        ServerEntry(str(known[index]), str(addresses[count + index]), place.memory, place.role, place.host)
        for index, place in enumerate(places)
    )
    return ClusterMap(config.name, config.topology, config.fan_out, config.stripe, entries)


def target(config: ClusterConfig, address: Address) -> Target:
    """Where clients find what is served at an address; with TLS, by what they prove themselves there if they run here:
    the same folder has a client's files, too, where people try it."""
    tls = config.tls
    if tls.mode == "off":
        security = None
    elif tls.certificates is not None:
        security = Security(certificates=str(tls.certificates))
    else:
        security = Security(psk_file=str(tls.psk))
    return Target(address.host, address.port, address.path, tls=security)


def node_settings(config: ClusterConfig) -> dict[str, Any]:
    """What a node is told that can change while it runs (NodeSpec.settings)."""
    clients, logs = config.clients, config.logs
    bounds = Bounds(
        clients=None if clients.limit == "auto" else clients.limit,
        per_address=clients.per_address,
        handshake_timeout=clients.handshake_timeout,
        stall_timeout=clients.stall_timeout,
        retry_timeout=config.retry_timeout,
    )
    return {
        "bounds": asdict(bounds),
        "fan_out": config.fan_out,
        "log_retain": logs.retain if logs.level != "off" else 0,
        "log_retain_age": logs.retain_age,
        "log_level": logs.level,
        "log_sample": logs.sample,
        "metrics": config.metrics is not None,
        "beat": period(config.hang_timeout),
    }


def shards(config: ClusterConfig, run: RunDirectory, shape: Shape) -> list[Path]:
    """The files of the servers' shards."""
    return [(config.storage or run.path) / name for name in shape.files]


def node_specs(
    config: ClusterConfig,
    run: RunDirectory,
    files: Sequence[Path],
    cluster: ClusterMap,
    secret: bytes,
    probe: str,
    hosts: Elsewhere | None,
) -> list[NodeSpec]:
    """What every node is told: the servers in the order of their numbers, then the loggers. `files` are the shards."""
    settings = node_settings(config)
    paths = tuple(map(str, files))
    logs = config.logs.directory / config.name
    folders = [logs / f"server{index}" for index in range(len(cluster.servers))]
    here = next_run([folder for folder, server in zip(folders, cluster.servers, strict=True) if not server.host])
    runs = [here, *(hosts.runs() if hosts else ())]
    number, incarnation = max(run[0] for run in runs), max(run[1] for run in runs)
    oldest = min(run[2] for run in runs)
    this_run = Run(number, incarnation=incarnation)
    if config.logs.level != "off":
        keep_map(logs, number, cluster, oldest)
    return [
        NodeSpec(
            name=f"{kind}{index}",
            role="logger" if kind == "logger" else server.role,
            index=index,
            cluster=cluster,
            shard=paths[index],
            durable=config.storage is not None,
            log_directory=str(folders[index]),
            log_retain=settings["log_retain"],
            merged_log=str(config.logs.directory / f"{config.name}.log"),
            secret=secret,
            run=this_run,
            tls=config.tls.credentials,
            staging=str(run.path / "staging") if config.links == "shared" else "",
            shards=paths if config.links == "shared" else (),
            probe=probe,
            between_hosts=hosts.certificates if hosts else "",
        ).with_settings(settings)
        for kind in ("server", "logger")
        for index, server in enumerate(cluster.servers)
    ]
