"""A cluster's description written down again: cluster.yaml with every default filled in."""

from __future__ import annotations

from memcluster.client.units import format_duration, format_size
from memcluster.launcher.clusterfile.settings import ClusterConfig
from memcluster.node import topology

ENGINE_AT = {"slurm": "partition", "ray": "address", "kubernetes": "image"}
"""The key of an engine's EngineConfig.at."""


def _hosts(config: ClusterConfig) -> dict[str, object]:
    if not config.hosts:
        return {}
    engine = config.engine
    options = {} if engine.name == "kubernetes" else {"command": engine.command}
    options |= {ENGINE_AT[engine.name]: engine.at} if engine.at else {}
    return {
        "hosts": [{"name": host.name, "address": host.address} if host.address else host.name for host in config.hosts],
        "engine": {engine.name: options},
        "host_lease": format_duration(config.host_lease),
        "host_encryption": config.host_encryption,
    }


def dump(config: ClusterConfig) -> str:
    """cluster.yaml with every default filled in: a file that means the same."""
    import yaml

    tls = config.tls
    chosen = not topology.load(config.topology).hands_over  # elsewhere only server 0's address can be
    document = {
        "name": config.name,
        **({"user": config.user} if config.user else {}),
        "memory": format_size(config.memory),
        "servers": [
            {"memory": format_size(server.memory)}
            | ({"listen": str(server.listen)} if chosen or not index else {})
            | ({"host": server.host} if server.host else {})
            for index, server in enumerate(config.servers)
        ],
        **_hosts(config),
        "topology": config.topology,
        "fan_out": config.fan_out,
        "links": config.links,
        "layout": {"stripe": format_size(config.stripe)} if config.stripe else "linear",
        "listen": str(config.servers[0].listen),
        **({"advertise": config.advertise} if config.advertise else {}),
        "insecure_network": config.insecure_network,
        "sockets": {
            "mode": f"{config.sockets.mode:04o}",
            **({"group": config.sockets.group} if config.sockets.group else {}),
        },
        "clients": {
            "limit": config.clients.limit,
            "per_address": config.clients.per_address,
            "handshake_timeout": format_duration(config.clients.handshake_timeout),
            "stall_timeout": format_duration(config.clients.stall_timeout),
        },
        "storage": str(config.storage or "memory"),
        "logs": {
            "directory": str(config.logs.directory),
            "retain": format_size(config.logs.retain),
            **({"retain_age": format_duration(config.logs.retain_age)} if config.logs.retain_age else {}),
            "level": config.logs.level,
            "sample": config.logs.sample,
        },
        "restart": {
            "cap": format_duration(config.restart.cap),
            "reset": format_duration(config.restart.reset),
            "deaths": config.restart.deaths,
            "within": format_duration(config.restart.within),
        },
        "tls": {
            "mode": tls.mode,
            **({"certificates": str(tls.certificates)} if tls.certificates and not tls.of_the_run else {}),
            "verify": tls.verify,
            **({"psk": str(tls.psk)} if tls.psk else {}),
        },
        **({"metrics": str(config.metrics)} if config.metrics else {}),
        "stop_timeout": format_duration(config.stop_timeout),
        "retry_timeout": format_duration(config.retry_timeout),
        "hang_timeout": format_duration(config.hang_timeout),
    }
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    return text.replace("$", "$$")  # which begins a variable
