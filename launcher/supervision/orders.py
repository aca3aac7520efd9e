"""What the command line may ask of a supervisor over its control socket, checked whole before anything is done."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, TypeAdapter, ValidationError

from launcher.supervision.faultkind import FaultKind

Seconds = Annotated[NonNegativeFloat, Field(allow_inf_nan=False)]


class _Order(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Status(_Order):
    do: Literal["status"] = "status"


class Kill(_Order):
    do: Literal["kill"] = "kill"


class Down(_Order):
    """`timeout` is in seconds from now; without one the cluster's stop_timeout holds."""

    do: Literal["down"] = "down"
    drain: bool = False
    timeout: Seconds | None = None


class Fault(_Order):
    """`seconds` until it heals by itself, `delay` in seconds for each reply of a slow node."""

    do: Literal["fault"] = "fault"
    kind: FaultKind
    targets: Annotated[list[str], Field(min_length=1, max_length=2)]
    seconds: Seconds | None = None
    delay: Seconds = 0.0


Order = Status | Kill | Down | Fault
_ORDERS: TypeAdapter[Order] = TypeAdapter(Annotated[Order, Field(discriminator="do")])


class OrderError(Exception):
    """The order is none; says what is wrong with it."""


def parse(head: dict[str, Any]) -> Order:
    """The order in a frame. Raises OrderError."""
    try:
        return _ORDERS.validate_python(head)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, problem['loc'])) or 'order'}: {problem['msg']}" for problem in error.errors()]
        raise OrderError("; ".join(problems)) from error
