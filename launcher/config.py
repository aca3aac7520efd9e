"""cluster.yaml: read, checked as a whole, every default filled in. See docs/configuration.md for the keys.

`_File` is what a person may write, and gives the JSON schema; `ClusterConfig` is what the launcher works with. All
problems of a file are told at once, each with its line and column.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import ErrorDetails

from client.discover import NAME, default_name
from client.units import format_duration, format_size, parse_duration, parse_size
from launcher.positions import Document, YAMLProblem, parse
from node.address import Address

PAGE = 4096
MAX_SERVERS = 64
MAX_UNIX_PATH = 107
"""Bytes in the path of a unix socket, at most (Linux)."""
TOPOLOGIES = ("primary-secondary",)
DEFAULT_LISTEN = Address("127.0.0.1", 10809)
ANY_PORT = Address("127.0.0.1", 0)

# -- what a person may write -------------------------------------------------------------------------------------


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
    if not 0 < seconds < 1e9:
        raise ValueError(f"must be more than no time (got {value})")
    return seconds


def _address(value: Any) -> Address:
    if not isinstance(value, str):
        raise ValueError("must be an address; write HOST:PORT, [::1]:PORT or unix:PATH")
    return Address.parse(value)


def _name(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or not NAME.fullmatch(str(value)):
        raise ValueError("must be 1 to 40 letters, digits, - or _, with a letter or digit first")
    return str(value)


def _topology(value: Any) -> str:
    if value not in TOPOLOGIES:
        raise ValueError(f"must be one of {', '.join(TOPOLOGIES)} (got {value!r})")
    return str(value)


def _stripe(value: Any) -> int:
    size = _size(value)
    if size < 512 or size & (size - 1):
        raise ValueError(f"must be a power of two, 512 or more (got {value})")
    return size


def _path(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("must be the path of a directory")
    return value


_SIZE_SCHEMA = {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "examples": ["64MiB", "0x1000"]}]}
_SPAN_SCHEMA = {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "examples": ["10s", "500ms"]}]}
_ADDRESS_SCHEMA = {"type": "string", "examples": ["127.0.0.1:10809", "[::1]:10809", "unix:demo.sock"]}

Size = Annotated[int, PlainValidator(_size), WithJsonSchema(_SIZE_SCHEMA)]
Span = Annotated[float, PlainValidator(_duration), WithJsonSchema(_SPAN_SCHEMA)]
Listen = Annotated[Address, PlainValidator(_address), WithJsonSchema(_ADDRESS_SCHEMA)]
Name = Annotated[str, PlainValidator(_name), WithJsonSchema({"type": "string", "pattern": f"^{NAME.pattern}$"})]
Directory = Annotated[str, PlainValidator(_path), WithJsonSchema({"type": "string"})]
Topology = Annotated[str, PlainValidator(_topology), WithJsonSchema({"enum": list(TOPOLOGIES)})]
Stripe = Annotated[int, PlainValidator(_stripe), WithJsonSchema(_SIZE_SCHEMA)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Clients(_Strict):
    """`limit` clients at a time; each has `handshake_timeout` seconds to get from its connection to an export."""

    limit: int = Field(default=64, ge=1, le=100_000)
    handshake_timeout: Span = 10.0


class Logs(_Strict):
    """`retain`: bytes of log segments that each server keeps on disk, at most."""

    directory: Directory = "logs"
    retain: Size = 64 << 20
    level: Literal["requests", "off"] = "requests"


class Restart(_Strict):
    """A node that died is started again at once, then after 1, 2, 4 … `cap` seconds; one that lived for `reset`
    seconds starts afresh; `deaths` deaths `within` seconds make it `failed`."""

    cap: Span = 30.0
    reset: Span = 60.0
    deaths: int = Field(default=5, ge=1, le=1000)
    within: Span = 60.0


class _Server(_Strict):
    memory: Size
    listen: Listen | None = None


class _Stripes(_Strict):
    stripe: Stripe


_Count = Annotated[int, Field(ge=1, le=MAX_SERVERS)]
_List = Annotated[list[_Server], Field(min_length=1, max_length=MAX_SERVERS)]
_Servers = Annotated[
    Annotated[_Count, Tag("as a count")] | Annotated[_List, Tag("as a list")],
    Discriminator(lambda value: "as a list" if isinstance(value, list) else "as a count"),
]
_Layout = Annotated[
    Annotated[Literal["linear"], Tag("as a word")] | Annotated[_Stripes, Tag("as stripes")],
    Discriminator(lambda value: "as stripes" if isinstance(value, dict) else "as a word"),
]
_TAGS = {"as a count", "as a list", "as a word", "as stripes"}


def _none_is_empty(value: Any) -> Any:
    return {} if value is None else value


class _File(_Strict):
    """A cluster of processes on one host that serves one flat memory."""

    name: Name | None = None
    memory: Size
    servers: _Servers = 1
    topology: Topology = "primary-secondary"
    fan_out: Literal["parallel", "serial"] = "parallel"
    layout: _Layout = "linear"
    listen: Listen | None = None
    clients: Annotated[Clients, BeforeValidator(_none_is_empty)] = Clients()
    storage: Directory = "memory"
    logs: Annotated[Logs, BeforeValidator(_none_is_empty)] = Logs()
    restart: Annotated[Restart, BeforeValidator(_none_is_empty)] = Restart()
    stop_timeout: Span = 10.0
    retry_timeout: Span = 30.0


# -- what the launcher works with --------------------------------------------------------------------------------


@dataclass(frozen=True)
class ServerConfig:
    """One server: bytes of its shard, and where it listens."""

    memory: int
    listen: Address


@dataclass(frozen=True)
class LogConfig:
    directory: Path
    retain: int
    level: str


@dataclass(frozen=True)
class ClusterConfig:
    """A whole cluster.yaml; paths are absolute, sizes bytes, times seconds. `stripe` is 0 for the linear layout,
    `storage` None for memory."""

    file: Path
    name: str
    memory: int
    servers: tuple[ServerConfig, ...]
    topology: str
    fan_out: str
    stripe: int
    clients: Clients
    storage: Path | None
    logs: LogConfig
    restart: Restart
    stop_timeout: float
    retry_timeout: float


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong, and where; line 0 means the file as a whole."""

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.message}" if self.line else f"{self.file}: {self.message}"


class ConfigError(Exception):
    """The file cannot be used; `problems` has everything that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = tuple(sorted(problems))
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


def load(path: Path, available: int | None = None) -> ClusterConfig:
    """The cluster that a file describes. `available` is the memory that shards may take, in bytes: by default what
    this machine has. Raises ConfigError."""
    name = str(path)
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise ConfigError([Problem(name, 0, 0, "no such file; name another one with -f, or write one")]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem(name, 0, 0, f"cannot be read: {error}")]) from error
    try:
        document = parse(text)
    except YAMLProblem as error:
        raise ConfigError([Problem(name, error.line, error.column, error.message)]) from error
    if not isinstance(document.value, dict):
        raise ConfigError([Problem(name, 1, 1, "must be a mapping with at least the key memory, such as memory: 64MiB")])
    values = {key: value for key, value in document.value.items() if not key.startswith("x-")}
    problems: list[Problem] = []
    try:
        parsed = _File.model_validate(values)
    except ValidationError as error:
        problems = [_explain(name, document, details) for details in error.errors()]
        wrong = {details["loc"][0] for details in error.errors()}
        parsed = _rest(values, wrong)
        if parsed is None:
            raise ConfigError(problems) from error
    else:
        wrong = set()
    config = _complete(path, parsed)
    problems += [
        Problem(name, *document.values.get(where, (1, 1)), message)
        for where, message in _check(config, parsed, _machine_memory() if available is None else available)
        if where[0] not in wrong and not wrong & {"memory", "servers", "layout"}
    ]
    if problems:
        raise ConfigError(problems)
    return config


def _rest(values: dict[str, Any], wrong: set[int | str]) -> _File | None:
    """What can be checked further although some keys are wrong; None if that is nothing."""
    if "memory" in wrong:
        return None
    return _File.model_validate({key: value for key, value in values.items() if key not in wrong})


def _complete(path: Path, parsed: _File) -> ClusterConfig:
    """Every default filled in, every path made absolute."""
    file = path.absolute()
    folder = file.parent
    stripe = 0 if isinstance(parsed.layout, str) else parsed.layout.stripe
    if isinstance(parsed.servers, int):
        entries = [(size, None) for size in _deal(parsed.memory, parsed.servers, stripe)]
    else:
        entries = [(server.memory, server.listen) for server in parsed.servers]
    servers = []
    for index, (memory, listen) in enumerate(entries):
        default = ANY_PORT if index else parsed.listen or DEFAULT_LISTEN
        servers.append(ServerConfig(memory, _absolute(listen or default, folder)))
    return ClusterConfig(
        file=file,
        name=parsed.name or default_name(file),
        memory=parsed.memory,
        servers=tuple(servers),
        topology=parsed.topology,
        fan_out=parsed.fan_out,
        stripe=stripe,
        clients=parsed.clients,
        storage=None if parsed.storage == "memory" else folder / parsed.storage,
        logs=LogConfig(folder / parsed.logs.directory, parsed.logs.retain, parsed.logs.level),
        restart=parsed.restart,
        stop_timeout=parsed.stop_timeout,
        retry_timeout=parsed.retry_timeout,
    )


def _deal(memory: int, servers: int, stripe: int) -> list[int]:
    """Shards as equal as whole pages, or stripes, allow; the larger ones first."""
    unit = stripe or PAGE
    units, tail = divmod(memory, unit)
    each, more = divmod(units, servers)
    sizes = [(each + (index < more)) * unit for index in range(servers)]
    sizes[-1] += tail
    return sizes


def _absolute(address: Address, folder: Path) -> Address:
    return replace(address, path=str(folder / address.path)) if address.path else address


def _check(config: ClusterConfig, parsed: _File, available: int) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What is wrong with keys that are right one by one: (where, what)."""
    listed = not isinstance(parsed.servers, int)
    total = sum(server.memory for server in config.servers)
    if listed and total != config.memory:
        yield ("servers",), (
            f"servers add up to {format_size(total)} ({total} bytes), memory is {format_size(config.memory)} "
            f"({config.memory} bytes)"
        )
    unit = config.stripe or PAGE
    what = "stripes" if config.stripe else "pages"
    if not listed and config.memory < unit * len(config.servers):
        yield (
            ("memory",),
            f"memory of {format_size(config.memory)} is less than one of the {what} of {unit} bytes for each of "
            f"{len(config.servers)} servers",
        )
    elif config.stripe and config.memory % config.stripe:
        yield ("memory",), f"memory must be whole stripes of {format_size(config.stripe)}"
    for index, server in enumerate(config.servers if listed else ()):
        if config.stripe and server.memory % config.stripe:
            yield ("servers", index, "memory"), f"memory must be whole stripes of {format_size(config.stripe)}"
    if listed and parsed.listen is not None:
        assert not isinstance(parsed.servers, int)
        first = parsed.servers[0].listen
        if first is not None and first != parsed.listen:
            yield ("servers", 0, "listen"), f"server 0 is told to listen on {first} here and on {parsed.listen} by listen"
    if config.storage is None and config.memory > available:
        yield (
            ("memory",),
            f"memory of {format_size(config.memory)} is more than this machine can hold ({available >> 20} MiB); "
            "make it smaller, or give a directory as storage",
        )
    seen: set[Address] = set()
    for index, server in enumerate(config.servers):
        where = ("servers", index, "listen") if listed and index else ("listen",)
        if len(server.listen.path.encode()) > MAX_UNIX_PATH:
            yield where, f"the path of a unix socket has at most {MAX_UNIX_PATH} bytes: {server.listen.path}"
        if server.listen in seen and server.listen.port != 0:
            yield where, f"{server.listen} is another server's address already"
        seen.add(server.listen)


def _machine_memory() -> int:
    """Bytes that fit in this machine's memory and in its tmpfs."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    tmpfs = os.statvfs("/dev/shm")
    return min(physical, tmpfs.f_blocks * tmpfs.f_frsize)


# -- problems in words -------------------------------------------------------------------------------------------


def _explain(file: str, document: Document, details: ErrorDetails) -> Problem:
    """A pydantic error as a sentence at its place."""
    where = tuple(part for part in details["loc"] if part not in _TAGS)
    label = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(".")
    kind, context, given = details["type"], details.get("ctx", {}), details["input"]
    place = document.values.get(where) or document.values.get(where[:-1], (1, 1))
    match kind:
        case "extra_forbidden":
            return Problem(file, *document.keys[where], _unknown(where))
        case "missing":
            return Problem(file, *place, f"{label} is missing")
        case "value_error":
            message = str(context["error"])
            sentence = f"{label} {message}" if message.startswith("must") else f"{label}: {message}"
            return Problem(file, *place, sentence)
        case "literal_error":
            return Problem(file, *place, f"{label} must be {context['expected'].replace(chr(39), '')} (got {given!r})")
        case "greater_than_equal" | "less_than_equal":
            bound = f"at least {context['ge']}" if "ge" in context else f"at most {context['le']}"
            return Problem(file, *place, f"{label} must be {bound} (got {given!r})")
        case "too_short" | "too_long":
            return Problem(file, *place, f"{label} must have 1 to {MAX_SERVERS} entries")
        case "int_type":
            return Problem(file, *place, f"{label} must be a whole number{_or_more(where)} (got {given!r})")
        case "model_type" | "model_attributes_type" | "dict_type":
            return Problem(file, *place, f"{label} must be a mapping of keys to values (got {given!r})")
        case _:
            return Problem(file, *place, f"{label}: {details['msg']} (got {given!r})")


def _or_more(where: tuple[int | str, ...]) -> str:
    return " or a list of {memory, listen}" if where == ("servers",) else ""


def _unknown(where: tuple[int | str, ...]) -> str:
    models = {(): _File, ("clients",): Clients, ("logs",): Logs, ("restart",): Restart, ("layout",): _Stripes}
    parent = tuple(part for part in where[:-1] if not isinstance(part, int))
    known = list(models.get(parent, _Server).model_fields)
    key = str(where[-1])
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
    return f"unknown key {key!r}{hint}"


# -- the other way round -----------------------------------------------------------------------------------------


def json_schema() -> dict[str, Any]:
    """The JSON schema of what a person may write, for editors."""
    schema = _File.model_json_schema()
    schema |= {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "cluster.yaml"}
    schema["patternProperties"] = {"^x-": {}}
    return schema


def dump(config: ClusterConfig) -> str:
    """cluster.yaml with every default filled in: a file that means the same."""
    import yaml

    document = {
        "name": config.name,
        "memory": format_size(config.memory),
        "servers": [
            {"memory": format_size(server.memory), "listen": str(server.listen)} for server in config.servers
        ],
        "topology": config.topology,
        "fan_out": config.fan_out,
        "layout": {"stripe": format_size(config.stripe)} if config.stripe else "linear",
        "listen": str(config.servers[0].listen),
        "clients": {
            "limit": config.clients.limit,
            "handshake_timeout": format_duration(config.clients.handshake_timeout),
        },
        "storage": str(config.storage or "memory"),
        "logs": {
            "directory": str(config.logs.directory),
            "retain": format_size(config.logs.retain),
            "level": config.logs.level,
        },
        "restart": {
            "cap": format_duration(config.restart.cap),
            "reset": format_duration(config.restart.reset),
            "deaths": config.restart.deaths,
            "within": format_duration(config.restart.within),
        },
        "stop_timeout": format_duration(config.stop_timeout),
        "retry_timeout": format_duration(config.retry_timeout),
    }
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
