"""The supervisor: carries out what the lifecycle decides, with real processes, sockets, signals and time.

It holds every listening socket, starts the nodes through the fork server, hears what they say, and tells everyone who
listens what happens (`Happening`s: plain dicts that travel as frames).
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memcluster.client.console import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_TIMEOUT
from memcluster.launcher.clusterfile.settings import ClusterConfig
from memcluster.launcher.run.directory import RunDirectory
from memcluster.launcher.run.identity import Identity
from memcluster.launcher.run.memory import Shape
from memcluster.launcher.run.steps import step
from memcluster.launcher.supervision import actions, orders, sockets
from memcluster.launcher.supervision.actions import Action
from memcluster.launcher.supervision.applying import Applying
from memcluster.launcher.supervision.belongings import Belongings
from memcluster.launcher.supervision.child import Child
from memcluster.launcher.supervision.control import Control
from memcluster.launcher.supervision.faults import FAULTS_TOLD, Faults
from memcluster.launcher.supervision.forkserver import reap_strangers
from memcluster.launcher.supervision.heartbeats import Heartbeats, where_it_stands
from memcluster.launcher.supervision.lifecycle import Lifecycle, Phase
from memcluster.launcher.supervision.makeup import Makeup
from memcluster.launcher.supervision.nodelife import RestartPolicy, State
from memcluster.launcher.supervision.places import Place
from memcluster.launcher.supervision.probe import Probe
from memcluster.launcher.supervision.process import Elsewhere, Process
from memcluster.launcher.supervision.recording import Recorder
from memcluster.launcher.supervision.refusals import Refusals
from memcluster.launcher.supervision.replacing import Replacing
from memcluster.launcher.supervision.sockets import Listeners
from memcluster.launcher.supervision.succession import Succession
from memcluster.node.spec import NodeSpec
from memcluster.node.transport.loop import READ, Loop, Timer
from memcluster.node.transport.proof import SECRET_SIZE

Happening = dict[str, Any]
TOGETHER = 0.2
"""Seconds within which a signal that is sent to every process of a service reaches all of them."""


class Supervisor:
    """One cluster, from its start to its end. `listeners` are server 0's, server 1's …, then the loggers' sockets.
    `stamp` is that of the file when it was read. With `keep_memory` a start that fails leaves the shards where they
    are."""

    def __init__(
        self,
        config: ClusterConfig,
        run: RunDirectory,
        places: Sequence[Place],
        listeners: Listeners,
        shape: Shape,
        tell: Callable[[Happening], None],
        *,
        stamp: str,
        keep_memory: bool,
        hosts: Elsewhere | None = None,
    ) -> None:
        self.loop = hosts.loop if hosts else Loop()
        self.run_directory = run
        self.code = 0
        self.hosts = hosts
        self._began = hosts.began if hosts else time.monotonic()
        self.watchers: list[Callable[[Happening], None]] = [tell]
        self._refusals = Refusals(self.loop)
        self._wake: Timer | None = None
        self._late: Timer | None = None  # until it runs for the first time
        self.children: dict[str, Process] = {}
        self._kept: dict[str, Process] = {}  # held, until they are started as another cluster's
        self._interrupted = False
        self.stamp = stamp
        self._keep_memory = keep_memory  # until somebody asks for the stop
        self._secret = hosts.secret if hosts else os.urandom(SECRET_SIZE)
        self._probe = f"probe-{secrets.token_hex(16)}"
        self._recorder = Recorder(self.loop, self, run, self._secret)
        self._faults = Faults(self)
        self._applying = Applying(self)
        self._replacing = Replacing(self, self._applying)
        self._control = Control(self, self._faults, self._applying, self._replacing)
        self._heartbeats = Heartbeats(self.loop, config.hang_timeout, self._living_children, self._hung)
        if hosts:
            hosts.watch(self._hung, self._left_host)
        self._notes: dict[str, list[dict[str, Any]]] = {}  # events for the log of a server that cannot write now
        self._become(config, places, listeners, shape)

    def _become(
        self, config: ClusterConfig, places: Sequence[Place], listeners: Listeners, shape: Shape
    ) -> None:
        """Be this cluster, of which nothing has been started."""
        self.makeup = makeup = Makeup(
            config, self.run_directory, places, listeners, shape, self._secret, self._probe, self.hosts
        )
        self._heartbeats.change(config.hang_timeout)
        self._belongings = Belongings(
            self.loop,
            self.run_directory,
            sockets=makeup.paths,
            shards=[file for file, place in zip(makeup.shards, places, strict=True) if not place.host],
            logs=config.logs.directory / config.name,
            restore=self._restored,
            lost=lambda problem: self._tell({"event": "lost", "text": problem}),
        )
        self.lifecycle = Lifecycle(
            [f"server{index}" for index in range(makeup.count)],
            [f"logger{index}" for index in range(makeup.count)],
            doors=makeup.doors,
            restart=RestartPolicy(**asdict(config.restart)),
            stop_timeout=config.stop_timeout,
            jitter=lambda seconds: seconds * random.uniform(0.9, 1.1),
        )

    # -- life ----------------------------------------------------------------------------------------------------

    def run(self, wait_timeout: float | None = None, owner: Identity | None = None) -> int:
        """Run the cluster until it is stopped, or `owner` has ended; returns the exit code."""
        self.loop.on_signal(signal.SIGTERM, lambda: self.stop("now", None))
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as with nohup
            self.loop.on_signal(signal.SIGHUP, lambda: self.stop("now", None))
        self.loop.on_signal(signal.SIGINT, self._interrupt)
        self._control.listen()
        self._heartbeats.start()
        self._belongings.start()
        if os.getpid() == 1:
            self.loop.on_signal(signal.SIGCHLD, reap_strangers)
        if wait_timeout is not None:
            self._late = self.loop.after(wait_timeout, lambda: self._too_slow(wait_timeout))
        if owner is not None:
            self._end_with(owner)
        self._do(self.lifecycle.begin(self._now()))
        self.loop.run()
        self._control.stop()
        self._clean_up()
        self._tell({"event": "gone"})
        self._control.close()
        self.loop.close()
        return self.code

    def _restored(self) -> None:
        """The run directory was removed and made again: what lies in it beside the shards is written anew."""
        self._tell({"event": "lost", "text": f"{self.run_directory.path} was removed, and has been made again"})
        self._control.listen()
        self._recorder.begin_anew()
        if self.lifecycle.phase is not Phase.STARTING:
            self.run_directory.write_uri(self.makeup.uri)

    @property
    def applying(self) -> dict[str, Any] | None:
        """How far the bytes are moved, until every node has been started anew."""
        if not self._applying.under_way:
            return None
        return self._replacing.told()

    @property
    def moves_live(self) -> bool:
        """Every server serves meanwhile."""
        return self._replacing.live

    @property
    def problems(self) -> list[str]:
        """What is wrong with what the run has in the file system."""
        return self._belongings.problems

    def stop(self, mode: str, timeout: float | None) -> None:
        """Begin the graceful stop; see Lifecycle.stop. No fault may hold it up or keep records from the merged log."""
        self._end_for_good("the cluster is being stopped")
        self._faults.heal()
        self._do(self.lifecycle.stop(mode, timeout, self._now()))

    def kill(self) -> None:
        """End everything at once."""
        self._end_for_good("the cluster was killed")
        self._do(self.lifecycle.kill(self._now()))

    def _end_for_good(self, why: str) -> None:
        """Nothing comes after this stop; a change of the memory that is under way is left to the next `up`."""
        self._keep_memory = False
        self._replacing.cancel()
        self._applying.called_off(why)

    def _end_with(self, owner: Identity) -> None:
        """Stop when this process is gone."""
        pidfd = owner.open()
        if pidfd is None:
            self.loop.soon(lambda: self.stop("now", None))
            return

        def gone(_mask: int) -> None:
            self.loop.unwatch(pidfd)
            os.close(pidfd)
            self.stop("now", None)

        self.loop.watch(pidfd, READ, gone)

    def _interrupt(self) -> None:
        """Ctrl-C: once stops, twice kills."""
        if self._interrupted:
            self.lifecycle.code = EXIT_INTERRUPTED
            self._do(self.lifecycle.kill(self._now()))
        else:
            self._interrupted = True
            self.stop("now", None)

    def _too_slow(self, seconds: float) -> None:
        if self.lifecycle.phase is Phase.STARTING:
            nodes = self.lifecycle.nodes.values()
            waiting = [f"{node.name} is {node.state}" for node in nodes if node.state != "ready"]
            text = f"not ready within {seconds:g} s: {', '.join(waiting) or 'the probe got no answer'}"
            self._give_up(text, EXIT_TIMEOUT)

    def _give_up(self, text: str, code: int = EXIT_ERROR) -> None:
        self._applying.called_off(text)
        self._tell({"event": "gave-up", "text": text})
        self.lifecycle.code = code
        self._do(self.lifecycle.stop("now", None, self._now()))

    def _clean_up(self) -> None:
        """Remove everything, but not the memory that an earlier run left if this one never ran."""
        sockets.release_all(self.makeup.listeners)
        step()
        missed = self.hosts.end(self._keep_memory) if self.hosts else []
        if self.hosts:
            self.hosts.close()
        for sentence in missed:
            self._tell({"event": "late", "name": "", "text": sentence})
        self._keep_memory = self._keep_memory or bool(missed)  # what is left elsewhere has the name that is kept here
        self.code = self.code or (EXIT_TIMEOUT if missed else 0)
        self.run_directory.forget()
        step()
        if not self._keep_memory:
            self.run_directory.remove()
        step()

    def _now(self) -> float:
        return time.monotonic()

    # -- carrying out --------------------------------------------------------------------------------------------

    def _do(self, decided: Sequence[Action]) -> None:
        for action in decided:
            match action:
                case actions.Start(name):
                    self._start(name)
                case actions.Drain(name, mode):
                    child = self.children[name]
                    child.tell({"do": "drain", "mode": self._replacing.word(mode)})
                    if mode == "now" and child.ready:  # reaches one that does not listen, and one that is paused
                        child.signal(signal.SIGTERM, signal.SIGCONT)
                case actions.Hold(name):
                    self._hold(name)
                case actions.Kill(name):
                    self.children[name].kill()
                case actions.ShowStack(name):
                    self.children[name].signal(signal.SIGUSR1)
                case actions.Collect(within):
                    self.children["logger0"].ask({"do": "collect", "within": within}, self._collected)
                case actions.Probe():
                    far = {name: self.children[name] for name in self.makeup.far_doors()}
                    Probe(self.loop, self._probe, self.makeup.questions(), self._probed, far)
                case actions.Say(event, name, text):
                    self._say(event, name, text)
                case actions.Finish(code) if self._replacing.wanted is None:
                    self.code = code
                    self.loop.stop()
                case actions.Finish():
                    self._belongings.stop()
                    self._replacing.go_on()
            step()
        self._set_timer()

    def _hold(self, name: str) -> None:
        child = self.children[name]

        def answered(answer: dict[str, Any]) -> None:
            if "error" not in answer:
                self._do(self.lifecycle.held(name, self._now()))
                step("reshape")

        child.ask({"do": "drain", "mode": "hold"}, answered)
        child.signal(signal.SIGCONT)

    def _start(self, name: str) -> None:
        """In a process of its own, or in the one that has been kept for it."""
        self._refusals.end(name)
        spec, kept = self.makeup.next_life(name), self._kept.pop(name, None)
        if kept is not None:
            kept.spec = spec
            kept.tell({"do": "become", "spec": spec.to_head()})
            self.children[name] = kept
            step("reshape")
        else:
            self.children[name] = self._process(spec)
        if self._replacing.move is not None:
            self._replacing.move.started(name)
        self._recorder.due()

    def _process(self, spec: NodeSpec) -> Process:
        """A new one, on its host."""
        if spec.host and self.hosts:
            return self.hosts.child(spec, self._told, self._gone)
        return Child(self.loop, spec, self.makeup.given(spec.name), self._told, self._gone)

    def _refuse(self, name: str) -> None:
        """Nobody will serve those who connect to a node that has failed: they are not to wait for it."""
        if sock := self.makeup.listener(name):
            self._refusals.begin(name, sock)
        elif self.hosts:
            self.hosts.refuse(name)

    def _set_timer(self) -> None:
        if self._wake is not None:
            self._wake.cancel()
        wake = self.lifecycle.wake
        self._wake = None if wake is None else self.loop.after(max(0.0, wake - self._now()), self._tick)

    def _tick(self) -> None:
        self._wake = None
        self._do(self.lifecycle.tick(self._now()))

    def _say(self, event: str, name: str, text: str) -> None:
        happening: Happening = {"event": event, "name": name, "text": text}
        if event in ("died", "failed", "hung"):
            self.note(event, name, (self.children[name].status or 0) if event == "died" else 0)
        if event == "failed":
            self._refuse(name)
        if event == "stopped" and name:
            self._faults.restarted(name)
            self.note(event, name, 0)
            self._refusals.end(name)
        if event == "running":
            if self._late is not None:
                self._late.cancel()
            self.loop.soon(self._replacing.running)
            notices = [*self.makeup.config.notices, *self.makeup.exposed]
            happening |= {"uri": self.makeup.uri, "seconds": self._now() - self._began, "notices": notices}
        self._tell(happening)

    def _tell(self, happening: Happening) -> None:
        for watcher in tuple(self.watchers):
            watcher(happening)

    # -- what is heard -------------------------------------------------------------------------------------------

    def _told(self, child: Process, head: dict[str, Any]) -> None:
        name = child.spec.name
        if head.get("event") == "beat":
            self._heartbeats.beat(child)
        elif head.get("event") == "ready":
            self._came_back(name)
            self._do(self.lifecycle.ready(name, self._now()))
        elif head.get("event") == "failed":
            self.lifecycle.broken(name, str(head.get("reason")))
        elif head.get("event") == "terminated":
            self.loop.after(TOGETHER, lambda: self._terminated(child))

    def _terminated(self, child: Process) -> None:
        """A node was sent a SIGTERM. If that was for all, this process has had its own meanwhile, and the nodes go in
        their turn; else this one goes, and is started again."""
        if self.lifecycle.phase in (Phase.STARTING, Phase.RUNNING):
            child.tell({"do": "drain", "mode": "now"})

    def _came_back(self, name: str) -> None:
        """A node is ready: tell it what it must know of the time before."""
        self._faults.restarted(name)
        node = self.lifecycle.nodes[name]
        if node.planned and self.makeup.specs[name].role == "logger":  # a server says so itself
            self.note("ready", name, 0)
        elif node.restarts and not node.planned:
            self.note("restarted", name, node.restarts)
        for event in self._notes.pop(name, ()):
            self.children[name].tell(event)
        if self._replacing.move is not None:
            self._replacing.move.serving(name)

    def _hung(self, name: str, how: str) -> None:
        self._do(self.lifecycle.hung(name, how, self._now()))

    def _left_host(self, host: str, names: list[str]) -> None:
        """A guardian was ended by whoever runs it: its nodes are down as if by `stop`, until they are started."""
        self._tell({"event": "lost", "text": f"{host} has left: its engine has ended the guardian there"})
        for name in names if self.lifecycle.phase in (Phase.STARTING, Phase.RUNNING) else ():
            self._do(self.lifecycle.halt(name, self._now()))

    def _gone(self, child: Process, how: str) -> None:
        if self.children.get(child.spec.name) is not child:  # another one has its place already
            return
        if self.lifecycle.nodes[child.spec.name].state is State.HUNG:
            output = Path(child.spec.log_directory).parent / f"{child.spec.name}.out"
            place = child.place or where_it_stands(output)
            self.lifecycle.nodes[child.spec.name].reason += f" in {place}" if place else ""
        self._do(self.lifecycle.exited(child.spec.name, how, self._now(), short=child.short))

    def _probed(self, problem: str) -> None:
        if problem:
            self._give_up(f"the cluster does not answer as it should: {problem}")
            return
        try:
            self.run_directory.write_uri(self.makeup.uri)
        except OSError as error:
            self._give_up(f"{self.run_directory.uri}: {error.strerror}")
        else:
            self._do(self.lifecycle.probed())

    def _collected(self, answer: dict[str, Any]) -> None:
        self._tell({"event": "collected", **answer})
        self._do(self.lifecycle.collected(self._now()))

    # -- what is asked for on purpose --------------------------------------------------------------------------------

    def child(self, name: str) -> Process | None:
        """The living process of a node."""
        return self.children[name] if self.lifecycle.nodes[name].alive else None

    def faults(self) -> list[dict[str, Any]]:
        """What is broken on purpose now."""
        return self._faults.in_force()

    def hold(self, name: str, seconds: float) -> None:
        """The node is to stay down for so long when it is killed."""
        self.lifecycle.hold(name, self._now() + seconds)

    def release(self, name: str) -> None:
        """The node may come back."""
        self._do(self.lifecycle.release(name, self._now()))

    def carry_out(self, what: orders.Planned, names: Sequence[str]) -> None:
        """Stop or start these nodes on purpose."""
        for name in names:
            if what == "start":
                self._do(self.lifecycle.launch(name, self._now()))
            else:
                self._do(self.lifecycle.halt(name, self._now(), again=what == "restart"))

    # -- what apply needs --------------------------------------------------------------------------------------------

    def give_way(self, succession: Succession, *, live: bool, rate: int | None) -> None:
        """Stop, and be another cluster then; `live`: when bytes have been copied. Raises OSError, MemoryMismatch."""
        self._replacing.begin(succession, live=live, rate=rate)

    def stop_for_another(self, kept: Collection[str]) -> None:
        """Stop every node, or have it rest; Replacing goes on then."""
        self._faults.heal()
        self._do(self.lifecycle.give_way(kept, self._now()))

    def abandoned(self) -> None:
        """No node was stopped, and none will be."""
        self._tell({"event": "abandoned"})

    def start_as(
        self, config: ClusterConfig, places: Sequence[Place], listeners: Listeners, shape: Shape
    ) -> None:
        """Be this cluster from now on, and start."""
        self._refusals.end_all()
        self._kept = self._held()
        self.children.clear()
        self._notes.clear()
        uri = self.makeup.uri
        self._become(config, places, listeners, shape)
        if self.makeup.uri != uri:
            self.run_directory.uri.unlink(missing_ok=True)
        self._keep_memory = True  # should it not start
        self._began = self._now()
        self._belongings.start()
        self._do(self.lifecycle.begin(self._now()))

    def stuck(self, problem: str) -> None:
        """The memory has neither shape; end, and leave it to the next `up`."""
        self._keep_memory = True
        self._tell({"event": "gave-up", "text": problem})
        self._applying.called_off(problem)
        for child in self._held().values():
            child.kill()
        self.code = EXIT_ERROR
        self.loop.stop()

    def _held(self) -> dict[str, Process]:
        """Who rests, and keeps its clients; of one that has just died nobody may have told yet."""
        nodes, held = self.lifecycle.nodes, State.HELD
        return {
            name: child
            for name, child in self.children.items()
            if nodes[name].state is held and child.identity.alive
        }

    def settled(self, stamp: str, keys: Sequence[str]) -> None:
        """All nodes go by what the makeup has; these keys were others before."""
        config, self.stamp = self.makeup.config, stamp
        self._heartbeats.change(config.hang_timeout)
        if self.hosts:
            self.hosts.change(config.hang_timeout)
        self.lifecycle.change(RestartPolicy(**asdict(config.restart)), config.stop_timeout)
        self._belongings.watch_sockets(self.makeup.paths)
        self._recorder.write()
        self.note("applied", "server0", len(keys))
        self._tell({"event": "applied", "text": ", ".join(keys)})

    # -- the log's -----------------------------------------------------------------------------------------------------

    def note(self, event: str, about: str, value: int) -> None:
        """Have an event written into the log, by the server of the same number: now, or when it is back. Of faults
        those who watch are told, too; of the rest they have been."""
        if event in FAULTS_TOLD:
            self._tell({"event": event, "name": about, "value": value})
        self._tell({"event": "noted", "name": about, "text": event})
        spec = self.makeup.specs[about]
        server = f"server{spec.index}"
        head = {"do": "event", "event": event, "about": about, "value": value, "time_ns": spec.run.now()}
        dying = event == "killed" and about == server  # it would not live to read it
        if self.lifecycle.nodes[server].state is State.READY and not dying:
            self.children[server].tell(head)
        else:
            self._notes.setdefault(server, []).append(head)

    def _living_children(self) -> list[Process]:
        """Those on this host: the others have a guardian."""
        here = [child for child in self.children.values() if not child.spec.host]
        return [child for child in here if self.lifecycle.nodes[child.spec.name].alive]
