"""A simulated process: its descriptors, what it needs of the system, its turns on its loop, and how it ends.

A process runs when something is ready for it, a moment later than it could: the dice say how much. Each of its calls
of the system is a step, and it may be killed at any step: within a gathered send, or when the bytes are in the shard
and the record is not in the log. What it has mapped then stays as it is, and the kernel closes its descriptors.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from memcluster.client.system import Place, Poll
from memcluster.node.transport.loop import Loop
from memcluster.node.transport.system import Poller
from memcluster.simulator.clock import Clock
from memcluster.simulator.descriptions import UNIX, Datagrams, Description, failure
from memcluster.simulator.sockets import Socket, make_name
from memcluster.simulator.streams import Listener, Stream
from memcluster.simulator.world import TICK, US, World

SEND_BUFFERS = (4 << 10, 64 << 10, 1 << 20)
RECEIVE_BUFFERS = (4 << 10, 32 << 10, 256 << 10)
BACKLOG = 64
LOGS, MEMORY = "logs", "memory"
"""The disks that there are."""
DELAY = 40 * US
"""Until a process runs that has something to do, at most; sometimes ten times of it."""


class Killed(BaseException):
    """It is over, between two steps: no handler of the process may see this."""


class Process:
    """One process of the world. Who makes it gives it a loop, with `system`, and sees to what is left of it: `ended` is
    called once, with why (nothing, if its loop was stopped)."""

    def __init__(self, world: World, name: str, ended: Callable[[str], None], clock: Clock | None = None) -> None:
        self.world = world
        self.name = name
        self.clock = clock
        """Its host's, where that is not the world's."""
        self.system = System(self)
        self.loop = Loop(self.system)
        self.alive = True
        self.stopped = False
        """By a signal, until it is sent another."""
        self.slow = 0
        """ns by which each of its turns comes later."""
        self.steps = 0
        self.dies_at = -1
        """The step at which it is killed."""
        self._look: Callable[[], None] | None = None
        self.at_exit: Callable[[], None] = lambda: None
        """Called when its loop was stopped."""
        self._ended = ended
        self._descriptors: dict[int, Description] = {}
        self._due = -1

    def __repr__(self) -> str:
        state = "dead" if not self.alive else "stopped" if self.stopped else "alive"
        return f"<Process {self.name} {state}, step {self.steps}, {len(self._descriptors)} descriptors>"

    # -- steps -------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """A call of the system."""
        self.steps += 1
        if 0 <= self.dies_at <= self.steps:  # nor does it do anything else on its way out
            raise Killed
        if self._look is not None:
            self._look()

    def clock_ns(self) -> int:
        """A look at the clock, which is a step, too."""
        self.step()
        world = self.world
        world.now = now = world.now + TICK
        return now if self.clock is None else self.clock.read(now)

    def watch(self, look: Callable[[], None] | None) -> None:
        """Look at each step, from now on."""
        self._look = look

    def portion(self, count: int) -> int:
        """How much of what could be sent or received is: often all of it, but not none."""
        roll = self.world.dice.roll()
        if self.world.calm or roll > 0.2 or count < 2:
            return count
        return 1 + int(roll * 5 * (count - 1)) if roll > 0.02 else 1

    def note(self, *words: object) -> None:
        world = self.world
        world.trace.append((world.now, (self.name, *words)))

    def next_port(self) -> int:
        self.world.port += 1
        return self.world.port

    # -- turns -------------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """There is something to do: now, and a moment later it runs."""
        if 0 <= self._due - self.world.now <= DELAY:
            return
        delay = self.world.dice.below(DELAY)
        if delay > DELAY * 0.95:
            delay *= 10
        self._turn_at(self.world.now + 1 * US + delay + self.slow)

    def _turn_at(self, time: int) -> None:
        if self.alive and (self._due < 0 or time < self._due):
            self._due = time
            self.world.at(time, partial(self._turn, time))

    def _turn(self, time: int) -> None:
        if time != self._due or not self.alive:
            return  # another turn was sooner
        self._due = -1
        if not self.stopped:
            self.run(self.loop.turn)

    def run(self, call: Callable[[], object]) -> None:
        """Have the process do something, then what follows from it."""
        if not self.alive:
            return
        self._do(call)
        if not self.alive:
            return
        if self.loop.stopped:
            self._do(self.at_exit)
            self.end("")
        elif self.system.is_anything_ready():
            self.wake()
        else:
            self._sleep()

    def _do(self, call: Callable[[], object]) -> None:
        self.world.inside = self
        try:
            call()
        except Killed:
            self.end("killed")
        except Exception as error:  # as a process goes that does not understand itself
            where = error.__traceback__
            while where is not None and where.tb_next is not None:
                where = where.tb_next
            line = f"{where.tb_frame.f_code.co_filename.rpartition('/')[2]}:{where.tb_lineno}" if where else ""
            self.end(f"{type(error).__name__}: {error} ({line})")
        finally:
            self.world.inside = None

    def _sleep(self) -> None:
        """Run when the next timer is due."""
        wake = self.loop.wake
        if wake is not None:
            due = int(wake * 1e9) + 1
            time = max(due if self.clock is None else self.clock.when(due), self.world.now + 1 * US)
            self._turn_at(time + self.slow)

    # -- signals -----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """SIGSTOP."""
        if self.alive:
            self.note("is stopped")
            self.stopped = True

    def go_on(self) -> None:
        """SIGCONT."""
        if self.alive and self.stopped:
            self.note("goes on")
            self.stopped = False
            self.wake()

    def end(self, why: str) -> None:
        """It is gone, whatever it was at; the kernel takes back what it had."""
        if not self.alive:
            return
        self.note("ends:", why or "at its end")
        self.alive = False
        self.system.forget_all()
        descriptors, self._descriptors = self._descriptors, {}
        for description in descriptors.values():
            description.release()
        self._ended(why)

    # -- descriptors -------------------------------------------------------------------------------------------------

    def give_descriptor(self, description: Description) -> int:
        """The least number that is free."""
        number = 3
        while number in self._descriptors:
            number += 1
        self._descriptors[number] = description
        description.hold()
        return number

    def description(self, descriptor: int) -> Description:
        """Raises OSError."""
        if descriptor not in self._descriptors:
            raise failure(errno.EBADF)
        return self._descriptors[descriptor]

    def close(self, descriptor: int) -> None:
        if not self.alive:
            return
        self.step()
        description = self.description(descriptor)
        del self._descriptors[descriptor]
        self.note("closes", descriptor)
        description.release()

    def hold(self, address: object) -> list[Stream]:
        """Hold up what goes between it and who listens there; both ends of what is held."""
        held = []
        for description in self._descriptors.values():
            if isinstance(description, Stream) and description.peer is not None and description.peer.name == address:
                held += [description, description.peer]
        for stream in held:
            stream.held += 1
        return held

    @property
    def descriptors(self) -> int:
        """How many there are."""
        return len(self._descriptors)

    # -- files and sockets ---------------------------------------------------------------------------------------------

    def allocate(self, file: int, offset: int, length: int) -> None:
        """Raises OSError."""
        self.step()
        if self.world.full and self._lies_in(file) in self.world.full:
            raise failure(errno.ENOSPC)
        os.posix_fallocate(file, offset, length)

    @staticmethod
    def _lies_in(file: int) -> str:
        """On which disk."""
        return LOGS if f"/{LOGS}/" in os.readlink(f"/proc/self/fd/{file}") else MEMORY

    def stream(self, family: int) -> Stream:
        dice = self.world.dice
        sizes = SEND_BUFFERS[dice.below(3)], RECEIVE_BUFFERS[dice.below(3)]
        if self.world.calm:
            sizes = SEND_BUFFERS[-1], RECEIVE_BUFFERS[-1]
        return Stream(self.world, family, send_buffer=sizes[0], receive_buffer=sizes[1])

    def listen(self, address: str | tuple[str, int]) -> Socket:
        """A listening socket: a path, or a host and a port (0: any)."""
        family = UNIX if isinstance(address, str) else socket.AF_INET
        name: Any = address
        if isinstance(address, str):
            make_name(address)
        elif not address[1]:
            name = (address[0], self.next_port())
        listener = Listener(self.world, family, name, lambda: self.stream(family), BACKLOG)
        self.world.names[name] = listener
        return Socket(self, listener)

    def pair(self) -> tuple[Socket, Socket]:
        """Two ends of a unix stream."""
        one, other = self.stream(UNIX), self.stream(UNIX)
        one.peer, other.peer = other, one
        return Socket(self, one), Socket(self, other)


class System:
    """What memcluster.node.transport.system.System asks for, and memcluster.client.system.System, for one process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._world = process.world
        self._pollers: list[_Poller] = []
        self.monotonic_ns = process.clock_ns

    def monotonic(self) -> float:
        return self.monotonic_ns() / 1e9

    def poller(self) -> Poller:
        made = _Poller(self._process)
        self._pollers.append(made)
        return made

    def poll(self) -> Poll:
        return _Poll(self._process)

    def find(self, host: str, port: int) -> list[Place]:
        return [(socket.AF_INET, (host, port))]

    def make_socket(self, family: int, kind: int) -> socket.socket:
        self._process.step()
        made = Datagrams(self._world) if kind == socket.SOCK_DGRAM else self._process.stream(family)
        return cast(socket.socket, Socket(self._process, made))

    def socket_of(self, descriptor: int) -> socket.socket:
        made = Socket(self._process, self._process.description(descriptor))
        self._process.close(descriptor)
        return cast(socket.socket, made)

    def duplicate(self, descriptor: int) -> int:
        self._process.step()
        return self._process.give_descriptor(self._process.description(descriptor))

    def close(self, descriptor: int) -> None:
        self._process.close(descriptor)

    def is_gone(self, sock: socket.socket) -> bool:
        self._process.step()
        found = self._process.description(sock.fileno())
        assert isinstance(found, Stream)
        return found.is_gone()

    def random(self, count: int) -> bytes:
        self._process.step()
        return self._world.dice.bits(8 * count).to_bytes(count, "little")

    def allocate(self, file: int, offset: int, length: int) -> None:
        self._process.allocate(file, offset, length)

    def complain(self, line: bytes) -> None:
        self._process.note("says", line.decode(errors="replace").strip())

    def is_anything_ready(self) -> bool:
        return any(map(_Poller.is_anything_ready, self._pollers))

    def forget_all(self) -> None:
        for poller in self._pollers:
            poller.close()


class _Poller:
    """As epoll: who may be ready stands in a list, and leaves it when it is found not to be."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._world = process.world
        self._watched: dict[int, _Watch] = {}
        self.maybe: dict[int, _Watch] = {}
        """Those of which the process knows; it runs if it can."""

    def register(self, descriptor: int, events: int) -> None:
        watch = _Watch(self, descriptor, self._process.description(descriptor), events)
        self._watched[descriptor] = watch
        watch.description.watchers.append(watch)
        watch.changed()

    def modify(self, descriptor: int, events: int) -> None:
        watch = self._watched.get(descriptor)
        if watch is None:
            raise failure(errno.ENOENT)
        watch.wanted = events | _ALWAYS
        watch.changed()

    def unregister(self, descriptor: int) -> None:
        found = self._watched.pop(descriptor, None)
        self.maybe.pop(descriptor, None)
        if found is None:
            raise failure(errno.ENOENT)
        found.description.watchers.remove(found)

    def close(self) -> None:
        for descriptor in list(self._watched):
            self.unregister(descriptor)

    def poll(self, timeout: float | None, most: int) -> list[tuple[int, int]]:
        self._process.step()
        found = self._ready()
        if not found and timeout != 0 and self._world.inside is None:  # nobody else makes the world turn
            until = self._world.now + (1 << 62 if timeout is None else int(timeout * 1e9))
            while not found and (due := self._world.next) is not None and due <= until:
                self._world.go_on()
                found = self._ready()
        if len(found) > 1:
            first = self._world.dice.below(len(found))
            found = found[first:] + found[:first]
        return found[:most]

    def is_anything_ready(self) -> bool:
        return bool(self.maybe) and bool(self._ready())

    def _ready(self) -> list[tuple[int, int]]:
        found = []
        for descriptor, watch in list(self.maybe.items()):
            events = watch.description.ready(watch.wanted)
            if events:
                found.append((descriptor, events))
            else:
                del self.maybe[descriptor]
        return found

    def forget(self, watch: _Watch) -> None:
        if self._watched.get(watch.descriptor) is watch:
            self.unregister(watch.descriptor)

    def may_be_ready(self, watch: _Watch) -> None:
        self.maybe[watch.descriptor] = watch
        if self._world.inside is not self._process:
            self._process.wake()


class _Watch:
    """One descriptor that is waited for."""

    __slots__ = ("_poller", "description", "descriptor", "wanted")

    def __init__(self, poller: _Poller, descriptor: int, description: Description, events: int) -> None:
        self._poller = poller
        self.descriptor = descriptor
        self.description = description
        self.wanted = events | _ALWAYS

    def changed(self) -> None:
        """What it is ready for may be something new."""
        if self.descriptor not in self._poller.maybe and self.description.ready(self.wanted):
            self._poller.may_be_ready(self)

    def gone(self) -> None:
        """Nobody has it any more, and so it is no longer waited for."""
        self._poller.forget(self)


class _Poll:
    """As poll, but that a process of this world never waits in it."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._wanted: dict[int, int] = {}

    def register(self, descriptor: int, events: int) -> None:
        self._wanted[descriptor] = events

    def poll(self, milliseconds: float) -> list[tuple[int, int]]:
        process = self._process
        process.step()
        found = [(number, process.description(number).ready(mask | _ALWAYS)) for number, mask in self._wanted.items()]
        found = [(number, events) for number, events in found if events]
        if not found and milliseconds:
            raise NotImplementedError("a simulated process does not wait")
        return found


_ALWAYS = select.EPOLLERR | select.EPOLLHUP
