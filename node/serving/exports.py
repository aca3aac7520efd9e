"""The exports as one client in its handshake sees them: which there are, and whether it may open one. Who came in and
who was refused, and why, stands in the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from memcluster.node.log.record import Event, Reason
from memcluster.node.nbd.errors import Refused
from memcluster.node.nbd.negotiation import Export
from memcluster.node.nbd.wire import Rep
from memcluster.node.serving.admission import Admission
from memcluster.node.serving.connection import Connection, Route
from memcluster.node.spec import NodeSpec


class Host(Protocol):
    """What is asked of the server."""

    spec: NodeSpec
    admission: Admission
    draining: bool
    refused: int
    """Times that a client was not let in."""

    def exports(self) -> Sequence[Export]: ...
    def contexts(self, connection: Connection, export: Export) -> Sequence[str]: ...
    def take_slot(self, connection: Connection) -> None: ...
    def route(self, connection: Connection, export: Export) -> Route: ...
    def came_in(self, connection: Connection) -> None: ...
    def event(self, event: Event, *, client: int = 0, value: int = 0) -> None: ...
    def stranger(self, event: Event, client: int, value: int = 0) -> None: ...


class ClientExports:
    """The Exports of an NBD session (see node/nbd/negotiation.py)."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._contexts: dict[str, Sequence[str]] = {}

    @property
    def _host(self) -> Host:
        """Another one may take over."""
        return self._connection.owner

    def names(self) -> Sequence[Export]:
        self._check_open()
        return [export for export in self._host.exports() if export.listed]

    def find(self, name: str) -> Export:
        self._check_open()
        for export in self._host.exports():
            if export.name == name:
                return export
        raise Refused(Rep.ERR_UNKNOWN, f"there is no export {name!r} here")

    def contexts(self, export: Export) -> Sequence[str]:
        """However often they are asked for: what a client is lent by them it is lent once."""
        if export.name not in self._contexts:
            self._contexts[export.name] = self._host.contexts(self._connection, export)
        return self._contexts[export.name]

    def _check_open(self) -> None:
        if self._host.draining:
            raise Refused(Rep.ERR_SHUTDOWN, f"cluster {self._host.spec.cluster.name} is shutting down")

    def open(self, name: str) -> Export:
        host, client = self._host, self._connection.number
        try:
            export = self.find(name)
            host.take_slot(self._connection)
            self._connection.route = host.route(self._connection, export)
        except Refused as refused:
            host.refused += 1
            host.stranger(Event.REFUSED, client, _reason(refused, host.admission))
            raise
        host.came_in(self._connection)
        host.event(Event.CONNECTED, client=client)
        return export


def _reason(refused: Refused, admission: Admission) -> Reason:
    """Why a client was refused, for the log."""
    if refused.reply == Rep.ERR_POLICY:
        return Reason.__members__.get(admission.short_of.upper(), Reason.OTHER)
    return {Rep.ERR_SHUTDOWN: Reason.SHUTDOWN, Rep.ERR_UNKNOWN: Reason.UNKNOWN_EXPORT}.get(
        Rep(refused.reply), Reason.OTHER
    )
