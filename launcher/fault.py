"""`memcluster fault`, and the same for programs: what is to be broken, checked, then asked of the supervisor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from memcluster.launcher.checked import ask_supervisor, name_of
from memcluster.launcher.supervision.faultkind import FaultKind

DELAY = 0.05
"""Seconds that each reply of a slow node waits, where nobody says otherwise."""


def fault(file: Path, kind: str, targets: Sequence[str], seconds: float | None, delay: float | None) -> list[str]:
    """Break something of the cluster of `file`; returns the names of the nodes it was done to. Raises ValueError where
    the words do not fit together, Failure, NotRunning."""
    kinds = get_args(FaultKind)
    if kind not in kinds:
        raise ValueError(f"there is no fault {kind!r}; there are {', '.join(kinds)}")
    if not targets:
        raise ValueError(f"{kind} whom? Say a node, a role, server, logger, all, owner:OFFSET or host:NAME")
    if len(targets) != (2 if kind == "partition" and not targets[0].startswith("host:") else 1):
        raise ValueError("partition takes two nodes or a host, every other fault one target")
    if delay is not None and kind != "slow":
        raise ValueError(f"a delay goes with slow, not with {kind}")
    if seconds is not None and kind == "resume":
        raise ValueError("a time to heal after goes with every fault, but not with resume")
    head = {"do": "fault", "kind": kind, "targets": list(targets), "seconds": seconds}
    if kind == "slow":
        head["delay"] = DELAY if delay is None else delay
    done: list[str] = ask_supervisor(name_of(file), file, head)["done"]
    return done


def faults(file: Path) -> list[dict[str, Any]]:
    """What is in force, as `status --json` has it. Raises Failure, NotRunning."""
    found: list[dict[str, Any]] = ask_supervisor(name_of(file), file, {"do": "status"})["faults"]
    return found
