"""Imported by the fork server alone: ties its life to the supervisor's, whatever state either is in.

The kernel kills the fork server when the supervisor dies (PR_SET_PDEATHSIG), and the nodes, which ask for the same,
when the fork server dies. The setting does not outlive a fork, so each process makes it for itself; and it comes too
late if the parent died before, so the parent's pid is looked at afterwards.
"""

from __future__ import annotations

import ctypes
import os
import signal

from setproctitle import setproctitle

PR_SET_PDEATHSIG = 1
SUPERVISOR = "MEMCLUSTER_SUPERVISOR"
"""The environment variable that tells the fork server its supervisor's pid."""


def die_with(parent: int) -> None:
    """Have this process killed when `parent`, which must be its parent, dies; at once if it is dead already."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


if SUPERVISOR in os.environ:
    die_with(int(os.environ[SUPERVISOR]))
    setproctitle(f"memcluster: fork server of {os.environ.pop(SUPERVISOR)}")
