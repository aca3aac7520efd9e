"""What a person may write in cluster.yaml, key by key; the JSON schema comes from it, too.

Each key is checked by itself here; what keys must be to one another is launcher/clusterfile/config.py's affair.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, PlainValidator, Tag, WithJsonSchema

from memcluster.client.discover import NAME
from memcluster.client.units import MOST_SECONDS, parse_duration, parse_size
from memcluster.node import topology
from memcluster.node.transport.address import Address

MAX_SERVERS = 64


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("must be a size; write 4096, 0x1000, 64KiB or 1GiB")
    size = parse_size(value) if isinstance(value, str) else value
    if not 0 < size < 1 << 60:
        raise ValueError(f"must be more than 0 bytes and less than 1 EiB (got {value})")
    return size


def _duration(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("must be a time span; write 500ms, 10s, 2m or 1h")
    seconds = parse_duration(value) if isinstance(value, str) else float(value)
    if not 0 < seconds < MOST_SECONDS:
        raise ValueError(f"must be more than no time (got {value})")
    return seconds


def _address(value: Any) -> Address:
    if not isinstance(value, str):
        raise ValueError("must be an address; write HOST:PORT, [::1]:PORT or unix:PATH")
    return Address.parse(value)


def _name(value: Any) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ValueError("must be 1 to 40 letters, digits, - or _, with a letter or digit first")
    return value


def _topology(value: Any) -> str:
    if value not in topology.names():
        raise ValueError(f"must be one of {', '.join(topology.names())} (got {value!r})")
    return str(value)


def _stripe(value: Any) -> int:
    size = _size(value)
    if size < 512 or size & (size - 1):
        raise ValueError(f"must be a power of two, 512 or more (got {value})")
    return size


def _hang_timeout(value: Any) -> float:
    span = _duration(value)
    if span < 0.1:
        raise ValueError(f"must be 100ms or more (got {value!r})")
    return span


def _path(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("must be the path of a directory")
    return value


_SIZE_SCHEMA = {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "examples": ["64MiB", "0x1000"]}]}
_SPAN_SCHEMA = {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "examples": ["10s", "500ms"]}]}
_ADDRESS_SCHEMA = {"type": "string", "examples": ["127.0.0.1:10809", "[::1]:10809", "unix:demo.sock"]}

Size = Annotated[int, PlainValidator(_size), WithJsonSchema(_SIZE_SCHEMA)]
Span = Annotated[float, PlainValidator(_duration), WithJsonSchema(_SPAN_SCHEMA)]
HangTimeout = Annotated[float, PlainValidator(_hang_timeout), WithJsonSchema(_SPAN_SCHEMA)]
Listen = Annotated[Address, PlainValidator(_address), WithJsonSchema(_ADDRESS_SCHEMA)]
Name = Annotated[str, PlainValidator(_name), WithJsonSchema({"type": "string", "pattern": f"^{NAME.pattern}$"})]
Directory = Annotated[str, PlainValidator(_path), WithJsonSchema({"type": "string"})]
Topology = Annotated[str, PlainValidator(_topology), WithJsonSchema({"enum": list(topology.names())})]
Stripe = Annotated[int, PlainValidator(_stripe), WithJsonSchema(_SIZE_SCHEMA)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


_Limit = Annotated[
    Annotated[int, Field(ge=1, le=100_000), Tag("as a number")] | Annotated[Literal["auto"], Tag("as a word")],
    Discriminator(lambda value: "as a word" if isinstance(value, str) else "as a number"),
]


class Clients(_Strict):
    """`limit` clients at a time, or `auto`: as many as the machine bears. Each has `handshake_timeout` seconds to get
    from its connection to an export, and `stall_timeout` for the payload of a write or a mebibyte of replies."""

    limit: _Limit = 64
    handshake_timeout: Span = 10.0
    stall_timeout: Span = 30.0


class Logs(_Strict):
    """`retain`: bytes of log segments that each server keeps on disk, at most, and for `retain_age` at most. `level`
    `errors` keeps what failed; `sample` N keeps the whole story of one request in N."""

    directory: Directory = "logs"
    retain: Size = 64 << 20
    retain_age: Span | None = None
    level: Literal["requests", "errors", "off"] = "requests"
    sample: int = Field(default=1, ge=1, le=1_000_000)


class Restart(_Strict):
    """A node that died is started again at once, then after 1, 2, 4 … `cap` seconds; one that lived for `reset`
    seconds starts afresh; `deaths` deaths `within` seconds make it `failed`."""

    cap: Span = 30.0
    reset: Span = 60.0
    deaths: int = Field(default=5, ge=1, le=1000)
    within: Span = 60.0


class Server(_Strict):
    memory: Size
    listen: Listen | None = None


class Stripes(_Strict):
    stripe: Stripe


_Count = Annotated[int, Field(ge=1, le=MAX_SERVERS)]
_List = Annotated[list[Server], Field(min_length=1, max_length=MAX_SERVERS)]
_Servers = Annotated[
    Annotated[_Count, Tag("as a count")] | Annotated[_List, Tag("as a list")],
    Discriminator(lambda value: "as a list" if isinstance(value, list) else "as a count"),
]
_Layout = Annotated[
    Annotated[Literal["linear"], Tag("as a word")] | Annotated[Stripes, Tag("as stripes")],
    Discriminator(lambda value: "as stripes" if isinstance(value, dict) else "as a word"),
]
TAGS = {"as a number", "as a count", "as a list", "as a word", "as stripes"}
"""What pydantic puts into an error's place to say which form a value was taken for."""


def _none_is_empty(value: Any) -> Any:
    return {} if value is None else value


class ClusterFile(_Strict):
    """A cluster of processes on one host that serves one flat memory."""

    name: Name | None = None
    memory: Size
    servers: _Servers = 1
    topology: Topology = topology.DEFAULT
    fan_out: Literal["parallel", "serial"] = "parallel"
    layout: _Layout = "linear"
    listen: Listen | None = None
    clients: Annotated[Clients, BeforeValidator(_none_is_empty)] = Clients()
    storage: Directory = "memory"
    logs: Annotated[Logs, BeforeValidator(_none_is_empty)] = Logs()
    restart: Annotated[Restart, BeforeValidator(_none_is_empty)] = Restart()
    metrics: Listen | None = None
    stop_timeout: Span = 10.0
    retry_timeout: Span = 30.0
    hang_timeout: HangTimeout = 10.0
