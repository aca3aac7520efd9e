"""The client's side of the topology client-routed: one memory out of many servers' parts, routed here.

A `Router` has the face of a `Connection` to the whole memory. It reads the cluster's map, keeps a connection to every
server, splits each request into pieces and joins their replies. While it waits it sends to and receives from all of
them. A connection that is lost is made again while the others go on; if the map has changed meanwhile it is fetched
anew, and what is in flight is split again.
"""

from __future__ import annotations

import select
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from memcluster.client.cluster_map import ClusterMap, parse_map, read_map
from memcluster.client.connection import MAX_IN_FLIGHT, Connection
from memcluster.client.errors import ClusterError, ConnectionProblem, Disconnected, Refused, Timeout
from memcluster.client.exclusive import Exclusive, exclusive
from memcluster.client.handshake import (
    LONGEST_PAUSE,
    NAMESPACE,
    PART,
    PATIENCE,
    Handshake,
    Return,
    offered_contexts,
)
from memcluster.client.pending import Pending
from memcluster.client.routed import Routed
from memcluster.client.uri import Target
from memcluster.node.layout import Layout, Piece
from memcluster.node.nbd.wire import Command, Rep, TransmissionFlag

BLOCK = 1 << 16
"""Identifiers that a server lends at a time."""


@dataclass(frozen=True)
class Facts:
    """What a session knows of its export, here of the whole memory."""

    size: int
    flags: TransmissionFlag
    description: str
    minimum: int
    preferred: int
    maximum: int
    contexts: dict[int, str]


class Router(Exclusive):
    """Connects to every server of the cluster that `target` is one server of; see `Connection` for the rest."""

    def __init__(self, target: Target, contexts: Sequence[str], *, timeout: float, reconnect: bool) -> None:
        super().__init__()
        self.target = target
        self.timeout = timeout
        self.reconnect = reconnect
        self.reconnections = 0
        self._closed = False
        self._restock = 0.0  # when to ask for more identifiers
        self._under_way: dict[Pending, Routed] = {}
        self._connections: list[Connection | None] = []  # by server; not every server has a part
        self._parts: list[Connection] = []
        self._returns: dict[Connection, Return] = {}
        self._take_block(contexts)
        self._adopt(parse_map(read_map(target, timeout), target))

    def __repr__(self) -> str:
        return f"<Router over {len(self._connections)} servers from {self.target}, {len(self._under_way)} in flight>"

    @property
    def layout(self) -> Layout:
        """Where the bytes lie."""
        return self._map.layout

    @property
    def session(self) -> Facts:
        """What is known of the memory."""
        return self._facts

    def connection(self, server: int) -> Connection:
        found = self._connections[server]
        assert found is not None
        return found

    # -- requests ----------------------------------------------------------------------------------------------------

    @exclusive
    def submit(self, pending: Pending) -> Pending:
        """Begin a request, when there is room for it; see Connection.submit."""
        deadline = time.monotonic() + self.timeout
        while self._no_room:
            if not self._turn(deadline):
                raise Timeout(self.target, "room for a request", self.timeout)
        if self._closed:
            raise Disconnected(self.target, "the connection was closed by this program")
        routed = Routed(self, self._next_identifier(), pending)
        pending.owner = self
        self._under_way[pending] = routed
        self._begin(routed)
        return pending

    @exclusive
    def wait_for(self, pending: Pending, timeout: float | None) -> None:
        """Send and receive until the outcome is known. Raises Timeout."""
        limit = self.timeout if timeout is None else timeout
        deadline = time.monotonic() + limit
        while pending.outcome is None:
            if not self._turn(deadline) and pending.outcome is None:
                self._give_up_lost(self._under_way[pending])
                if pending.outcome is None:
                    raise Timeout(self.target, "answer", limit)

    @exclusive
    def progress(self) -> None:
        """Send and receive what can be without waiting; go on with making lost connections again."""
        if self._exhausted and time.monotonic() >= self._restock:
            try:
                self._take_block(offered_contexts(replace(self.target, export=""), NAMESPACE, PATIENCE))
            except ClusterError:
                self._restock = time.monotonic() + LONGEST_PAUSE
        self._turn(0.0)

    @exclusive
    def _say_goodbye(self) -> None:
        if not self._closed:
            self._closed = True
            self._close_all()
            self._fail(Disconnected(self.target, "the connection was closed by this program"))

    def _abandon(self) -> None:
        self._closed = True
        self._close_all()

    # -- for an event loop -------------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """`submit` would wait, for room or for identifiers."""
        return self._exhausted or self._no_room

    @property
    def lost(self) -> bool:
        """`progress` may wait for a server to let itself be connected to."""
        return self._exhausted or any(connection.lost for connection in self._parts)

    def interest(self) -> tuple[dict[int, int], float]:
        """See Connection.interest."""
        descriptors, until = self._interest()
        return descriptors, min(until, self._restock) if self._exhausted else until

    # -- parts -------------------------------------------------------------------------------------------------------

    def _begin(self, routed: Routed) -> None:
        pending = routed.pending
        if pending.command == Command.FLUSH:
            pieces = [Piece(server, 0, 0, ()) for server, found in enumerate(self._connections) if found is not None]
        else:
            spans = pending.command <= Command.WRITE
            pieces = self._map.layout.split(pending.offset, pending.length, spans=spans)
        routed.begin(pieces, serial=self._serial)
        if pending.outcome is not None:
            del self._under_way[pending]

    def _turn(self, deadline: float) -> bool:
        """One step over all connections: send, wait for any, receive; go on with making lost ones again. False if
        nothing was ready before the deadline."""
        if self._bring_back():
            return True
        for connection in self._parts:
            if not connection.lost:
                connection.send()
        descriptors, until = self._interest()
        poll = select.poll()
        for descriptor, mask in descriptors.items():
            poll.register(descriptor, mask)
        ready = dict(poll.poll(max(0.0, min(until, deadline) - time.monotonic()) * 1000))
        for connection in self._parts if ready else ():
            if not connection.lost and ready.get(connection.fileno(), 0) & ~select.POLLOUT:
                connection.receive()
        self._look()
        return bool(ready) or time.monotonic() < deadline

    def _interest(self) -> tuple[dict[int, int], float]:
        descriptors: dict[int, int] = {}
        until = float("inf")
        for connection in self._parts if self._under_way else ():
            if connection.lost and connection not in self._returns:
                until = 0.0
            else:
                waited_for, due = (self._returns[connection] if connection.lost else connection).interest()
                descriptors |= waited_for
                until = min(until, due)
        return descriptors, until

    def _look(self) -> None:
        for pending in [pending for pending, routed in self._under_way.items() if routed.look()]:
            del self._under_way[pending]

    def _bring_back(self) -> bool:
        """Go on with making lost connections again. True if that has decided about something in flight."""
        for connection in self._parts:
            if not connection.lost:
                continue
            if not self.reconnect:
                problem: ConnectionProblem = Disconnected(
                    connection.target, f"the connection is lost: {connection.trouble}"
                )
            else:
                back = self._returns.setdefault(connection, Return(connection.target))
                try:
                    handshake = back.step()
                    if handshake is not None:
                        connection.come_back(handshake.sock, handshake.session)
                        self.reconnections += 1
                        del self._returns[connection]
                    continue
                except ConnectionProblem as error:
                    problem = error
                if not isinstance(problem, Refused) or problem.reply in (Rep.ERR_SHUTDOWN, Rep.ERR_UNKNOWN):
                    if self._find_new_map():
                        return True
                    continue
            if connection.in_flight:
                connection.give_up(problem)
                self._look()
                return True
        return False

    def _give_up_lost(self, routed: Routed) -> None:
        """Time is up: fail what is in flight where the request waits for a connection that could not be made again."""
        for connection in routed.waits_for():
            if connection.lost:
                back = self._returns.get(connection) or Return(connection.target)
                words = f"the connection was lost ({connection.trouble}) and could not be made again: {back.reason}"
                connection.give_up(Disconnected(connection.target, words))
        self._look()

    def _find_new_map(self) -> bool:
        """Ask the entry, then the servers of the old map, for the map; true if it is another one, and in use now."""
        for target in (self.target, *self._map.servers):
            try:
                fresh = parse_map(read_map(target, PATIENCE), target)
                if fresh.export == self._map.export:
                    return False
                if fresh.layout.size < self._map.layout.size:
                    sizes = f"{self._map.layout.size} bytes before, {fresh.layout.size} now"
                    self._fail(ClusterError(f"{self.target}: the memory is another one: {sizes}"))
                    return True
                self._take_block(offered_contexts(replace(target, export=""), NAMESPACE, PATIENCE))
                self._adopt(fresh)
            except ClusterError:
                continue
            self.reconnections += 1
            for routed in list(self._under_way.values()):
                self._begin(routed)
            return True
        return False

    def _adopt(self, found: ClusterMap) -> None:
        """Connect to the servers of a map, those that do not answer apart: they are tried again when something is asked
        of them. Raises ClusterError if nobody answers or one does not let us in, and then nothing has changed."""
        made: list[Connection | None] = [
            Connection(replace(target, export=found.export), timeout=self.timeout, reconnect=False, routed=True)
            if size
            else None
            for target, size in zip(found.servers, found.layout.sizes, strict=True)
        ]
        parts = [connection for connection in made if connection is not None]
        _connect_all(parts, self.timeout)
        self._close_all()
        self._connections, self._parts = made, parts
        self._map = found
        self._serial = found.document.get("fan_out") == "serial"
        sessions = [connection.session for connection in parts if not connection.lost]
        flags = sessions[0].flags
        for session in sessions:
            flags &= session.flags
        name = found.document.get("cluster", "?")
        self._facts = Facts(
            found.layout.size,
            flags,
            f"the memory of {name}: {found.layout.size} bytes over {len(parts)} server{'s' * (len(parts) > 1)}",
            max(session.minimum for session in sessions),
            max(session.preferred for session in sessions),
            min(session.maximum for session in sessions),
            sessions[0].contexts,
        )

    def _close_all(self) -> None:
        for back in self._returns.values():
            back.close()
        self._returns.clear()
        for connection in self._parts:
            connection.close()

    def _take_block(self, contexts: Sequence[str]) -> None:
        """The identifiers that a server has lent. Raises ClusterError if it has not."""
        found = next((context.removeprefix(PART) for context in contexts if context.startswith(PART)), "")
        try:
            self._identifier = int(found, 16) - 1
        except ValueError as error:
            raise ClusterError(f"{self.target} is no part of a memory any more") from error
        self._last = self._identifier + BLOCK

    @property
    def _exhausted(self) -> bool:
        return self._identifier == self._last

    @property
    def _no_room(self) -> bool:
        return sum(connection.cost for connection in self._parts) > MAX_IN_FLIGHT

    def _next_identifier(self) -> int:
        if self._exhausted:
            self._take_block(offered_contexts(replace(self.target, export=""), NAMESPACE, self.timeout))
        self._identifier += 1
        return self._identifier

    def _fail(self, error: ClusterError) -> None:
        for pending in self._under_way:
            pending.settle(error)
        self._under_way.clear()


def _connect_all(connections: Sequence[Connection], seconds: float) -> None:
    """Connect to all at once; those that do not answer within PATIENCE, when others have, stay lost. Raises
    ClusterError, with all closed, if none has in so many `seconds`, or if one refuses."""
    begun = time.monotonic()
    deadline, enough = begun + seconds, begun + min(PATIENCE, seconds)
    under_way: dict[int, tuple[Connection, Handshake]] = {}
    poll = select.poll()
    problem: ConnectionProblem | None = None
    try:
        for connection in connections:
            try:
                handshake = Handshake(connection.target, deadline - time.monotonic())
            except ConnectionProblem as error:
                problem = error
            else:
                under_way[handshake.sock.fileno()] = connection, handshake
                poll.register(handshake.sock, select.POLLIN)
        ready = list(under_way)
        while ready:
            for descriptor in ready:
                connection, handshake = under_way[descriptor]
                try:
                    if not handshake.step():
                        continue
                    connection.come_back(handshake.sock, handshake.session)
                except ConnectionProblem as error:
                    if isinstance(error, Refused) and error.reply != Rep.ERR_SHUTDOWN:
                        raise
                    problem = error
                poll.unregister(descriptor)
                del under_way[descriptor]
            until = deadline if all(connection.lost for connection in connections) else enough
            wait = max(0.0, until - time.monotonic()) * 1000
            ready = [found for found, _ in poll.poll(wait)] if under_way else []
        if all(connection.lost for connection in connections):
            raise problem or Timeout(connections[0].target, "end of the handshake", seconds)
    except BaseException:
        for connection in connections:
            connection.close()
        raise
    finally:
        for _, handshake in under_way.values():
            handshake.sock.close()
