"""A checked cluster.yaml, every default filled in: what the launcher works with.

Plain data, without pydantic: what has checked the file and what runs the cluster may be two processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from memcluster.node.tls.credentials import Credentials
from memcluster.node.transport.address import Address


@dataclass(frozen=True)
class ServerConfig:
    """One server: bytes of its shard, where it listens, and the name of its host, "" for the supervisor's own."""

    memory: int
    listen: Address
    host: str = ""


@dataclass(frozen=True)
class HostConfig:
    """`address` is "" where the name leads there."""

    name: str
    address: str = ""


@dataclass(frozen=True)
class EngineConfig:
    """What starts processes on other hosts, and how it calls memcluster there."""

    name: str = "ssh"
    command: str = "memcluster"
    at: str = ""
    """Slurm's partition, the address of Ray's head, or the image of containers; "" leaves it to the engine."""


@dataclass(frozen=True)
class LogConfig:
    """`retain_age` is in seconds, 0 for no bound."""

    directory: Path
    retain: int
    level: str
    retain_age: float
    sample: int


@dataclass(frozen=True)
class ClientConfig:
    """See schema.py's Clients."""

    limit: int | Literal["auto"]
    per_address: int
    handshake_timeout: float
    stall_timeout: float


FOR_CLIENTS = "clients"
"""The folder, in the run directory, of certificates that are made for a run."""


@dataclass(frozen=True)
class TLSConfig:
    """See schema.py's TLS. Without the key in the file `mode` is off."""

    mode: str = "off"
    certificates: Path | None = None
    verify: bool = True
    psk: Path | None = None
    of_the_run: bool = False
    """The certificates are made when the cluster starts, by an authority that signs nothing else."""

    @property
    def credentials(self) -> Credentials | None:
        """What servers are told; None where there is no TLS."""
        if self.mode == "off":
            return None
        certificates, psk = str(self.certificates or ""), str(self.psk or "")
        return Credentials(certificates, psk, self.verify, required=self.mode == "require")


SECTOR = 512


@dataclass(frozen=True)
class RestartConfig:
    """See schema.py's Restart."""

    cap: float
    reset: float
    deaths: int
    within: float


@dataclass(frozen=True)
class SocketConfig:
    """See schema.py's Sockets."""

    mode: int = 0o600
    group: str | None = None


@dataclass(frozen=True)
class ClusterConfig:
    """A whole cluster.yaml; paths are absolute, sizes bytes, times seconds. `stripe` is 0 for the linear layout,
    `storage` None for memory."""

    file: Path
    name: str
    memory: int
    servers: tuple[ServerConfig, ...]
    topology: str
    fan_out: str
    links: str
    stripe: int
    clients: ClientConfig
    storage: Path | None
    logs: LogConfig
    restart: RestartConfig
    tls: TLSConfig
    metrics: Address | None
    stop_timeout: float
    retry_timeout: float
    hang_timeout: float
    sockets: SocketConfig
    user: str
    """Who root has it run as; "" for the user who starts it."""
    insecure_network: bool
    advertise: str
    """The host that clients are told; "" for the one that each server listens on."""
    hosts: tuple[HostConfig, ...] = ()
    engine: EngineConfig = EngineConfig()
    host_lease: float = 10.0
    host_encryption: bool = True

    @property
    def notices(self) -> list[str]:
        """What is right and may surprise all the same."""
        if self.memory % SECTOR:
            less, more = self.memory - self.memory % SECTOR, self.memory + -self.memory % SECTOR
            return [
                f"memory of {self.memory} bytes is not whole sectors of {SECTOR}: qemu's tools take it for "
                f"{more - self.memory} bytes more, and fail at its end; {less} or {more} suits them"
            ]
        return []
