"""Simulated sockets: one process's descriptor of what the kernel keeps, with the methods of Python's own.

They do not block. Each call is a step of the process, at which it may be killed. How much of what could be sent or
received is, the dice say.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memcluster.node.nbd.wire import Buffer
from memcluster.simulator.descriptions import DATAGRAMS, UNIX, Datagrams, Description, failure
from memcluster.simulator.streams import Listener, Rights, Stream
from memcluster.simulator.world import S

if TYPE_CHECKING:
    from memcluster.simulator.process import Process

SMALL = 128
"""Bytes that an empty buffer always takes at once."""
SYN_AGAIN = 1 * S
"""A connection for which a backlog has no room, or which does not get through, is tried again."""


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

    def getsockopt(self, level: int, option: int, size: int) -> bytes:  # noqa: ARG002
        raise failure(errno.ENOPROTOOPT)

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
