"""A connection to one export: many requests in flight from one thread, and a new connection when one is lost.

Everything that waits does so in `_turn`: it sends and receives as the socket allows, so a full pipe never blocks both
sides, and it knows one deadline. Requests leave in batches: the first at once, those behind it when enough have come
together, all of them before anything is waited for.

What is in flight is kept until its reply has come. After a loss it is sent again on the next connection, in its order,
for every command may be repeated; what the server answered with an error is not. It knows no ranges and no bytes: see
memory.py.
"""

from __future__ import annotations

import select
from typing import NoReturn

from memcluster.client.errors import ClusterError, ConnectionProblem, Disconnected, Refused, Timeout
from memcluster.client.exclusive import Exclusive, exclusive
from memcluster.client.handshake import Carrier, Opened, Return, opening, push, throw_away
from memcluster.client.pending import Pending
from memcluster.client.system import KERNEL, Interest, System, finish, wait
from memcluster.client.uri import Target
from memcluster.node.nbd import errors as nbd
from memcluster.node.nbd.client import ClientSession
from memcluster.node.nbd.wire import Rep

MAX_IN_FLIGHT = 64 << 20
"""Bytes in flight, at most; `submit` waits for room."""
BATCH = 16
"""Buffers that go out together. Reads of 4 KiB, 64 in flight, from nbdkit on a unix socket: 137,000 a second on two
cores; 115,000 if each request is sent by itself."""
REPEATED = 1 << 15
"""The flag by which the log of a server that a router connects to knows what it may have seen before."""


class Connection(Exclusive):
    """Connects at once. Raises Refused, Disconnected, Timeout. `timeout` (seconds) is the default of every wait, and
    how long a lost connection is tried again if `reconnect` is set. Not for several threads at a time."""

    def __init__(
        self,
        target: Target,
        *,
        timeout: float = 30.0,
        reconnect: bool = True,
        routed: bool = False,
        opened: Opened | None = None,
        system: System = KERNEL,
    ) -> None:
        """It has been `opened`, or that is done here; one that is `routed` is connected and turned by its router."""
        super().__init__()
        self.target = target
        self.timeout = timeout
        self.reconnect = reconnect
        self._routed = routed
        self._secured = target.tls is not None
        self._system = system
        self._monotonic = system.monotonic
        self.reconnections = 0
        self._in_flight: dict[int, Pending] = {}
        self._cost = 0
        self._cookie = 0
        self._closed = False
        self._trouble = ""  # why the connection was lost
        self._back: Return | None = None  # how it is made again
        self._sock: Carrier | None = None
        if routed:
            self.session = ClientSession(target.export)
        else:
            self._sock, self.session = opened or finish(system, opening(system, target, timeout))
            self._watch()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"lost: {self._trouble}" if self._sock is None else "open"
        return f"<Connection to {self.target} {state}, {len(self._in_flight)} in flight>"

    # -- requests ----------------------------------------------------------------------------------------------------

    @exclusive
    def submit(self, pending: Pending, cookie: int = 0) -> Pending:
        """Begin a request, when there is room for it. Raises Disconnected, Refused, Timeout."""
        if self._cost > MAX_IN_FLIGHT and not self._routed:
            deadline = self._monotonic() + self.timeout
            while self._cost > MAX_IN_FLIGHT:
                if not self._turn(deadline):
                    raise Timeout(self.target, "room for a request", self.timeout)
        if self._closed:
            raise Disconnected(self.target, "the connection was closed by this program")
        pending.owner = self
        alone = not self._in_flight
        if not cookie:
            self._cookie += 1
            cookie = self._cookie
        self._in_flight[cookie] = pending
        self._cost += pending.cost
        if self._sock is not None:
            self._say(cookie, pending)
            if alone or len(self.session.outgoing) >= BATCH:
                self.send()
        return pending

    def _say(self, cookie: int, pending: Pending, more_flags: int = 0) -> None:
        self.session.submit(
            pending.command,
            cookie,
            pending.offset,
            pending.length,
            pending.flags | more_flags,
            pending.payload,
            pending.destination,
        )

    @exclusive
    def wait_for(self, pending: Pending, timeout: float | None) -> None:
        """Send and receive until the outcome is known. Raises Timeout, Disconnected, Refused."""
        limit = self.timeout if timeout is None else timeout
        deadline = self._monotonic() + limit
        while pending.outcome is None:
            if not self._turn(deadline):
                raise Timeout(self.target, "answer", limit)

    @exclusive
    def progress(self) -> None:
        """Send and receive what can be without waiting; go on with making a lost connection again, for `timeout`."""
        try:
            if self._sock is not None:
                self._turn(0.0)
            else:
                self._try_again()
                if self._back is not None and self._monotonic() > self._back.begun + self.timeout:
                    self._surrender(self._back)
        except ClusterError:
            pass  # it is the outcome of all that was in flight

    @exclusive
    def _say_goodbye(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._sock is not None and not self._in_flight:
            self.session.disconnect()
            self.send()
        self._lose("closed by this program")
        self.give_up(Disconnected(self.target, "the connection was closed by this program"))

    def _abandon(self) -> None:
        self._closed = True
        self._lose("closed by this program")

    # -- for an event loop -------------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """`submit` would wait for room."""
        return self._cost > MAX_IN_FLIGHT

    @property
    def lost(self) -> bool:
        """There is no connection now: `progress` may wait for the address of a host that has a name."""
        return self._sock is None

    @property
    def interest(self) -> Interest:
        """What `progress` waits for."""
        if not self._in_flight:
            return {}, float("inf")
        if self._sock is not None:
            return {self._sock.fileno(): select.POLLIN | (select.POLLOUT if self.session.outgoing else 0)}, float("inf")
        return ({}, 0.0) if self._back is None else self._back.interest

    # -- for a router ------------------------------------------------------------------------------------------------

    @property
    def cost(self) -> int:
        """Bytes in flight, as they are counted."""
        return self._cost

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def trouble(self) -> str:
        """Why the connection was lost."""
        return self._trouble or "it was never made"

    def fileno(self) -> int:
        assert self._sock is not None
        return self._sock.fileno()

    def come_back(self, opened: Opened) -> None:
        """Go on with a new connection, and repeat on it what is in flight."""
        self._sock, self.session = opened
        self._watch()
        self.reconnections += 1
        repeated = REPEATED if self._routed else 0
        for cookie, pending in self._in_flight.items():
            self._say(cookie, pending, repeated)

    # -- the socket --------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        assert self._sock is not None
        self._readable, self._both = self._system.poll(), self._system.poll()
        self._readable.register(self._sock.fileno(), select.POLLIN)
        self._both.register(self._sock.fileno(), select.POLLIN | select.POLLOUT)

    def _turn(self, deadline: float) -> bool:
        """One step: send and receive as soon as the socket is ready, or go on with making the connection again. False
        if nothing came before the deadline; a connection that is still lost then is given up. Raises what ends all that
        is in flight."""
        if self._sock is None:
            self._try_again()
            if self._back is not None:
                wait(self._system, self._back.interest, deadline)
                if self._monotonic() >= deadline:
                    self._surrender(self._back)
            return True
        try:
            return self._exchange(deadline)
        except BaseException:  # such as KeyboardInterrupt: how far the stream was read cannot be known
            self._lose("interrupted")
            raise

    def _exchange(self, deadline: float) -> bool:
        """Send and receive once; false if the socket was not ready before the deadline."""
        self.send()
        if self._sock is None:
            return True
        poller = self._both if self.session.outgoing else self._readable
        ready = poller.poll(max(0.0, deadline - self._monotonic()) * 1000)
        if ready and ready[0][1] & ~select.POLLOUT:
            self.receive()
        return bool(ready)

    def send(self) -> None:
        """Send as much as the socket takes."""
        outgoing = self.session.outgoing
        if outgoing and self._sock is not None:
            try:
                push(self._sock, outgoing)
            except OSError as error:
                self._lose(error.strerror or "send failed")

    def receive(self) -> None:
        """Take what has come, as far as it is complete; of TLS all: nothing would say that there is more."""
        sock = self._sock
        self._receive()
        if self._secured:
            while self._sock is sock and sock is not None and sock.more:  # type: ignore[union-attr]
                self._receive()

    def _receive(self) -> None:
        assert self._sock is not None
        try:
            count = self._sock.recv_into(self.session.receive_buffer())
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error.strerror or "receive failed")
            return
        if not count:
            self._lose("the server closed the connection")
            return
        try:
            replies = self.session.received(count)
        except nbd.ProtocolError as error:
            self._lose(str(error))
            self.give_up(Disconnected(self.target, f"the server broke the protocol: {error}"))
            return
        in_flight = self._in_flight
        for reply in replies:
            pending = in_flight.pop(reply.cookie)
            pending.settle(reply)
            self._cost -= pending.cost

    def _lose(self, reason: str) -> None:
        """The connection is gone; the next turn makes another."""
        self._end_return()
        if self._sock is not None:
            if self._in_flight:
                throw_away(self._sock)
            else:
                self._sock.close()
            self._sock = None
            self._trouble = reason

    def _try_again(self) -> None:
        """Go on with making the connection again. Raises what ends all that is in flight."""
        if not self.reconnect or self._closed:
            failure = Disconnected(self.target, f"the connection is lost: {self._trouble}")
            self.give_up(failure)
            raise failure
        if self._back is None:
            self._back = Return(self._system, self.target)
        try:
            opened = self._back.step()
        except ConnectionProblem as error:
            if isinstance(error, Refused) and error.reply != Rep.ERR_SHUTDOWN:
                self.give_up(error)
                raise
            return
        if opened is not None:
            self._back = None
            carrier, session = opened
            if session.size < self.session.size:
                carrier.close()
                sizes = f"{session.size} bytes now, {self.session.size} before"
                smaller = Disconnected(self.target, f"the memory there is another one: {sizes}; connect anew")
                self.give_up(smaller)
                raise smaller
            self.come_back(opened)

    def _surrender(self, back: Return) -> NoReturn:
        words = f"the connection was lost ({self._trouble}) and could not be made again: {back.reason}"
        failure = Disconnected(self.target, words)
        self.give_up(failure)
        raise failure

    def _end_return(self) -> None:
        if self._back is not None:
            self._back.close()
            self._back = None

    def give_up(self, error: ClusterError) -> None:
        """The outcome of all that is in flight."""
        self._end_return()
        for pending in self._in_flight.values():
            pending.settle(error)
        self._in_flight.clear()
        self._cost = 0
