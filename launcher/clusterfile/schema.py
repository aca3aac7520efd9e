"""What a person may write in cluster.yaml, key by key; the JSON schema comes from it, too.

Each key is checked by itself here; what keys must be to one another is launcher/clusterfile/config.py's affair.
"""

from __future__ import annotations

import grp
import ipaddress
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, PlainValidator, Tag, WithJsonSchema

from memcluster.client.account import parse_account
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


def _mode(value: Any) -> int:
    if isinstance(value, str) and _MODE.fullmatch(value):
        return int(value.removeprefix("0o"), 8)
    raise ValueError(f"must be the permissions of a file, 0600 to 0777 (got {value!r})")


def _group(value: Any) -> str:
    try:
        return grp.getgrnam(value).gr_name
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"must be a group of this machine (got {value!r})") from None


def _user(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be USER or USER:GROUP")
    return parse_account(value).name


def _host(value: Any) -> str:
    text = value.removeprefix("[").removesuffix("]") if isinstance(value, str) else ""
    try:
        unusable = ipaddress.ip_address(text).is_unspecified
    except ValueError:
        unusable = not _HOST.fullmatch(text)
    if unusable:
        raise ValueError(f"must be a host to connect to: a name, or an address without a port (got {value!r})")
    return text


def _matching(pattern: str, what: str) -> Callable[[Any], str]:
    """For a text of this form; `what` says for people what it is."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(f"must be {what} (got {value!r})")
        return value

    return check


_partition = _matching(r"[\w.,-]+", "the name of a partition of Slurm's")
_head = _matching(r"(ray://)?[\w.\[\]:-]+:\d+", "HOST:PORT, where Ray's head is")
_image = _matching(r"[\w][\w./:@-]*", "the name of a container image")


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


def _path(kind: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str) or not value or "\0" in value:
            raise ValueError(f"must be the path of a {kind}")
        return value

    return check


_MODE = re.compile(r"(0|0o)?[67][0-7]{2}")
"""The owner's own processes may always connect."""
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})")
_VARIABLE = r"\$"
"""A text with a variable of the environment in it is checked when that is known."""


def _text(pattern: str, *examples: str) -> dict[str, Any]:
    return {"type": "string", "pattern": f"^({pattern})$|{_VARIABLE}", "examples": list(examples)}


_SIZE_TEXT = _text(r"0[xX][0-9a-fA-F]+|[0-9]+(\.[0-9]+)?\s*[kKmMgGtT]?([iI]?[bB])?", "64MiB", "0x1000", "1.5GiB")
_SPAN_TEXT = _text(r"[0-9]+(\.[0-9]+)?\s*(ms|s|m|h)?", "500ms", "10s", "2m")
_SIZE_SCHEMA = {"anyOf": [{"type": "integer", "minimum": 1}, _SIZE_TEXT]}
_SPAN_SCHEMA = {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, _SPAN_TEXT]}
_ADDRESSES = "127.0.0.1:10809", "[::1]:10809", "unix:demo.sock"
_ADDRESS_SCHEMA = _text(r"unix:.+|\[.+\]:[0-9]{1,5}|[^:]+:[0-9]{1,5}", *_ADDRESSES)
_TEXT_SCHEMA: dict[str, Any] = {"type": "string", "minLength": 1}
_MODE_SCHEMA = {"anyOf": [{"type": "integer", "minimum": 600, "maximum": 777}, _text(_MODE.pattern, "0600", "0660")]}

Size = Annotated[int, PlainValidator(_size), WithJsonSchema(_SIZE_SCHEMA)]
Span = Annotated[float, PlainValidator(_duration), WithJsonSchema(_SPAN_SCHEMA)]
HangTimeout = Annotated[float, PlainValidator(_hang_timeout), WithJsonSchema(_SPAN_SCHEMA)]
Listen = Annotated[Address, PlainValidator(_address), WithJsonSchema(_ADDRESS_SCHEMA)]
Name = Annotated[str, PlainValidator(_name), WithJsonSchema(_text(NAME.pattern, "demo"))]
Directory = Annotated[str, PlainValidator(_path("directory")), WithJsonSchema(_TEXT_SCHEMA)]
Command = Annotated[str, PlainValidator(_path("command")), WithJsonSchema(_TEXT_SCHEMA)]
FilePath = Annotated[str, PlainValidator(_path("file")), WithJsonSchema(_TEXT_SCHEMA)]
Topology = Annotated[str, PlainValidator(_topology), WithJsonSchema({"type": "string", "enum": list(topology.names())})]
Mode = Annotated[int, PlainValidator(_mode), WithJsonSchema(_MODE_SCHEMA)]
Group = Annotated[str, PlainValidator(_group), WithJsonSchema(_TEXT_SCHEMA)]
Host = Annotated[str, PlainValidator(_host), WithJsonSchema(_TEXT_SCHEMA)]
Partition = Annotated[str, PlainValidator(_partition), WithJsonSchema(_TEXT_SCHEMA)]
Head = Annotated[str, PlainValidator(_head), WithJsonSchema(_TEXT_SCHEMA)]
Image = Annotated[str, PlainValidator(_image), WithJsonSchema(_TEXT_SCHEMA)]
User = Annotated[str, PlainValidator(_user), WithJsonSchema({"type": ["string", "integer"]})]
Stripe = Annotated[int, PlainValidator(_stripe), WithJsonSchema(_SIZE_SCHEMA)]


def _none_is_empty(value: Any) -> Any:
    return {} if value is None else value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


_Limit = Annotated[
    Annotated[int, Field(ge=1, le=100_000), Tag("as a number")] | Annotated[Literal["auto"], Tag("as a word")],
    Discriminator(lambda value: "as a word" if isinstance(value, str) else "as a number"),
]


class Clients(_Strict):
    """`limit` clients at a time, or `auto`: as many as the machine bears; `per_address` of another machine. Each has
    `handshake_timeout` seconds to get from its connection to an export, and `stall_timeout` for the payload of a write
    or a mebibyte of replies."""

    limit: _Limit = Field(default=64, description="How many at a time; auto: as many as the machine bears.")
    per_address: int = Field(default=16, ge=1, le=100_000, description="How many at a time of another machine.")
    handshake_timeout: Span = Field(default=10.0, description="From the connection to the export.")
    stall_timeout: Span = Field(default=30.0, description="For the payload of a write, or a mebibyte of replies.")


class Logs(_Strict):
    """`retain`: bytes of log segments that each server keeps on disk, at most, and for `retain_age` at most. `level`
    `errors` keeps what failed; `sample` N keeps the whole story of one request in N."""

    directory: Directory = Field(
        default="logs", description="Where the log, its merged form and the nodes' output are written."
    )
    retain: Size = Field(default=64 << 20, description="Bytes of log that each server keeps on disk, at most.")
    retain_age: Span | None = Field(default=None, description="And for how long, at most.")
    level: Literal["requests", "errors", "off"] = Field(default="requests", description="errors: what failed.")
    sample: int = Field(default=1, ge=1, le=1_000_000, description="Keep the whole story of one request in so many.")


class Restart(_Strict):
    """A node that died is started again at once, then after 1, 2, 4 … `cap` seconds; one that lived for `reset`
    seconds starts afresh; `deaths` deaths `within` seconds make it `failed`."""

    cap: Span = Field(default=30.0, description="Longest wait before a node that died is started again.")
    reset: Span = Field(default=60.0, description="A node that lived so long begins afresh.")
    deaths: int = Field(default=5, ge=1, le=1000, description="So many deaths make a node failed.")
    within: Span = Field(default=60.0, description="The time in which they count.")


class TLS(_Strict):
    """TLS for clients. `mode` require: nobody gets anything without; allow: whoever asks for it has it. `certificates`
    is a folder with the files that qemu, libnbd and nbdkit know; `psk`, instead of them, a file of shared keys."""

    mode: Literal["require", "allow", "off"] = Field(default="require", description="Who must have it.")
    certificates: Directory | None = Field(
        default=None, description="A folder with ca-cert.pem, server-cert.pem and server-key.pem."
    )
    verify: bool = Field(default=True, description="Clients must have a certificate that ca-cert.pem has signed.")
    psk: FilePath | None = Field(default=None, description="A file of shared keys, NAME:KEY a line (Python 3.13).")


class Server(_Strict):
    memory: Size = Field(description="Bytes of its shard.")
    listen: Listen | None = Field(default=None, description="Where it listens.")
    host: Host | None = Field(default=None, description="One of hosts, where it runs.")


class NamedHost(_Strict):
    name: Host = Field(description="What it is called, here and by the engine.")
    address: Host = Field(description="Where it is reached, if its name does not lead there.")


class SSH(_Strict):
    command: Command = Field(default="memcluster", description="How the shell of a host calls memcluster.")


class Slurm(_Strict):
    command: Command = Field(default="memcluster", description="How the shell of a host calls memcluster.")
    partition: Partition | None = Field(default=None, description="Where its jobs go; by default Slurm's own default.")


class Ray(_Strict):
    command: Command = Field(default="memcluster", description="How the shell of a host calls memcluster.")
    address: Head | None = Field(default=None, description="HOST:PORT of Ray's head; by default the one of this host.")


class Kubernetes(_Strict):
    image: Image | None = Field(default=None, description="The containers'; by default memcluster:VERSION.")


class Engines(_Strict):
    """One of them."""

    ssh: Annotated[SSH | None, BeforeValidator(_none_is_empty)] = Field(
        default=None, description="Over ssh, as its own configuration says."
    )
    slurm: Annotated[Slurm | None, BeforeValidator(_none_is_empty)] = Field(
        default=None, description="As a job of Slurm's for each host."
    )
    ray: Annotated[Ray | None, BeforeValidator(_none_is_empty)] = Field(
        default=None, description="As a task of Ray's on each host."
    )
    kubernetes: Annotated[Kubernetes | None, BeforeValidator(_none_is_empty)] = Field(
        default=None, description="In pods, by what `memcluster config --kubernetes` writes."
    )


class Sockets(_Strict):
    """Who may connect to unix sockets: this user alone, or as `mode` says, with `group` as the group it speaks of."""

    mode: Mode = Field(default=0o600, description="Permissions of unix sockets; 0660 for a group.")
    group: Group | None = Field(default=None, description="The group of unix sockets.")


class Stripes(_Strict):
    stripe: Stripe = Field(description="Bytes dealt to each server in turn: a power of two, 512 at least.")


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
_HostEntry = Annotated[
    Annotated[Host, Tag("as a word")] | Annotated[NamedHost, Tag("as a mapping")],
    Discriminator(lambda value: "as a mapping" if isinstance(value, dict) else "as a word"),
]
_Engine = Annotated[
    Annotated[Literal["ssh", "slurm", "ray", "kubernetes"], Tag("as a word")] | Annotated[Engines, Tag("as a mapping")],
    Discriminator(lambda value: "as a mapping" if isinstance(value, dict) else "as a word"),
]
TAGS = {"as a number", "as a count", "as a list", "as a mapping", "as a word", "as stripes"}
"""What pydantic puts into an error's place to say which form a value was taken for."""


class ClusterFile(_Strict):
    """A cluster of processes that serves one flat memory."""

    user: User | None = Field(default=None, description="USER or USER:GROUP that root has the cluster run as.")
    name: Name | None = Field(default=None, description="What the cluster is called; by default as its folder is.")
    memory: Size = Field(description="Bytes of the whole address space.")
    servers: _Servers = Field(default=1, description="A count, or a list of {memory, listen} for unequal ones.")
    hosts: Annotated[list[_HostEntry], Field(max_length=MAX_SERVERS)] = Field(
        default=[], description="Other hosts that servers run on: names, or {name, address}."
    )
    engine: _Engine = Field(default="ssh", description="What starts processes on other hosts.")
    host_lease: Span = Field(
        default=10.0, description="A host without word from the supervisor for so long stops its nodes."
    )
    host_encryption: bool = Field(default=True, description="TLS between hosts; false for a network of your own.")
    topology: Topology = Field(default=topology.DEFAULT, description="Who takes requests and who answers them.")
    fan_out: Literal["parallel", "serial"] = Field(
        default="parallel", description="parallel: all pieces of a request go out at once; serial: one after the other."
    )
    links: Literal["copy", "shared"] = Field(
        default="copy",
        description="copy: bytes go over the links between servers; shared: servers of one host share memory for them.",
    )
    layout: _Layout = Field(default="linear", description="linear: one range a server; or stripes dealt in turn.")
    listen: Listen | None = Field(default=None, description="Where server 0 listens; by default 127.0.0.1:10809.")
    advertise: Host | None = Field(default=None, description="The host by which clients know this machine.")
    insecure_network: bool = Field(
        default=False, description="Whoever reaches an address beyond loopback may read and write the memory."
    )
    sockets: Annotated[Sockets, BeforeValidator(_none_is_empty)] = Field(
        default=Sockets(), description="Who may connect to unix sockets."
    )
    clients: Annotated[Clients, BeforeValidator(_none_is_empty)] = Field(
        default=Clients(), description="Bounds on those who connect."
    )
    storage: Directory = Field(default="memory", description="memory, or a directory for shards that outlive `down`.")
    logs: Annotated[Logs, BeforeValidator(_none_is_empty)] = Field(
        default=Logs(), description="What is logged, where, and for how long."
    )
    restart: Annotated[Restart, BeforeValidator(_none_is_empty)] = Field(
        default=Restart(), description="How nodes that died are started again."
    )
    tls: TLS | None = Field(default=None, description="TLS for clients; there is none by default.")
    metrics: Listen | None = Field(default=None, description="An address on which logger 0 answers Prometheus.")
    stop_timeout: Span = Field(default=10.0, description="For the whole stop; who is late then is killed.")
    retry_timeout: Span = Field(default=30.0, description="How long a request waits for a server that is away.")
    hang_timeout: HangTimeout = Field(default=10.0, description="How long a loop may stand still; 100ms at least.")
