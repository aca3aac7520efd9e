"""What the command line may ask of a supervisor over its control socket, checked whole before anything is done.

By hand: nothing else in the supervisor needs pydantic, which takes 50 ms and 20 MiB.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from memcluster.client.units import MOST_SECONDS
from memcluster.launcher.clusterfile.plain import from_plain
from memcluster.launcher.clusterfile.settings import ClusterConfig
from memcluster.launcher.supervision.faultkind import FaultKind
from memcluster.node.nbd.printable import printable, shown

Planned = Literal["stop", "start", "restart"]


@dataclass(frozen=True)
class Status:
    """How is everything?"""


@dataclass(frozen=True)
class Config:
    """What was cluster.yaml when this was started?"""


@dataclass(frozen=True)
class Watch:
    """Tell what happens from now on."""


@dataclass(frozen=True)
class Kill:
    """End everything at once."""


@dataclass(frozen=True)
class Down:
    """`timeout` is in seconds from now; without one the cluster's stop_timeout holds."""

    drain: bool = False
    timeout: float | None = None


@dataclass(frozen=True)
class Fault:
    """`seconds` until it heals by itself, `delay` in seconds for each reply of a slow node."""

    kind: FaultKind
    targets: list[str]
    seconds: float | None = None
    delay: float = 0.0


@dataclass(frozen=True)
class Plan:
    """Some nodes are stopped, started or restarted on purpose."""

    what: Planned
    nodes: list[str]


@dataclass(frozen=True)
class Apply:
    """Become the cluster that `config` describes (clusterfile/plain.py). `stamp` is that of the file it was read from.
    """

    config: ClusterConfig
    stamp: str
    dry: bool
    """Only say whether it can be done."""
    rate: int | None = None
    """Bytes a second that are moved, at most."""
    discard: bool = False
    """What lies in the part of the memory that goes may be lost."""


@dataclass(frozen=True)
class Abort:
    """Go back to what there was before the apply that is under way."""


Order = Abort | Apply | Status | Config | Watch | Kill | Down | Fault | Plan
ORDERS: dict[str, type[Order]] = {
    "abort": Abort,
    "apply": Apply,
    "status": Status,
    "config": Config,
    "watch": Watch,
    "kill": Kill,
    "down": Down,
    "fault": Fault,
    "plan": Plan,
}


LONGEST = 300
"""Characters of what is said of a field that nobody knows."""


class OrderError(Exception):
    """The order is none; says what is wrong with it."""


def _is_span(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST_SECONDS


def _is_rate(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 63


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _are_targets(value: Any) -> bool:
    return _are_names(value) and len(value) in (1, 2)


CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "stamp": (lambda value: isinstance(value, str), "a text"),
    "dry": (lambda value: isinstance(value, bool), "true or false"),
    "discard": (lambda value: isinstance(value, bool), "true or false"),
    "rate": (lambda value: value is None or _is_rate(value), "bytes a second, or null"),
    "drain": (lambda value: isinstance(value, bool), "true or false"),
    "timeout": (lambda value: value is None or _is_span(value), "seconds, or null"),
    "kind": (lambda value: value in get_args(FaultKind), f"one of {', '.join(get_args(FaultKind))}"),
    "targets": (_are_targets, "one or two names"),
    "what": (lambda value: value in get_args(Planned), f"one of {', '.join(get_args(Planned))}"),
    "nodes": (lambda value: _are_names(value) and bool(value), "names"),
    "seconds": (lambda value: value is None or _is_span(value), "seconds, or null"),
    "delay": (_is_span, "seconds"),
}
"""What a field of an order must be."""


def parse(head: dict[str, Any]) -> Order:
    """The order in a frame. Raises OrderError."""
    fields = dict(head)
    do = fields.pop("do", None)
    if not isinstance(do, str) or do not in ORDERS:
        raise OrderError(f"do must be one of {', '.join(ORDERS)} (got {shown(do)})")
    known = [(name, value, *CHECKS[name]) for name, value in fields.items() if name in CHECKS]
    wrong = [f"{name} must be {words} (got {shown(value)})" for name, value, right, words in known if not right(value)]
    if wrong:
        raise OrderError("; ".join(wrong))
    try:
        if do == "apply" and "config" in fields:
            fields["config"] = from_plain(fields["config"])
        return ORDERS[do](**fields)
    except ValueError as error:
        raise OrderError(str(error)) from error
    except TypeError as error:  # a field is missing, or there is no such field
        raise OrderError(printable(str(error))[:LONGEST]) from error
