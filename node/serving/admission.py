"""Who may come in: a slot from a fixed table, or, with `clients.limit: auto`, as many as the machine bears; and of
another machine `clients.per_address` at most, or one could keep out the rest.

`auto` watches memory, file descriptors and processor time. A resource that ran short lets nobody in until it has
recovered by a margin (hysteresis), so the answer does not flap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from memcluster.node.serving.cgroup import memory_in_use
from memcluster.node.serving.slots import SlotTable

SAMPLE = 1.0
"""Seconds between two looks at the machine."""
TALKING = 2
"""Times `clients.per_address` that another machine may be connected, with those whom nobody has let in yet: one that is
refused is to hear why."""
CPU_SAMPLES = 5
"""Samples in a row that must be above the mark: a short burst of work is no shortage."""


class Usage(NamedTuple):
    """A look at the machine, each as the part in use, 0 to 1."""

    memory: float
    descriptors: float
    cpu: float


@dataclass(frozen=True)
class Mark:
    """Short at `high` and above, recovered at `low` and below."""

    high: float
    low: float


MARKS = {"memory": Mark(0.92, 0.88), "descriptors": Mark(0.90, 0.85), "cpu": Mark(0.97, 0.85)}
WORDS = {"memory": "memory", "descriptors": "file descriptors", "cpu": "processor time"}


class Shortage:
    """Which resources are short, after each sample. Pure."""

    def __init__(self) -> None:
        self.short: dict[str, float] = {}
        self._busy = 0  # samples in a row with the processors busy

    def sample(self, usage: Usage) -> None:
        self._busy = self._busy + 1 if usage.cpu >= MARKS["cpu"].high else 0
        for name, mark in MARKS.items():
            value = getattr(usage, name)
            if name in self.short:
                if value <= mark.low:
                    del self.short[name]
                else:
                    self.short[name] = value
            elif value >= mark.high and (name != "cpu" or self._busy >= CPU_SAMPLES):
                self.short[name] = value


class Admission:
    """Gives slots, or the reason why not; counts the refusals by reason. `limit` None is auto. An `origin` is where a
    client comes from (transport/peer.py)."""

    def __init__(
        self, limit: int | None, look: Callable[[], Usage] | None = None, per_address: int = 16
    ) -> None:
        self.limit = limit
        self.per_address = per_address
        self.refusals: Counter[str] = Counter()
        self.short_of = ""
        """What the last refusal was for: a key of `refusals`."""
        self._slots = SlotTable(limit)
        self._shortage = Shortage()
        self._look = look
        self._connected: Counter[str] = Counter()
        self._inside: Counter[str] = Counter()
        self._origins: dict[int, str] = {}  # of the slots of other machines

    def change(self, limit: int | None, look: Callable[[], Usage] | None, per_address: int) -> None:
        """From now on; those who are in stay."""
        self.limit, self.per_address, self._look = limit, per_address, look
        self._slots.resize(limit)
        self._shortage = Shortage()

    def sample(self) -> None:
        """Look at the machine; to be called once a second with `auto`."""
        if self._look is not None:
            try:
                self._shortage.sample(self._look())
            except OSError:  # not one descriptor is left to look with
                self._shortage.short["descriptors"] = 1.0

    def connected(self, origin: str) -> bool:
        """Whether one more may connect from there; `gone` is to be called for it later."""
        if origin and self._connected[origin] >= TALKING * self.per_address:
            self._count("address")
            return False
        if origin:
            self._connected[origin] += 1
        return True

    def gone(self, origin: str) -> None:
        """One that had connected from there is not connected any more."""
        _less(self._connected, origin)

    def take(self, origin: str = "") -> int | str:
        """A slot, or a sentence that says why there is none."""
        if origin and self._inside[origin] >= self.per_address:
            self._count("address")
            return f"{origin} has {self.per_address} client slots (clients.per_address in cluster.yaml)"
        for name, value in self._shortage.short.items():
            self._count(name)
            return f"{WORDS[name]} of this machine ran short: {value:.0%} in use (clients.limit: auto)"
        slot = self._slots.take()
        if slot is None:
            self._count("slots")
            return f"all {self.limit} client slots are taken (clients.limit: {self.limit} in cluster.yaml)"
        if origin:
            self._origins[slot] = origin
            self._inside[origin] += 1
        return slot

    def _count(self, reason: str) -> None:
        self.refusals[reason] += 1
        self.short_of = reason

    def give_back(self, slot: int) -> None:
        self._slots.give_back(slot)
        _less(self._inside, self._origins.pop(slot, ""))


def _less(counter: Counter[str], origin: str) -> None:
    """Of those who have come and gone nothing is kept."""
    if origin:
        counter[origin] -= 1
        if not counter[origin]:
            del counter[origin]


def look_at_the_machine() -> Callable[[], Usage]:
    """A function that looks at memory (the machine's, and what the control group may have of it), this process's
    descriptors and the processors."""
    import resource

    import psutil

    process = psutil.Process()
    psutil.cpu_percent()  # the first call only sets the mark from which the next one counts

    def look() -> Usage:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        machine = psutil.virtual_memory()
        memory = max(1 - machine.available / machine.total, memory_in_use())
        return Usage(memory, process.num_fds() / limit, psutil.cpu_percent() / 100)

    return look
