"""What `kubectl apply` takes, for a cluster whose hosts are pods (kubernetes.py): `memcluster config --kubernetes`.

Two StatefulSets: a pod for the supervisor, with server 0, and one for each host, whose container is a guardian. A
Service has the names by which they find one another, one leads clients to server 0, a ConfigMap has cluster.yaml, and
a Secret the letter by which they know one another, made anew each time.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from memcluster import __version__
from memcluster.launcher.certificates import between_hosts
from memcluster.launcher.clusterfile.settings import ClusterConfig, HostConfig, TLSConfig
from memcluster.launcher.clusterfile.written import dump
from memcluster.launcher.hosts.letter import VARIABLE, Letter
from memcluster.launcher.reach import beyond
from memcluster.launcher.supervision.patience import HOSTS_LEAVE, LAST_STAGES
from memcluster.node.transport.proof import SECRET_SIZE

DOOR = 10808
"""Where guardians find the supervisor."""
FOLDER = "/etc/memcluster"
"""Of cluster.yaml."""
TLS_FOLDER = "/etc/memcluster-tls"
LOGS = "/var/log/memcluster"
"""Root's, as volumes are; the folder that memcluster makes for itself is in it."""
MEMORY = "/dev/shm"
OWN = 16
"""MiB of /dev/shm that a run takes beside its shards, at most."""
PROCESSES = 128
"""MiB that a pod asks for beside its shards."""
SUPERVISOR_WAITS = "10m"
"""For the hosts: images are loaded, and nodes are found for pods."""
USER = 1000
TO_END = 5
"""Seconds that a pod has beside all that a stop may take."""

Manifest = dict[str, Any]


def secret_of(config: ClusterConfig) -> str:
    """The name of the Secret that has the files of cluster.yaml's tls; "" if there is none."""
    return f"{config.name}-tls" if config.tls.mode != "off" else ""


def text(config: ClusterConfig) -> str:
    """All of it, as YAML."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Texts of many lines are written as such; what is said twice is written twice."""

        def ignore_aliases(self, _data: Any) -> bool:
            return True

    def represent(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, represent)
    return yaml.dump_all(manifests(config), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=1 << 20)


def manifests(config: ClusterConfig) -> list[Manifest]:
    """In the order in which they are to be made."""
    name = config.name
    port = config.servers[0].listen.port
    letter = Letter(
        cluster=name,
        host="",
        supervisor=f"{name}-supervisor-0.{name}:{DOOR}",
        secret=os.urandom(SECRET_SIZE).hex(),
        lease=config.host_lease,
        topology=config.topology,
        certificates=between_hosts() if config.host_encryption else {},
    )
    ports = {"nbd": port}
    if config.metrics is not None and beyond(config.metrics):
        ports["metrics"] = config.metrics.port
    most = max(sum(server.memory for server in config.servers if server.host == host.name) for host in config.hosts)
    here = sum(server.memory for server in config.servers if not server.host)
    supervisor = {
        "args": ["up", "--wait-timeout", SUPERVISOR_WAITS],
        "ports": [{"name": key, "containerPort": number} for key, number in ports.items()],
        "readinessProbe": {"tcpSocket": {"port": "nbd"}, "periodSeconds": 10},
    }
    patience = int(config.stop_timeout + LAST_STAGES + HOSTS_LEAVE) + TO_END
    return [
        {
            **_head("v1", "Secret", name, f"{name}-letter"),
            "type": "Opaque",
            "immutable": True,  # a container that is run again would read another one than those that run
            "stringData": {"letter": letter.to_json()},
        },
        {**_head("v1", "ConfigMap", name, name), "immutable": True, "data": {"cluster.yaml": dump(_in_pods(config))}},
        {
            **_head("v1", "Service", name, name),
            "spec": {
                "clusterIP": "None",
                "publishNotReadyAddresses": True,  # they find one another before they are ready
                "selector": _labels(name),
                "ports": [{"name": "guardians", "port": DOOR}],
            },
        },
        {
            **_head("v1", "Service", name, f"{name}-nbd"),
            "spec": {
                "selector": _labels(name, "supervisor"),
                "ports": [{"name": key, "port": number, "targetPort": key} for key, number in ports.items()],
            },
        },
        _stateful_set(config, f"{name}-supervisor", "supervisor", 1, here, supervisor, patience),
        _stateful_set(config, name, "host", len(config.hosts), most, {"args": ["guardian"]}, 30),
    ]


def _in_pods(config: ClusterConfig) -> ClusterConfig:
    """With what is otherwise there."""
    tls = config.tls
    return replace(
        config,
        hosts=tuple(HostConfig(host.name, host.address or f"{host.name}.{config.name}") for host in config.hosts),
        advertise=config.advertise or f"{config.name}-nbd",
        logs=replace(config.logs, directory=Path(LOGS) / "logs"),
        tls=TLSConfig(
            tls.mode,
            Path(TLS_FOLDER) if tls.certificates else None,
            tls.verify,
            Path(TLS_FOLDER) / tls.psk.name if tls.psk else None,
        ),
    )


def _stateful_set(
    config: ClusterConfig,
    name: str,
    role: str,
    replicas: int,
    shards: int,
    container: Manifest,
    patience: int,
) -> Manifest:
    """Each of its pods has a shard of so many bytes. One that is deleted has lost it, so nothing but a person does
    that (OnDelete)."""
    room = -(-shards >> 20) + OWN
    volumes: list[Manifest] = [
        {"name": "description", "configMap": {"name": config.name}},
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": f"{room}Mi"}},
        {"name": "logs", "emptyDir": {}},
    ]
    mounts: list[Manifest] = [
        {"name": "description", "mountPath": FOLDER, "readOnly": True},
        {"name": "memory", "mountPath": MEMORY},
        {"name": "logs", "mountPath": LOGS},
    ]
    if secret := secret_of(config):
        volumes.append({"name": "tls", "secret": {"secretName": secret}})
        mounts.append({"name": "tls", "mountPath": TLS_FOLDER, "readOnly": True})
    pod = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": patience,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "memcluster",
                "image": config.engine.at or f"memcluster:{__version__}",
                "command": ["memcluster"],
                **container,
                "workingDir": FOLDER,
                "env": [
                    {
                        "name": VARIABLE,
                        "valueFrom": {"secretKeyRef": {"name": f"{config.name}-letter", "key": "letter"}},
                    }
                ],
                "resources": {"requests": {"memory": f"{room + PROCESSES}Mi"}},
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    return {
        **_head("apps/v1", "StatefulSet", config.name, name),
        "spec": {
            "serviceName": config.name,
            "replicas": replicas,
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "OnDelete"},
            "selector": {"matchLabels": _labels(config.name, role)},
            "template": {"metadata": {"labels": _labels(config.name, role)}, "spec": pod},
        },
    }


def _head(api: str, kind: str, cluster: str, name: str) -> Manifest:
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name, "labels": _labels(cluster)}}


def _labels(cluster: str, role: str = "") -> dict[str, str]:
    labels = {"app.kubernetes.io/name": "memcluster", "app.kubernetes.io/instance": cluster}
    return labels | ({"app.kubernetes.io/component": role} if role else {})
