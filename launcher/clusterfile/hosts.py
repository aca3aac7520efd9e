"""What cluster.yaml says of other hosts: which server runs where, and what cannot be had over several."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from memcluster.launcher.clusterfile.addresses import Found, Place, listening
from memcluster.launcher.clusterfile.schema import SSH, ClusterFile, Engines, Kubernetes, Ray, Slurm
from memcluster.launcher.clusterfile.settings import ClusterConfig, EngineConfig, HostConfig
from memcluster.launcher.reach import numbers, way_to
from memcluster.node import topology
from memcluster.node.transport.address import Address

DEFAULT_LISTEN = Address("127.0.0.1", 10809)


def hosts_of(parsed: ClusterFile) -> tuple[HostConfig, ...]:
    """In the order of the file."""
    return tuple(
        HostConfig(host) if isinstance(host, str) else HostConfig(host.name, host.address) for host in parsed.hosts
    )


def engine_of(parsed: ClusterFile) -> EngineConfig:
    """With its defaults. Of several the first, which check_hosts refuses."""
    if isinstance(parsed.engine, str):
        return EngineConfig(parsed.engine)
    for name in type(parsed.engine).model_fields:
        match getattr(parsed.engine, name):
            case SSH(command=command):
                return EngineConfig(name, command)
            case Slurm(command=command, partition=partition):
                return EngineConfig(name, command, partition or "")
            case Ray(command=command, address=address):
                return EngineConfig(name, command, address or "")
            case Kubernetes(image=image):
                return EngineConfig(name, at=image or "")
    return EngineConfig()


def dealt(parsed: ClusterFile) -> list[str]:
    """The host of each server, "" for the supervisor's own: where the file says nothing they are dealt in turn, server
    0 to the supervisor's."""
    places = ["", *(host.name for host in hosts_of(parsed))]
    if isinstance(parsed.servers, int):
        return [places[index % len(places)] for index in range(parsed.servers)]
    return [server.host or places[index % len(places)] for index, server in enumerate(parsed.servers)]


def comes_to_hosts(parsed: ClusterFile) -> bool:
    """Clients connect to servers on several hosts."""
    return bool(parsed.hosts) and topology.load(parsed.topology).every_server_is_a_door


def default_listen(parsed: ClusterFile) -> Address:
    """Server 0's address where the file says nothing: clients that come to several hosts find it where the others find
    this one."""
    if not comes_to_hosts(parsed):
        return DEFAULT_LISTEN
    [host, *_] = hosts_of(parsed)
    for there in numbers(Address(host.address or host.name, 0)):
        with suppress(OSError):
            return replace(DEFAULT_LISTEN, host=way_to(str(there)))
    return DEFAULT_LISTEN  # which is refused: it is loopback's


def check_hosts(config: ClusterConfig, parsed: ClusterFile) -> Iterator[Found]:
    """All that is wrong with hosts that are right one by one."""
    if isinstance(parsed.engine, Engines) and len(parsed.engine.model_fields_set) != 1:
        yield {"engine"}, ("engine",), f"engine must name one of {', '.join(Engines.model_fields)}"
    names = [host.name for host in config.hosts]
    for index, server in enumerate(() if isinstance(parsed.servers, int) else parsed.servers):
        if server.host is not None and server.host not in names:
            known = f"there are {', '.join(names)}" if names else "hosts names none"
            yield {"servers", "hosts"}, ("servers", index, "host"), f"{server.host!r} is none of hosts; {known}"
        elif server.host is not None and not index:
            message = "server 0 runs where the supervisor is: leave its host out, and name another server's"
            yield {"servers", "hosts"}, ("servers", 0, "host"), message
    if not config.hosts:
        return
    if config.engine.name == "kubernetes":
        yield from _check_pods(config, parsed)
    shape = topology.load(config.topology)
    where: Place = ("topology",) if "topology" in parsed.model_fields_set else ("hosts",)
    if shape.hands_over:
        yield {"topology", "hosts"}, where, (
            f"{config.topology} hands over sockets and needs one host; "
            "with hosts use primary-secondary or client-routed"
        )
    if config.links == "shared":
        message = "servers of several hosts share no memory: leave links out, and bytes go over the links"
        yield {"links", "hosts"}, ("links",), message
    if config.user:
        yield {"user", "hosts"}, ("user",), "who runs on other hosts is for the engine to say: leave user or hosts out"
    for index, name in enumerate(names):
        if name in names[:index]:
            yield {"hosts"}, ("hosts", index), f"host {name!r} is there already"
        elif name not in [server.host for server in config.servers]:
            message = f"host {name!r} has no server: have more servers, give it one of them, or take it off"
            yield {"hosts", "servers"}, ("hosts", index), message
    far = {host.name: Address(host.address or host.name, 0) for host in config.hosts}
    for at, listen in listening(config, parsed):
        if at == ("metrics",):
            continue
        host = config.servers[int(at[1]) if len(at) > 1 else 0].host
        if listen == far.get(host) or not (host or shape.every_server_is_a_door):
            continue
        if listen.path:
            message = "a unix socket cannot be reached from another host: write HOST:PORT"
            yield {str(at[0]), "hosts"}, at, message
        elif any(number.is_loopback for number in numbers(listen)):
            message = f"{listen} cannot be reached from another host: leave listen out, or write one of its own"
            yield {str(at[0]), "hosts"}, at, message


def _check_pods(config: ClusterConfig, parsed: ClusterFile) -> Iterator[Found]:
    """What else has to be so where hosts are pods (launcher/hosts/manifests.py)."""

    def place(key: str) -> Place:
        return (key,) if key in parsed.model_fields_set else ("engine",)

    if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", config.name):
        yield {"name", "engine"}, place("name"), (
            f"with engine: kubernetes the name is a part of names of pods: small letters, digits and -, a letter first "
            f"(got {config.name!r})"
        )
    pods = [f"{config.name}-{index}" for index in range(len(config.hosts))]
    if [host.name for host in config.hosts] != pods:
        message = f"with engine: kubernetes the hosts are pods, numbered: write hosts: [{', '.join(pods)}]"
        yield {"hosts", "engine", "name"}, ("hosts",), message
    door = config.servers[0].listen
    if door.path or not door.port or any(number.is_loopback for number in numbers(door)):
        message = f"with engine: kubernetes clients come from other pods, not to {door}: write listen: 0.0.0.0:10809"
        yield {"listen", "engine"}, place("listen"), message
    if topology.load(config.topology).every_server_is_a_door:
        yield {"topology", "engine"}, place("topology"), (
            f"{config.topology} has a door on every host, and a Service leads to one: with engine: kubernetes use "
            "primary-secondary"
        )
    if config.storage:
        message = "with engine: kubernetes shards are in the memory of pods: leave storage out"
        yield {"storage", "engine"}, ("storage",), message
