"""What a simulated process asks the system for: clocks, sockets, randomness, room on a disk, and who is ready.

Each call is a step of the process. What a descriptor refers to tells who waits for it when it may be ready; a process
that is not running then runs a moment later.
"""

from __future__ import annotations

import errno
import select
import socket
from typing import TYPE_CHECKING, cast

from memcluster.client.system import Place, Poll
from memcluster.node.transport.system import Poller
from memcluster.simulator.descriptions import Datagrams, Description, failure
from memcluster.simulator.sockets import Socket
from memcluster.simulator.streams import Stream

if TYPE_CHECKING:
    from memcluster.simulator.process import Process

_ALWAYS = select.EPOLLERR | select.EPOLLHUP
"""What epoll and poll tell whether or not they are asked for it."""


class System:
    """What memcluster.node.transport.system.System asks for, and memcluster.client.system.System, for one process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._world = process.world
        self._epolls: list[_Epoll] = []
        self.monotonic_ns = process.clock_ns

    def monotonic(self) -> float:
        return self.monotonic_ns() / 1e9

    def poller(self) -> Poller:
        made = _Epoll(self._process)
        self._epolls.append(made)
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
        return any(epoll.is_anything_ready() for epoll in self._epolls)

    def forget_all(self) -> None:
        for epoll in self._epolls:
            epoll.close()


class _Epoll:
    """Who may be ready stands in a list, and leaves it when it is found not to be."""

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

    def __init__(self, poller: _Epoll, descriptor: int, description: Description, events: int) -> None:
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
