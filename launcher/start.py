"""The entry point of `memcluster`. A guardian is started by engines, in these very words and with nobody to read a help
text; all the hosts of a cluster wait for it, so it goes without the command line."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """See the top of this file."""
    if sys.argv[1:] == ["guardian"]:
        from memcluster.launcher.hosts.guard import main as guardian

        os._exit(guardian())
    from memcluster.launcher.cli import main as command_line

    command_line()
