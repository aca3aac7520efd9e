"""A simulated process: its descriptors, its turns on its loop, and how it ends.

A process runs when something is ready for it, a moment later than it could: the dice say how much. Each of its calls
of the system is a step, and it may be killed at any step: within a gathered send, or when the bytes are in the shard
and the record is not in the log. What it has mapped then stays as it is, and the kernel closes its descriptors.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from memcluster.node.transport.loop import Loop
from memcluster.simulator.clock import Clock
from memcluster.simulator.descriptions import UNIX, Description, failure
from memcluster.simulator.sockets import Socket, make_name
from memcluster.simulator.streams import Listener, Stream
from memcluster.simulator.system import System
from memcluster.simulator.world import NEVER, TICK, US, World

SEND_BUFFERS = (4 << 10, 64 << 10, 1 << 20)
RECEIVE_BUFFERS = (4 << 10, 32 << 10, 256 << 10)
NARROW = (1 << 10, 2 << 10, 4 << 10)
"""Buffers of a narrow world."""
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
        self.dies_at = NEVER
        """The step at which it is killed."""
        self._look: Callable[[], None] | None = None
        self.at_exit: Callable[[], None] = lambda: None
        """Called when its loop was stopped."""
        self._ended = ended
        self._descriptors: dict[int, Description] = {}
        self._due = NEVER
        """When its next turn is."""
        self._turns: set[int] = set()
        """When the world calls it: at times at which a turn was due until a sooner one was, too."""

    def __repr__(self) -> str:
        state = "dead" if not self.alive else "stopped" if self.stopped else "alive"
        return f"<Process {self.name} {state}, step {self.steps}, {len(self._descriptors)} descriptors>"

    # -- steps -------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """A call of the system."""
        self.steps += 1
        if self.steps >= self.dies_at:  # nor does it do anything else on its way out
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
        if self.alive and time < self._due:
            self._due = time
            if time not in self._turns:
                self._turns.add(time)
                self.world.at(time, partial(self._turn, time))

    def _turn(self, time: int) -> None:
        self._turns.discard(time)
        if time != self._due or not self.alive:
            return  # another turn was sooner
        self._due = NEVER
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
        """Run when the next timer is due; or soon, as something is to be gone on with, and then the others run, too."""
        wake = self.loop.wake
        if wake == 0.0:
            self.wake()
        elif wake is not None:
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
        dice, narrow = self.world.dice, self.world.narrow
        sizes = dice.pick(NARROW if narrow else SEND_BUFFERS), dice.pick(NARROW if narrow else RECEIVE_BUFFERS)
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
