"""What the supervisor knows of a running node, wherever that is: here it is a Child, on another host a RemoteChild."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Protocol

from memcluster.launcher.run.identity import Identity
from memcluster.node.spec import NodeSpec
from memcluster.node.transport.loop import Loop

Answered = Callable[[dict[str, Any]], None]


class Process(Protocol):
    """See child.Child for what each of these is."""

    spec: NodeSpec
    pid: int
    identity: Identity
    ready: bool
    status: int | None
    short: bool
    place: str
    """Where it stood when it hung, once it is gone."""

    @property
    def alive(self) -> bool:
        """It has not been seen to end."""

    @property
    def stopped(self) -> bool:
        """It was stopped with a signal."""

    @property
    def away(self) -> str:
        """Why nothing can be said of it now: its host is away. "" as long as it is heard."""

    def tell(self, head: dict[str, Any]) -> None: ...
    def ask(self, head: dict[str, Any], answered: Answered, handed: socket.socket | None = None) -> None: ...
    def signal(self, *signums: int) -> None: ...
    def kill(self) -> None: ...


Told = Callable[[Process, dict[str, Any]], None]
Gone = Callable[[Process, str], None]


class Elsewhere(Protocol):
    """The other hosts of a cluster."""

    loop: Loop
    secret: bytes
    began: float
    """When the first was told to start, on the monotonic clock."""
    certificates: str
    """The folder of what hosts know one another by."""

    def addresses(self) -> dict[str, str]:
        """Where each node there listens."""

    def runs(self) -> list[tuple[int, int, int]]:
        """What the logs there say of runs; see takeover.next_run."""

    def watch(self, hung: Callable[[str, str], None], left: Callable[[str, list[str]], None]) -> None:
        """Tell from now on which node hangs, and how; and which host has left with which nodes."""

    def child(self, spec: NodeSpec, told: Told, gone: Gone) -> Process:
        """Start a node on its host, now or when that is there."""

    def kill(self, host: str) -> None:
        """Have the guardian there end as if by a kill -9: its nodes die with it."""

    def cut(self, host: str, cut: bool) -> None:
        """Lose the guardian there, and hear nothing of it until that is taken back."""

    def refuse(self, name: str) -> None:
        """Nobody will serve those who connect to this node."""

    def change(self, hang_timeout: float) -> None:
        """All nodes there go by another one now."""

    def end(self, keep: bool) -> list[str]:
        """Have every host end, with or without its part of the memory; returns sentences of those that could not be
        told."""

    def close(self) -> None:
        """Give everything back."""
