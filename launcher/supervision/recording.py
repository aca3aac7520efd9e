"""What the supervisor writes down of its run, so that others can find and end what it started."""

from __future__ import annotations

import os
from typing import Protocol

from memcluster.launcher.run.directory import NodeRecord, RunRecord
from memcluster.launcher.run.identity import Identity
from memcluster.launcher.supervision.child import Child
from memcluster.launcher.supervision.forkserver import helpers
from memcluster.launcher.supervision.makeup import Makeup


class Cluster(Protocol):
    """What is asked of the supervisor."""

    makeup: Makeup
    children: dict[str, Child]
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
            )
            for name, child in cluster.children.items()
        ),
    )
