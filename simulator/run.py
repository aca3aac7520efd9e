"""One run: a plan carried out in a world, from the start of the cluster to its stop, and all that it showed checked."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from memcluster.client.uri import Target
from memcluster.node.layout import Layout
from memcluster.node.log.filter import Filter
from memcluster.node.log.history import History, merged
from memcluster.node.log.record import RECORD, Record
from memcluster.node.log.segments import list_segments
from memcluster.node.serving import keeper
from memcluster.simulator.client import KILLED, Client
from memcluster.simulator.clock import Clock
from memcluster.simulator.faults import Fault
from memcluster.simulator.folder import temporary_folder
from memcluster.simulator.history import BLOCK, UNKNOWN, Operation, identify
from memcluster.simulator.logrules import Entry, check_log, logged_at, routed, unrest
from memcluster.simulator.patience import check_patience, check_refusals
from memcluster.simulator.plan import Ask, Plan
from memcluster.simulator.plan import Client as Errand
from memcluster.simulator.rules import check
from memcluster.simulator.supervisor import AGAIN, BOUNDS, EPOCH, Supervisor
from memcluster.simulator.words import check_torn, check_words
from memcluster.simulator.world import BEGINNING, MS, NEVER, Happening, S, World

MOST_EVENTS = 300_000
"""Of a stage of a run: more is a world that turns and gets nowhere."""
STARTS_WITHIN, DONE_WITHIN, HEALS_WITHIN, RESTS_WITHIN, STOPS_WITHIN = 30 * S, 120 * S, 30 * S, 30 * S, 30 * S
"""Of virtual time."""
LOG_AGAIN = 1500 * MS
"""A log for which there was no room tries again, and says what it has lost, within this."""
KEEPING = 64
"""What keeps its room is cleared in slices that are so much smaller: of a product's 64 and 4 MiB they are a sixteenth,
but memories are small here, and it is to take long."""


@dataclass
class Outcome:
    """What a run has shown. `broken` are sentences, each with the rule before it; none if all is well."""

    plan: Plan
    folder: str
    broken: list[str] = field(default_factory=list)
    history: list[Operation] = field(default_factory=list)
    log: list[Entry] = field(default_factory=list)
    happened: list[Happening] = field(default_factory=list)
    """When, and what: the world's trace."""
    faults: Counter[str] = field(default_factory=Counter)
    """Those that took place, by kind."""
    seconds: float = 0.0
    """Of virtual time."""

    @property
    def trace(self) -> list[str]:
        """A line for each thing that happened, in whatever folder."""
        lines = (f"{when - BEGINNING} {' '.join(map(str, words))}" for when, words in self.happened)
        return [line.replace(self.folder, "") for line in lines]

    @property
    def digest(self) -> str:
        """Of all that has happened, and was seen and logged."""
        lines = "\n".join([*self.trace, *map(repr, self.history), *map(repr, self.log)])
        return blake2b(lines.encode(), digest_size=16).hexdigest()

    @property
    def rule(self) -> str:
        """The first one that was broken."""
        return self.broken[0].partition(":")[0] if self.broken else ""


def simulate(plan: Plan) -> Outcome:
    """Carry a plan out."""
    return in_folder(lambda folder: Run(plan, folder).go())


def in_folder(run: Callable[[Path], Outcome]) -> Outcome:
    """Carry something out; the files of its cluster lie in memory, and are gone afterwards."""
    with temporary_folder() as folder:
        gc.disable()
        gc.freeze()  # what was there before need not be looked at
        try:
            return run(folder)
        finally:
            gc.collect()  # what the dead had mapped
            gc.unfreeze()
            gc.enable()
            _close_files_of(folder)


class Stuck(Exception):
    """The run got nowhere; says what it waited for."""


class Run:
    """From the start of the cluster to its stop; `work` is what happens meanwhile. In a `calm` world whatever is sent
    goes through whole."""

    def __init__(self, plan: Plan, folder: Path, *, calm: bool = False) -> None:
        self.plan = plan
        self.folder = folder
        self.world = World(plan.seed, calm=calm, narrow=plan.shape.narrow)
        self.outcome = Outcome(plan, str(folder))
        self.history = self.outcome.history
        self.clients: list[Client] = []
        self._left = len(plan.clients)
        self._runs = self._ends = self._stopped = False
        self._missing = self._began = 0
        self.clocks: list[Clock] = []
        """Of each server's host its own, where clocks go wrong."""
        if any(fault.kind == "clock" for fault in plan.faults):
            self.clocks = [Clock() for _ in range(len(plan.shape.sizes))]
        self.supervisor = self._supervise(None)
        self.layout: Layout = self.supervisor.map.layout

    def go(self) -> Outcome:
        outcome, world = self.outcome, self.world
        slices = keeper.SLICE, keeper.KEEPING_SLICE
        keeper.SLICE, keeper.KEEPING_SLICE = self.plan.shape.slice, self.plan.shape.slice // KEEPING
        try:
            self._stages()
        except Stuck as error:
            outcome.broken.append(f"progress: {error}")
        finally:
            keeper.SLICE, keeper.KEEPING_SLICE = slices
        outcome.broken += [
            f"crash: {name} ended by itself: {why}"
            for name, why in self.supervisor.deaths
            if why and not why.startswith(KILLED)
        ]
        outcome.broken += [f"crash: {one.name} ended by itself: {why}" for one in self.clients for why in one.crashes]
        outcome.broken += check_words(self.history, world.trace)
        outcome.happened = world.trace
        outcome.seconds = (world.now - BEGINNING) / S
        return outcome

    def _stages(self) -> None:
        self.supervisor.start()
        self.until(lambda: self._runs, STARTS_WITHIN, "the start of the cluster")
        self.work()
        self.until(lambda: self.supervisor.healthy, HEALS_WITHIN, "the cluster to be whole")
        for name in ("supervisor", *self.supervisor.children):  # who was to die at a step that has not come
            self.process_of(name).dies_at = NEVER
        self._come_to_rest()  # a long zeroing of a client that has gone goes on
        self._look_at_all()
        self._come_to_rest()
        self._ends = True
        self.supervisor.stop()
        self.until(lambda: self._stopped, STOPS_WITHIN, "the stop")
        self._check()

    def work(self) -> None:
        """What the plan says."""
        plan, world = self.plan, self.world
        began = self._began = world.now
        for number, errand in enumerate(plan.clients):
            client = self.client(number, errand)
            world.after(1 + world.dice.below(MS) + errand.late, client.start)
        for fault in plan.faults:
            world.at(began + fault.at, partial(self._begin, fault))
        self.until(lambda: not self._left, DONE_WITHIN, "the clients")
        ends = (began + fault.end + (LOG_AGAIN if fault.kind == "full" else 0) for fault in plan.faults)
        over = max(ends, default=0)
        self.until(lambda: world.now > over, over, "the end of the last fault")

    def _supervise(self, before: Supervisor | None) -> Supervisor:
        found = Supervisor(
            self.world, self.plan.shape, self.folder, self._is_running, self._has_stopped, self.clocks, before
        )
        found.died = self._start_again
        return found

    def _start_again(self) -> None:
        """The supervisor was killed, or gave up, and all of its cluster is gone."""
        self.world.note("the cluster is started again")
        heard = self.supervisor.heard
        self.supervisor = self._supervise(self.supervisor)
        self.supervisor.heard = heard
        self.supervisor.start()

    def until(self, fact: Callable[[], object], within: int, what: str | Callable[[], str]) -> None:
        world, deadline = self.world, self.world.now + within
        for _ in range(MOST_EVENTS):
            if fact():
                return
            if world.now > deadline or not world.go_on():
                break
        if not fact():
            words = what if isinstance(what, str) else what()
            raise Stuck(f"{words}: not in {(world.now - deadline + within) / S:.1f} s")

    def _is_running(self) -> None:
        self._runs = True

    def _has_stopped(self) -> None:
        if self._ends:
            self._stopped = True
        else:  # somebody died while the cluster began again, and it gave up: `up` is called once more
            self.world.after(AGAIN, self._start_again)

    # -- clients -----------------------------------------------------------------------------------------------------

    def client(self, number: int, errand: Errand) -> Client:
        """Where clients route, those with other numbers know the memory by another server, but never by the last: its
        address may change."""
        entries = self.supervisor.map.servers
        known = max(1, len(entries) - 1) if self.supervisor.shape.every_server_is_a_door else 1
        host, _, port = entries[number % known].address.rpartition(":")
        client = Client(self.world, number, errand, Target(host, int(port)), self.history, self._client_is_done)
        self.clients.append(client)
        return client

    def _client_is_done(self, _client: Client) -> None:
        self._left -= 1

    def _look_at_all(self) -> None:
        """Nobody writes any more: what is there is read, and asked for zeroes, and must be what lies in the shards."""
        step = 512 * BLOCK
        asks = [
            Ask(kind, at, min(step, self.layout.size - at), 0, 0)
            for at in range(0, self.layout.size, step)
            for kind in ("READ", "BLOCK_STATUS")
        ]
        self._left = 1
        reader = self.client(len(self.clients), Errand(4, True, tuple(asks)))
        reader.start()
        self.until(lambda: not self._left, DONE_WITHIN, "the last look")
        shards = [self.supervisor.shard(index).read_bytes() for index in range(len(self.layout.sizes))]
        for operation in self.history:
            if operation.client == reader.name and operation.kind == "READ" and operation.acknowledged:
                stored = bytearray(operation.length)
                for piece in self.layout.split(operation.offset, operation.length):
                    data, done = shards[piece.server][piece.offset : piece.offset + piece.length], 0
                    for start, end in piece.spans:
                        stored[start:end] = data[done : done + end - start]
                        done += end - start
                if identify(bytes(stored), operation.offset) != operation.seen:
                    self.outcome.broken.append(f"shards: {operation.offset:#x} reads otherwise than it lies there")
            elif operation.client == reader.name and not operation.acknowledged:
                self.outcome.broken.append(f"progress: the last look: {operation.why}")

    # -- faults ------------------------------------------------------------------------------------------------------

    def _begin(self, fault: Fault) -> None:
        world = self.world
        if self._stopped:
            return
        if fault.kind == "partition" and fault.target.startswith("client"):
            self._cut_off(fault)
            return
        if fault.kind == "partition":
            self._cut(fault)
            return
        if fault.kind == "clock":
            self._count(fault)
            self.clocks[int(fault.target.removeprefix("server"))].change(world.now, fault.span, fault.step)
            return
        if fault.kind == "full":
            self._count(fault)
            world.full.add(fault.target)
            world.after(fault.span, partial(world.full.discard, fault.target))
            return
        process = self.process_of(fault.target)
        if process is None or not process.alive:
            return
        self._count(fault)
        if fault.kind == "kill" and not fault.step:
            process.end("killed")
        elif fault.kind == "kill":
            process.dies_at = process.steps + fault.step
        elif fault.kind == "pause":
            process.stop()
            world.after(fault.span, process.go_on)
        elif fault.kind == "slow":
            process.slow = fault.step
            world.after(fault.span, partial(setattr, process, "slow", 0))

    def _cut(self, fault: Fault) -> None:
        """A server from another. Of what is on its way some is left there first, to come when there is a new link."""
        self._count(fault)
        world, lag = self.world, fault.step
        process = self.process_of(fault.target)
        held = process.hold(self._door_of(fault.other)) if lag and process is not None and process.alive else []

        def cut(off: bool) -> None:
            self.supervisor.tell(fault.target, {"do": "fault", "kind": "cut", "peer": fault.other, "cut": off})

        def comes() -> None:
            for stream in held:
                stream.let_go()

        world.after(lag, lambda: cut(True))
        world.after(lag + fault.span, lambda: cut(False))
        world.after(2 * lag + fault.span, comes)

    def _door_of(self, server: str) -> Any:
        return self.supervisor.doors[int(server.removeprefix("server"))].getsockname()

    def _cut_off(self, fault: Fault) -> None:
        """A client from a server: what goes between them is held up."""
        process = self.process_of(fault.target)
        if process is None or not process.alive:
            return
        self._count(fault)
        address = self._door_of(fault.other)
        cut = (fault.target, address)
        self.world.cuts[cut] += 1
        held = process.hold(address)

        def join() -> None:
            self.world.cuts[cut] -= 1
            for stream in held:
                stream.let_go()

        self.world.after(fault.span, join)

    def _count(self, fault: Fault) -> None:
        self.outcome.faults[fault.kind] += 1
        self.world.note("fault:", fault)

    def process_of(self, target: str) -> Any:
        """The present process of this name, if there is one."""
        if target.startswith("client"):
            number = int(target.removeprefix("client"))
            return self.clients[number].process if number < len(self.clients) else None
        if target == "supervisor":
            return self.supervisor.process
        child = self.supervisor.children.get(target)
        return None if child is None else child.process

    # -- checks ------------------------------------------------------------------------------------------------------

    def _come_to_rest(self) -> None:
        self.until(lambda: not self._unrest(), RESTS_WITHIN, lambda: "; ".join(self._unrest()))

    def _unrest(self) -> list[str]:
        found = []
        for name, child in self.supervisor.children.items():
            if name.startswith("server") and child.node is not None:
                found += unrest(name, child.node.role)
        return found

    def _check(self) -> None:
        outcome, plan = self.outcome, self.plan
        for name, child in self.supervisor.children.items():
            if child.process.alive:
                outcome.broken.append(f"left: {name} is still there")
        ordered = plan.shape.fan_out == "parallel"
        most = plan.shape.slice
        slow = partial(_slow, most)
        whole = partial(_is_in_one, self.layout)
        verdict = check(self.history, ordered=ordered, whole=whole, slow=slow, outlasts=self._outlasts)
        outcome.broken += verdict.told + self._given_up() + check_patience(self.world.trace)
        if self._began:  # else no plan says what is broken when
            outcome.broken += check_refusals(self.history, self.world.trace, self._began, int(BOUNDS.retry_timeout * S))
        outcome.log = self._merged()
        outcome.broken += check_torn(outcome.log, self.world.trace, EPOCH)
        operations = self.history
        if self.supervisor.shape.every_server_is_a_door:
            operations = [part for operation in operations for part in routed(self.layout, operation)]
        nodes = partial(logged_at, plan.shape.topology, self.layout)
        outcome.broken += check_log(outcome.log, operations, nodes, self._time, self._missing)
        said = self.supervisor.collected.get("collected")
        if said != len(outcome.log) and not self.supervisor.collected.get("missing"):
            outcome.broken.append(f"log: logger0 wrote {said} records of {len(outcome.log)}")

    def _outlasts(self, operation: Operation) -> bool:
        """It may be carried out somewhere after what its client has asked for later, and is done there: it comes to the
        next server of a chain, or is sent again by a link that was lost."""
        if not _slow(self.plan.shape.slice, operation):
            return False
        servers = [piece.server for piece in self.layout.split(operation.offset, operation.length, spans=False)]
        if self.plan.shape.topology == "primary-secondary":
            return servers != [0] and any(fault.kind in ("kill", "partition", "pause") for fault in self.plan.faults)
        return self.plan.shape.topology == "chain" and len(servers) > 1

    def _given_up(self) -> list[str]:
        """By clients whose library connects again and repeats, and that were not killed."""
        return [
            f"kept: {one.kind} {one.number} of {one.client} was given up: {one.why}"
            for client, errand in zip(self.clients, self.plan.clients, strict=False)
            for one in self.history
            if errand.repeats and one.client == client.name and one.outcome == UNKNOWN and one.why != KILLED
        ]

    def _time(self, server: int, record: Record) -> int:
        """When a record of a server began, by the world's clock."""
        shown = record.start - EPOCH
        return self.clocks[server].when(shown) if self.clocks else shown

    def _merged(self) -> list[Entry]:
        """The merged log, from the segments as they lie there."""
        servers = range(len(self.supervisor.map.servers))
        readings = {
            server: History(
                self.folder / "logs" / f"server{server}", server, self.layout, clock=lambda: EPOCH + self.world.now
            ).read(Filter())
            for server in servers
        }
        found = [
            (entry[3], Record._make(RECORD.unpack(entry[4])))
            for batch in merged(readings, one_clock=self.supervisor.shape.hands_over)
            for entry in batch
        ]
        for server, reading in readings.items():
            segments = list_segments(self.folder / "logs" / f"server{server}")
            is_full = 4 * sum(segment.path.stat().st_size for segment in segments) > 3 * self.plan.shape.retain
            for after, count in reading.gaps:
                self._missing += count
                if any(fault.kind == "full" for fault in self.plan.faults) or (is_full and not after):
                    continue  # the log says what it could not write; and only so much is kept
                self.outcome.broken.append(f"log: {count} records of server{server} are missing after {after}")
        return found


def _is_in_one(layout: Layout, operation: Operation) -> bool:
    """It lies in one server, and so the README promises that it is carried out whole."""
    return len(layout.split(operation.offset, operation.length, spans=False)) == 1


def _slow(most: int, operation: Operation) -> bool:
    """It may be too long for one slice on one of its servers."""
    bounds = {"TRIM": most, "WRITE_ZEROES": most // KEEPING}
    return operation.length > bounds.get(operation.kind, operation.length)


def _close_files_of(folder: Path) -> None:
    """Those that simulated processes had open when they died: nobody else is there to close them."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith(f"{folder}/"):
                os.close(int(name))
        except OSError:
            pass
