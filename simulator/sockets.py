"""Simulated sockets: what the kernel keeps of them (streams, listeners, datagrams), and what a process has of them.

A description is the kernel's: several descriptors of several processes may refer to it, or a message on its way that
hands it over; when none does any more, it is closed. A `Socket` is one process's descriptor of one, with the methods of
Python's own. All sockets are of one host and do not block. TCP has a buffer at either side, and the end of a stream
comes behind what waits in the sender's; a unix socket has one. How much of what could be sent or received is, the dice
say. tests/test_simulated_sockets.py holds all this against the kernel's.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from memcluster.node.nbd.wire import Buffer
from memcluster.simulator.world import S, World

if TYPE_CHECKING:
    from memcluster.simulator.process import Process

IN, OUT, ERR, HUP, RDHUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLERR, select.EPOLLHUP, select.EPOLLRDHUP
UNIX = socket.AF_UNIX
DATAGRAMS = 10
"""Messages that wait in a datagram socket, at most (net.unix.max_dgram_qlen)."""
SMALL = 128
"""Bytes that an empty buffer always takes at once."""
SYN_AGAIN = 1 * S
"""A connection for which a backlog has no room, or which does not get through, is tried again."""
Rights = list["Description"]


def failure(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Watcher(Protocol):
    """Who waits for a description to be ready for something."""

    def changed(self) -> None: ...
    def gone(self) -> None: ...


class Description:
    """What descriptors refer to. `watchers` are told when it may be ready for something new."""

    def __init__(self, world: World, family: int) -> None:
        self.world = world
        self.family = family
        self.references = 0
        self.watchers: list[Watcher] = []

    def ready(self, wanted: int) -> int:
        """Those of the wanted events of epoll that there are."""
        raise NotImplementedError

    def closed(self) -> None:
        """Nobody refers to it any more."""

    def hold(self) -> None:
        self.references += 1

    def release(self) -> None:
        self.references -= 1
        if not self.references:
            for watcher in list(self.watchers):
                watcher.gone()
            self.closed()

    def changed(self) -> None:
        for watcher in self.watchers:
            watcher.changed()


class Stream(Description):
    """One end of a connection, or of one that is to be."""

    def __init__(self, world: World, family: int, name: Any = "", *, send_buffer: int, receive_buffer: int) -> None:
        super().__init__(world, family)
        self.name = name
        self.is_unix = family == UNIX
        self.peer: Stream | None = None
        self.send_buffer = send_buffer
        self.receive_buffer = receive_buffer
        self.inbox = bytearray()
        self.outbox = bytearray()
        self.wakes_at = 1
        self.under_way = False
        """It was to be connected, and nobody has asked yet whether it is."""
        self.error = 0
        self.reset = False
        """Nothing can be sent or will come any more."""
        self.ended = False
        """The other side's end has come."""
        self.finished = False
        """This side sends no more."""
        self.deaf = False
        """This side receives no more."""
        self.resets_at_close = False
        self.held = 0
        """How many faults hold up what goes between the two sides."""
        self._sent = self._taken = 0
        self._rights: deque[tuple[int, int, Rights]] = deque()  # where in the stream, to where, what

    # -- what it is ready for ----------------------------------------------------------------------------------------

    def ready(self, wanted: int) -> int:
        if self.peer is None and not self.reset:
            return wanted & (OUT | HUP) if self.is_unix else 0
        waiting = len(self.inbox)
        enough = waiting and (waiting >= self.wakes_at or self.is_unix or waiting >= self.receive_buffer)
        events = IN if enough else 0
        if self.ended or self.deaf or self.reset or self.finished or self.error:
            events |= self._ends()
        elif wanted & OUT and not self._is_crowded():
            events |= OUT
        return events & wanted

    def _ends(self) -> int:
        """What it is ready for as something of it is over."""
        events = 0
        if self.ended or self.deaf or self.reset:
            events |= IN | RDHUP
        if self.reset or ((self.ended or self.deaf) and self.finished):
            events |= HUP
        if self.error:
            events |= ERR
        if self.finished or self.reset or not self._is_crowded():
            events |= OUT
        return events

    def is_empty(self) -> bool:
        """Nothing that was sent waits."""
        return not self.outbox and (self.peer is None or not self.peer.inbox)

    def _room(self) -> int:
        if self.is_unix:
            return self.send_buffer - len(self.peer.inbox) if self.peer is not None else 0
        return self.send_buffer - len(self.outbox)

    def _is_crowded(self) -> bool:
        """There is too little room to be told of: less than a third, of a unix socket less than three quarters."""
        return self._room() * 4 < self.send_buffer * 3 if self.is_unix else self._room() * 3 < self.send_buffer

    # -- connecting --------------------------------------------------------------------------------------------------

    def connect(self, listener: Listener) -> bool:
        """Into the listener's backlog, if that has room."""
        if len(listener.backlog) > listener.limit:
            return False
        other = listener.make()
        self.peer, other.peer = other, self
        other.name = listener.name
        listener.backlog.append(other)
        other.hold()
        listener.changed()
        self.changed()
        return True

    def end_connecting(self) -> None:
        """It is connected. Raises OSError: EALREADY if it is still under way, or why it is not."""
        if self.peer is None and not self.reset:
            raise failure(errno.EALREADY)
        self.under_way = False
        if self.reset:
            error, self.error = self.error or errno.ECONNABORTED, 0
            raise failure(error)

    # -- sending -----------------------------------------------------------------------------------------------------

    def may_send(self) -> int:
        """Bytes that it takes. Raises OSError."""
        if self.error:
            error, self.error = self.error, 0
            raise failure(error)
        if self.finished or self.reset or (self.peer is not None and self.family == UNIX and self._is_deaf(self.peer)):
            raise failure(errno.EPIPE)
        if self.peer is None:
            raise failure(errno.EAGAIN if self.family != UNIX else errno.ENOTCONN)
        room = self._room()
        if room <= 0:
            raise failure(errno.EAGAIN)
        return room

    @staticmethod
    def _is_deaf(peer: Stream) -> bool:
        return peer.deaf or not peer.references

    def send(self, data: bytes, rights: Rights) -> None:
        """As much as there is room for."""
        peer = self.peer
        assert peer is not None
        if rights:
            for right in rights:
                right.hold()
            peer._rights.append((self._sent, self._sent + len(data), rights))
        self._sent += len(data)
        at_once = self.is_unix or len(data) <= peer.receive_buffer - len(peer.inbox)
        if at_once and peer.references and not self.outbox:
            peer.inbox += data
            peer.changed()
        else:
            self.outbox += data
            self._move()

    def _move(self) -> None:
        """What waits in this side's buffer goes to the other's, as far as that has room; and the end behind it."""
        peer = self.peer
        if peer is None or self.held:
            return
        if self.outbox:
            if not peer.references and self.family != UNIX:
                self._refused()
                return
            room = len(self.outbox) if self.family == UNIX else peer.receive_buffer - len(peer.inbox)
            if room > 0:
                peer.inbox += self.outbox[:room]
                del self.outbox[:room]
                peer.changed()
        if self.finished and not self.outbox and not peer.ended:
            peer.ended = True
            peer.changed()

    def _refused(self) -> None:
        """Data came to a socket that nobody has any more: it answers with a reset."""
        self._break(errno.EPIPE if self.ended else errno.ECONNRESET)

    def _break(self, error: int) -> None:
        """A reset has come."""
        if not self.reset:
            self.reset = True
            self.error = error
            self.outbox.clear()
            self.changed()

    # -- receiving ---------------------------------------------------------------------------------------------------

    def may_receive(self) -> int:
        """Bytes that are there; 0 at the end. Raises OSError."""
        if self.inbox:
            return len(self.inbox)
        if self.ended and self.family != UNIX:
            return 0
        if self.error:
            error, self.error = self.error, 0
            raise failure(error)
        if self.ended or self.deaf or self.reset:
            return 0
        if self.peer is None and self.family == UNIX:
            raise failure(errno.EINVAL)
        raise failure(errno.EAGAIN)

    def receive(self, count: int) -> tuple[bytes, Rights]:
        """So many at most; not beyond a message that hands something over."""
        found: Rights = []
        if self._rights:
            start, end, rights = self._rights[0]
            if start < self._taken + count:
                count = min(count, end - self._taken)
                found = rights
                self._rights.popleft()
        peer = self.peer
        is_awaited = peer is not None and (peer.outbox or peer._is_crowded())
        data = bytes(self.inbox[:count])
        del self.inbox[:count]
        self._taken += count
        if peer is not None and is_awaited:
            peer._move()
            peer.changed()
        return data, found

    # -- ending ------------------------------------------------------------------------------------------------------

    def shut(self, how: int) -> None:
        """Raises OSError."""
        if self.peer is None or (self.reset and self.family != UNIX):
            raise failure(errno.ENOTCONN)
        if how in (socket.SHUT_WR, socket.SHUT_RDWR):
            self.finished = True
            self._move()
        if how in (socket.SHUT_RD, socket.SHUT_RDWR):
            self.deaf = True
            self.peer.changed()
        self.changed()

    def closed(self) -> None:
        peer = self.peer
        unread = bool(self.inbox)
        for _, _, rights in self._rights:
            for right in rights:
                right.release()
        self._rights.clear()
        if peer is None or self.reset or self.held:
            return
        if self.family == UNIX:
            peer.ended = peer.finished = True
            if unread or self.resets_at_close:
                peer.error = errno.ECONNRESET
            peer.changed()
        elif unread or self.resets_at_close:
            self.reset = True
            self.outbox.clear()
            peer._break(errno.EPIPE if peer.ended else errno.ECONNRESET)
        else:
            self.finished = True
            if peer.outbox:
                peer._refused()
            else:
                self._move()

    def let_go(self) -> None:
        """One of those who hold it up does no longer."""
        self.held -= 1
        if not self.held:
            if not self.references:
                self.closed()
            self._move()

    def is_gone(self) -> bool:
        """As memcluster.node.transport.peer.is_gone has it."""
        events = self.ready(IN | RDHUP | HUP | ERR)
        if not events:
            return False
        if events & (HUP | ERR) or self.family == UNIX:
            return bool(events & (HUP | ERR))
        return self.peer is None or not (self.peer.references or self.held)


class Listener(Description):
    """A listening socket; `make` makes this side of a connection."""

    def __init__(self, world: World, family: int, name: Any, make: Callable[[], Stream], limit: int = 128) -> None:
        super().__init__(world, family)
        self.name = name
        self.make = make
        self.limit = limit
        self.backlog: deque[Stream] = deque()

    def ready(self, wanted: int) -> int:
        return wanted & IN if self.backlog else 0

    def closed(self) -> None:
        self.world.names.pop(self.name, None)
        for stream in self.backlog:
            stream.resets_at_close = True
            stream.release()


class Datagrams(Description):
    """A unix datagram socket."""

    def __init__(self, world: World) -> None:
        super().__init__(world, UNIX)
        self.name = ""
        self.inbox: deque[bytes] = deque()

    def ready(self, wanted: int) -> int:
        return wanted & (OUT | IN if self.inbox else OUT)

    def closed(self) -> None:
        if self.world.names.get(self.name) is self:
            del self.world.names[self.name]


class Socket:
    """A descriptor of a process, with what memcluster uses of socket.socket."""

    def __init__(self, process: Process, description: Description) -> None:
        self._process = process
        self._description = description
        self._descriptor = process.give_descriptor(description)
        self.family = socket.AddressFamily(description.family)

    def __repr__(self) -> str:
        return f"<Socket {self._descriptor} of {self._process.name}>"

    # -- what any socket can -----------------------------------------------------------------------------------------

    def fileno(self) -> int:
        return self._descriptor

    @property
    def description(self) -> Description:
        return self._description

    def setblocking(self, blocking: bool) -> None:
        if blocking:
            raise NotImplementedError("a simulated socket does not block")

    def close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            self._process.close(descriptor)

    def getsockname(self) -> Any:
        return self._stream.name if isinstance(self._description, Stream) else self._description.name  # type: ignore[attr-defined]

    def getpeername(self) -> Any:
        peer = self._stream.peer
        if peer is None or self._stream.reset:
            raise failure(errno.ENOTCONN)
        return peer.name

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        self._process.step()
        stream = self._description
        if level != socket.SOL_SOCKET or not isinstance(stream, Stream):
            return
        if option == socket.SO_RCVLOWAT:
            assert isinstance(value, int)
            stream.wakes_at = value
            stream.receive_buffer = max(stream.receive_buffer, 2 * value)
            if stream.peer is not None:
                stream.peer._move()
                stream.peer.changed()
            stream.changed()
        elif option == socket.SO_LINGER:
            assert isinstance(value, bytes)
            stream.resets_at_close = struct.unpack("ii", value) == (1, 0)

    @property
    def _stream(self) -> Stream:
        if self._descriptor < 0 or not self._process.alive:
            raise failure(errno.EBADF)
        assert isinstance(self._description, Stream)
        return self._description

    # -- streams -----------------------------------------------------------------------------------------------------

    def connect_ex(self, address: Any) -> int:
        """The number of the error; 0 if there is none."""
        try:
            self.connect(address)
        except OSError as error:
            return error.errno or errno.EINVAL
        return 0

    def connect(self, address: Any) -> None:
        """Raises OSError: EINPROGRESS for TCP; what has become of that when it is called again."""
        process, stream = self._process, self._stream
        process.step()
        if stream.under_way:
            stream.end_connecting()
            return
        if stream.peer is not None:
            raise failure(errno.EISCONN)
        name = address if stream.family == UNIX else tuple(address[:2])
        listener = process.world.names.get(name)
        if stream.family == UNIX:
            if not os.path.exists(address):
                raise failure(errno.ENOENT)
            if not isinstance(listener, Listener):
                raise failure(errno.ECONNREFUSED)
            if not stream.connect(listener):
                raise failure(errno.EAGAIN)
            return
        stream.name = (address[0], process.next_port())
        stream.under_way = True
        self._try(stream, name)
        raise failure(errno.EINPROGRESS)

    def _try(self, stream: Stream, name: Any) -> None:
        world = self._process.world
        listener = world.names.get(name)
        if not stream.references:
            return
        if world.cuts[self._process.name, name] or (isinstance(listener, Listener) and not stream.connect(listener)):
            world.after(SYN_AGAIN, lambda: self._try(stream, name))
        elif listener is None:
            stream.reset = True
            stream.error = errno.ECONNREFUSED
            stream.changed()

    def sendmsg(self, buffers: Sequence[Buffer], ancillary: Sequence[tuple[int, int, Any]] = ()) -> int:
        """Raises OSError."""
        process, stream = self._process, self._stream
        process.step()
        whole = bytes(buffers[0]) if len(buffers) == 1 else b"".join(buffers)
        count = min(stream.may_send(), len(whole))
        if count > SMALL or not stream.is_empty():
            count = process.portion(count)
        data = whole if count == len(whole) else whole[:count]
        rights = []
        for level, kind, content in ancillary:
            assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            rights += [process.description(descriptor) for descriptor in content]
        stream.send(data, rights)
        process.note("sends", count, "of", len(whole), *(("and", len(rights), "sockets") if rights else ()))
        if process.world.tap is not None:
            process.world.tap.sent(process.name, stream, data)
        process.step()  # it may be killed when a part is out
        return count

    def send(self, data: Buffer) -> int:
        return self.sendmsg([data])

    def recv_into(self, buffer: memoryview) -> int:
        data = self.recv(len(buffer))
        count = len(data)
        buffer[:count] = data
        return count

    def recv(self, most: int) -> bytes:
        """Raises OSError. What was handed over along with the bytes is lost."""
        if isinstance(self._description, Datagrams):
            return self._receive_datagram(most)
        data, rights = self._receive(most)
        for right in rights:
            right.release()
        return data

    def recvmsg_into(
        self, buffers: Sequence[memoryview], _space: int = 0, _flags: int = 0
    ) -> tuple[int, list[tuple[int, int, bytes]], int, None]:
        [buffer] = buffers
        data, rights = self._receive(len(buffer))
        buffer[: len(data)] = data
        extra = []
        if rights:
            descriptors = array.array("i", [self._process.give_descriptor(right) for right in rights])
            for right in rights:
                right.release()
            extra.append((int(socket.SOL_SOCKET), int(socket.SCM_RIGHTS), descriptors.tobytes()))
        return len(data), extra, 0, None

    def recvmsg(self, most: int, _space: int = 0) -> tuple[bytes, list[tuple[int, int, bytes]], int, None]:
        buffer = memoryview(bytearray(most))
        count, extra, flags, _ = self.recvmsg_into([buffer])
        return bytes(buffer[:count]), extra, flags, None

    def _receive(self, most: int) -> tuple[bytes, Rights]:
        process, stream = self._process, self._stream
        process.step()
        there = stream.may_receive()
        data, rights = stream.receive(process.portion(min(there, most))) if there else (b"", [])
        process.note("receives", len(data), "of", there, *(("and", len(rights), "sockets") if rights else ()))
        if process.world.tap is not None:
            process.world.tap.received(process.name, stream, len(data))
            process.step()
        return data, rights

    def shutdown(self, how: int) -> None:
        """Raises OSError."""
        self._process.step()
        self._stream.shut(how)
        self._process.note("shuts", how)

    # -- listeners and datagrams -------------------------------------------------------------------------------------

    def accept(self) -> tuple[Socket, Any]:
        """Raises OSError."""
        process, listener = self._process, self._description
        assert isinstance(listener, Listener)
        process.step()
        if not listener.backlog:
            raise failure(errno.EAGAIN)
        stream = listener.backlog.popleft()
        sock = Socket(process, stream)
        stream.release()
        process.note("accepts")
        return sock, stream.peer.name if stream.peer is not None else ""

    def bind(self, path: str) -> None:
        """Of datagrams. Raises OSError."""
        description = self._description
        assert isinstance(description, Datagrams)
        make_name(path)
        description.name = path
        description.world.names[path] = description

    def sendto(self, data: bytes, path: str) -> int:
        """Raises OSError."""
        self._process.step()
        if not os.path.exists(path):
            raise failure(errno.ENOENT)
        other = self._description.world.names.get(path)
        if not isinstance(other, Datagrams):
            raise failure(errno.ECONNREFUSED)
        if len(other.inbox) > DATAGRAMS:
            raise failure(errno.EAGAIN)
        other.inbox.append(data)
        other.changed()
        self._process.note("rings")
        return len(data)

    def _receive_datagram(self, most: int) -> bytes:
        self._process.step()
        description = self._description
        assert isinstance(description, Datagrams)
        if not description.inbox:
            raise failure(errno.EAGAIN)
        return description.inbox.popleft()[:most]


def make_name(path: str) -> None:
    """A unix socket's name is a file, which outlives it. Raises OSError if there is one."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        raise failure(errno.EADDRINUSE) from None
