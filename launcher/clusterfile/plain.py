"""A checked cluster.yaml as plain data, for the way from a command to the supervisor, and back.

The supervisor does not check it again, which would take it pydantic; but whatever comes is of the right types, or is
none.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from memcluster.launcher.clusterfile.settings import ClusterConfig
from memcluster.node.nbd.printable import shown

BEYOND = 1e18
"""No number of cluster.yaml that is not whole comes near."""


def to_plain(config: ClusterConfig) -> dict[str, Any]:
    """What JSON can carry."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config), default=str))
    return plain


def from_plain(plain: object) -> ClusterConfig:
    """Raises ValueError."""
    made: ClusterConfig = _made(ClusterConfig, plain, "config")
    return made


def _made(kind: Any, value: Any, where: str) -> Any:
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        names = [field.name for field in fields(kind)]
        if not isinstance(value, dict) or sorted(value) != sorted(names):
            raise ValueError(f"{where} must have {', '.join(names)}")
        return kind(**{name: _made(hints[name], value[name], f"{where}.{name}") for name in names})  # type: ignore[operator]
    origin, inner = get_origin(kind), get_args(kind)
    if origin is tuple and isinstance(value, list):
        return tuple(_made(inner[0], each, f"{where}[]") for each in value)
    if origin is Literal and value in inner:
        return value
    if inner and origin not in (tuple, Literal):  # one of several
        for one in inner:
            try:
                return _made(one, value, where)
            except ValueError:
                continue
    elif kind is Path and isinstance(value, str):
        return Path(value)
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < BEYOND:
        return float(value)
    elif kind in (int, str, bool, NoneType) and type(value) is kind:
        return value
    raise ValueError(f"{where} cannot be {shown(value)}")
