"""A server where clients come in: it exports what there is for them as "" and, to be looked at only, as `readonly`; and
the cluster's map as cluster.json.

A topology derives from it and says where a request on the memory goes (`request`), where a large payload is received,
and whether there are more exports (`parts`).

When another cluster takes the place of the one that runs, a door keeps its clients (`hold`), and the door that is made
after it in the same process goes on with them (`take_over`).
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from memcluster.node.layout import same_places
from memcluster.node.log.record import PROBE, Event, Kind
from memcluster.node.native import mypyc_attr
from memcluster.node.nbd.negotiation import Export
from memcluster.node.nbd.server import Request
from memcluster.node.nbd.wire import BASE_ALLOCATION, OWNER, Command, Status, TransmissionFlag
from memcluster.node.serving.admission import Admission
from memcluster.node.serving.connection import Connection, Route
from memcluster.node.serving.server import MEMORY_FLAGS, Report, Server, places
from memcluster.node.serving.service import REQUEST
from memcluster.node.spec import NodeSpec
from memcluster.node.transport.loop import Loop, Timer

MAP: Final = int(Kind.MAP)
MAP_EXPORT: Final = "cluster.json"
READ_ONLY_EXPORT: Final = "readonly"
CONTEXTS: Final = (BASE_ALLOCATION, OWNER)
READ_ONLY: Final = (
    TransmissionFlag.HAS_FLAGS
    | TransmissionFlag.READ_ONLY
    | TransmissionFlag.CAN_MULTI_CONN
    | TransmissionFlag.SEND_CACHE
)
PATIENCE: Final = 3.0
"""Seconds that all clients wait for those whose requests are not answered, or who do not take the answers: more than a
server takes whom a busy machine does not let run."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Door(Server):
    """`layout` is the whole memory's; `size` and `description` are what clients see of the export ""."""

    def __init__(self, loop: Loop, spec: NodeSpec, listeners: Sequence[socket.socket], report: Report) -> None:
        super().__init__(loop, spec, listeners, report)
        self.layout = spec.cluster.layout
        self.holders: dict[str, int] = {}
        """The exports that one server holds each, and which."""
        self._held: Callable[[], None] | None = None  # told when all clients rest
        self._impatience: Timer | None = None
        self._set_out()
        if spec.tls is not None:
            from memcluster.node.serving.security import Security  # late: it loads OpenSSL

            self.security = Security(loop, self, spec.tls, spec.probe)

    def settle_on(self, spec: NodeSpec, page: socket.socket | None) -> None:
        super().settle_on(spec, page)
        self._set_out()

    def _set_out(self) -> None:
        """Make what clients find here; who has opened something goes on with that."""
        spec = self.spec
        self._map = memoryview(spec.cluster.to_json())
        self._exports: tuple[Export, ...] = (
            Export("", self.size, MEMORY_FLAGS, self.description, contexts=CONTEXTS),
            Export(READ_ONLY_EXPORT, self.size, READ_ONLY, f"{self.description}, to be read", contexts=CONTEXTS),
            *self.parts(),
            Export(MAP_EXPORT, len(self._map), READ_ONLY, f"the map of {spec.cluster.name}"),
            Export(spec.probe, self.size, MEMORY_FLAGS, "the same, for `up` to look", own_flags=PROBE, listed=False),
        )

    @property
    def size(self) -> int:
        """Bytes that a client sees."""
        return self.spec.cluster.memory

    @property
    def description(self) -> str:
        cluster = self.spec.cluster
        owners = sum(server.memory > 0 for server in cluster.servers)
        return f"the memory of {cluster.name}: {cluster.memory} bytes over {owners} server{'s' * (owners > 1)}"

    def request(self, connection: Connection, request: Request, start: int) -> None:
        """Take a request on the memory that keeps to the protocol."""
        raise NotImplementedError

    def parts(self) -> Sequence[Export]:
        """Exports of less than the whole; those that one server holds stand in `holders`, too."""
        return ()

    def part(self, server: int) -> Export:
        """The export of one server's shard, under the server's name."""
        cluster, name = self.spec.cluster, f"server{server}"
        size = cluster.servers[server].memory
        self.holders[name] = server
        description = f"{name}'s part of the memory of {cluster.name}: {size} of {cluster.memory} bytes"
        return Export(name, size, MEMORY_FLAGS, description, contexts=CONTEXTS)

    def exports(self) -> Sequence[Export]:
        return self._exports

    def route(self, connection: Connection, export: Export) -> Route:
        connection.holder = self.holders.get(export.name)
        return partial(self._read_map, self._map) if export.name == MAP_EXPORT else self.request

    # -- from one cluster to the next ------------------------------------------------------------------------------

    def start(self) -> None:
        if not self.holding:  # before all was there
            super().start()

    def drain(self, mode: str, done: Callable[[], None]) -> None:
        if mode == "hold":
            self.hold(done)
        else:
            self.holding = False
            super().drain(mode, done)

    def hold(self, held: Callable[[], None]) -> None:
        """Stop, and keep the clients: nothing more is begun of what they ask for; when what is in flight is answered
        everything else is given back, and `held` is called."""
        self.holding, self._held = True, held
        for listener in self._listeners:
            listener.pause()  # the next door needs the socket
        self._listeners = []
        for connection in self.connections.values():
            connection.hold()
        self._be_patient()
        self.eased()

    def eased(self) -> None:
        if self.holding and self._held is not None:
            self.loop.soon(self._rest)

    def _rest(self) -> None:
        held, connections = self._held, list(self.connections.values())
        if not self.holding or held is None or not all(connection.quiet for connection in connections):
            return
        if self.under_way:  # for a client that is gone
            self.loop.soon(self._rest)
            return
        self._held = None
        for connection in connections:
            connection.rest()
        self._landing.end()
        self._stop_watching()
        if self._impatience is not None:
            self._impatience.cancel()
        self.close()
        self.shard.close()
        held()

    def _end_late(self) -> None:
        if self.holding and self._held is not None:
            for connection in list(self.connections.values()):
                if not connection.quiet:
                    self.notice(f"client {connection.number} loses its connection: it holds up all others")
                    connection.cut_off("")
            self._be_patient()
            self.eased()

    def _be_patient(self) -> None:
        self._impatience = self.loop.after(PATIENCE, self._end_late)

    def take_over(self, before: Door) -> None:
        """Go on, from `start` on, with the clients of a door that rests. Who is in stays in, whatever the limits; but
        not who has opened what is not there any more."""
        self.scratch, self.changes = before.scratch, before.changes
        self._accepted, self.connections, self._handshakes = before._accepted, before.connections, before._handshakes
        self.admission = Admission(None, per_address=sys.maxsize)
        for connection in list(self.connections.values()):
            connection.pass_to(self)
            self.admission.connected(connection.origin)
            opened = connection.session.export
            if opened is None:
                continue
            slot = self.admission.take(connection.origin)
            assert isinstance(slot, int)
            connection.slot = slot
            self._guests += 1
            self.event(Event.CONNECTED, client=connection.number, value=1)
            export = self.counterpart(before, opened)
            if export is None:
                connection.hang_up()
            else:
                connection.route = self.route(connection, export)
        self.admission.change(*places(self.spec))
        self._watch_handshakes()

    def counterpart(self, before: Door, opened: Export) -> Export | None:
        """What a client has here that has opened this there; None if it may not go on: there it found other bytes."""
        found = next((export for export in self._exports if export.name == opened.name), None)
        if found is None or found.name == MAP_EXPORT or found.size < opened.size:
            return None
        return found if found.name not in self.holders or same_places(before.layout, self.layout) else None

    def turn_away(self, connection: Connection, request: Request, start: int) -> None:
        opened = connection.session.export
        kind = MAP if opened is not None and opened.name == MAP_EXPORT else REQUEST
        self.complete(connection, request, start, self.next_identifier(), kind=kind)

    def _read_map(self, content: memoryview, connection: Connection, request: Request, start: int) -> None:
        end = request.offset + request.length
        data = [content[request.offset : end]] if request.command == Command.READ and request.length else None
        extents = [(request.length, int(Status.DATA))] if request.command == Command.BLOCK_STATUS else None
        self.complete(connection, request, start, self.next_identifier(), data, extents, MAP)
