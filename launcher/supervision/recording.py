"""What the supervisor writes down of its run, so that others can find and end what it started."""

from __future__ import annotations

import os
from typing import Final, Protocol

from memcluster.launcher.run.directory import NodeRecord, RunDirectory, RunRecord
from memcluster.launcher.run.identity import Identity
from memcluster.launcher.supervision.forkserver import helpers
from memcluster.launcher.supervision.makeup import Makeup
from memcluster.launcher.supervision.process import Process
from memcluster.node.transport.loop import Loop

AGAIN: Final = 1.0
"""Seconds until what found no room is tried again."""


class Cluster(Protocol):
    """What is asked of the supervisor."""

    makeup: Makeup
    children: dict[str, Process]
    stamp: str


def record(cluster: Cluster) -> RunRecord:
    """How it stands now."""
    config, known = cluster.makeup.config, cluster.makeup.map
    own = Identity.of(os.getpid())
    assert own is not None
    return RunRecord(
        cluster=config.name,
        file=str(config.file),
        stamp=cluster.stamp,
        topology=config.topology,
        memory=config.memory,
        stripe=config.stripe,
        uri=cluster.makeup.uri,
        stop_timeout=config.stop_timeout,
        sample=config.logs.sample,
        fan_out=config.fan_out,
        hosts=tuple((host.name, host.address) for host in config.hosts),
        engine=(config.engine.name, config.engine.command, config.engine.at),
        host_lease=config.host_lease,
        host_encryption=config.host_encryption,
        supervisor=own,
        helpers=helpers(),
        nodes=tuple(
            NodeRecord(
                name=name,
                role=child.spec.role,
                pid=child.identity.pid,
                start=child.identity.start,
                address=cluster.makeup.address(name),
                range=known.range(child.spec.role, child.spec.index),
                memory=known.owned(child.spec.role, child.spec.index),
                host=child.spec.host,
            )
            for name, child in cluster.children.items()
        ),
    )


class Recorder:
    """Writes the record, and first the run's secret. Clients may have filled the file system: then the old record
    stays, until there is room."""

    def __init__(self, loop: Loop, cluster: Cluster, run: RunDirectory, secret: bytes) -> None:
        self._loop = loop
        self._cluster = cluster
        self._run = run
        self._secret = secret
        self._secret_is_due = True
        self._is_due = False

    def due(self) -> None:
        """Something has changed: write it at the end of this turn of the loop."""
        if not self._is_due:
            self._is_due = True
            self._loop.soon(self.write)

    def begin_anew(self) -> None:
        """Nothing is left of what was written."""
        self._secret_is_due = True
        self.write()

    def write(self) -> None:
        """Write it at once: who is answered now may read it next."""
        try:
            if self._secret_is_due:
                self._run.write_secret(self._secret)
                self._secret_is_due = False
            self._run.write_record(record(self._cluster))
            self._is_due = False
        except OSError:
            self._loop.after(AGAIN, self.write)
