"""A connection to one export: many requests in flight from one thread, and a new connection when one is lost.

Everything that waits does so in `drive`, which sends and receives in turns, so a full pipe never blocks both sides,
and which knows one deadline. What is in flight is kept until its reply has come: after a loss it is sent again, in
its order, for every command may be repeated.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Sequence

from client.errors import ClusterError, Disconnected, Refused, Timeout, request_error
from client.uri import Target
from node.nbd import errors as nbd
from node.nbd.client import ClientSession, Reply
from node.nbd.wire import Buffer, Command, Rep

IOV_MAX = 1024
MAX_IN_FLIGHT = 64 << 20
"""Bytes in flight, at most; `submit` waits for room."""
RETRY_PAUSE = 0.05
"""Seconds between two attempts to connect again."""


class Pending:
    """A request under way. `result()` waits for it; the library's own small future, for one thread."""

    __slots__ = ("_connection", "_failure", "_finish", "_reply", "command", "destination", "flags", "length", "offset",
                 "payload")  # fmt: skip

    def __init__(
        self,
        connection: Connection,
        command: int,
        offset: int,
        length: int,
        flags: int,
        payload: Sequence[Buffer],
        destination: memoryview | None,
    ) -> None:
        self._connection = connection
        self._reply: Reply | None = None
        self._failure: ClusterError | None = None
        self.command = command
        self.offset = offset
        self.length = length
        self.flags = flags
        self.payload = payload
        self.destination = destination

    def __repr__(self) -> str:
        return f"<Pending {Command(self.command).name} {self.offset} +{self.length}{' done' if self.done else ''}>"

    @property
    def done(self) -> bool:
        """The outcome is known."""
        return self._reply is not None or self._failure is not None

    def wait(self, timeout: float | None = None) -> Reply:
        """The successful reply. Raises RequestError, Disconnected, Timeout."""
        if not self.done:
            self._connection.drive(lambda: self.done, timeout)
        if self._failure is not None:
            raise self._failure
        reply = self._reply
        assert reply is not None
        if reply.error:
            raise request_error(self.command, self.offset, self.length, reply.error, reply.message)
        return reply


class Connection:
    """Connects at once. Raises Refused, Disconnected, Timeout; `timeout` (seconds) is the default of every wait, and
    how long a lost connection is tried again if `reconnect` is set."""

    def __init__(self, target: Target, *, timeout: float = 30.0, reconnect: bool = True) -> None:
        self.target = target
        self.timeout = timeout
        self.reconnect = reconnect
        self.reconnections = 0
        self._scratch = memoryview(bytearray(1 << 18))
        self._in_flight: dict[int, Pending] = {}
        self._bytes_in_flight = 0
        self._cookie = 0
        self._closed = False
        self._sock: socket.socket | None = None
        self.session = self._connect(time.monotonic() + timeout)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "lost" if self._sock is None else "open"
        return f"<Connection to {self.target} {state}, {len(self._in_flight)} in flight>"

    # -- requests ----------------------------------------------------------------------------------------------------

    def submit(
        self,
        command: int,
        offset: int,
        length: int,
        flags: int = 0,
        payload: Sequence[Buffer] = (),
        destination: memoryview | None = None,
    ) -> Pending:
        """Send a request. Payload and destination must stay as they are until it is done."""
        if self._closed:
            raise Disconnected(f"the connection to {self.target} was closed by this program")
        if self._bytes_in_flight > MAX_IN_FLIGHT:
            self.drive(lambda: self._bytes_in_flight <= MAX_IN_FLIGHT, None)
        pending = Pending(self, command, offset, length, flags, payload, destination)
        self._cookie += 1
        self._in_flight[self._cookie] = pending
        self._bytes_in_flight += length
        if self._sock is not None:
            self.session.submit(command, self._cookie, offset, length, flags, payload, destination)
            self._send()
        return pending

    def drive(self, until: Callable[[], bool], timeout: float | None) -> None:
        """Send and receive until `until()` is true. Raises Timeout, Disconnected."""
        limit = self.timeout if timeout is None else timeout
        deadline = time.monotonic() + limit
        while not until():
            if self._sock is None:
                self._restore(deadline)
                continue
            if not self._wait(bool(self.session.outgoing), deadline):
                raise Timeout(f"no answer from {self.target} in {limit:g} s")

    def close(self) -> None:
        """Say goodbye. What is still in flight fails."""
        if self._closed:
            return
        self._closed = True
        if self._sock is not None:
            if not self._in_flight and not self.session.outgoing:
                self.session.disconnect()
                self._send()
            self._drop()
        self._fail(Disconnected(f"the connection to {self.target} was closed by this program"))

    # -- the socket --------------------------------------------------------------------------------------------------

    def _connect(self, deadline: float) -> ClientSession:
        target = self.target
        remaining = max(0.001, deadline - time.monotonic())
        try:
            if target.path:
                self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self._sock.settimeout(remaining)
                self._sock.connect(target.path)
            else:
                self._sock = socket.create_connection((target.host, target.port), remaining)
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except TimeoutError as error:
            self._drop()
            raise Timeout(f"cannot connect to {target} in time") from error
        except OSError as error:
            self._drop()
            raise Disconnected(f"cannot connect to {target}: {error.strerror or error}") from error
        self._sock.setblocking(False)
        session = self.session = ClientSession(target.export, scratch=self._scratch)
        try:
            while not session.ready:
                if self._sock is None:
                    raise Disconnected(f"{target} closed the connection in the handshake: it may be full or going down")
                if not self._wait(bool(session.outgoing), deadline):
                    raise Timeout(f"no end of the handshake with {target} in time")
        except ClusterError:
            self._drop()
            raise
        return session

    def _wait(self, sending: bool, deadline: float) -> bool:
        """Send and receive once, as soon as the socket is ready; false if it is not before the deadline."""
        assert self._sock is not None
        poll = select.poll()
        poll.register(self._sock, select.POLLIN | (select.POLLOUT if sending else 0))
        ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        for _, event in ready:
            if event & select.POLLOUT:
                self._send()
            if event & ~select.POLLOUT and self._sock is not None:
                self._receive()
        return bool(ready)

    def _send(self) -> None:
        outgoing = self.session.outgoing
        while outgoing and self._sock is not None:
            try:
                sent = self._sock.sendmsg(outgoing[:IOV_MAX])
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._drop()
                return
            while sent and sent >= len(outgoing[0]):
                sent -= len(outgoing.pop(0))
            if sent:
                outgoing[0] = memoryview(outgoing[0])[sent:]

    def _receive(self) -> None:
        assert self._sock is not None
        session = self.session
        try:
            count = self._sock.recv_into(session.receive_buffer())
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            count = 0
        if not count:
            self._drop()
            return
        try:
            replies = session.received(count)
        except nbd.Refused as error:
            self._drop()
            failure = Refused(f"{self.target}: {error}")
            failure.__cause__ = error
            raise failure from error
        except nbd.ProtocolError as error:
            self._drop()
            self._closed = True
            self._fail(Disconnected(f"{self.target} broke the protocol: {error}"))
            return
        if session.outgoing and not session.ready:
            self._send()
        for reply in replies:
            pending = self._in_flight.pop(reply.cookie)
            self._bytes_in_flight -= pending.length
            pending._reply = reply

    def _drop(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _restore(self, deadline: float) -> None:
        """Connect again and repeat what is in flight, or fail it all."""
        if not self.reconnect or self._closed:
            self._fail(Disconnected(f"the connection to {self.target} is lost"))
            return
        while True:
            try:
                session = self._connect(deadline)
                break
            except ClusterError as error:
                cause = error.__cause__
                temporary = not isinstance(cause, nbd.Refused) or cause.reply == Rep.ERR_SHUTDOWN
                if not temporary or time.monotonic() + RETRY_PAUSE > deadline:
                    self._fail(Disconnected(f"the connection to {self.target} is lost: {error}"))
                    return
                select.poll().poll(RETRY_PAUSE * 1000)
        self.reconnections += 1
        for cookie, sent in self._in_flight.items():
            session.submit(sent.command, cookie, sent.offset, sent.length, sent.flags, sent.payload, sent.destination)
        self._send()

    def _fail(self, failure: Disconnected) -> None:
        for pending in self._in_flight.values():
            pending._failure = failure
        self._in_flight.clear()
        self._bytes_in_flight = 0
        if not self._closed and self._sock is None and not self.reconnect:
            self._closed = True
