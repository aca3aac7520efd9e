"""A scenario: who does what in which order, told in a file by sentences. Here it is read and checked as a whole.

    title: A secondary dies between its bytes and its reply
    topology: primary-secondary
    servers: 3
    memory: 48KiB
    steps:
    - client0 writes A, 8KiB at 12KiB
    - server1 dies when it has the bytes of A and has not answered A
    - A is answered

`SENTENCES` has all that can be said. All that is wrong with a file is told at once, with lines and columns, as of
cluster.yaml. What becomes of a scenario is in play.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memcluster.client.units import parse_duration, parse_size
from memcluster.launcher.clusterfile.positions import Document, Problem, YAMLProblem, parse
from memcluster.simulator.history import BLOCK
from memcluster.simulator.plan import TOPOLOGIES, Shape
from memcluster.simulator.world import S

MOST_SERVERS, MOST_CLIENTS, MOST_MEMORY = 16, 16, 1 << 20
COMMANDS = {"writes": "WRITE", "reads": "READ", "trims": "TRIM", "zeroes": "WRITE_ZEROES", "flushes": "FLUSH"}
ZEROES = "zeroes"


# -- what is said ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fact:
    """What a process has, or has not, of a request: its bytes, a record of it, a message about it."""

    what: str
    name: str
    holds: bool


@dataclass(frozen=True)
class Moment:
    """When all this is so of a process; looked for at each of its steps."""

    process: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Begin:
    """A client asks for something, and does not wait for it."""

    client: str
    command: str
    name: str
    length: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Act:
    """Something is done to a process: now, or when the moment has come."""

    target: str
    what: str
    moment: Moment | None = None


@dataclass(frozen=True)
class Cut:
    """Two servers are cut off from each other, or joined again."""

    one: str
    other: str
    cut: bool


@dataclass(frozen=True)
class Becomes:
    """What a request comes to, sooner or later."""

    name: str
    outcome: str


@dataclass(frozen=True)
class Shows:
    """What an answered read has seen: each block one of these."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Serves:
    """A process that has died is back, and ready."""

    process: str


@dataclass(frozen=True)
class Passes:
    """Time, ns."""

    span: int


Sentence = Moment | Begin | Act | Cut | Becomes | Shows | Serves | Passes


@dataclass(frozen=True)
class Step:
    """A sentence, and where it stands."""

    text: str
    line: int
    column: int
    sentence: Sentence


@dataclass(frozen=True)
class Scenario:
    """The whole file. Clients that `send_again` do so when they have lost a connection; the others give up."""

    file: str
    title: str
    story: str
    question: str
    shape: Shape
    clients: int
    send_again: bool
    steps: tuple[Step, ...]


class ScenarioError(Exception):
    """The file cannot be used; `problems` has all that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = sorted(problems)
        super().__init__("\n".join(map(str, self.problems)))


class Unsaid(Exception):
    """A sentence makes no sense; says why."""


# -- sentences -------------------------------------------------------------------------------------------------------

_NAME = "([A-Z][A-Za-z0-9]*)"
_CLIENT, _SERVER, _ANYBODY = r"(client\d+)", r"(server\d+)", r"((?:client|server|logger)\d+|supervisor)"
_FACT = re.compile(rf"has (not )?(the bytes of|logged|received|sent|answered) {_NAME}")
_WHAT = "has(?: not)? (?:the bytes of|logged|received|sent|answered) [A-Z].*"


def _begin(client: str, verb: str, name: str, length: str, offset: str) -> Begin:
    sizes = [_size(text) for text in (length, offset)]
    if not sizes[0]:
        raise Unsaid("a request of no bytes")
    return Begin(client, COMMANDS[verb], name, *sizes)


def _size(text: str) -> int:
    try:
        found = parse_size(text)
    except ValueError as error:
        raise Unsaid(str(error)) from error
    if found % BLOCK:
        raise Unsaid(f"{text} is no multiple of {BLOCK}")
    return found


def _moment(process: str, words: str) -> Moment:
    facts = []
    for word in words.split(" and "):
        found = _FACT.fullmatch(word)
        if found is None:
            raise Unsaid(f"{word!r} is nothing that a process can have; it has (or has not) the bytes of, logged, "
                         "received, sent or answered a request")  # fmt: skip
        facts.append(Fact(found[2], found[3], not found[1]))
    return Moment(process, tuple(facts))


def _act(target: str, what: str, who: str | None, words: str | None) -> Act:
    moment = _moment(target if who in (None, "it") else str(who), words) if words else None
    return Act(target, what, moment)


def _span(text: str) -> int:
    try:
        return int(parse_duration(text) * S)
    except ValueError as error:
        raise Unsaid(str(error)) from error


SENTENCES: tuple[tuple[str, str, Callable[..., Sentence]], ...] = (
    ("client0 writes A, 8KiB at 12KiB (or reads, trims, zeroes)",
     rf"{_CLIENT} (writes|reads|trims|zeroes) {_NAME}, (\S+) at (\S+)", _begin),
    ("client0 flushes A", rf"{_CLIENT} flushes {_NAME}", lambda client, name: Begin(client, "FLUSH", name)),
    ("server1 dies when it has the bytes of A and has not answered A (or stops, goes on; or without a moment)",
     rf"{_ANYBODY} (dies|stops|goes on)(?: when (it|{_ANYBODY[1:-1]}) ({_WHAT}))?", _act),
    ("server0 and server1 are cut off", rf"{_SERVER} and {_SERVER} are cut off",
     lambda one, other: Cut(one, other, cut=True)),
    ("server0 and server1 are joined", rf"{_SERVER} and {_SERVER} are joined",
     lambda one, other: Cut(one, other, cut=False)),
    ("A is answered (or is given up, is not answered yet, fails)",
     rf"{_NAME} (is answered|is given up|is not answered yet|fails)", Becomes),
    ("R shows A (or zeroes, or A or zeroes)", rf"{_NAME} shows (\S+(?: or \S+)*)",
     lambda name, values: Shows(name, tuple(values.split(" or ")))),
    ("server1 serves again", rf"{_SERVER} serves again", Serves),
    ("server1 has the bytes of A", rf"{_ANYBODY} ({_WHAT})", _moment),
    ("50ms pass", r"(\S+) pass", lambda text: Passes(_span(text))),
)  # fmt: skip
"""An example of each kind, its form, and what it says."""


def understand(text: str) -> Sentence:
    """Raises Unsaid."""
    for _, form, meaning in SENTENCES:
        if found := re.fullmatch(form, text):
            return meaning(*found.groups())
    known = "".join(f"\n    {example}" for example, _, _ in SENTENCES)
    raise Unsaid(f"{text!r} says nothing that is known. What can be said:{known}")


# -- the file --------------------------------------------------------------------------------------------------------

KEYS = ("title", "story", "question", "topology", "layout", "fan_out", "servers", "memory", "clients", "send_again",
        "steps")  # fmt: skip


def read(path: Path) -> Scenario:
    """Raises ScenarioError, OSError."""
    try:
        document = parse(path.read_bytes())
    except YAMLProblem as error:
        raise ScenarioError([Problem(str(path), error.line, error.column, error.message)]) from error
    if not isinstance(document.value, dict):
        raise ScenarioError([Problem(str(path), 1, 1, "a scenario has keys: title, topology, steps and more")])
    reader = _Reader(str(path), document)
    scenario = reader.read()
    if reader.problems:
        raise ScenarioError(reader.problems)
    return scenario


class _Reader:
    def __init__(self, file: str, document: Document) -> None:
        self.file = file
        self.document = document
        self.values: dict[str, Any] = document.value
        self.problems: list[Problem] = []

    def wrong(self, place: tuple[str | int, ...], message: str) -> None:
        line, column = self.document.values.get(place) or self.document.keys.get(place) or (1, 1)
        self.problems.append(Problem(self.file, line, column, message))

    def read(self) -> Scenario:
        for key in self.values:
            if key not in KEYS:
                place = self.document.keys[key,]
                self.problems.append(Problem(self.file, *place, f"{key!r} is no key; there are {', '.join(KEYS)}"))
        words = {key: self.words(key) for key in ("title", "story", "question")}
        shape = self.shape()
        clients = self.number("clients", 1, MOST_CLIENTS)
        again = self.values.get("send_again", True)
        if not isinstance(again, bool):
            self.wrong(("send_again",), "send_again must be true or false")
        return Scenario(self.file, **words, shape=shape, clients=clients, send_again=again is True,
                        steps=tuple(self.steps(shape, clients)))  # fmt: skip

    def words(self, key: str) -> str:
        found = self.values.get(key, "")
        if not isinstance(found, str) or (key == "title" and not found):
            self.wrong((key,), f"{key} must be words")
            return ""
        return found.strip()

    def number(self, key: str, default: int, most: int) -> int:
        found = self.values.get(key, default)
        if type(found) is not int or not 1 <= found <= most:
            self.wrong((key,), f"{key} must be from 1 to {most}")
            return default
        return found

    def one_of(self, key: str, choices: tuple[str, ...]) -> str:
        found = self.values.get(key, choices[0])
        if found not in choices:
            self.wrong((key,), f"{key} must be one of {', '.join(choices)}")
            return choices[0]
        return str(found)

    def bytes_of(self, place: tuple[str | int, ...], found: object, most: int) -> int:
        try:
            size = _size(str(found))
        except Unsaid as error:
            self.wrong(place, str(error))
            return 0
        if not 0 < size <= most:
            self.wrong(place, f"{found} is not from {BLOCK} to {most} bytes")
        return size

    def shape(self) -> Shape:
        topology, fan_out = self.one_of("topology", TOPOLOGIES), self.one_of("fan_out", ("parallel", "serial"))
        servers = self.number("servers", 3, MOST_SERVERS)
        memory = self.bytes_of(("memory",), self.values.get("memory", servers * 16384), MOST_MEMORY)
        layout, stripe = self.values.get("layout", "linear"), 0
        if isinstance(layout, dict) and list(layout) == ["stripe"]:
            stripe = self.bytes_of(("layout", "stripe"), layout["stripe"], MOST_MEMORY)
        elif layout != "linear":
            self.wrong(("layout",), "layout must be linear or {stripe: SIZE}")
        if memory % (servers * max(stripe, BLOCK)):
            self.wrong(("memory",), f"{memory} bytes are not {servers} equal shares of whole blocks and stripes")
        return Shape(topology, (memory // servers,) * servers, stripe, fan_out)

    # -- steps -------------------------------------------------------------------------------------------------------

    def steps(self, shape: Shape, clients: int) -> Iterator[Step]:
        found = self.values.get("steps")
        if not isinstance(found, list) or not found:
            self.wrong(("steps",), "steps must be a list of sentences")
            return
        count = len(shape.sizes) + (shape.topology == "dispatcher")
        known = {f"client{index}" for index in range(clients)} | {"supervisor"}
        known |= {f"{kind}{index}" for kind in ("server", "logger") for index in range(count)}
        begun: dict[str, Begin] = {}
        for index, text in enumerate(found):
            line, column = self.document.values["steps", index]
            try:
                sentence = understand(" ".join(text.split()) if isinstance(text, str) else repr(text))
                _check(sentence, known, begun, sum(shape.sizes))
            except Unsaid as error:
                self.wrong(("steps", index), str(error))
                continue
            if isinstance(sentence, Begin):
                begun[sentence.name] = sentence
            yield Step(str(text), line, column, sentence)


def _check(sentence: Sentence, processes: set[str], begun: dict[str, Begin], memory: int) -> None:
    """What it speaks of must be there. Raises Unsaid."""
    for process in _processes(sentence):
        if process not in processes:
            raise Unsaid(f"there is no {process}; there are {', '.join(sorted(processes))}")
    for name in _names(sentence):
        if name not in begun:
            raise Unsaid(f"nobody has asked for {name} before")
    if isinstance(sentence, Begin):
        if sentence.name in begun:
            raise Unsaid(f"{sentence.name} is another request already")
        if sentence.offset + sentence.length > memory:
            raise Unsaid(f"the memory has {memory} bytes")
    if isinstance(sentence, Act | Moment):
        moment = sentence.moment if isinstance(sentence, Act) else sentence
        for fact in moment.facts if moment is not None else ():
            if fact.what in ("the bytes of", "logged") and not _is_server(moment):
                raise Unsaid(f"only a server can have {fact.what} something")
    if isinstance(sentence, Cut) and sentence.one == sentence.other:
        raise Unsaid(f"{sentence.one} is not cut off from itself")
    if isinstance(sentence, Shows):
        if begun[sentence.name].command != "READ":
            raise Unsaid(f"{sentence.name} is no read")
        if other := [name for name in sentence.values if name != ZEROES and begun[name].command != "WRITE"]:
            raise Unsaid(f"{other[0]} is no write")


def _is_server(moment: Moment | None) -> bool:
    return moment is not None and moment.process.startswith("server")


def _processes(sentence: Sentence) -> list[str]:
    match sentence:
        case Begin(client):
            return [client]
        case Act(target, _, moment):
            return [target] + ([moment.process] if moment else [])
        case Cut(one, other, _):
            return [one, other]
        case Moment(process, _) | Serves(process):
            return [process]
    return []


def _names(sentence: Sentence) -> list[str]:
    match sentence:
        case Becomes(name, _):
            return [name]
        case Shows(name, values):
            return [name, *(value for value in values if value != ZEROES)]
        case Moment(_, facts) | Act(_, _, Moment(_, facts)):
            return [fact.name for fact in facts]
    return []
