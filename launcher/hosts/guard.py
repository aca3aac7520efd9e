"""The life of a guardian's process: it reads its letter, waits for its turn, ends what an earlier one has left, and is
the host's guardian (guardian.py) till that is over.

A start waits for this on every host, so it loads no more than it needs before the fork server is on its way, and the
rest while that loads: nothing of the command line above all.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Final

from memcluster.client.discover import NotOurs
from memcluster.client.stdio import explained, open_standard_streams
from memcluster.launcher.hosts.letter import Letter, NoLetter, read_letter, write_certificates
from memcluster.launcher.run import leftovers
from memcluster.launcher.run.directory import NameInUse, RunDirectory
from memcluster.launcher.supervision.forkserver import start_fork_server, stop_fork_server
from memcluster.node import topology
from memcluster.node.nbd.printable import printable
from memcluster.node.zygote import raise_descriptor_limit

LEASES: Final = 2
"""The lock is waited for as long as so many leases take, and their ends: of the guardian that has it, and of one that
waits, too, and whose supervisor is gone by the time that it is its turn."""


class LeaseOver(Exception):
    """Another guardian of this host has not ended in time."""


def main() -> int:
    """`memcluster guardian`; returns the exit code."""
    gc.disable()  # loading makes much and no garbage
    open_standard_streams()
    try:
        letter, awaited = read_letter()
        guard(letter, awaited=awaited)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except (NoLetter, LeaseOver, NotOurs) as error:
        said = str(error)
    except OSError as error:
        if not (said := explained(error)):
            raise
    else:
        return 0
    print(f"memcluster: {printable(said)}", file=sys.stderr, flush=True)
    return 1


def guard(letter: Letter, *, awaited: bool) -> None:
    """Be the guardian of a host until it is told to end. The supervisor may be `awaited`, not known to be there."""
    with suppress(PermissionError):  # it leads one already
        os.setsid()
    raise_descriptor_limit()
    run = RunDirectory(f"{letter.cluster}@{letter.host}")
    _wait_for_lock(run, LEASES * letter.lease + leftovers.PATIENCE)
    if record := run.record():
        leftovers.end(record)
        run.forget()
    if letter.topology:
        start_fork_server(run.path, topology.module(letter.topology))
    from setproctitle import setproctitle

    from memcluster.launcher.hosts.guardian import Guardian  # all this while the fork server loads

    setproctitle(f"memcluster {run.name}: guardian")
    folder = write_certificates(run.certificates, letter.certificates)
    write_certificates(run.doors, letter.doors)
    guardian = Guardian(letter, run, folder, awaited=awaited)
    try:
        gc.freeze()
        gc.enable()
        guardian.run()
    finally:
        stop_fork_server()
        if guardian.alone:
            run.forget()
        if not run.holds_memory:
            run.remove()


def _wait_for_lock(run: RunDirectory, seconds: float) -> None:
    """An earlier guardian may be about to end. Raises LeaseOver."""

    def over(_signum: int, _frame: FrameType | None) -> None:
        raise LeaseOver(f"another guardian has {run.path}, and did not end within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        run.acquire(wait=True)
    except NameInUse:
        raise LeaseOver(f"another guardian has {run.path}") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
