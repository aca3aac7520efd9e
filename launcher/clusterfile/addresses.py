"""What addresses in cluster.yaml must be to one another and to the rest: where servers and metrics listen, who is to
reach them, and what clients are told of it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from memcluster.launcher.clusterfile.schema import ClusterFile
from memcluster.launcher.clusterfile.settings import ClusterConfig
from memcluster.launcher.reach import beyond, is_wildcard
from memcluster.node import topology
from memcluster.node.transport.address import Address

Place = tuple[int | str, ...]
Found = tuple[set[str], Place, str]
"""Something wrong: the keys that were looked at, where it stands, what it is."""
MAX_UNIX_PATH = 107
"""Bytes in the path of a unix socket, at most (Linux)."""


def check_addresses(config: ClusterConfig, parsed: ClusterFile) -> Iterator[Found]:
    """All that is wrong with addresses that are right one by one."""
    yield from _check_choice(config, parsed)
    every = topology.load(config.topology).every_server_is_a_door
    seen: dict[Address, str] = {}
    secured = doors(config) if config.tls.mode == "require" else ()
    for where, address in listening(config, parsed):
        if _is_far(config, where) and not every:  # nobody but the cluster's own is let in there (hosts.py)
            continue
        key = str(where[0])
        if problem := _path_problem(address.path):
            yield {key}, where, problem
        if address in seen and (address.port or address.path):
            yield {key, seen[address]}, where, f"{address} is the address of another already"
        elif address not in secured and not config.insecure_network and (reached := beyond(address)):
            name = "" if str(reached[0]) == address.host else f" ({reached[0]})"
            tls = "have clients use TLS (tls), " if address in doors(config) else ""
            yield {key, "insecure_network", "tls"}, where, (
                f"{address}{name} can be reached from other machines: listen on 127.0.0.1 or on a unix socket, {tls}or "
                "write insecure_network: true if whoever gets there may read and write the memory"
            )
        seen.setdefault(address, key)
    yield from _check_advertised(config, parsed)


def _is_far(config: ClusterConfig, where: Place) -> bool:
    """It is the address of a server on another host."""
    return where[0] == "servers" and isinstance(where[1], int) and bool(config.servers[where[1]].host)


def doors(config: ClusterConfig) -> list[Address]:
    """Where clients come in, and nobody else."""
    every = topology.load(config.topology).every_server_is_a_door
    return [server.listen for server in (config.servers if every else config.servers[:1])]


def listening(config: ClusterConfig, parsed: ClusterFile) -> Iterator[tuple[Place, Address]]:
    """Each address that was chosen, and where that stands; what follows from another is not told twice."""
    entries = () if isinstance(parsed.servers, int) else parsed.servers
    for index, server in enumerate(config.servers):
        if entries and entries[index].listen is not None and (index or parsed.listen is None):
            yield ("servers", index, "listen"), server.listen
        elif not index:
            yield ("listen",), server.listen
    if config.metrics is not None:
        yield ("metrics",), config.metrics


def _check_choice(config: ClusterConfig, parsed: ClusterFile) -> Iterator[Found]:
    """Whose address can be chosen, and how often."""
    where: Place
    entries = () if isinstance(parsed.servers, int) else parsed.servers
    if entries and parsed.listen is not None:
        first = entries[0].listen
        if first is not None and first != parsed.listen:
            where = "servers", 0, "listen"
            yield {"servers", "listen"}, where, f"server 0 listens on {first} by this, on {parsed.listen} by listen"
    chosen = [index for index, server in enumerate(entries) if index and server.listen is not None]
    if chosen and topology.load(config.topology).hands_over:
        for index in chosen:
            where = "servers", index, "listen"
            message = f"with topology {config.topology} only server 0's address can be chosen"
            yield {"servers", "topology"}, where, message


def _check_advertised(config: ClusterConfig, parsed: ClusterFile) -> Iterator[Found]:
    """What clients are told must lead somewhere."""
    every = topology.load(config.topology).every_server_is_a_door
    if config.advertise:
        if all(address.path for address in doors(config)):
            message = "advertise is the host of a TCP address, and clients come to a unix socket here"
            yield {"advertise", "listen", "servers", "topology"}, ("advertise",), message
        return
    if not every:
        return
    for where, address in listening(config, parsed):
        if where != ("metrics",) and not _is_far(config, where) and is_wildcard(address):
            yield {str(where[0]), "topology"}, where, (
                f"with topology {config.topology} clients are told where every server is, and {address.host} is no "
                "place to connect to: add advertise: HOST, as clients know this machine"
            )


def _path_problem(path: str) -> str:
    try:
        length = len(path.encode())
    except UnicodeEncodeError:
        text = os.fsencode(path).decode(errors="replace")
        return f"a unix socket must lie in a folder whose name is UTF-8, for its URI: {text}"
    return "" if length <= MAX_UNIX_PATH else f"the path of a unix socket has at most {MAX_UNIX_PATH} bytes: {path}"
