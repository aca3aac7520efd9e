"""The client's side of the topology client-routed: one memory out of many servers' parts, routed here.

A `Router` has the face of a `Connection` to the whole memory. It reads the cluster's map, keeps a connection to every
server, splits each request into pieces and joins their replies. While it waits it sends to and receives from all of
them. A connection that is lost is made again while the others go on; if the map has changed meanwhile it is fetched
anew, and what is in flight is split again.
"""

from __future__ import annotations

import select
from collections.abc import Sequence
from dataclasses import dataclass, replace

from memcluster.client.cluster_map import ClusterMap, parse_map, reading_map
from memcluster.client.connecting import connecting
from memcluster.client.connection import MAX_IN_FLIGHT, Connection
from memcluster.client.errors import ClusterError, ConnectionProblem, Disconnected, Refused, Timeout
from memcluster.client.exclusive import Exclusive, exclusive
from memcluster.client.handshake import PATIENCE, Return, offering
from memcluster.client.identifiers import Identifiers
from memcluster.client.pending import Pending
from memcluster.client.routed import Routed
from memcluster.client.system import Errand, Interest, Steps, System, united, wait
from memcluster.client.uri import Target
from memcluster.node.layout import Layout, Piece
from memcluster.node.nbd.wire import Command, Rep, TransmissionFlag


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
    """Knows every server of the cluster that `target` is one server of; see `Connection` for the rest. Made by
    `opening`."""

    def __init__(
        self, system: System, target: Target, contexts: Sequence[str], *, timeout: float, reconnect: bool
    ) -> None:
        super().__init__()
        self.target = target
        self.timeout = timeout
        self.reconnect = reconnect
        self.reconnections = 0
        self._system = system
        self._monotonic = system.monotonic
        self._closed = False
        self._under_way: dict[Pending, Routed] = {}
        self._connections: list[Connection | None] = []  # by server; not every server has a part
        self._parts: list[Connection] = []
        self._returns: dict[Connection, Return] = {}
        self._identifiers = Identifiers(system, target, contexts, lambda: self._map.servers)
        self._search: Errand[bool] | None = None  # for a new map

    @classmethod
    def opening(
        cls, system: System, target: Target, contexts: Sequence[str], *, timeout: float, reconnect: bool
    ) -> Steps[Router]:
        """Connect to every server of the cluster; `contexts` are those of the export at `target`. Raises
        ClusterError."""
        router = cls(system, target, contexts, timeout=timeout, reconnect=reconnect)
        found = parse_map((yield from reading_map(system, target, timeout)), target)
        router._adopt(found, (yield from connecting(system, found, timeout)))
        return router

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
        deadline = self._monotonic() + self.timeout
        while self.full and not self._closed:
            in_time = self._turn(deadline)
            if self._identifiers.problem is not None and not (in_time and self.reconnect):
                raise self._identifiers.problem
            if not in_time:
                raise Timeout(self.target, "room for a request", self.timeout)
        if self._closed:
            raise Disconnected(self.target, "the connection was closed by this program")
        routed = Routed(self, self._identifiers.take(), pending)
        pending.owner = self
        self._under_way[pending] = routed
        self._begin(routed)
        return pending

    @exclusive
    def wait_for(self, pending: Pending, timeout: float | None) -> None:
        """Send and receive until the outcome is known. Raises Timeout."""
        limit = self.timeout if timeout is None else timeout
        deadline = self._monotonic() + limit
        while pending.outcome is None:
            if not self._turn(deadline) and pending.outcome is None:
                self._give_up_lost(self._under_way[pending])
                if pending.outcome is None:
                    raise Timeout(self.target, "answer", limit)

    @exclusive
    def progress(self) -> None:
        """Send and receive what can be without waiting; go on with making lost connections again."""
        self._turn(0.0)

    @exclusive
    def _say_goodbye(self) -> None:
        if not self._closed:
            self._abandon()
            self._fail(Disconnected(self.target, "the connection was closed by this program"))

    def _abandon(self) -> None:
        self._closed = True
        if self._search is not None:
            self._search.close()
        self._identifiers.close()
        self._close_connections()

    # -- for an event loop -------------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """`submit` would wait, for room or for identifiers."""
        return self._identifiers.exhausted or self._no_room

    @property
    def lost(self) -> bool:
        """`progress` may wait for the address of a host that has a name."""
        return self._identifiers.exhausted or any(connection.lost for connection in self._parts)

    @property
    def interest(self) -> Interest:
        """See Connection.interest."""
        descriptors: dict[int, int] = {}
        until = float("inf")
        returns = self._returns
        for connection in self._parts if self._under_way else ():
            back = returns.get(connection) if returns else None
            wanted, due = connection.interest if back is None else back.interest
            descriptors |= wanted
            until = min(until, due)
        if self._search is None and not self._identifiers.exhausted:
            return descriptors, until
        waits = [(descriptors, until)]
        if self._search is not None and self._under_way:
            waits.append(self._search.interest)
        if self._identifiers.exhausted:
            waits.append(self._identifiers.interest)
        return united(waits)

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
        if (self._identifiers.exhausted and self._identifiers.borrow()) or self._bring_back():
            return True
        for connection in self._parts:
            if not connection.lost:
                connection.send()
        ready = wait(self._system, self.interest, deadline)
        for connection in self._parts if ready else ():
            if not connection.lost and ready.get(connection.fileno(), 0) & ~select.POLLOUT:
                connection.receive()
        self._look()
        return bool(ready) or self._monotonic() < deadline

    def _look(self) -> None:
        for pending in [pending for pending, routed in self._under_way.items() if routed.look()]:
            del self._under_way[pending]

    def _bring_back(self) -> bool:
        """Go on with making lost connections again, and with looking for a new map. True if that has decided about
        something in flight."""
        if self._search is not None and self._search.step():
            search, self._search = self._search, None
            if search.result:
                return True
        for connection in self._parts:
            if not connection.lost:
                continue
            if not self.reconnect:
                problem: ConnectionProblem = Disconnected(
                    connection.target, f"the connection is lost: {connection.trouble}"
                )
            else:
                back = self._returns.setdefault(connection, Return(self._system, connection.target))
                try:
                    opened = back.step()
                    if opened is not None:
                        connection.come_back(opened)
                        self.reconnections += 1
                        del self._returns[connection]
                    continue
                except ConnectionProblem as error:
                    problem = error
                if not isinstance(problem, Refused) or problem.reply in (Rep.ERR_SHUTDOWN, Rep.ERR_UNKNOWN):
                    if self._search is None:
                        self._search = Errand(self._searching())
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
                back = self._returns.get(connection) or Return(self._system, connection.target)
                words = f"the connection was lost ({connection.trouble}) and could not be made again: {back.reason}"
                connection.give_up(Disconnected(connection.target, words))
        self._look()

    def _searching(self) -> Steps[bool]:
        """Ask the entry, then the servers of the old map, for the map; true if it is another one, and in use now."""
        for target in (self.target, *self._map.servers):
            try:
                fresh = parse_map((yield from reading_map(self._system, target, PATIENCE)), target)
                if fresh.export == self._map.export:
                    return False
                if fresh.layout.size < self._map.layout.size:
                    sizes = f"{self._map.layout.size} bytes before, {fresh.layout.size} now"
                    self._fail(ClusterError(f"{self.target}: the memory is another one: {sizes}"))
                    return True
                self._identifiers.take_block((yield from offering(self._system, replace(target, export=""), PATIENCE)))
                made = yield from connecting(self._system, fresh, self.timeout)
            except ClusterError:
                continue
            self._adopt(fresh, made)
            self.reconnections += 1
            for routed in list(self._under_way.values()):
                self._begin(routed)
            return True
        return False

    def _adopt(self, found: ClusterMap, made: list[Connection | None]) -> None:
        """Go on with the connections of a map, some of which may be lost."""
        parts = [connection for connection in made if connection is not None]
        self._close_connections()
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

    def _close_connections(self) -> None:
        for back in self._returns.values():
            back.close()
        self._returns.clear()
        for connection in self._parts:
            connection.close()

    @property
    def _no_room(self) -> bool:
        return sum(connection.cost for connection in self._parts) > MAX_IN_FLIGHT

    def _fail(self, error: ClusterError) -> None:
        for pending in self._under_way:
            pending.settle(error)
        self._under_way.clear()
