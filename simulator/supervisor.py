"""The simulated supervisor: carries out what the real one's policy (launcher/supervision/lifecycle.py) decides.

It binds the sockets, starts the nodes, hears from them over channels as they are, and starts again what has died. Its
children are simulated processes; each runs a node as the fork server would have started it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from memcluster.launcher.supervision.actions import Action, Collect, Drain, Finish, Kill, Probe, Say, Start
from memcluster.launcher.supervision.lifecycle import Lifecycle, Phase
from memcluster.launcher.supervision.nodelife import RestartPolicy, State
from memcluster.node import topology
from memcluster.node.cluster_map import ClusterMap, ServerEntry
from memcluster.node.log.clock import Run
from memcluster.node.log.takeover import next_run
from memcluster.node.node import Node
from memcluster.node.spec import Bounds, NodeSpec
from memcluster.node.transport.channel import Channel
from memcluster.node.transport.frames import Frame
from memcluster.simulator.clock import Clock
from memcluster.simulator.plan import Shape
from memcluster.simulator.process import LOGS, Process
from memcluster.simulator.sockets import Socket
from memcluster.simulator.world import MS, S, World

SECRET = b"s" * 32
NAME = "sim"
EPOCH = 1_700_000_000 * S
"""What the monotonic clock is behind the wall clock."""
BOUNDS = Bounds(handshake_timeout=5.0, stall_timeout=5.0, retry_timeout=2.0)
POLICY = RestartPolicy(cap=2.0, reset=60.0, deaths=6, within=60.0)
STOP_TIMEOUT = 10.0
BEAT = 2.0
FORK = 3 * MS
"""Until a process runs that was started, at most; and until it is known that one is gone."""
AGAIN = 20 * MS
"""Until somebody starts a cluster again whose supervisor was killed."""


class Child:
    """A node's process, and this side of the channel to it. `node` is there when it has got as far as that."""

    def __init__(self, process: Process, channel: Channel) -> None:
        self.process = process
        self.channel = channel
        self.node: Node | None = None
        self.asked: dict[int, Callable[[dict[str, Any]], None]] = {}


class Supervisor:
    """Runs a cluster of this shape, whose files lie in `folder`; `running` is called when it serves, `stopped` when it
    has come to its end. `deaths` has each child that ended, and how. Of `clocks` each server's host has one, if they
    have their own. It takes the place of the one `before`, which is dead."""

    def __init__(
        self,
        world: World,
        shape: Shape,
        folder: Path,
        running: Callable[[], None],
        stopped: Callable[[], None],
        clocks: Sequence[Clock] = (),
        before: Supervisor | None = None,
    ) -> None:
        self.world = world
        self.clocks = clocks
        self.died: Callable[[], None] = lambda: None
        """Called when it was killed, and everybody is gone."""
        self.folder = folder
        self.children: dict[str, Child] = {}
        self.deaths: list[tuple[str, str]] = before.deaths if before is not None else []
        self.collected: dict[str, Any] = {}
        self.heard: Callable[[str, str], None] = lambda _event, _name: None
        """Called with what is told to people: the event, and of whom."""
        self._running = running
        self._stopped = stopped
        self._questions = 0
        self._ticks = False
        self.shape = topology.load(shape.topology)
        self._retain = shape.retain
        self.process = Process(world, "supervisor", self._ended)
        sizes = [0] * self.shape.dispatches + list(shape.sizes)
        count = len(sizes)
        doors = count if self.shape.every_server_is_a_door else 1
        names: list[str | tuple[str, int]] = [("127.0.0.1", 0)] * (2 * count)
        if self.shape.hands_over:
            names[doors:count] = [str(folder / f"server{index}.sock") for index in range(doors, count)]
        if before is not None:  # the same again
            names = [sock.getsockname() for sock in before._sockets]
            for name in names:
                if isinstance(name, str):
                    os.unlink(name)
            if self.shape.every_server_is_a_door and world.dice.chance(0.5):
                names[count - 1] = ("127.0.0.1", 0)  # and clients that route have another map to find
        self._sockets: list[Socket] = [self.process.listen(name) for name in names]
        addresses = [_address(sock) for sock in self._sockets]
        self.map = ClusterMap(
            NAME,
            shape.topology,
            shape.fan_out,
            shape.stripe,
            tuple(
                ServerEntry(addresses[index], addresses[count + index], size, self.shape.role(index, count))
                for index, size in enumerate(sizes)
            ),
        )
        for index, size in enumerate(sizes):
            with self.shard(index).open("ab") as file:
                file.truncate(size)
        self.specs = self._make_specs()
        servers, loggers = [name for name in self.specs if "server" in name], [n for n in self.specs if "logger" in n]
        self.lifecycle = Lifecycle(servers, loggers, doors=doors, restart=POLICY, stop_timeout=STOP_TIMEOUT)

    @property
    def doors(self) -> list[Socket]:
        """The servers' listening sockets."""
        return self._sockets[: len(self.map.servers)]

    def shard(self, index: int) -> Path:
        return self.folder / f"shard{index}"

    def start(self) -> None:
        self.process.run(lambda: self._do(self.lifecycle.begin(self._now())))

    def stop(self) -> None:
        """Gracefully."""
        self.process.run(lambda: self._do(self.lifecycle.stop("now", None, self._now())))

    def tell(self, name: str, head: dict[str, Any]) -> None:
        """Say something to a node, if it is there."""
        child = self.children.get(name)
        if child is not None and child.process.alive:
            self.process.run(lambda: child.channel.send(head))

    @property
    def healthy(self) -> bool:
        """Everybody serves, and nobody has died of whom it is not known yet."""
        return (
            self.lifecycle.phase is Phase.RUNNING
            and all(node.state is State.READY for node in self.lifecycle.nodes.values())
            and all(child.process.alive for child in self.children.values())
        )

    # -- parts -------------------------------------------------------------------------------------------------------

    def _make_specs(self) -> dict[str, NodeSpec]:
        logs = [self.folder / LOGS / f"server{index}" for index in range(len(self.map.servers))]
        number, incarnation, _ = next_run(logs)
        run = Run(number, EPOCH, incarnation)
        found = [
            NodeSpec(
                name=f"{kind}{index}",
                role="logger" if kind == "logger" else server.role,
                index=index,
                cluster=self.map,
                shard=str(self.shard(index)),
                durable=False,
                log_directory=str(logs[index]),
                log_retain=self._retain,
                merged_log=str(self.folder / "merged.log"),
                secret=SECRET,
                bounds=BOUNDS,
                beat=BEAT,
                run=run,
            )
            for kind in ("server", "logger")
            for index, server in enumerate(self.map.servers)
        ]
        return {spec.name: spec for spec in found}

    def _now(self) -> float:
        return self.process.system.monotonic()

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Start(name):
                    self._start(name)
                case Drain(name, mode):
                    self.children[name].channel.send({"do": "drain", "mode": mode})
                case Kill(name):
                    self.children[name].process.end("killed by the supervisor")
                case Collect():
                    self._ask("logger0", {"do": "collect"}, self._has_collected)
                case Probe():
                    self._do(self.lifecycle.probed())
                case Say(event, name, text):
                    self.world.note("supervisor:", event, name, text)
                    self.heard(event, name)
                    if event == "running":
                        self._running()
                case Finish():
                    self._stopped()
                    self.process.loop.stop()
        self._see_to_time()

    def _see_to_time(self) -> None:
        wake = self.lifecycle.wake
        if wake is not None and not self._ticks:
            self._ticks = True
            self.process.loop.after(max(0.0, wake - self._now()) + 0.001, self._tick)

    def _tick(self) -> None:
        self._ticks = False
        self._do(self.lifecycle.tick(self._now()))

    def _ask(self, name: str, head: dict[str, Any], answered: Callable[[dict[str, Any]], None]) -> None:
        self._questions += 1
        child = self.children[name]
        child.asked[self._questions] = answered
        child.channel.send({**head, "id": self._questions})

    def _has_collected(self, answer: dict[str, Any]) -> None:
        self.collected = answer
        self._do(self.lifecycle.collected(self._now()))

    # -- children ----------------------------------------------------------------------------------------------------

    def _start(self, name: str) -> None:
        spec = self.specs[name]
        self.specs[name] = replace(spec, first=False, run=replace(spec.run, incarnation=spec.run.incarnation + 1))
        ours, theirs = self.process.pair()
        clock = self.clocks[spec.index] if self.clocks else None
        process = Process(self.world, name, lambda why: self._gone(child, name, why), clock)
        control = Socket(process, theirs.description)
        theirs.close()
        listeners = [Socket(process, self._listener(name).description)]
        channel = Channel(
            self.process.loop, cast(socket.socket, ours), lambda _, frame: self._told(child, name, frame)
        )
        child = Child(process, channel)
        self.children[name] = child

        def live() -> None:
            process.note("begins")
            child.node = Node(
                process.loop, spec, cast(list[socket.socket], listeners), cast(socket.socket, control)
            )
            process.at_exit = child.node.close
            child.node.start()

        self.world.after(1 + self.world.dice.below(FORK), lambda: process.run(live))

    def _listener(self, name: str) -> Socket:
        spec = self.specs[name]
        return self._sockets[spec.index + (len(self.map.servers) if spec.role == "logger" else 0)]

    def _told(self, child: Child, name: str, frame: Frame) -> None:
        head = frame.head
        if (answered := child.asked.pop(head.get("answer", 0), None)) is not None:
            answered(head)
        elif head.get("event") == "ready":
            self._do(self.lifecycle.ready(name, self._now()))
        elif head.get("event") == "failed":
            self.lifecycle.broken(name, head["reason"])

    def _ended(self, why: str) -> None:
        """With it goes the fork server, and the kernel kills who came from there."""
        if not why:
            return
        for child in self.children.values():
            kill = partial(child.process.end, "killed, for the supervisor is gone")
            self.world.after(1 + self.world.dice.below(FORK), kill)
        self.world.after(AGAIN, self._over)

    def _over(self) -> None:
        self.died()

    def _gone(self, child: Child, name: str, why: str) -> None:
        """The kernel tells a moment later."""
        self.deaths.append((name, why))
        if child.node is not None:
            if why:
                _unlock(child.node)
            child.node = None

        def heard() -> None:
            child.channel.close()
            asked, child.asked = child.asked, {}
            for answered in asked.values():
                answered({"error": f"{name} ended"})
            self._do(self.lifecycle.exited(name, why or "exited with status 0", self._now()))

        self.world.after(1 + self.world.dice.below(FORK), lambda: self.process.run(heard))


def _address(sock: Socket) -> str:
    name = sock.getsockname()
    return f"unix:{name}" if isinstance(name, str) else f"{name[0]}:{name[1]}"


def _unlock(node: Node) -> None:
    """The locks of a process go with it; what it has mapped stays as it is."""
    role: Any = node.role
    for gates in (getattr(role, "_gates", None), getattr(role, "gates", None)):
        if gates is not None and not gates._memory.closed:
            gates._memory.close()
            os.close(gates._fd)
