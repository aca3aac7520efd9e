"""Carries a scenario out: the sentences one after the other, in a world in which nothing else is left to chance.

All else is as in any other run: the same nodes, and at the end the same rules. A moment in a process is looked for at
each of its calls of the system, so that it may end between the bytes in its shard and the record in its log. A stop
falls between two turns of a process.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from memcluster.launcher.supervision.nodelife import State
from memcluster.node.layout import Piece
from memcluster.node.log.filter import Filter
from memcluster.node.log.history import History
from memcluster.node.log.record import RECORD, Kind, Record
from memcluster.node.nbd.wire import Command
from memcluster.simulator.client import Client
from memcluster.simulator.history import ACKNOWLEDGED, ERROR, UNKNOWN, Operation, pattern
from memcluster.simulator.messages import ANSWER, DONE, Message, Messages
from memcluster.simulator.plan import Ask, Plan
from memcluster.simulator.plan import Client as Errand
from memcluster.simulator.process import Killed
from memcluster.simulator.run import Outcome, Run, Stuck, in_folder
from memcluster.simulator.scenario import (
    ZEROES,
    Act,
    Becomes,
    Begin,
    Cut,
    Fact,
    Moment,
    Passes,
    Scenario,
    Serves,
    Shows,
    Step,
)
from memcluster.simulator.supervisor import EPOCH
from memcluster.simulator.world import MS, S

PATIENCE = 60 * S
"""Of virtual time: until what a sentence says."""
LAST = 5 * MS
"""In which the messages come that are on their way at the end."""
MOST_AT_A_TIME = 64
OUTCOMES = {"is answered": ACKNOWLEDGED, "is given up": UNKNOWN, "fails": ERROR}


@dataclass(frozen=True)
class Mark:
    """Something that happened to a process, or that it came to."""

    time: int
    process: str
    words: str
    over: bool = False
    """It is gone."""
    back: bool = False
    """It is there again."""


@dataclass
class Played:
    """A scenario that was carried out: as any run, and what there is to draw. `broken` has the sentence that did not
    come true, if one did not."""

    scenario: Scenario
    outcome: Outcome
    messages: list[Message]
    marks: list[Mark]
    came: list[int]
    """When each of the sentences had come true, in ns from the beginning."""
    began: int


def play(scenario: Scenario, seed: int = 1) -> Played:
    """Carry it out; another seed is another order of what the sentences leave open."""
    made: list[_Play] = []

    def run(folder: Path) -> Outcome:
        made.append(_Play(scenario, seed, folder))
        return made[0].go()

    outcome = in_folder(run)
    return Played(scenario, outcome, made[0].messages.all, made[0].marks, made[0].came, made[0].began)


class _Play(Run):
    def __init__(self, scenario: Scenario, seed: int, folder: Path) -> None:
        super().__init__(Plan(seed, scenario.shape, (), ()), folder, calm=True)
        self.scenario = scenario
        self.marks: list[Mark] = []
        self.came: list[int] = []
        self.began = self.ended = 0
        self._begun: dict[str, tuple[Begin, Client, int]] = {}
        addresses: dict[Any, int] = {}
        for index, sock in enumerate(self.supervisor.doors):
            addresses[sock.getsockname()] = index
        self.messages = Messages(self.world, self.layout, addresses, self._name)
        self.world.tap = self.messages
        self.supervisor.heard = self._heard

    def work(self) -> None:
        """The sentences, one after the other."""
        errand = Errand(MOST_AT_A_TIME, self.scenario.send_again, ())
        for number in range(self.scenario.clients):
            client = self.client(number, errand)
            client.stays = True
            client.start()
        self.until(lambda: all(client.ready for client in self.clients), PATIENCE, "the clients' connections")
        self.began = self.world.now
        for step in self.scenario.steps:
            try:
                self._do(step)
                self.came.append(self.world.now - self.began)
            except Stuck as error:
                raise Stuck(f"{self.scenario.file}:{step.line}:{step.column}: {step.text!r}: {error}") from None
        self.ended = self.world.now
        self._pass(LAST)
        self.world.tap = None
        for client in self.clients:
            client.leave()
        self.until(lambda: all(client.finished for client in self.clients), PATIENCE, "the clients")

    # -- sentences ---------------------------------------------------------------------------------------------------

    def _do(self, step: Step) -> None:
        match step.sentence:
            case Begin() as begin:
                self._begin_request(begin)
            case Act(target, what, None):
                self._act(target, what)
            case Act(target, what, Moment() as moment):
                self._act_when(target, what, moment)
            case Cut(one, other, cut):
                self.supervisor.tell(one, {"do": "fault", "kind": "cut", "peer": other, "cut": cut})
                self._mark(one, f"{'cut off from' if cut else 'joined with'} {other}")
            case Becomes(name, outcome):
                self._becomes(name, outcome)
            case Shows(name, values):
                self._shows(name, values)
            case Serves(process):
                self.until(partial(self._serves, process), PATIENCE, "it does not")
            case Moment() as moment:
                self.until(partial(self._is, moment), PATIENCE, "it is not so")
            case Passes(span):
                self._pass(span)

    def _pass(self, span: int) -> None:
        end = self.world.now + span
        self.world.at(end, lambda: None)
        self.until(lambda: self.world.now >= end, span + S, "time")

    def _begin_request(self, begin: Begin) -> None:
        client = self.clients[int(begin.client.removeprefix("client"))]
        ask = Ask(begin.command, begin.offset, begin.length, 0, 0)
        self._begun[begin.name] = begin, client, client.asks + 1
        client.ask(ask)

    def _act(self, target: str, what: str) -> None:
        process = self.process_of(target)
        if process is None or not process.alive:
            raise Stuck(f"{target} is not there")
        if what == "dies":
            process.end("killed")
        elif what == "stops":
            process.stop()
        else:
            process.go_on()
        self._mark(target, what, over=what == "dies")

    def _act_when(self, target: str, what: str, moment: Moment) -> None:
        """At the step of the process at which the moment has come."""
        acted: list[bool] = []

        def look() -> None:
            if acted or not self._is(moment):
                return
            acted.append(True)
            watched.watch(None)
            if what == "dies" and target == moment.process:
                self._mark(target, what, over=True)
                watched.dies_at = watched.steps
                raise Killed
            self._act(target, what)

        if self._is(moment):
            self._act(target, what)
            return
        watched = self.process_of(moment.process)
        if watched is None:
            raise Stuck(f"{moment.process} is not there")
        watched.watch(look)
        try:
            self.until(lambda: acted, PATIENCE, "the moment does not come")
        finally:
            watched.watch(None)

    def _becomes(self, name: str, outcome: str) -> None:
        if outcome == "is not answered yet":
            if found := self._operation(name):
                raise Stuck(f"it is {_words(found)}")
            return
        self.until(lambda: self._operation(name), PATIENCE, "nothing has become of it")
        found = self._operation(name)
        assert found is not None
        if found.outcome != OUTCOMES[outcome]:
            raise Stuck(f"it is {_words(found)}")
        self._mark(found.client, f"{name} {outcome}")

    def _shows(self, name: str, values: tuple[str, ...]) -> None:
        self._becomes(name, "is answered")
        found = self._operation(name)
        assert found is not None
        names = {self._tag(name): name for name in self._begun} | {0: ZEROES}
        shown = [names.get(value, "nothing known") if isinstance(value, int) else "a mixture" for value in found.seen]
        if other := [word for word in shown if word not in values]:
            raise Stuck(f"it shows {other[0]} in {len(other)} of its {len(shown)} blocks")
        self.marks[-1] = Mark(self.world.now, found.client, f"{name} shows {' and '.join(dict.fromkeys(shown))}")

    # -- facts -------------------------------------------------------------------------------------------------------

    def _is(self, moment: Moment) -> bool:
        return all(self._has(moment.process, fact) is fact.holds for fact in moment.facts)

    def _has(self, process: str, fact: Fact) -> bool:
        about = [message for message in self.messages.all if message.name == fact.name]
        if fact.what == "received":
            return any(message.receiver == process for message in about)
        if fact.what in ("sent", "answered"):
            kinds = (ANSWER, DONE)
            return any(one.sender == process and (one.kind in kinds) is (fact.what == "answered") for one in about)
        if fact.what == "logged":
            return self._has_logged(process, fact.name)
        return self._has_bytes(process, fact.name)

    def _pieces(self, name: str, process: str) -> list[Piece]:
        begin = self._begun[name][0]
        index = int(process.removeprefix("server"))
        return [piece for piece in self.layout.split(begin.offset, begin.length) if piece.server == index]

    def _has_bytes(self, process: str, name: str) -> bool:
        begin, index = self._begun[name][0], int(process.removeprefix("server"))
        whole = pattern(self._tag(name) if begin.command == "WRITE" else 0, begin.offset, begin.length)
        shard = self.supervisor.shard(index).read_bytes()
        pieces = self._pieces(name, process)
        return bool(pieces) and all(
            shard[piece.offset : piece.offset + piece.length]
            == b"".join(whole[start:end] for start, end in piece.spans)
            for piece in pieces
        )

    def _has_logged(self, process: str, name: str) -> bool:
        begin, index = self._begun[name][0], int(process.removeprefix("server"))
        log = History(self.folder / "logs" / process, index, self.layout, clock=lambda: EPOCH + self.world.now)
        for entry in (entry for batch in log.read(Filter()) for entry in batch):
            record = Record._make(RECORD.unpack(entry[4]))
            if (
                record.kind in (Kind.REQUEST, Kind.PIECE)
                and record.operation == Command[begin.command]
                and begin.offset <= record.offset < begin.offset + max(begin.length, 1)
            ):
                return True
        return False

    def _serves(self, process: str) -> bool:
        node = self.supervisor.lifecycle.nodes[process]
        return node.state is State.READY and self.supervisor.children[process].process.alive

    def _operation(self, name: str) -> Operation | None:
        _, client, number = self._begun[name]
        return next((one for one in self.history if one.client == client.name and one.number == number), None)

    def _tag(self, name: str) -> int:
        _, client, number = self._begun[name]
        return client.tag(number)

    def _name(self, command: str, address: int) -> str:
        """The youngest that fits."""
        for name, (begin, _, _) in reversed(self._begun.items()):
            if begin.command == command and begin.offset <= address < begin.offset + max(begin.length, 1):
                return name
        return ""

    def _mark(self, process: str, words: str, *, over: bool = False, back: bool = False) -> None:
        self.marks.append(Mark(self.world.now, process, words, over, back))

    def _heard(self, event: str, name: str) -> None:
        """What the supervisor says of a node."""
        if self.began and not self.ended and event == "ready":
            self._mark(name, "serves again", back=True)


def _words(operation: Operation) -> str:
    return f"{operation.outcome} {operation.why}".strip()
