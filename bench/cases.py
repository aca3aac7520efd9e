"""The cases: what is measured beside what, and the ratio that has to be reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from bench import idle, secure, starts
from bench.ceiling import ceiling
from bench.cluster import cluster
from bench.fio import KIB, MIB, Figures, Load, measure, measure_all
from bench.pairs import Case, Measure, Plan, Prepare, Wire
from bench.peers import nbdkit_memory, nbdkit_proxy
from bench.processes import Service

HEADER, REPLY = 28, 16
"""Bytes of a request and of a simple reply without data (NBD protocol)."""
CLIENTS = {"limit": 20_000}
SMALL = 1 << 20

Start = Callable[[], AbstractContextManager[Service]]


def _iops(figures: Figures) -> float:
    return figures.iops


def _gigabytes(figures: Figures) -> float:
    return figures.bytes_per_second / 1e9


def _loads(sides: Sequence[Start], load: Load, figure: Callable[[Figures], float]) -> Prepare:
    @contextmanager
    def prepare(plan: Plan) -> Iterator[list[Measure]]:
        with ExitStack() as stack:
            services = [stack.enter_context(start()) for start in sides]
            yield [lambda uri=each.uri: figure(measure(uri, load, plan.runtime)) for each in services]  # type: ignore[misc]

    return prepare


def _wire(load: Load, hops: int = 1) -> Wire:
    writing = load.rw.endswith("write")
    request, reply = (HEADER + load.block, REPLY) if writing else (HEADER, REPLY + load.block)
    return Wire(request, reply, load.depth, hops)


def _four(**keys: Any) -> AbstractContextManager[Service]:
    return cluster(servers=4, **keys)


def _shared_case(name: str, title: str, load: Load, peer: str, target: float) -> Case:
    """4 servers whose links share memory."""
    small = load.block < MIB
    peers: dict[str, Start] = {PROXY: nbdkit_proxy, MEMORY: nbdkit_memory, COPY: _four}
    return Case(
        name=name,
        title=f"4 servers, shared links, {title}",
        unit="IOPS" if small else "GB/s",
        peer=peer,
        target=target,
        prepare=_loads([lambda: _four(links="shared"), peers[peer]], load, _iops if small else _gigabytes),
    )


def _load_case(name: str, title: str, servers: int, load: Load, peer: str, target: float) -> Case:
    small = load.block < MIB
    sides: list[Start] = [
        cluster if servers == 1 else _four,
        nbdkit_proxy if "proxy" in peer else nbdkit_memory,
    ]
    if servers == 1 or small:  # the ceiling's primary passes nothing on before it is all there
        sides.append(lambda: ceiling(servers))
    return Case(
        name=name,
        title=title,
        unit="IOPS" if small else "GB/s",
        peer=peer,
        target=target,
        prepare=_loads(sides, load, _iops if small else _gigabytes),
        wire=_wire(load, 1 if servers == 1 else 2),
    )


def _tls_case(name: str, title: str, load: Load, target: float) -> Case:
    small = load.block < MIB
    return Case(
        name=name,
        title=f"over TLS, {title}",
        unit="IOPS" if small else "GB/s",
        peer="nbdkit memory, TLS",
        target=target,
        prepare=secure.loads(load, _iops if small else _gigabytes),
    )


def _tail(service: Service, runtime: float) -> float:
    """Microseconds within which 99 of 100 single reads are answered while another client streams."""
    reader, _ = measure_all(service.uri, [Load("randread", 4 * KIB, 1), Load("read", MIB, 8)], runtime)
    return reader.p99 * 1e6


@contextmanager
def _tails(plan: Plan) -> Iterator[tuple[Measure, Measure]]:
    with cluster() as subject, nbdkit_memory() as peer:
        yield lambda: _tail(subject, plan.runtime), lambda: _tail(peer, plan.runtime)


def _empty() -> AbstractContextManager[Service]:
    return cluster(memory=SMALL, filled=False, clients=CLIENTS)


def _empty_peer() -> AbstractContextManager[Service]:
    return nbdkit_memory(SMALL, filled=False)


def _idle(clients: Callable[[Plan], int]) -> Prepare:
    @contextmanager
    def prepare(plan: Plan) -> Iterator[tuple[Measure, Measure]]:
        count = clients(plan)
        yield lambda: idle.per_client(_empty, count) / KIB, lambda: idle.per_client(_empty_peer, count) / KIB

    return prepare


@contextmanager
def _taken(plan: Plan) -> Iterator[tuple[Measure, Measure]]:
    yield lambda: idle.taken(_empty, plan.many), lambda: idle.taken(_empty_peer, plan.many)


@contextmanager
def _beyond(plan: Plan) -> Iterator[tuple[Measure, Measure]]:
    def ours(size: int) -> Start:
        return lambda: cluster(memory=size, filled=False)

    def peers(size: int) -> Start:
        return lambda: nbdkit_memory(size, filled=False)

    def taken(start: Callable[[int], Start]) -> float:
        return idle.beyond_shard(start(plan.large), plan.large, start(SMALL), SMALL) / MIB

    yield lambda: taken(ours), lambda: taken(peers)


DEEP_READ, DEEP_WRITE = Load("randread", 4 * KIB, 32), Load("randwrite", 4 * KIB, 32)
ONE_READ, ONE_WRITE = Load("randread", 4 * KIB, 1), Load("randwrite", 4 * KIB, 1)
LONG_READ, LONG_WRITE = Load("read", MIB, 8), Load("write", MIB, 8)
MEMORY, PROXY, COPY = "nbdkit memory", "nbdkit proxy", "links that copy"

CASES = (
    _load_case("read-4k-d32", "one server, 4 KiB reads, depth 32", 1, DEEP_READ, MEMORY, 1.4),
    _load_case("write-4k-d32", "one server, 4 KiB writes, depth 32", 1, DEEP_WRITE, MEMORY, 1.4),
    _load_case("read-4k-d1", "one server, 4 KiB reads, depth 1", 1, ONE_READ, MEMORY, 1.0),
    _load_case("write-4k-d1", "one server, 4 KiB writes, depth 1", 1, ONE_WRITE, MEMORY, 1.0),
    _load_case("read-1m", "one server, 1 MiB reads", 1, LONG_READ, MEMORY, 2.3),
    _load_case("write-1m", "one server, 1 MiB writes", 1, LONG_WRITE, MEMORY, 1.5),
    _load_case("four-read-4k", "4 servers, 4 KiB reads, depth 32", 4, DEEP_READ, PROXY, 2.4),
    _load_case("four-write-4k", "4 servers, 4 KiB writes, depth 32", 4, DEEP_WRITE, PROXY, 2.4),
    _load_case("four-read-4k-direct", "4 servers, 4 KiB reads, depth 32", 4, DEEP_READ, MEMORY, 1.0),
    _load_case("four-write-4k-direct", "4 servers, 4 KiB writes, depth 32", 4, DEEP_WRITE, MEMORY, 1.0),
    _load_case("four-read-1m", "4 servers, 1 MiB reads", 4, LONG_READ, PROXY, 1.3),
    _load_case("four-write-1m", "4 servers, 1 MiB writes", 4, LONG_WRITE, PROXY, 1.2),
    _shared_case("shared-read-4k", "4 KiB reads, depth 32", DEEP_READ, PROXY, 2.1),
    _shared_case("shared-write-4k", "4 KiB writes, depth 32", DEEP_WRITE, PROXY, 2.1),
    _shared_case("shared-read-1m", "1 MiB reads", LONG_READ, PROXY, 2.3),
    _shared_case("shared-write-1m", "1 MiB writes", LONG_WRITE, PROXY, 1.9),
    _shared_case("shared-read-1m-direct", "1 MiB reads", LONG_READ, MEMORY, 1.1),
    _shared_case("shared-write-1m-direct", "1 MiB writes", LONG_WRITE, MEMORY, 1.1),
    _shared_case("shared-read-4k-copy", "4 KiB reads, depth 32", DEEP_READ, COPY, 1.05),
    _shared_case("shared-write-4k-copy", "4 KiB writes, depth 32", DEEP_WRITE, COPY, 1.05),
    _shared_case("shared-read-1m-copy", "1 MiB reads", LONG_READ, COPY, 1.6),
    _shared_case("shared-write-1m-copy", "1 MiB writes", LONG_WRITE, COPY, 1.25),
    _tls_case("tls-read-4k-d32", "4 KiB reads, depth 32", DEEP_READ, 1.2),
    _tls_case("tls-write-4k-d32", "4 KiB writes, depth 32", DEEP_WRITE, 1.2),
    _tls_case("tls-read-1m", "1 MiB reads", LONG_READ, 1.0),
    _tls_case("tls-write-1m", "1 MiB writes", LONG_WRITE, 1.0),
    Case(
        name="log",
        title="the log on, 4 KiB reads, depth 32",
        unit="IOPS",
        peer="the log off",
        target=0.93,
        prepare=_loads([cluster, lambda: cluster(logs={"level": "off"})], DEEP_READ, _iops),
    ),
    Case(
        name="p99",
        title="p99 of 4 KiB reads beside a 1 MiB stream",
        unit="µs",
        peer=MEMORY,
        target=1.0,
        prepare=_tails,
        lower=True,
    ),
    Case(
        name="idle-1000",
        title="memory of an idle client, of 1,000",
        unit="KiB",
        peer=MEMORY,
        target=1.0,
        prepare=_idle(lambda plan: min(1000, plan.many)),
        lower=True,
        pairs=3,
    ),
    Case(
        name="idle-10000",
        title="memory of an idle client, of 10,000",
        unit="KiB",
        peer=f"{MEMORY}, as many as it takes",
        target=1.0,
        prepare=_idle(lambda plan: plan.many),
        lower=True,
        pairs=1,
    ),
    Case(
        name="clients",
        title="idle clients let in, of 10,000",
        unit="clients",
        peer=MEMORY,
        target=1.0,
        prepare=_taken,
        pairs=1,
    ),
    Case(
        name="shard-1g",
        title="memory beyond a full shard of 1 GiB",
        unit="MiB",
        peer=MEMORY,
        target=1.0,
        prepare=_beyond,
        lower=True,
        pairs=3,
    ),
    Case(
        name="up",
        title=f"`up -d` of {starts.SERVERS} servers and {starts.SERVERS} loggers",
        unit="s",
        peer=f"honcho, {starts.PROCESSES} servers",
        target=1.0,
        prepare=starts.starting,
        lower=True,
    ),
    Case(
        name="down",
        title="`down` of the same",
        unit="s",
        peer=f"honcho, {starts.PROCESSES} servers",
        target=1.0,
        prepare=starts.stopping,
        lower=True,
    ),
)


def in_order(known: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The figures of those cases that have any, in the order of the table."""
    return [known[case.name] for case in CASES if case.name in known]
