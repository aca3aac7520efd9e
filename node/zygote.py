"""The fork server of the nodes: ties its life to that of the supervisor, whatever state either is in.

The kernel kills the fork server when the supervisor dies (PR_SET_PDEATHSIG), and the nodes, which ask for the same,
when the fork server dies. The setting does not outlive a fork, so each process makes it for itself; and it comes too
late if the parent died before, so the parent's pid is looked at afterwards.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import sys
from typing import Any

from memcluster.node.files import open_file
from memcluster.node.privileges import gain_nothing

PR_SET_PDEATHSIG = 1
NO_ROOM = -1
_fork = os.fork
SUPERVISOR = "MEMCLUSTER_SUPERVISOR"
"""The environment variable that tells the fork server its supervisor's pid."""
OUTPUT = "MEMCLUSTER_OUTPUT"
"""The environment variable that tells the fork server where its output goes."""


def end_with(parent: int, signum: int = signal.SIGKILL) -> None:
    """Have this process get a signal when `parent`, which must be its parent, dies; at once if it is dead already."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


def open_output(path: str) -> int:
    """A file for what a process prints. Raises OSError."""
    return open_file(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def redirect_output(output: int) -> None:
    """What the process prints goes to this file, which is closed otherwise; it must not hold its starter's terminal or
    pipe open."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)


def raise_descriptor_limit() -> None:
    """As many descriptors as the system lets this user have: a cluster of 64 servers needs hundreds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def fork_or_none() -> int:
    """fork(), with NO_ROOM in the place of a pid when the system has no room for another process: in the fork server
    that would be an exception which ends it, and with it every healthy node. Its loop tells the supervisor the number
    and goes on; what it kept of the last one is closed here."""
    try:
        return _fork()
    except OSError:
        kept = sys._getframe(1).f_locals.get("pid_to_fd", {}).pop(NO_ROOM, None)
        if kept is not None:
            os.close(kept)
        return NO_ROOM


def run_node(*arguments: Any) -> None:
    """See node.process, which the supervisor need not load to name what the fork server is to run: 40 ms of a start."""
    from memcluster.node import process

    process.run_node(*arguments)


if SUPERVISOR in os.environ:
    os.fork = fork_or_none
    gc.disable()  # what is loaded here is no garbage, and stays shared with the nodes as long as nobody looks at it
    for _signum in (signal.SIGTERM, signal.SIGHUP):  # blocked so far: nodes take SIGTERM, each in its own way
        signal.signal(_signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM, signal.SIGHUP])
    end_with(int(os.environ[SUPERVISOR]))  # first: where the output goes may be gone with a supervisor
    gain_nothing()  # nor do the nodes, which are forked from this process
    redirect_output(os.open(os.environ.pop(OUTPUT), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC))
    from setproctitle import setproctitle  # the supervisor need not wait for it to start this process

    setproctitle(f"memcluster: fork server of {os.environ.pop(SUPERVISOR)}")
