"""How a cluster that root starts becomes another user's: `user` in cluster.yaml. From its first step on `up` acts as
that user, is root again where only root may (to bind, to make folders), and gives that up before any other process is
started. So whatever comes later, restarts, the log, the stop and what it removes, is that user's doing. The other
commands become that user first: root believes no record, and signals no process, that this user has written down.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from memcluster.client.account import Account

PR_SET_DUMPABLE = 4


class CannotBecome(Exception):
    """This process may not be that user, or that user cannot run it; says what to do."""


def is_another(account: Account) -> bool:
    """Whether this process must change its user for that. Raises CannotBecome where it cannot."""
    if account.uid == os.getuid():
        return False
    if os.geteuid() != 0:
        raise CannotBecome(f"only root can run a cluster as user {account.name}; this is uid {os.getuid()}")
    return True


def borrow(account: Account) -> None:
    """Act as that user, with the way back open (`as_root`). Raises CannotBecome."""
    os.setgroups(account.groups)
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, 0)
    for file, how in ((__file__, os.R_OK), (sys.executable, os.X_OK)):
        if not os.access(file, how):
            raise CannotBecome(f"user {account.name} cannot read {file}: install memcluster where that user gets to")


@contextmanager
def as_root() -> Iterator[None]:
    """For what only root may; of a process that has borrowed another user's identity, and else nothing."""
    before = os.geteuid()
    possible = os.getresuid()[2] == 0
    if possible:
        os.seteuid(0)
    try:
        yield
    finally:
        if possible:
            os.seteuid(before)


def become(account: Account) -> None:
    """Be that user for good: the capabilities go with it. It is a process like another of that user's then, which may
    be looked at in /proc: the fork server finds there where its output goes."""
    if os.geteuid() == 0:
        os.setgroups(account.groups)
        os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
