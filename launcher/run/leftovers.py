"""What a supervisor that died has left: found in its record by pid and start time, ended, and waited for."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from memcluster.launcher.run.directory import RunRecord
from memcluster.launcher.run.identity import Identity
from memcluster.node.transport.loop import wait_readable

PATIENCE = 10.0
"""Seconds to wait for processes that were killed."""


def living(record: RunRecord) -> list[tuple[str, Identity]]:
    """The recorded processes that are still there, by name."""
    named = [(node.name, node.identity) for node in record.nodes]
    named += [("fork server", helper) for helper in record.helpers]
    return [(name, identity) for name, identity in named if identity.alive]


def end(record: RunRecord) -> list[str]:
    """Kill what is left of a cluster whose supervisor is dead; returns the names of what was still there."""
    found = living(record)
    for _, identity in found:
        identity.kill()
    wait_gone([identity for _, identity in found], PATIENCE)
    return [name for name, _ in found]


def wait_gone(identities: Sequence[Identity], seconds: float) -> bool:
    """Wait until all of the processes are gone; false if time runs out."""
    deadline = time.monotonic() + seconds
    for identity in identities:
        pidfd = identity.open()
        if pidfd is None:
            continue
        try:
            if not wait_readable(pidfd, max(0.0, deadline - time.monotonic())):
                return False
        finally:
            os.close(pidfd)
    return True
