"""What a process of the cluster may do beyond what its user may: nothing. No program that it could start gains anything
(PR_SET_NO_NEW_PRIVS), and of root's capabilities it keeps none, or the one by which it gets to its own folders.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

from memcluster.node.files import open_folder

PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
CAP_DAC_READ_SEARCH = 2
CAP_SETPCAP = 8
_VERSION_3 = 0x20080522
_WORDS = ctypes.c_uint32 * 2
_SETS = ctypes.c_uint32 * 6  # effective, permitted, inheritable: of the first 32 capabilities, then of the others
_LIBC = ctypes.CDLL(None, use_errno=True)


def gain_nothing() -> None:
    """From now on neither this process nor what it starts gets privileges by what it executes. Raises OSError."""
    _call(_LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def drop_capabilities(folders: Iterable[str]) -> None:
    """For good, and from what could be got back by an exec, too. Where one of this user's folders lies in a place that
    only root gets to, the capability to look into every folder is kept. Raises OSError."""
    permitted = _permitted()
    if not permitted:
        return
    if permitted & 1 << CAP_SETPCAP:
        _LIBC.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
        capability = 0
        while not _LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):  # fails beyond the last there is
            capability += 1
    _set(0, permitted)
    needed = permitted & 1 << CAP_DAC_READ_SEARCH if not all(map(_gets_to, folders)) else 0
    _set(needed, needed)


def _gets_to(folder: str) -> bool:
    try:
        os.close(open_folder(folder))
    except PermissionError:
        return False
    except OSError:  # which is said where it is used
        return True
    return True


def _permitted() -> int:
    sets = _SETS()
    _call(_LIBC.capget(_WORDS(_VERSION_3, 0), sets))
    return int(sets[1] | sets[4] << 32)


def _set(effective: int, permitted: int) -> None:
    low, high = (1 << 32) - 1, 32
    sets = _SETS(effective & low, permitted & low, 0, effective >> high, permitted >> high, 0)
    _call(_LIBC.capset(_WORDS(_VERSION_3, 0), sets))


def _call(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
