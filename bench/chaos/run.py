"""One run in one folder, from the first `up` to the last `down`, and the checks; and a run's history checked again."""

from __future__ import annotations

import json
import multiprocessing
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import memcluster
from bench.chaos import load
from bench.chaos.breaker import Breaker
from bench.chaos.checker import NEVER, check
from bench.chaos.history import Operation, read_operations
from bench.chaos.logcheck import SLACK, check_log, logged_at, routed
from bench.chaos.places import Places, Region, choose
from bench.chaos.realclients import Copy, Fio, RealClient
from bench.chaos.report import Report
from bench.chaos.schedule import Fault
from bench.chaos.subject import STRIPE, NotUp, Subject
from memcluster.launcher.clusterfile import config
from memcluster.node import topology
from memcluster.node.layout import Layout, make_layout
from memcluster.node.topology import Topology

BEGIN_WITHIN = 60.0
HEAL_WITHIN = 60.0
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

    @property
    def title(self) -> str:
        return (
            f"seed {self.seed}, {self.seconds:g} s, {self.topology}, {self.servers} servers, {self.layout}, "
            f"{self.fan_out}, storage {self.storage}, {self.clients} clients of {self.rate:g} operations a second"
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
            "storage": self.storage,
        }


def run(options: Options, schedule: list[Fault], folder: Path, end: Event, tell: Tell) -> Report:
    """Do it all. What can be looked at afterwards is in `folder`; nothing else is left."""
    report = Report(options.title)
    subject = Subject(folder, options.shape, options.servers, **options.keys)
    report.breaker = breaker = Breaker(subject)
    (folder / "schedule.json").write_text(json.dumps(schedule))
    history = folder / "history"
    history.mkdir()
    began = _clock()
    try:
        subject.up()
        places = choose(_layout(folder), options.clients)
        tell(f"{options.title}: {len(schedule)} faults in {folder}")
        _put_under_load(options, schedule, subject, places, breaker, report, end)
        _look_at_the_end(subject, places, report)
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
    if options.real:
        real = [
            kind(name, *_door(options, subject, region), options.seed, subject.folder, stop_real)
            for kind, name, region in ((Fio, "fio", places.fio), (Copy, "nbdcopy", places.copy))
        ]
    report.tallies = [client.tally for client in real]
    try:
        for number, private in enumerate(places.private):
            path = subject.folder / "history" / f"client{number}.jsonl"
            job = load.Job(subject.uri, number, options.seed, options.rate, limit, private, tuple(places.shared), path)
            processes.append(load.start(context, job, begun, stop))
        for process in processes:
            if not begun.acquire(timeout=BEGIN_WITHIN):
                report.trouble.append(f"{process.name} has had no answer in {BEGIN_WITHIN:g} s")
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


def _door(options: Options, subject: Subject, region: Region) -> tuple[str, Region]:
    """Where a client that does not route reaches the region, or the largest part of it that one server lets it see."""
    if not options.shape.every_server_is_a_door:
        return subject.uri, region
    pieces = _layout(subject.folder).split(region.offset, region.length)
    piece = max(pieces, key=lambda piece: piece.length)
    return subject.door(piece.server), region._replace(offset=piece.offset, length=piece.length)


def _look_at_the_end(subject: Subject, places: Places, report: Report) -> None:
    """Everything heals, every byte is read once more, and the log is fetched."""
    state = subject.wait_until_running(HEAL_WITHIN)
    if state != "running":
        report.trouble.append(f"the cluster has not healed: {state}")
    load.read_all(subject.uri, [*places.private, *places.shared], subject.folder / "history" / "last.jsonl")
    done = subject.command("logs", "--json", timeout=300.0)
    (subject.folder / "log.jsonl").write_bytes(done.stdout)
    subject.record()
    if done.returncode or done.stderr:
        report.trouble.append(f"logs: exit {done.returncode}: {done.stderr.decode(errors='replace').strip()}")


def _check(folder: Path, report: Report) -> None:
    """Everything that can be told from the files."""
    facts = json.loads((folder / "run.json").read_text())
    options = Options(**facts["options"])
    operations: list[Operation] = list(read_operations(sorted((folder / "history").glob("*.jsonl"))))
    report.loaded = tuple(facts["loaded"])
    report.count(operations)
    report.verdict = check(operations, ordered=options.fan_out == "parallel")
    layout = _layout(folder)
    places = choose(layout, options.clients)
    log = folder / "log.jsonl"
    if not log.exists():
        report.trouble.append("there is no log")
        return
    slack = SLACK + abs(facts["drift"])
    if options.shape.every_server_is_a_door:
        operations = [part for operation in operations for part in routed(layout, operation)]
    with log.open() as lines:
        report.log = check_log(
            map(json.loads, lines),
            operations,
            [*places.private, *places.shared],
            partial(logged_at, options.topology, layout),
            facts["clock"],
            slack,
        )


def _layout(folder: Path) -> Layout:
    found = config.load(folder / "cluster.yaml")
    dispatcher = [0] if topology.load(found.topology).dispatches else []
    sizes = (*dispatcher, *(server.memory for server in found.servers))
    return make_layout(sizes, found.stripe)


def _clock() -> int:
    """What the wall clock shows more than the monotonic one, ns."""
    return time.time_ns() - time.monotonic_ns()
