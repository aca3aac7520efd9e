"""The TLS of a server's clients: who must have it, how many shake hands at a time, and how many of them in a turn.

A handshake is what a stranger can have for nothing and what costs most: some 50 KiB, and a signature, 0.1 to 1 ms by
the kind of the server's key. So both are bounded, and a client has `clients.handshake_timeout` for this and all the
rest of the way to an export.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from secrets import compare_digest
from typing import TYPE_CHECKING, Protocol

from memcluster.node.log.record import Event, Reason
from memcluster.node.nbd.errors import Refused
from memcluster.node.nbd.wire import Buffer, Rep
from memcluster.node.tls.context import server_context
from memcluster.node.tls.credentials import Credentials
from memcluster.node.tls.layer import Layer, TLSError
from memcluster.node.tls.secured import Secured
from memcluster.node.transport.loop import Loop

if TYPE_CHECKING:
    from memcluster.node.serving.connection import Connection

AT_ONCE = 256
"""Clients in the handshake of TLS, at most; those that come then are refused, and may try again."""
STEPS_A_TURN = 2
"""Steps of handshakes in one turn of the loop, at most; the others wait for the next ones."""


class Host(Protocol):
    """What is asked of the server."""

    refused: int

    def stranger(self, event: Event, client: int, value: int = 0) -> None: ...
    def notice(self, text: str) -> None: ...


class Security:
    """Raises BadCredentials. The export named `spared` is opened without TLS where that is required: it is the
    supervisor's, and nobody else knows its name."""

    def __init__(self, loop: Loop, host: Host, credentials: Credentials, spared: str) -> None:
        self.required = credentials.required
        self.host = host
        self.spared = spared
        self._loop = loop
        self._context = server_context(credentials)
        self._under_way: set[Connection] = set()
        self._waiting: deque[Connection] = deque()

    def of(self, connection: Connection) -> ClientSecurity:
        return ClientSecurity(self, connection)

    def take_in(self, connection: Connection) -> None:
        """A client has asked for TLS. Raises Refused."""
        if len(self._under_way) >= AT_ONCE:
            self.turn_away(connection)
            raise Refused(Rep.ERR_POLICY, f"{AT_ONCE} clients are in the handshake of TLS already; try again")
        self._under_way.add(connection)
        self._loop.soon(lambda: self._begin(connection))  # when its ACK has been sent

    def turn_away(self, connection: Connection) -> None:
        """A client was refused for want of TLS, or of TLS that both sides accept."""
        self.host.refused += 1
        self.host.stranger(Event.REFUSED, connection.number, int(Reason.TLS))

    def can_go_on(self, connection: Connection) -> None:
        """Something for its handshake has come."""
        if not self._waiting:
            self._loop.soon(self._step)
        self._waiting.append(connection)

    def failed(self, connection: Connection, reason: str) -> None:
        """The client is none, or not any more; why is said for people."""
        self.turn_away(connection)
        self.host.notice(f"client {connection.number}: {reason}")

    def gone(self, connection: Connection) -> None:
        """A client is."""
        self._under_way.discard(connection)

    def _begin(self, connection: Connection) -> None:
        if connection.open:
            connection.flush()
        if connection.open:
            if connection.queued:
                connection.cut_off("it does not take the replies to its options")
                return
            connection.secured = Secured(connection.sock, Layer(self._context, server=True))
            connection.carrier = _Shaking(self, connection, connection.secured)

    def _step(self) -> None:
        for _ in range(min(STEPS_A_TURN, len(self._waiting))):
            connection = self._waiting.popleft()
            if connection.open and not connection.closing:
                self._shake_hands(connection)
        if self._waiting:
            self._loop.soon(self._step)

    def _shake_hands(self, connection: Connection) -> None:
        secured = connection.secured
        assert secured is not None
        try:
            if not secured.shake_hands():
                return
        except TLSError as error:
            self.failed(connection, error.message)
            connection.hang_up()
            return
        self._under_way.discard(connection)
        connection.carrier = secured
        connection.update()


class _Shaking:
    """What the bytes of a client go through while it shakes hands: they are for TLS alone, and it sends nothing."""

    def __init__(self, security: Security, connection: Connection, secured: Secured) -> None:
        self._security = security
        self._connection = connection
        self._secured = secured

    def recv_into(self, _buffer: memoryview, /) -> int:
        if not self._secured.more:  # else it waits for its turn
            try:
                there = self._secured.receive()
            except ConnectionError:
                there = False
            if not there:
                words = "TLS: it hung up in the handshake; perhaps it does not accept our certificate"
                self._security.failed(self._connection, words)
                return 0
            self._security.can_go_on(self._connection)
        raise BlockingIOError

    def sendmsg(self, _buffers: Sequence[Buffer], /) -> int:
        raise BlockingIOError


class ClientSecurity:
    """The Security of an NBD session (see node/nbd/negotiation.py)."""

    def __init__(self, security: Security, connection: Connection) -> None:
        self.required = security.required
        self._security = security
        self._connection = connection
        self._told = False

    def begin(self) -> None:
        self._security.take_in(self._connection)

    def spares(self, name: str) -> bool:
        return compare_digest(name.encode(), self._security.spared.encode())

    def turn_away(self) -> None:
        """A client without TLS tries one option after the other: that is one refusal."""
        if not self._told:
            self._told = True
            self._security.failed(self._connection, "it came without TLS, which is required here")
