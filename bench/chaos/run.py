"""One run in one folder, from the first `up` to the last `down`, and the checks; and a run's history checked again."""

from __future__ import annotations

import json
import multiprocessing
import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from threading import Event
from typing import Any

import memcluster
from bench.chaos import load, rude
from bench.chaos.agreement import TRIES, disagreements
from bench.chaos.breaker import Breaker
from bench.chaos.far import Far
from bench.chaos.logcheck import SLACK, check_log, logged_at
from bench.chaos.places import Places, Region, choose
from bench.chaos.realclients import Copy, Fio, RealClient
from bench.chaos.report import Report
from bench.chaos.runs import Runs, known
from bench.chaos.schedule import Fault
from bench.chaos.subject import FIRST, OTHER, STRIPE, NotUp, Subject
from memcluster.launcher.clusterfile import config
from memcluster.node import topology
from memcluster.node.layout import Layout, make_layout
from memcluster.node.topology import Topology
from memcluster.simulator.history import Operation, read_operations
from memcluster.simulator.rules import NEVER, check

RUNS = "runs.json"
NO_LONGER = b"no longer kept"
"""What is said of records that had to make room."""
BEGIN_WITHIN = 60.0
HEAL_WITHIN = 60.0
WHOLE = {"TRIM": 64 << 20, "WRITE_ZEROES": 4 << 20}
"""Bytes of the longest request that the README promises to carry out whole; without a bound for others."""
LOGS = {"all": {"retain": "8GiB"}, "age": {"retain": "8GiB", "retain_age": "16s"}, "small": {"retain": "512KiB"}}
"""What cluster.yaml says of the log's size."""
CLIENTS_WITHIN = load.PATIENCE + load.RECONNECT + 10.0
Tell = Callable[[str], object]


@dataclass(frozen=True)
class Options:
    """What a run is made of, beside its schedule."""

    seed: int
    seconds: float
    servers: int = 3
    layout: str = "linear"
    fan_out: str = "parallel"
    storage: str = "memory"
    clients: int = 4
    rate: float = 250.0
    real: bool = True
    topology: str = "primary-secondary"
    memory: int = 48
    """MiB."""
    logs: str = "all"
    """`all` is kept, or what `LOGS` says: then the log is in small blocks."""
    links: str = "copy"
    reshape: bool = False
    """The memory gets other shapes meanwhile. Then nobody looks at one server's part alone, and where pieces stand in
    the log is not checked."""

    hosts: int = 0
    """Other ones, beside that of the supervisor."""

    @property
    def title(self) -> str:
        return (
            f"seed {self.seed}, {self.seconds:g} s, {self.topology}, {self.servers} servers, {self.layout}, "
            f"{self.fan_out}, links {self.links}, {self.memory} MiB of storage {self.storage}, logs {self.logs}, "
            f"{self.clients} clients of {self.rate:g} operations a second{', reshaped' * self.reshape}"
            f"{f', over {self.hosts + 1} hosts' * bool(self.hosts)}"
        )

    @property
    def shape(self) -> Topology:
        return topology.load(self.topology)

    @property
    def keys(self) -> dict[str, Any]:
        """Of cluster.yaml."""
        layout = {"stripe": STRIPE} if self.layout == "stripe" else "linear"
        return {
            "topology": self.topology,
            "layout": layout,
            "fan_out": self.fan_out,
            "links": self.links,
            "storage": self.storage,
            "logs": {"directory": "logs", **LOGS[self.logs]},
        }


def run(
    options: Options, schedule: list[Fault], folder: Path, end: Event, tell: Tell, far: Far | None = None
) -> Report:
    """Do it all. What can be looked at afterwards is in `folder`; nothing else is left."""
    report = Report(options.title)
    subject = Subject(folder, options.shape, options.servers, options.memory << 20, far, **options.keys)
    asked, asking = multiprocessing.Pipe()
    report.breaker = breaker = Breaker(subject, asking, options.seed)
    breaker.reshapes = options.reshape
    (folder / "schedule.json").write_text(json.dumps(schedule))
    history = folder / "history"
    history.mkdir()
    began = _clock()
    try:
        subject.up()
        places = choose(subject.layout, options.clients)
        tell(f"{options.title}: {len(schedule)} faults in {folder}")
        _put_under_load(options, schedule, subject, places, breaker, asked, report, end)
        _look_at_the_end(options, subject, places, report)
    except NotUp as error:
        report.trouble.append(f"the cluster does not come up: {error}")
    except (memcluster.ClusterError, OSError) as error:
        report.trouble.append(f"the end of the run: {type(error).__name__}: {error}")
    finally:
        done = subject.command("down", timeout=120.0)
        (folder / "down").write_bytes(done.stdout + done.stderr)
        if done.returncode:
            report.trouble.append(f"down: exit {done.returncode}: {done.stderr.decode(errors='replace').strip()}")
        report.left = subject.left_behind()
        subject.end_leftovers()
        (folder / "faults.json").write_text("".join(json.dumps(line) + "\n" for line in breaker.done))
        facts = {
            "options": asdict(options),
            "clock": began,
            "drift": _clock() - began,
            "loaded": report.loaded,
            "unserved": breaker.unserved,
            "machine": platform.platform(),
        }
        (folder / "run.json").write_text(json.dumps(facts, indent=2))
    if breaker.deaths_unasked:
        report.trouble.append(f"the supervisor died by itself: {', '.join(breaker.deaths_unasked)}")
    tell("checking")
    _check(folder, report)
    return report


def replay(folder: Path) -> tuple[Options, list[Fault], Report]:
    """Check the history of an earlier run again; also what is needed to run it again."""
    options = Options(**json.loads((folder / "run.json").read_text())["options"])
    schedule = [Fault(*fault) for fault in json.loads((folder / "schedule.json").read_text())]
    report = Report(f"{options.title}, as it was recorded")
    _check(folder, report)
    return options, schedule, report


def _put_under_load(
    options: Options,
    schedule: list[Fault],
    subject: Subject,
    places: Places,
    breaker: Breaker,
    asked: Pipe,
    report: Report,
    end: Event,
) -> None:
    """The load, and the faults meanwhile; over when every client has ended."""
    context = multiprocessing.get_context("spawn")
    stop, begun = context.Event(), context.Semaphore(0)
    stop_real = Event()
    limit = time.monotonic() + BEGIN_WITHIN + options.seconds + CLIENTS_WITHIN
    processes = []
    real: list[RealClient] = []
    if options.real and not _parts(options):
        real = [
            kind(name, *_door(options, subject, region), options.seed, subject.folder, stop_real)
            for kind, name, region in ((Fio, "fio", places.fio), (Copy, "nbdcopy", places.copy))
        ]
    report.tallies = [client.tally for client in real]
    try:
        for number in range(options.clients):
            path = subject.folder / "history" / f"client{number}.jsonl"
            job = load.Job(subject.uri, number, options.seed, options.rate, limit, places, path)
            processes.append(load.start(context, job, begun, stop))
        for process in processes:
            if not begun.acquire(timeout=BEGIN_WITHIN):
                report.trouble.append(f"{process.name} has had no answer in {BEGIN_WITHIN:g} s")
        if not _parts(options):
            processes.append(rude.start(context, _rude(options, subject, places, limit), stop, asked))
        for client in real:
            client.start()
        report.loaded = time.monotonic_ns(), NEVER
        breaker.run(schedule, options.seconds, end)
    finally:
        report.loaded = report.loaded[0], time.monotonic_ns()
        stop.set()
        stop_real.set()
        breaker.heal()
        for process in processes:
            process.join(max(0.0, limit - time.monotonic()))
            if process.exitcode is None:
                process.kill()
                process.join()
            if process.exitcode:
                report.trouble.append(f"{process.name} ended with {process.exitcode}")
        for client in real:
            client.join()


def _parts(options: Options) -> bool:
    """Who does not route would be at one server's part, which becomes another one."""
    return options.reshape and options.shape.every_server_is_a_door


def _rude(options: Options, subject: Subject, places: Places, limit: float) -> rude.Job:
    layout = subject.layout
    doors = [subject.uri]
    if options.shape.every_server_is_a_door:
        doors = [subject.door(server) for server in range(len(layout.sizes))]
    path = subject.folder / "history" / "rude.jsonl"
    return rude.Job(subject.uri, tuple(doors), layout, options.clients, options.seed, limit, places, path)


def _door(options: Options, subject: Subject, region: Region) -> tuple[str, Region]:
    """Where a client that does not route reaches the region, or the largest part of it that one server lets it see."""
    if not options.shape.every_server_is_a_door:
        return subject.uri, region
    pieces = subject.layout.split(region.offset, region.length)
    piece = max(pieces, key=lambda piece: piece.length)
    return subject.door(piece.server), region._replace(offset=piece.offset, length=piece.length)


def _look_at_the_end(options: Options, subject: Subject, places: Places, report: Report) -> None:
    """Everything heals, every byte is read once more, and the log is fetched."""
    state = subject.wait_until_running(HEAL_WITHIN)
    if options.reshape:
        subject.write_shape(random.Random(options.seed))
    if state != "running":
        report.trouble.append(f"the cluster has not healed: {state}")
    seen = [*places.private, *places.shared, *places.wide, *places.spots]
    load.read_all(subject.uri, seen, subject.folder / "history" / "last.jsonl")
    done = subject.command("logs", "--json", "--all-runs", timeout=300.0)
    (subject.folder / "log.jsonl").write_bytes(done.stdout)
    listed = subject.command("logs", "--runs", "--json").stdout
    (subject.folder / RUNS).write_text(json.dumps(known(listed, subject.folder / "logs" / subject.name)))
    subject.record()
    if done.returncode or (done.stderr and not (NO_LONGER in done.stderr and options.logs != "all")):
        report.trouble.append(f"logs: exit {done.returncode}: {done.stderr.decode(errors='replace').strip()}")
    with memcluster.connect(subject.uri) as memory:
        for _ in range(TRIES):  # a copy of a shard on another host may be older than what was still under way
            if not (found := disagreements(memory, subject.layout, subject.shard)) or not options.hosts:
                break
    (subject.folder / "disagreements").write_text("".join(f"{line}\n" for line in found))


def _check(folder: Path, report: Report) -> None:
    """Everything that can be told from the files."""
    facts = json.loads((folder / "run.json").read_text())
    options = Options(**facts["options"])
    operations: list[Operation] = list(read_operations(sorted((folder / "history").glob("*.jsonl"))))
    report.loaded = tuple(facts["loaded"])
    report.unserved = facts["unserved"]
    report.count(operations)
    layout = _layout(folder / FIRST)
    layouts = [layout, _other_layout(folder)] if options.reshape else [layout]
    report.verdict = check(operations, ordered=options.fan_out == "parallel", whole=partial(_whole, layouts))
    if (folder / "disagreements").exists():
        report.disagreements = (folder / "disagreements").read_text().splitlines()
    places = choose(layout, options.clients)
    log = folder / "log.jsonl"
    if not log.exists():
        report.trouble.append("there is no log")
        return
    slack = SLACK + abs(facts["drift"])
    runs = Runs.read(folder / RUNS, layout)
    if options.shape.every_server_is_a_door:
        operations = [part for operation in operations for part in runs.parts(operation, facts["clock"], slack)]
    with log.open() as lines:
        report.log = check_log(
            map(json.loads, lines),
            operations,
            places.ours,
            partial(logged_at, options.topology, runs.at),
            facts["clock"],
            slack,
            kept=options.logs == "all",
            split_again=_parts(options),
        )


def _other_layout(folder: Path) -> Layout:
    """Of the other shape that it had."""
    return _layout(folder / OTHER)


def _layout(file: Path) -> Layout:
    found = config.load(file)
    dispatcher = [0] if topology.load(found.topology).dispatches else []
    sizes = (*dispatcher, *(server.memory for server in found.servers))
    return make_layout(sizes, found.stripe)


def _whole(layouts: Sequence[Layout], operation: Operation) -> bool:
    """The README promises that it is carried out whole: nobody sees it in part, if it is acknowledged."""
    long = operation.length > WHOLE.get(operation.kind, operation.length)
    return not long and all(len(layout.split(operation.offset, operation.length)) == 1 for layout in layouts)


def _clock() -> int:
    """What the wall clock shows more than the monotonic one, ns."""
    return time.time_ns() - time.monotonic_ns()
