"""The standard streams, and what is said there of what the system may refuse any program. It needs nothing of the
library of the command line."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TextIO

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
"""Of descriptors, memory or processes."""


def system_words(error: OSError) -> str:
    """What the system says, and of which file."""
    words = error.strerror or str(error)
    return f"{error.filename}: {words}" if error.filename else words


def explained(error: OSError) -> str:
    """What is to be said of a file that cannot be used, a full disk and a limit that is reached, which are no fault of
    this program; "" of other system errors, which may be."""
    if error.errno in SHORT:
        return f"{error.strerror}: a limit of this machine or of yours is reached; `ulimit -a` shows yours"
    return system_words(error) if error.filename or error.errno in FULL else ""


def silence(stream: TextIO) -> None:
    """Nobody takes what we print there: let it and what is still to come go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def open_standard_streams() -> None:
    """One that was closed by our caller leads nowhere: else a file or socket of ours, or of a process that we start,
    would get its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)  # noqa: SIM115 - for as long as we run
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a sign that the locale does not have ends no supervisor
