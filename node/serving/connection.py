"""One client of a server: its socket, its NBD session, and how much of the server it may take up.

Bytes go from the socket to the session and its requests to the owner; replies leave in one gathered send a turn. The
bounds: a turn serves at most TURN_BUDGET bytes' worth of requests of one client, and a client with ROOM bytes in
flight or unsent is not read from until it takes its replies.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from memcluster.node.native import mypyc_attr
from memcluster.node.nbd.errors import ProtocolError
from memcluster.node.nbd.negotiation import Exports
from memcluster.node.nbd.server import REQUEST_COST, Request, ServerSession
from memcluster.node.nbd.wire import MAX_PAYLOAD, Command, Error
from memcluster.node.serving.budget import Budget
from memcluster.node.transport.loop import Loop
from memcluster.node.transport.stream import Line, Stream
from memcluster.node.transport.tcp import tune
from memcluster.node.transport.traffic import TRAFFIC

if TYPE_CHECKING:
    from memcluster.node.serving.server import Server

ROOM = 2 * MAX_PAYLOAD
"""Bytes of a client's requests in flight and replies unsent, at most (one request may pass it)."""
TRICKLE: Final = 1 << 20
"""Bytes of replies that a client takes in its stall_timeout, at least, when more wait."""
TURN_BUDGET: Final = 1 << 20
"""Bytes' worth of requests of one client that are dealt with in one turn of the loop."""
WRITE: Final = int(Command.WRITE)
"""Of the commands up to this one, data travels with the request or its reply."""
CHANGING: Final = frozenset(int(command) for command in (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES))
"""The commands that change bytes."""
HUNG_UP: Final = "its client had hung up before it was begun, and others have made changes since"
LINGER: Final = 0.25
"""Seconds a closed client may take to read its last replies and close its side."""


Route = Callable[["Connection", Request, int], None]
"""Takes a request that keeps to the protocol and the time it came (ns)."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Connection(Stream):
    """A client. `in_flight` counts its requests that the owner has begun and not yet answered."""

    def __init__(
        self,
        loop: Loop,
        line: Line,
        owner: Server,
        exports: Callable[[Connection], Exports],
        number: int,
        scratch: memoryview,
        budget: Budget,
    ) -> None:
        security = None if owner.security is None else owner.security.of(self)
        self.session = ServerSession(exports(self), self._place, scratch, security)
        super().__init__(loop, line, self.session.outgoing)
        tune(self.sock, far=owner.private and bool(owner.spec.host))
        self.owner = owner
        self.lender = owner.lender
        self.number = number
        self.in_flight = 0
        self._budget = budget
        self._bytes_in_flight = 0
        self._held = 0  # bytes that the budget counts for this client
        self._seen: tuple[float, int, Request | None] | None = None  # for `stalled`: when, bytes sent, payload's
        # The owner's, when this client was last known to be there: it may have gone before it was accepted.
        self._changes = -1 if loop.system.is_gone(self.sock) else owner.changes
        self._late = False
        self.slot: int | None = None
        self.origin = ""
        """The machine that it comes from, if not this one; the owner sets it."""
        self.inside = False
        """It has opened an export."""
        self.route: Route = _no_route
        """What serves the requests; the owner sets it when the client opens an export."""
        self.holder: int | None = None
        """The one server that holds what the client has opened; None where that is for the layout to say."""
        self.closing = False
        """Nothing that the client still sends is looked at."""
        self._leaving = False
        self._half_closed = False
        self.update()
        self.send_soon()

    def __repr__(self) -> str:
        state = "closing" if self.closing else "open" if self.open else "closed"
        return f"<Connection {self.number} {state}, {self.in_flight} in flight, {self.queued} bytes unsent>"

    # -- what the owner says -----------------------------------------------------------------------------------------

    def begin(self, request: Request) -> None:
        """The request will be answered in a later turn."""
        self.in_flight += 1
        if request.command <= WRITE:
            self._bytes_in_flight += request.length

    def end(self, request: Request) -> None:
        """The request has just been answered, in a later turn than it came."""
        self.in_flight -= 1
        if request.command <= WRITE:
            self._bytes_in_flight -= request.length
        if self.open:
            self.send_soon()
        else:
            self.outgoing.clear()
            self._account()
            if not self.in_flight:
                self.owner.settled(self)

    def may_begin(self, command: int) -> bool:
        """Whether something that this client asked for may still be begun. Not a change, when it has hung up and others
        have made changes since it was last seen: one that was answered would be lost under an older one of a client
        that is gone. Once that is so nothing later of it may, either."""
        if command not in CHANGING:
            return self.open
        if self.owner.changes != self._changes and not self._late:
            self._late = not self.open or self.loop.system.is_gone(self.sock)
            self._changes = self.owner.changes
        return not self._late

    def make_way(self, sink: Callable[[int], memoryview]) -> None:
        """Others may look at the memory from now on: what is being received straight into it goes to `sink` first."""
        receiving = self.session.receiving
        if receiving is not None and receiving.placed:
            self.session.move(sink(receiving.length))

    def hold(self) -> None:
        """Begin nothing of what this client asks for, until `let_go`."""
        self.session.held = True

    def let_go(self) -> None:
        """Go on with what it has asked for meanwhile."""
        if not self.owner.holding:
            self.session.held = False
            self._resume()
            self.update()

    @property
    def quiet(self) -> bool:
        """Nothing of it is under way, and nothing will be while it is held; what it has not yet taken may be left."""
        return not (self.in_flight or self._flush_is_due or self._comes_again or (self.closing and self.queued))

    def rest(self) -> None:
        """It is quiet: keep the socket, and what there is of a payload, and let nothing move until `let_go`."""
        if self.closing or (self.owner.security is not None and not self.inside):
            self._lost("")
            return
        if (receiving := self.session.receiving) is not None:
            self.session.move(memoryview(bytearray(receiving.length)))
            receiving.at = -1
        self.keep()
        self.loop.unwatch(self.sock)
        self._mask = 0

    def pass_to(self, owner: Server) -> None:
        """It is another one's client from now on, and goes on when that lets it go."""
        self.owner, self.lender, self._budget = owner, owner.lender, owner.budget
        self._held = 0
        self._account()

    def finish(self) -> None:
        """Close as soon as nothing is in flight; until then the owner goes on being asked."""
        self._leaving = True
        self.send_soon()

    def hang_up(self) -> None:
        """Close at once, when what was sent last has been taken."""
        self.closing = True
        self.finish()

    # -- the stream's side -------------------------------------------------------------------------------------------

    @property
    def wants_read(self) -> bool:
        # 1. A client that does not take its replies gets no new ones made.
        # 2. One that was told goodbye is still read from, so that its end of file is seen.
        # 3. One whose requests are parked is read from when they are served.
        # 4. A payload under way is counted already, and only reading can end what it holds.
        if self.closing:
            return self._half_closed
        session = self.session
        return session.missing > 0 or (not session.waiting and (not self._held or self._room > 0))

    @property
    def takes_turns(self) -> bool:
        return len(self.owner.connections) > 1

    @property
    def _room(self) -> int:
        """Bytes' worth of requests that may be begun now; a client with nothing in flight may always begin one."""
        room = min(ROOM - self._held, self._budget.left)
        return room if room > 0 or self._held else 1

    def _account(self) -> None:
        """Tell the budget what this client takes up. Whoever holds something comes here again when it gets less."""
        held = self._bytes_in_flight
        if self.open:
            held += self.queued
            if (receiving := self.session.receiving) is not None:
                held += receiving.length
        if held != self._held:
            self._budget.left -= held - self._held
            self._held = held

    def stalled(self, seconds: float) -> str:
        """Why this client has to go, if it holds memory and has made too little use of the time; to be asked now and
        then, and at least twice in `seconds`."""
        payload = self.session.receiving
        if not self.queued and payload is None:
            self._seen = None
            return ""
        now = self.loop.awake()
        if self._seen is None or payload is not self._seen[2] or (self.queued and self.sent - self._seen[1] >= TRICKLE):
            self._seen = now, self.sent, payload
        if now - self._seen[0] < seconds:
            return ""
        if payload is not None:
            return f"the payload of a write did not come in {seconds:g} s"
        return f"took {self.sent - self._seen[1]} bytes in {seconds:g} s while {self.queued} wait"

    def _readable(self) -> None:
        session = self.session
        plenty = not (self._held or self.closing or session.waiting) and self._budget.left > TURN_BUDGET
        if not plenty and not self.wants_read:  # since this turn began, or while replies are held up by a fault
            self.update()
            return
        if self.closing:
            self._discard()
            return
        try:
            count = self.carrier.recv_into(session.receive_buffer())
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._failed(error)
            return
        if not count:
            self._ended()
            return
        TRAFFIC.received += count
        try:
            requests = session.received(count, TURN_BUDGET if plenty else min(TURN_BUDGET, self._room))
        except ProtocolError as error:
            self._lost(str(error))
            return
        if session.missing or self.wakes_at > 1:
            self.expect(session.missing)
        self._serve(requests)

    def _resume(self) -> None:
        if self.open and not self.closing and self.session.waiting and not self.session.held and self._room > 0:
            try:
                requests = self.session.resume(min(TURN_BUDGET, self._room))
            except ProtocolError as error:
                self._lost(str(error))
                return
            self._serve(requests)

    def _ended(self) -> None:
        """The client sends no more. It may have closed its own side only: what is in flight is answered."""
        if self.session.export is not None and (self.in_flight or self.outgoing) and self.session.receiving is None:
            self.closing = True
            self.update()
            self.send_soon()
        else:
            self._lost("")

    def _serve(self, requests: list[Request]) -> None:
        if requests:
            if (self._late or self.owner.changes != self._changes) and not self.may_begin(WRITE):
                for request in requests:
                    if request.command in CHANGING and not request.error:
                        request.refuse(Error.EIO, HUNG_UP)
            self.owner.serve(self, requests)
            self._changes = self.owner.changes
        if self.session.finished:
            self.closing = True
        if self.in_flight or self.loop.lag:
            self._account()
            self.send_soon()  # replies that come from elsewhere in this turn go with these
        else:
            self.flush()

    def _place(self, request: Request, first: bool) -> memoryview | None:
        return self.owner.place(self, request, first)

    def _flushed(self) -> None:
        self._account()
        if self.session.held:
            self.owner.eased()
        if self.queued:
            return
        if (self.closing or self._leaving) and not self.in_flight:
            self._half_close()
        elif self.session.waiting and not self.session.held and self._room > 0:
            self.loop.soon(self._resume)

    def _half_close(self) -> None:
        """Nothing more will be sent. Closing at once could make the kernel reset the connection and take the last
        replies with it, so what the client still sends is read away until it closes too, or LINGER is over."""
        if self._half_closed:
            return
        self._half_closed = self.closing = True
        try:
            self.end_sending()
        except OSError:
            self._lost("")
            return
        self.loop.after(LINGER, lambda: self._lost(""))

    def _discard(self) -> None:
        if self.receive(1 << 16) == b"":
            self._lost("")

    def cut_off(self, reason: str) -> None:
        """End the connection at once: what it was to receive is given up, in the kernel's buffers, too."""
        if self.open:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._lost(reason)

    def _failed(self, error: OSError) -> None:
        """A client that resets the connection is gone like one that closes it: port probes do, and killed clients."""
        if isinstance(error, ConnectionError):
            self._lost("")
        else:
            super()._failed(error)

    def _lost(self, reason: str) -> None:
        """The client is gone, or has to go; an empty reason means that nothing was wrong."""
        if self.open:
            self.close()
            self.session.close()
            self._account()
            self.owner.lost(self, reason)
            if not self.in_flight:
                self.owner.settled(self)


def _no_route(_connection: Connection, request: Request, _start: int) -> None:
    raise AssertionError(f"{request} came before an export was opened")


assert REQUEST_COST < TURN_BUDGET < ROOM
