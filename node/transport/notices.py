"""Lines of complaint in a process's own output, for people; not more than so many."""

from __future__ import annotations

from memcluster.node.nbd.printable import printable
from memcluster.node.transport.system import System

MOST = 1000
"""Lines of one process: whoever sends rubbish must not fill the disk."""


class Notices:
    """Of the node of this name."""

    def __init__(self, system: System, node: str) -> None:
        self._system = system
        self._node = node
        self._count = 0

    def say(self, text: str) -> None:
        self._count += 1
        if self._count <= MOST:
            last = "; this was the last of these lines" if self._count == MOST else ""
            self._system.complain(f"{self._node}: {printable(text)}{last}\n".encode())
