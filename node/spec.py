"""What one node is told when it is started: who it is, the map, its files, its bounds. Plain data: it pickles on the
way to a fork server, and is JSON on the way to another host."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from memcluster.node.cluster_map import ClusterMap, ServerEntry
from memcluster.node.log.clock import Run
from memcluster.node.tls.credentials import Credentials
from memcluster.node.transport.proof import Pass, Who

if TYPE_CHECKING:
    import ssl

SETTINGS = ("log_retain", "log_retain_age", "log_level", "log_sample", "metrics", "beat")
"""Fields of a NodeSpec that can change while the node runs, beside its bounds and the fan-out."""


@dataclass(frozen=True)
class Bounds:
    """How much of everything a node lends its clients."""

    clients: int | None = 64
    """At a time; None: as many as the machine bears."""
    per_address: int = 16
    """Of another machine's, at a time."""
    handshake_timeout: float = 10.0
    """Seconds a client has from its connection to its GO."""
    stall_timeout: float = 30.0
    """Seconds for the whole payload of a write, and for a mebibyte of replies when more wait."""
    retry_timeout: float = 30.0
    """Seconds a piece may wait for its server before the client gets EIO."""


@dataclass(frozen=True)
class NodeSpec:
    """One process: `name` is server0 or logger0, `role` primary, secondary or logger, `index` the server's number."""

    name: str
    role: str
    index: int
    cluster: ClusterMap
    shard: str
    """Path of the server's shard file."""
    durable: bool
    """The shard is on a disk: FLUSH and FUA are to reach it."""
    log_directory: str
    """Where this server's log segments lie."""
    log_retain: int
    """Bytes of log segments kept on disk, at most; 0: no log."""
    merged_log: str
    """The file into which logger 0 writes the merged log at the stop."""
    secret: bytes = field(repr=False)
    """The run's: those who know it are of this cluster (see node/transport/proof.py)."""
    bounds: Bounds = field(default_factory=Bounds)
    log_retain_age: float = 0.0
    """Seconds that log records are kept, at most; 0: as long as there is room."""
    log_level: str = "requests"
    """requests, or errors: only what failed."""
    log_sample: int = 1
    """The story of one request in so many is kept."""
    metrics: bool = False
    """Figures are kept for Prometheus; logger 0 has a second listening socket, for the page."""
    first: bool = True
    """It is the first life of this node: ready means that every link is there. One that is started again serves
    what it can without."""
    beat: float = 0.5
    """Seconds between two signs that the loop still turns."""
    run: Run = field(default_factory=Run)
    tls: Credentials | None = None
    """For clients, where they have TLS."""
    staging: str = ""
    """Path of the staging area, by which the servers share memory over their links (node/forwarding/staging.py); none:
    bytes go over them."""
    shards: tuple[str, ...] = ()
    """Paths of all servers' shards, in the order of their numbers, where memory is shared."""
    probe: str = "probe"
    """The export that the supervisor opens: what it reads is marked in the log. A name that nobody else knows."""

    between_hosts: str = ""
    """The folder of the certificates with which the cluster's hosts know one another; "" where nothing is encrypted."""

    @property
    def host(self) -> str:
        """Where it runs."""
        return self.cluster.servers[self.index].host

    @property
    def settings(self) -> dict[str, Any]:
        """What of this can change while the node runs, as plain data."""
        told = {name: getattr(self, name) for name in SETTINGS}
        return told | {"bounds": asdict(self.bounds), "fan_out": self.cluster.fan_out}

    def with_settings(self, settings: dict[str, Any]) -> NodeSpec:
        """The same node, told otherwise; `settings` are another spec's."""
        told = {name: settings[name] for name in SETTINGS}
        cluster = replace(self.cluster, fan_out=settings["fan_out"])
        return replace(self, cluster=cluster, bounds=Bounds(**settings["bounds"]), **told)

    def pass_to(self, node: str) -> Pass:
        """What this node needs at the door of another one."""
        who = Who.LOGGER if self.role == "logger" else Who.SERVER
        index = int(node.removeprefix("server").removeprefix("logger"))
        far = self.cluster.servers[index].host != self.host
        return Pass(self.secret, who, node, opener_tls(self.between_hosts) if far else None, far)

    def door_tls(self) -> ssl.SSLContext | None:
        """With which those come in who come from another host: on the supervisor's host nobody does, elsewhere all."""
        return server_tls(self.between_hosts) if self.host else None

    def to_head(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"secret": self.secret.hex()}

    @classmethod
    def from_head(cls, head: dict[str, Any]) -> NodeSpec:
        """Raises KeyError, TypeError, ValueError if it is none."""
        cluster = dict(head["cluster"])
        cluster["servers"] = tuple(ServerEntry(**server) for server in cluster["servers"])
        return cls(
            **head
            | {
                "cluster": ClusterMap(**cluster),
                "secret": bytes.fromhex(head["secret"]),
                "bounds": Bounds(**head["bounds"]),
                "run": Run(**head["run"]),
                "tls": None if head["tls"] is None else Credentials(**head["tls"]),
                "shards": tuple(head["shards"]),
            }
        )


@cache
def opener_tls(folder: str) -> ssl.SSLContext | None:
    """For who connects to another host. Raises BadCredentials."""
    if not folder:
        return None
    from memcluster.node.tls.context import client_context  # late: it loads OpenSSL

    return client_context(folder, hostname=False)


@cache
def server_tls(folder: str) -> ssl.SSLContext | None:
    """For those who come from another host: they must have a certificate, too. Raises BadCredentials."""
    if not folder:
        return None
    from memcluster.node.tls.context import server_context

    return server_context(Credentials(folder))
