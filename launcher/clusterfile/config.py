"""cluster.yaml: read, checked as a whole, every default filled in. See docs/configuration.md for the keys.

The keys one by one are schema.py's, what becomes of them is settings.py's; here is what they must be to one another.
All problems of a file are told at once, each with its line and column.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from memcluster.client.discover import NotOurs, contents, default_name, located, run_directory
from memcluster.client.units import format_size
from memcluster.launcher.clusterfile.addresses import check_addresses
from memcluster.launcher.clusterfile.encryption import check_tls
from memcluster.launcher.clusterfile.hosts import (
    check_hosts,
    comes_to_hosts,
    dealt,
    default_listen,
    engine_of,
    hosts_of,
)
from memcluster.launcher.clusterfile.positions import Document, Problem, YAMLProblem, parse
from memcluster.launcher.clusterfile.schema import (
    MAX_SERVERS,
    SSH,
    TAGS,
    TLS,
    Clients,
    ClusterFile,
    Engines,
    Kubernetes,
    Logs,
    NamedHost,
    Ray,
    Restart,
    Server,
    Slurm,
    Sockets,
    Stripes,
)
from memcluster.launcher.clusterfile.settings import (
    FOR_CLIENTS,
    ClientConfig,
    ClusterConfig,
    LogConfig,
    RestartConfig,
    ServerConfig,
    SocketConfig,
    TLSConfig,
)
from memcluster.node import topology
from memcluster.node.forwarding.staging import SIZE as STAGING
from memcluster.node.serving.cgroup import memory_limit
from memcluster.node.transport.address import Address

Place = tuple[int | str, ...]
"""The way to a value: ("servers", 1, "listen")."""
PAGE = 4096
OWN_FILES = 1 << 20
"""Bytes of tmpfs that a run takes beside its shards."""
AS_WRITTEN: tuple[Place, ...] = ("name",), ("user",), ("sockets", "mode")
ANY_PORT = Address("127.0.0.1", 0)


class ConfigError(Exception):
    """The file cannot be used; `problems` has everything that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = tuple(sorted(problems))
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


def load(path: Path, available: int | None = None, settings: Sequence[tuple[str, str]] = ()) -> ClusterConfig:
    """The cluster that a file describes; `settings` are keys (layout.stripe) and values that stand in the place of the
    file's own for this time. `available` is the memory that shards may take, in bytes: by default what
    the file system, this machine and the control group have. Raises ConfigError."""
    name = str(path)
    try:
        content = contents(path)
    except FileNotFoundError:
        words = "no such file; name another one with -f, or have `memcluster init` write one"
        raise ConfigError([Problem(name, 0, 0, words)]) from None
    except OSError as error:
        raise ConfigError([Problem(name, 0, 0, f"cannot be read: {error.strerror}")]) from error
    try:
        document = parse(content)
    except YAMLProblem as error:
        raise ConfigError([Problem(name, error.line, error.column, error.message)]) from error
    if not isinstance(document.value, dict):
        raise ConfigError([Problem(name, 1, 1, "must be keys and values, memory: 64MiB at least")])
    values = {key: value for key, value in document.value.items() if not key.startswith("x-")}
    for key, value in settings:
        _set(document, values, key, value)
    _take_as_written(document, values)
    problems: list[Problem] = []
    wrong: set[int | str] = set()
    try:
        parsed = ClusterFile.model_validate(values)
    except ValidationError as error:
        problems = [
            _placed(_explain(name, document, details), _where(details), settings) for details in error.errors()
        ]
        wrong = {details["loc"][0] for details in error.errors()}
        # The rest can still be held against one another; no check looks at a memory that is wrong.
        right = {key: value for key, value in values.items() if key not in wrong}
        parsed = ClusterFile.model_validate({"memory": 1, **right})
    config = _complete(path, parsed)
    problems += [
        _placed(Problem(name, *document.values.get(where, (1, 1)), message), where, settings)
        for keys, where, message in _check(config, parsed, available)
        if not keys & wrong
    ]
    if problems:
        raise ConfigError(problems)
    return config


def _set(document: Document, values: dict[str, Any], key: str, text: str) -> None:
    """Put a value, written as in the file, in the place of the file's own. Raises ConfigError."""
    *parents, last = where = tuple(key.split("."))
    try:
        value = parse(text.encode())
    except YAMLProblem as error:
        raise ConfigError([Problem(f"--set {key}", 0, 0, error.message)]) from error
    if where in (("name",), ("user",)):
        raise ConfigError([Problem(f"--set {key}", 0, 0, f"the other commands find the cluster by its {key}: use -f")])
    for parent in parents:
        inner = values.get(parent)
        values[parent] = dict(inner) if isinstance(inner, dict) else {}
        values = values[parent]
    values[last] = value.value
    for depth in range(1, len(where) + 1):
        document.keys.setdefault(where[:depth], (1, 1))
    for place, written in value.texts.items():
        document.texts[*where, *place] = written


def _take_as_written(document: Document, values: dict[str, Any]) -> None:
    """No numbers here: 007 is a name, which clients read so, too; and 0660 is a mode."""
    for *parents, last in AS_WRITTEN:
        inner: Any = values
        for parent in parents:
            inner = inner.get(parent)
        if isinstance(inner, dict) and (written := document.texts.get((*parents, last))):
            inner[last] = written


def _placed(problem: Problem, where: Place, settings: Sequence[tuple[str, str]]) -> Problem:
    """What was set on the command line is told as what was written there, not at a line of the file."""
    for key, _ in settings:
        if all(one == other for one, other in zip(where, key.split("."), strict=False)):
            return Problem(f"--set {key}", 0, 0, problem.message)
    return problem


def _complete(path: Path, parsed: ClusterFile) -> ClusterConfig:
    """Every default filled in, every path made absolute."""
    file = located(path)
    folder = file.parent
    name = parsed.name or default_name(file)
    stripe = 0 if isinstance(parsed.layout, str) else parsed.layout.stripe
    if isinstance(parsed.servers, int):
        sizes = _deal(parsed.memory, parsed.servers, stripe)
        entries: list[tuple[int, Address | None]] = [(size, None) for size in sizes]
    else:
        entries = [(server.memory, server.listen) for server in parsed.servers]
    first = entries[0][1] or parsed.listen or default_listen(parsed)
    others = ANY_PORT
    if topology.load(parsed.topology).every_server_is_a_door and not first.path:
        others = replace(first, port=0)  # who reaches one is to reach all
    far = {host.name: Address(host.address or host.name, 0) for host in hosts_of(parsed)}
    servers = [
        ServerConfig(memory, _absolute(listen or far.get(host) or (others if index else first), folder), host)
        for index, ((memory, listen), host) in enumerate(zip(entries, dealt(parsed), strict=True))
    ]
    return ClusterConfig(
        file=file,
        name=name,
        memory=parsed.memory,
        servers=tuple(servers),
        topology=parsed.topology,
        fan_out=parsed.fan_out,
        links=parsed.links,
        stripe=stripe,
        clients=ClientConfig(**parsed.clients.model_dump()),
        storage=None if parsed.storage == "memory" else folder / Path(parsed.storage).expanduser(),
        logs=LogConfig(
            directory=folder / Path(parsed.logs.directory).expanduser(),
            retain=parsed.logs.retain,
            level=parsed.logs.level,
            retain_age=parsed.logs.retain_age or 0.0,
            sample=parsed.logs.sample,
        ),
        restart=RestartConfig(**parsed.restart.model_dump()),
        tls=_tls(parsed, folder, name),
        metrics=None if parsed.metrics is None else _absolute(parsed.metrics, folder),
        sockets=SocketConfig(**parsed.sockets.model_dump()),
        insecure_network=parsed.insecure_network,
        user=parsed.user or "",
        advertise=parsed.advertise or "",
        hosts=hosts_of(parsed),
        engine=engine_of(parsed),
        host_lease=parsed.host_lease,
        host_encryption=parsed.host_encryption,
        stop_timeout=parsed.stop_timeout,
        retry_timeout=parsed.retry_timeout,
        hang_timeout=parsed.hang_timeout,
    )


def _tls(parsed: ClusterFile, folder: Path, name: str) -> TLSConfig:
    """Where clients come to servers of several hosts, they have TLS by default."""
    several = comes_to_hosts(parsed)
    if parsed.tls is None and (not several or parsed.insecure_network):
        return TLSConfig()
    written = parsed.tls or TLS()
    certificates, psk = _file(written.certificates, folder), _file(written.psk, folder)
    of_the_run = several and written.mode != "off" and certificates is None and psk is None
    if of_the_run:
        with suppress(NotOurs):  # said where the directory is made
            certificates = run_directory(name) / FOR_CLIENTS
    return TLSConfig(written.mode, certificates, written.verify, psk, of_the_run)


def _deal(memory: int, servers: int, stripe: int) -> list[int]:
    """Shards as equal as whole pages, or stripes, allow; the larger ones first."""
    unit = stripe or PAGE
    units, tail = divmod(memory, unit)
    each, more = divmod(units, servers)
    sizes = [(each + (index < more)) * unit for index in range(servers)]
    sizes[-1] += tail
    return sizes


def _file(path: str | None, folder: Path) -> Path | None:
    return None if path is None else folder / Path(path).expanduser()


def _absolute(address: Address, folder: Path) -> Address:
    return replace(address, path=str(folder / address.path)) if address.path else address


def _check(config: ClusterConfig, parsed: ClusterFile, available: int | None) -> Iterator[tuple[set[str], Place, str]]:
    """What is wrong with keys that are right one by one: (the keys that were looked at, where, what)."""
    listed = not isinstance(parsed.servers, int)
    total = sum(server.memory for server in config.servers)
    if listed and total != config.memory:
        yield {"memory", "servers"}, ("servers",), (
            f"servers add up to {format_size(total)} ({total} bytes), memory is {format_size(config.memory)} "
            f"({config.memory} bytes)"
        )
    unit = config.stripe or PAGE
    what = "stripes" if config.stripe else "pages"
    if not listed and config.memory < unit * len(config.servers):
        yield {"memory", "servers", "layout"}, ("memory",), (
            f"memory of {format_size(config.memory)} is less than one of the {what} of {unit} bytes for each of "
            f"{len(config.servers)} server{'s' * (len(config.servers) > 1)}"
        )
    elif config.stripe and config.memory % config.stripe:
        yield {"memory", "layout"}, ("memory",), f"memory must be whole stripes of {format_size(config.stripe)}"
    for index, server in enumerate(config.servers if listed else ()):
        if config.stripe and server.memory % config.stripe:
            message = f"memory must be whole stripes of {format_size(config.stripe)}"
            yield {"servers", "layout"}, ("servers", index, "memory"), message
    if config.links == "shared" and not topology.load(config.topology).shares:
        able = ", ".join(name for name in topology.names() if topology.load(name).shares)
        message = f"with topology {config.topology} servers share no memory: only with {able}"
        yield {"links", "topology"}, ("links",), message
    rooms = _rooms(config) if available is None or config.storage else iter([(available, "memory")])
    room, what_says = min(rooms, default=(config.memory, ""))
    here = sum(server.memory for server in config.servers if not server.host)
    if here > room:
        which = f"memory of {format_size(here)}{' on this host' if config.hosts else ''}"
        yield {"memory", "storage", "hosts"}, ("memory",), (
            f"{which} is more than there is room for ({max(0, room) >> 20} MiB: {what_says}); make it "
            "smaller, or give a directory as storage"
        )
    if config.logs.level == "errors" and config.logs.sample > 1:
        message = "sample thins out requests that went well, of which level: errors keeps none; leave one of them out"
        yield {"logs"}, ("logs", "sample"), message
    yield from check_tls(config)
    yield from check_hosts(config, parsed)
    yield from check_addresses(config, parsed)


def _rooms(config: ClusterConfig) -> Iterator[tuple[int, str]]:
    """(bytes that the shards may take, what says so). On a disk they may be more than there is room for now: what finds
    none there is told so, and nothing else suffers; without memory everything would be killed."""
    if config.storage is not None:
        return
    try:
        folder = run_directory(config.name)
    except NotOurs:
        return  # said where the directory is made
    taken = sum(shard.stat().st_blocks * 512 for shard in folder.glob("shard[0-9]*"))  # by this cluster's last run
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    system = os.statvfs(there)
    own = OWN_FILES + (STAGING if config.links == "shared" else 0)
    yield system.f_bavail * system.f_frsize + taken - own, f"free room in {there}"
    yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "memory of this machine"
    limit = memory_limit()
    if limit is not None:
        yield limit, "memory limit of the control group"


# -- problems in words -------------------------------------------------------------------------------------------

FORMS: dict[Place, str] = {
    ("servers",): "a whole number or a list of {memory, listen}",
    ("engine",): "ssh, slurm, ray, kubernetes, or one of them as a mapping, {ssh: {command: COMMAND}}",
    ("layout",): "linear or {stripe: SIZE}",
    ("clients", "limit"): "a whole number or auto",
}
"""What may stand where more than one form may; pydantic knows only the one that it took a value for."""


def _where(details: ErrorDetails) -> Place:
    return tuple(part for part in details["loc"] if part not in TAGS)


def _explain(file: str, document: Document, details: ErrorDetails) -> Problem:
    """A pydantic error as a sentence at its place."""
    where = _where(details)
    label = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(".")
    kind, context = details["type"], details.get("ctx", {})
    got = f"(got {_as_written(document, where, details['input'])})"
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
            allowed = FORMS.get(where) or context["expected"].replace("'", "")
            return Problem(file, *place, f"{label} must be {allowed} {got}")
        case "greater_than_equal" | "less_than_equal":
            bound = f"at least {context['ge']}" if "ge" in context else f"at most {context['le']}"
            return Problem(file, *place, f"{label} must be {bound} {got}")
        case "too_short" | "too_long":
            return Problem(file, *place, f"{label} must have 1 to {MAX_SERVERS} entries")
        case "int_type":
            return Problem(file, *place, f"{label} must be {FORMS.get(where, 'a whole number')} {got}")
        case "model_type" | "model_attributes_type" | "dict_type":
            return Problem(file, *place, f"{label} must be a mapping of keys to values {got}")
        case _:
            return Problem(file, *place, f"{label}: {details['msg']} {got}")


def _as_written(document: Document, where: Place, given: Any) -> str:
    """A value as its writer knows it: `true`, not True."""
    if isinstance(given, str) or where not in document.texts:
        return repr(given)
    return document.texts[where] or "nothing"


def _unknown(where: Place) -> str:
    models: dict[Place, type[BaseModel]] = {
        (): ClusterFile,
        ("servers",): Server,
        ("clients",): Clients,
        ("logs",): Logs,
        ("restart",): Restart,
        ("sockets",): Sockets,
        ("layout",): Stripes,
        ("tls",): TLS,
        ("hosts",): NamedHost,
        ("engine",): Engines,
        ("engine", "ssh"): SSH,
        ("engine", "slurm"): Slurm,
        ("engine", "ray"): Ray,
        ("engine", "kubernetes"): Kubernetes,
    }
    parent = tuple(part for part in where[:-1] if not isinstance(part, int))
    known = list(models[parent].model_fields)
    key = str(where[-1])
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
    return f"unknown key {key!r}{hint}"


# -- the other way round -----------------------------------------------------------------------------------------


def json_schema() -> dict[str, Any]:
    """The JSON schema of what a person may write, for editors."""
    schema = ClusterFile.model_json_schema()
    schema |= {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "cluster.yaml"}
    schema["patternProperties"] = {"^x-": {}}
    return schema
