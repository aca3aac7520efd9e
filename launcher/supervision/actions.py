"""What the lifecycle has its supervisor do, and say: values, which somebody else carries out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Start:
    name: str


@dataclass(frozen=True)
class Drain:
    name: str
    mode: str


@dataclass(frozen=True)
class Hold:
    """Let a door answer what is in flight, keep its clients, and rest."""

    name: str


@dataclass(frozen=True)
class Kill:
    name: str


@dataclass(frozen=True)
class ShowStack:
    """Let a hung process write down where it stands."""

    name: str


@dataclass(frozen=True)
class Collect:
    """Let logger 0 write the merged log, unless that takes longer than `within`."""

    within: float | None


@dataclass(frozen=True)
class Probe:
    """Every node says that it is ready: ask the cluster as a client would."""


@dataclass(frozen=True)
class Say:
    """Tell people what happened: `event` is one of ready, running, hung, died, restarting, failed, gave-up, draining,
    late, exited, uncollected, stopped (a node on purpose; without a name the cluster)."""

    event: str
    name: str = ""
    text: str = ""


@dataclass(frozen=True)
class Finish:
    """Everything is gone; exit with this code."""

    code: int


Action = Start | Drain | Hold | Kill | ShowStack | Collect | Probe | Say | Finish
