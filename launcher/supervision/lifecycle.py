"""What to start, restart, stop and kill next: the supervisor's policy, without processes, sockets or a clock.

Each event (a node is ready, a node exited, somebody wants a stop, time passed) is a method that is told `now` and
returns the actions to be carried out, in order. `wake` is the time at which `tick` wants to be called.

The stop goes through stages, each begun when all processes of the one before are gone: the doors, the other servers,
then logger 0 collects the merged log, the other loggers, logger 0. Before another cluster there are but two: the doors
and the loggers, then the other servers. At the deadline what is late is named and killed.
As long as present clients may finish there need be no deadline, and what they still need is restarted as before.
What becomes of one node meanwhile is told in nodelife.py.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from memcluster.launcher.supervision.actions import Action, Collect, Drain, Finish, Hold, Kill, Probe, Say, ShowStack
from memcluster.launcher.supervision.nodelife import Jitter, NodeLife, RestartPolicy, State
from memcluster.launcher.supervision.patience import LAST_STAGES

EVIDENCE = 0.5
"""Seconds a hung process has to show its stack before it is killed."""
COLLECTING = 0.7
"""Of the time that is left, for the merged log: the loggers have to end, too."""


class Phase(StrEnum):
    """Where the cluster stands."""

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Stage:
    """A part of the stop: these processes are ended, or (`collects`) this one writes the merged log."""

    names: Sequence[str]
    collects: bool = False


class Lifecycle:
    """`servers` and `loggers` are names, those of number 0 first; clients connect to the first so many servers, the
    `doors`. `jitter(seconds)` spreads a restart's delay."""

    def __init__(
        self,
        servers: Sequence[str],
        loggers: Sequence[str],
        *,
        doors: int = 1,
        restart: RestartPolicy,
        stop_timeout: float,
        jitter: Jitter = lambda seconds: seconds,
    ) -> None:
        self.nodes = {name: NodeLife(name) for name in (*servers, *loggers)}
        self.phase = Phase.STARTING
        self.code = 0
        self._restart = restart
        self._stop_timeout = stop_timeout
        self._jitter = jitter
        self._stages = [  # of the stop that are not over
            Stage(servers[:doors]),
            Stage(servers[doors:]),
            Stage(loggers[:1], collects=True),
            Stage(loggers[1:]),
            Stage(loggers[:1]),
        ]
        self._doors = frozenset(servers[:doors])
        self._kept: frozenset[str] = frozenset()  # who is not to end when all stop for another cluster
        self._mode = "now"
        self._ran = False
        self._deadline: float | None = None
        self._last_deadline: float | None = None

    def change(self, restart: RestartPolicy, stop_timeout: float) -> None:
        """Go by another policy, from now on."""
        self._restart, self._stop_timeout = restart, stop_timeout

    @property
    def wake(self) -> float | None:
        """When `tick` is to be called, if nothing happens before."""
        times = [node.due for node in self.nodes.values() if node.due is not None]
        times += [time for time in (self._deadline, self._last_deadline) if time is not None]
        return min(times, default=None)

    @property
    def health(self) -> str:
        """The word for `status`: starting, running, degraded, draining or stopped."""
        if self.phase is Phase.RUNNING and any(node.state is not State.READY for node in self.nodes.values()):
            return "degraded"
        return self.phase.value

    # -- events --------------------------------------------------------------------------------------------------

    def begin(self, now: float) -> list[Action]:
        """Start everything: the sockets are there already, so nobody need wait for anybody."""
        return [action for node in self.nodes.values() for action in node.start(now)]

    def ready(self, name: str, now: float) -> list[Action]:
        """A node serves."""
        node = self.nodes[name]
        if node.state is not State.STARTING:
            return []
        node.state, node.reason = State.READY, ""
        actions: list[Action] = [Say("ready", name, f"{now - node.started:.2f} s")]
        if self.phase is Phase.STARTING and all(other.state is State.READY for other in self.nodes.values()):
            actions.append(Probe())
        return actions

    def probed(self) -> list[Action]:
        """The cluster answered as a client expects."""
        if self.phase is Phase.STARTING:
            self.phase, self._ran = Phase.RUNNING, True
            return [Say("running")]
        return []

    def hung(self, name: str, how: str, now: float) -> list[Action]:
        """A node lives and makes no progress: get the evidence, then end it; it is restarted like any that died."""
        node = self.nodes[name]
        if not node.alive or node.state is State.HUNG or not (self.phase is Phase.RUNNING or self._finishing):
            return []
        node.state, node.reason, node.due = State.HUNG, how, now + EVIDENCE
        return [Say("hung", name, how), ShowStack(name)]

    def hold(self, name: str, until: float) -> None:
        """The node is about to be killed on purpose, and is not to come back before `until`."""
        self.nodes[name].held_until = until

    def release(self, name: str, now: float) -> list[Action]:
        """Nobody wants the node to stay down any longer, be it held or failed: what made it fail may be mended."""
        node = self.nodes[name]
        held, node.held_until = node.held_until > now, 0.0
        if node.state is State.FAILED and (self.phase is Phase.RUNNING or self._finishing):
            node.restarts += 1
            node.streak, node.deaths = 0, []
        elif not held or node.state is not State.RESTARTING:
            return []
        node.due = None
        return node.start(now)

    def halt(self, name: str, now: float, *, again: bool = False) -> list[Action]:
        """Stop a node on purpose, until it is launched; with `again` that is at once. It is killed: nothing that was
        answered is lost by that, and who waits for it sees no more than a restart."""
        node = self.nodes[name]
        if not node.alive:
            if again:
                return self.launch(name, now)
            if node.state is State.STOPPED:
                return []
            node.due = None
            return node.halted(now)
        node.state, node.due, node.again = State.STOPPING, None, again
        return [Kill(name)]

    def launch(self, name: str, now: float) -> list[Action]:
        """Start a node that is down, for whatever reason."""
        node = self.nodes[name]
        if node.state is State.STOPPING:
            node.again = True
        elif node.state in (State.STOPPED, State.FAILED, State.RESTARTING):
            node.held_until, node.due, node.streak, node.deaths = 0.0, None, 0, []
            return node.start(now)
        return []

    def broken(self, name: str, reason: str) -> None:
        """A node said that it cannot run, and will exit: starting it again would not help."""
        self.nodes[name].broken = True
        self.nodes[name].reason = reason

    def exited(self, name: str, how: str, now: float, *, short: bool = False) -> list[Action]:
        """A process is gone; `how` says it in words. With `short` there was none: the system had no room for it, which
        is tried again, and no fault of the node's."""
        node = self.nodes[name]
        node.due = None
        if self.phase in (Phase.DRAINING, Phase.STOPPED) and not (self._finishing and name not in self._current()):
            if node.state not in (State.STOPPING, State.HUNG):
                node.reason = how
            node.state = State.EXITED
            return [Say("exited", name, how), *self._advance(now)]
        if node.state is State.STOPPING:
            return node.halted(now)
        if node.broken:
            node.state, node.broken = State.FAILED, False
            return [Say("failed", name, node.reason), *self._give_up(f"{name}: {node.reason}", now)]
        if node.state is State.HUNG:
            how = node.reason
        node.reason = how
        if node.state is State.STARTING and self.phase is Phase.STARTING:
            node.state = State.FAILED
            return [Say("failed", name, how), *self._give_up(f"{name}: {how}", now)]
        if short:
            return node.wait_for_room(how, now, self._restart, self._jitter)
        return node.died(how, now, self._restart, self._jitter)

    def give_way(self, kept: Collection[str], now: float) -> list[Action]:
        """Stop for another cluster, which goes on with the log, so that nobody need wait for a logger, and with these
        processes: those are held."""
        doors, others, _, *loggers = self._stages
        self._stages = [Stage([name for stage in (doors, *loggers) for name in stage.names]), others]
        self._kept = frozenset(kept)
        self.phase, self._mode, self._deadline = Phase.DRAINING, "now", now + self._stop_timeout
        self._restart_no_more()
        return [Say("draining"), *self._enter_stage(now)]

    def held(self, name: str, now: float) -> list[Action]:
        """A door rests."""
        node = self.nodes[name]
        if name not in self._kept or node.state is not State.STOPPING:
            return []
        node.state = State.HELD
        return self._advance(now)

    def stop(self, mode: str, timeout: float | None, now: float) -> list[Action]:
        """Stop gracefully. Mode "finish" lets present clients go on, for `timeout` seconds if it is given; mode "now"
        ends within `timeout`, or the cluster's own stop_timeout. A stop under way can only be hastened by another."""
        if timeout is None and mode == "now":
            timeout = self._stop_timeout
        if kept := self._release():  # no other cluster comes: they end first
            self.phase, self._deadline = Phase.DRAINING, now + (self._stop_timeout if timeout is None else timeout)
            self._stages.insert(0, Stage(kept))
            return self._enter_stage(now)
        deadline = None if timeout is None else now + timeout
        again = self.phase is Phase.DRAINING
        if again and mode in ("finish", self._mode):
            if self._last_deadline is None:
                self._deadline = min((time for time in (self._deadline, deadline) if time is not None), default=None)
            return []
        self.phase, self._mode, self._deadline = Phase.DRAINING, mode, deadline
        if mode == "now":
            self._restart_no_more()
        if again:
            return [Drain(name, "now") for name in self._alive()]
        return [Say("draining"), *self._enter_stage(now)]

    def collected(self, now: float) -> list[Action]:
        """Logger 0 has written the merged log, or cannot."""
        if self.phase is Phase.DRAINING and self._collecting:
            del self._stages[0]
            return self._enter_stage(now)
        return []

    def kill(self, now: float) -> list[Action]:
        """No more patience: end everything at once."""
        if self.phase is not Phase.DRAINING:
            self.stop("now", None, now)
        self._release()
        self._mode, self._deadline, self._last_deadline = "now", None, None
        self._restart_no_more()
        self._stages = [Stage(list(self.nodes))]
        return self._kill_late() or self._advance(now)

    def tick(self, now: float) -> list[Action]:
        """Time has passed."""
        actions: list[Action] = []
        for node in self.nodes.values():
            if node.due is not None and node.due <= now:
                node.due = None
                actions += [Kill(node.name)] if node.state is State.HUNG else node.start(now)
        if self._last_deadline is not None and self._last_deadline <= now:
            return actions + self.kill(now)
        if self._deadline is not None and self._deadline <= now:
            self._deadline = None
            if self._mode == "finish":
                return actions + self.stop("now", None, now)
            self._last_deadline = now + LAST_STAGES
            actions += self._kill_late()
            actions += self.collected(now)
        return actions

    # -- parts ---------------------------------------------------------------------------------------------------

    def _release(self) -> list[str]:
        """Who was kept for another cluster is to end like the rest."""
        kept = [name for name in self._kept if self.nodes[name].state in (State.STOPPING, State.HELD)]
        self._kept = frozenset()
        for name in kept:
            self.nodes[name].state = State.STOPPING
        return kept

    def _restart_no_more(self) -> None:
        for node in self.nodes.values():
            if node.state in (State.PENDING, State.RESTARTING, State.FAILED, State.STOPPED):
                node.state, node.due = State.EXITED, None

    @property
    def _finishing(self) -> bool:
        """Present clients may go on until they leave."""
        return self.phase is Phase.DRAINING and self._mode == "finish"

    def _give_up(self, reason: str, now: float) -> list[Action]:
        """A cluster that cannot start is stopped again; one that runs goes on without the node."""
        if self.phase is not Phase.STARTING:
            return []
        self.code = 1
        return [Say("gave-up", "", reason), *self.stop("now", None, now)]

    @property
    def _collecting(self) -> bool:
        return bool(self._stages) and self._stages[0].collects

    def _current(self) -> Sequence[str]:
        """The names of the present stage of the stop."""
        return self._stages[0].names if self._stages else ()

    def _alive(self) -> list[str]:
        """Those of them that are not gone."""
        return [name for name in self._current() if self.nodes[name].alive]

    def _enter_stage(self, now: float) -> list[Action]:
        """Begin the first stage that has something to do."""
        said: list[Action] = []
        if self._collecting:
            if all(self.nodes[name].state is State.READY for name in self._current()):
                ends = [time for time in (self._deadline, self._last_deadline) if time is not None]
                return [Collect(COLLECTING * max(0.0, min(ends) - now) if ends else None)]
            said = self._uncollected()
            del self._stages[0]
        actions: list[Action] = []
        for name in self._alive():
            node = self.nodes[name]
            if node.state is not State.HUNG:  # that one is killed when it is due
                node.state = State.STOPPING
            mode = self._mode if name in self._doors else "now"
            actions.append(Hold(name) if name in self._kept else Drain(name, mode))
        return [*said, *(actions or self._advance(now))]

    def _uncollected(self) -> list[Action]:
        """Logger 0 is not there to write the merged log; of a cluster that never ran nobody expects one."""
        return [Say("uncollected", name, f"{name} is not there") for name in self._current() if self._ran]

    def _advance(self, now: float) -> list[Action]:
        """Go on if everything of the present stage is gone."""
        if self._alive():
            return []
        said = self._uncollected() if self._collecting else []
        del self._stages[:1]
        if self._finishing:  # the clients are gone: the rest has the time of any stop
            self._mode, self._deadline = "now", now + self._stop_timeout
            self._restart_no_more()
        if self._stages:
            return [*said, *self._enter_stage(now)]
        if self.phase is Phase.STOPPED:
            return []
        self.phase = Phase.STOPPED
        self._deadline = self._last_deadline = None
        return [Say("stopped"), Finish(self.code)]

    def _kill_late(self) -> list[Action]:
        actions: list[Action] = []
        for name in self._alive():
            self.nodes[name].state, self.nodes[name].due = State.STOPPING, None
            actions += [Say("late", name, "did not stop in time: killed"), Kill(name)]
        return actions
