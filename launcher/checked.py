"""cluster.yaml for the commands: what is wrong with it ends the command with a sentence a line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from client.console import EXIT_NOT_RUNNING, EXIT_USAGE, Failure
from client.discover import check_folder, command
from launcher.clusterfile import config as configuration
from launcher.clusterfile.config import ConfigError
from launcher.clusterfile.settings import ClusterConfig

if TYPE_CHECKING:
    from launcher.run.directory import RunRecord


def load(file: Path) -> ClusterConfig:
    """Raises Failure."""
    try:
        return configuration.load(file)
    except ConfigError as error:
        raise Failure(str(error), EXIT_USAGE, prefix="") from error


def logger0(cluster: ClusterConfig) -> str:
    """Where logger 0 of a running cluster listens. Raises Failure, NotRunning."""
    return running(cluster)[0]


def running(cluster: ClusterConfig) -> tuple[str, RunRecord]:
    """Where logger 0 of a running cluster listens, and the record of who runs. Raises Failure, NotRunning."""
    from launcher.run.directory import RunDirectory

    check_folder(cluster.name, cluster.file)
    record = RunDirectory(cluster.name).record()
    starts = f"`{command(cluster.file, 'up -d')}` starts it"
    if record is not None and (found := [node for node in record.nodes if node.name == "logger0"]):
        if record.supervisor.alive or found[0].identity.alive:
            return found[0].address, record
        hint = f": its supervisor is dead; {starts} again, and its log goes on"
    else:
        merged = cluster.logs.directory / f"{cluster.name}.log"
        hint = f"; {starts}" + (f"; the log of its last run is {merged}" if merged.exists() else "")
    raise Failure(f"cluster {cluster.name} is not running{hint}", EXIT_NOT_RUNNING)
