"""The life of one node, and whether it gets another one: restarts, what is held against them, and when they come.

    pending -> starting -> ready -> stopping -> exited
                  |          |
                  +----------+--> restarting -> starting    died; back after 0, 1, 2, 4 ... s
                  |          +--> hung -> restarting        made no progress: its stack is shown, then it is killed
                  +----------+--> failed                    died too often, or said that it cannot run
                  +----------+--> stopping -> stopped       on purpose, until it is launched again
                             +--> stopping -> held          lives, and keeps its clients for the cluster to come
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from memcluster.launcher.supervision.actions import Action, Say, Start

Jitter = Callable[[float], float]
"""Spreads a delay."""


class State(StrEnum):
    """Where a node stands."""

    PENDING = "pending"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    EXITED = "exited"
    HELD = "held"
    STOPPED = "stopped"
    HUNG = "hung"
    RESTARTING = "restarting"
    FAILED = "failed"


@dataclass(frozen=True)
class RestartPolicy:
    """Seconds, and a count: see `restart` in docs/configuration.md."""

    cap: float = 30.0
    reset: float = 60.0
    deaths: int = 5
    within: float = 60.0


@dataclass
class NodeLife:
    """One node's part of the state."""

    name: str
    state: State = State.PENDING
    reason: str = ""
    restarts: int = 0
    started: float = 0.0
    due: float | None = None
    """When it is to be started again, or killed if it is hung."""
    streak: int = 0
    """Deaths in a row, without a stable time between them."""
    deaths: list[float] = field(default_factory=list)
    broken: bool = False
    """It said that it cannot run, and is about to exit."""
    held_until: float = 0.0
    """Killed on purpose: it stays down until then, and the death does not count."""
    again: bool = False
    """It is stopped only to be started again."""
    planned: bool = False
    """Its present life began, or its last one ended, because somebody wanted it so."""

    @property
    def alive(self) -> bool:
        return self.state in (State.STARTING, State.READY, State.HUNG, State.STOPPING)

    def start(self, now: float) -> list[Action]:
        """It is started, for whatever reason."""
        self.state, self.started = State.STARTING, now
        return [Start(self.name)]

    def halted(self, now: float) -> list[Action]:
        """It is gone because somebody wanted it so."""
        self.state, self.reason, self.planned, self.broken = State.STOPPED, "on purpose", True, False
        again, self.again = self.again, False
        return [Say("stopped", self.name), *(self.start(now) if again else [])]

    def died(self, how: str, now: float, policy: RestartPolicy, jitter: Jitter) -> list[Action]:
        """It is gone, and nobody wanted that: it comes back, unless it has died too often."""
        self.planned = False
        if self.held_until > now:
            self.restarts += 1
            self.state, self.due = State.RESTARTING, self.held_until
            return [Say("died", self.name, how), Say("restarting", self.name, f"in {self.due - now:.1f} s")]
        if now - self.started >= policy.reset:
            self.streak = 0
        self.deaths = [time for time in self.deaths if now - time < policy.within] + [now]
        said: list[Action] = [Say("died", self.name, how)]
        if len(self.deaths) >= policy.deaths:
            self.state = State.FAILED
            self.reason = f"died {len(self.deaths)} times in {policy.within:g} s, last: {how}"
            return [*said, Say("failed", self.name, self.reason)]
        delay = jitter(min(policy.cap, 2.0 ** min(self.streak - 1, 60))) if self.streak else 0.0
        self.streak += 1
        self.restarts += 1
        if not delay:
            return [*said, Say("restarting", self.name, "at once"), *self.start(now)]
        self.state, self.due = State.RESTARTING, now + delay
        return [*said, Say("restarting", self.name, f"in {delay:.1f} s")]

    def wait_for_room(self, how: str, now: float, policy: RestartPolicy, jitter: Jitter) -> list[Action]:
        """There was no room for its process: it is tried again, however often."""
        delay = jitter(min(policy.cap, 2.0 ** min(self.streak, 60)))
        self.streak += 1
        self.restarts += 1
        self.state, self.due = State.RESTARTING, now + delay
        return [Say("died", self.name, how), Say("restarting", self.name, f"in {delay:.1f} s")]
