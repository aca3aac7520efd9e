"""How a serving process lives, and who comes to it: clients and their slots, who is turned away, the counters, the
drain.

A role (in node/topologies/) derives from it and says two things: which exports a client may open, and where a
request goes. A request is answered with `complete`, which writes its log record before the reply can leave.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any, ClassVar, Final

from memcluster.node.log.record import Event, Reason, subject_of
from memcluster.node.native import mypyc_attr
from memcluster.node.nbd.errors import Refused
from memcluster.node.nbd.negotiation import Export
from memcluster.node.nbd.server import Request
from memcluster.node.nbd.wire import Rep, TransmissionFlag
from memcluster.node.serving.admission import SAMPLE, Admission, Usage, look_at_the_machine
from memcluster.node.serving.budget import Budget
from memcluster.node.serving.changes import Changes
from memcluster.node.serving.connection import Connection, Route
from memcluster.node.serving.exports import ClientExports
from memcluster.node.serving.memory import ShardError
from memcluster.node.serving.service import Service
from memcluster.node.serving.waiting import eager
from memcluster.node.spec import NodeSpec
from memcluster.node.transport.introduction import Doorkeeper
from memcluster.node.transport.listener import Listener
from memcluster.node.transport.loop import Loop, Timer
from memcluster.node.transport.notices import Notices
from memcluster.node.transport.peer import origin
from memcluster.node.transport.proof import Who
from memcluster.node.transport.stream import Line, parts
from memcluster.node.transport.traffic import TRAFFIC

if TYPE_CHECKING:
    from memcluster.node.serving.security import Security  # else it would load OpenSSL

MEMORY_FLAGS: Final = (
    TransmissionFlag.HAS_FLAGS
    | TransmissionFlag.SEND_FLUSH
    | TransmissionFlag.SEND_FUA
    | TransmissionFlag.SEND_TRIM
    | TransmissionFlag.SEND_WRITE_ZEROES
    | TransmissionFlag.CAN_MULTI_CONN
    | TransmissionFlag.SEND_CACHE
    | TransmissionFlag.SEND_FAST_ZERO
)
LOOK: Final = 1.0
"""Seconds between two looks at the files: people delete and cut them."""
HANDSHAKE_CHECKS: Final = 8
"""Looks at clients in their handshake in the time that they have for it."""
CLIENTS_MEMORY: Final = 512 << 20
"""Bytes that all clients' requests in flight and unsent replies may take up."""
STRANGERS_A_SECOND: Final = 100
"""Events about clients that were refused or broke the protocol, in the log."""
GRACE: Final = 0.1
"""Seconds in which clients that are to go still get ESHUTDOWN for what they send."""

Report = Callable[[dict[str, Any]], None]


@mypyc_attr(allow_interpreted_subclasses=True)
class Server(Service):
    """A process that serves NBD clients. Derived classes give `exports`, `route` and `place`."""

    connection_type: ClassVar[type[Connection]] = Connection
    private: ClassVar[bool] = False
    """Nobody comes here but the cluster's own servers."""

    def __init__(self, loop: Loop, spec: NodeSpec, listeners: Sequence[socket.socket], report: Report) -> None:
        super().__init__(loop, spec)
        self.report = report
        self.event(Event.STARTED, value=self.log.incarnation)
        self.admission = Admission(*places(spec))
        self.budget = Budget(CLIENTS_MEMORY)
        self._handshakes: dict[int, float] = {}  # when those came that came not long ago, the first one first
        self._handshake_watch: Timer | None = None
        self._client_watch: Timer | None = None
        self._sampling: Timer | None = None
        self._looking: Timer | None = None
        self.security: Security | None = None
        """TLS for clients, where a role has it."""
        self._marks: Changes | None = None
        self.holding = False
        """Nothing that clients ask for is begun; they are kept for who takes over."""
        self.draining = False
        """No new client is let in."""
        self.bad_input = 0
        self.refused = 0
        self._unlogged = 0  # events about strangers that were too many for the log
        self._strangers = (0, 0)  # the second, and the events in it
        self._notices = Notices(loop.system, spec.name)
        self._accepted = 0
        self._drained: Callable[[], None] | None = None
        self.strangers = 0
        """Who came to a door that is for the cluster's own."""
        self._doorkeeper: Doorkeeper | None = None
        accepted: Callable[[socket.socket], None] = self._accept
        if self.private:
            self._doorkeeper = Doorkeeper(
                loop,
                spec.secret,
                spec.name,
                [Who.SERVER],
                lambda line, _: self._accept(line),
                self._turned_away,
                tls=spec.door_tls(),
                far=bool(spec.host),
            )
            accepted = self._doorkeeper.take
        self._listeners = [Listener(loop, sock, accepted) for sock in listeners]

    # -- what a role says --------------------------------------------------------------------------------------------

    def exports(self) -> Sequence[Export]:
        """What LIST shows."""
        raise NotImplementedError

    def contexts(self, connection: Connection, export: Export) -> Sequence[str]:  # noqa: ARG002
        """Words to clients that know them; see memcluster.node.nbd.negotiation.Exports."""
        return ()

    def route(self, connection: Connection, export: Export) -> Route:
        """What serves the requests of a client that opens `export`; raises Refused if it may not."""
        raise NotImplementedError

    def place(self, connection: Connection, request: Request, first: bool) -> memoryview | None:
        """Where the payload of a large WRITE shall be received; see ServerSession."""
        raise NotImplementedError

    def tune_process(self) -> None:
        """Make a process fit in which nothing else runs."""
        self.loop.wait = eager(self.loop.poll, look=not self.crowded)

    @property
    def crowded(self) -> bool:
        """Servers and a client have no processor each."""
        return len(self.spec.cluster.servers) >= len(os.sched_getaffinity(0))

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Let clients in, and those go on that there are already."""
        for listener in self._listeners:
            listener.start()
        self._watch_clients()
        self._look()
        self.event(Event.READY)
        self._sample()
        self.report({"event": "ready"})
        for connection in self.connections.values():
            self.loop.soon(connection.let_go)

    def settle_on(self, spec: NodeSpec, page: socket.socket | None) -> None:  # noqa: ARG002 - the page is a logger's
        """Go on with other settings, from now on."""
        self.spec = spec
        self.log.change(spec.log_retain, spec.log_level, spec.log_sample, spec.log_retain_age)
        if not self.private:
            self.admission.change(*places(spec))
        self._stop_watching()
        self._watch_handshakes()
        self._watch_clients()
        self._look()
        self._sample()

    def _stop_watching(self) -> None:
        """No timer calls any more."""
        for timer in (self._handshake_watch, self._client_watch, self._sampling, self._looking):
            if timer is not None:
                timer.cancel()

    def status(self) -> dict[str, Any]:
        """The counters, for `memcluster status`."""
        return {
            "clients": len(self.connections),
            "requests": self.requests,
            "refused": self.refused,
            "refusals": dict(self.admission.refusals),
            "bad_input": self.bad_input,
            "strangers": self.strangers,
            "events_unlogged": self._unlogged,
            "no_space": self.no_space,
            "records_lost": self.log.lost,
            "log_trouble": (self.log.error.strerror or str(self.log.error)) if self.log.error else "",
            "memory_used": self.shard.used,
            **TRAFFIC.to_head(),
        }

    def drain(self, mode: str, done: Callable[[], None]) -> None:
        """Stop gracefully and call `done`: with mode "finish" when the present clients have gone by themselves, with
        "now" when their requests in flight are answered; with "again" then, too, but what comes meanwhile is not
        answered at all: the next server here will be asked for it."""
        if not self.draining:
            self.event(Event.DRAINING)
        self.draining = True
        self._drained = done
        if mode == "again" and not self.stopping:
            self._shut()
            for connection in list(self.connections.values()):
                connection.hold()
                connection.finish()
        elif mode == "now" and not self.stopping:
            self.stopping = True
            self._shut()
            self.loop.after(GRACE if self.connections else 0, self._dismiss)
        self._check_drained()

    def command(self, head: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> None:
        """A word from the supervisor: {"do": "event"}, to be written into the log; {"do": "watch"}, to mark in a file
        which pages of the shard are changed, {"do": "turn"}, in its other half, and {"do": "unwatch"}; or one for some
        roles only."""
        match head.get("do"):
            case "event":
                event, about = Event[head["event"].upper()], subject_of(head["about"])
                self.log.event(event, about, value=head["value"], start=head["time_ns"])
            case "watch":
                answer(self._watch(head["path"]))
            case "turn":
                if self._marks is not None:
                    self._marks.turn()
                    self._mark_landing()
                answer({})
            case "unwatch":
                self._marks = None
                self.shard.watch(None)
            case other:
                answer({"error": f"{self.spec.name} does not understand {other!r}"})

    def _watch(self, path: str) -> dict[str, Any]:
        try:
            self._marks = Changes(path, self.shard.size)
        except (OSError, ValueError) as error:
            return {"error": f"{path}: {error}"}
        self.shard.watch(self._marks)
        self._mark_landing()
        return {}

    def _mark_landing(self) -> None:
        """What is being received into the shard right now changes it in this turn of the loop, and in later ones."""
        offset, length = self._landing.place
        if length and self._marks is not None:
            self._marks.mark(offset, length)

    def cut(self, peer: str, cut: bool) -> None:
        """Cut the link to another node, or give it back; this server may have none."""

    def close(self) -> None:
        """Give everything back; nothing is served any more."""
        self._shut()
        self.event(Event.STOPPED)
        self.log.close()

    def _shut(self) -> None:
        for listener in self._listeners:
            listener.stop()
        if self._doorkeeper is not None:
            self._doorkeeper.close()

    def _dismiss(self) -> None:
        for connection in list(self.connections.values()):
            connection.finish()

    def _check_drained(self) -> None:
        if self._drained is not None and not self.connections:
            done, self._drained = self._drained, None
            self._shut()
            self.loop.soon(done)

    # -- clients -----------------------------------------------------------------------------------------------------

    def _accept(self, line: Line) -> None:
        self._accepted += 1
        whence = origin(parts(line)[0])
        if not self.admission.connected(whence):
            line.close()
            self.refused += 1
            self.stranger(Event.REFUSED, self._accepted, Reason.ADDRESS)
            return
        connection = self.connection_type(
            self.loop,
            line,
            self,
            ClientExports,
            number=self._accepted,
            scratch=self.scratch,
            budget=self.budget,
        )
        connection.origin = whence
        self.connections[self._accepted] = connection
        self._handshakes[self._accepted] = self.loop.awake()
        if self._handshake_watch is None:
            self._watch_handshakes()

    def _watch_handshakes(self) -> None:
        """Cut off those that take too long. One timer for all: one each would keep what belonged to thousands who came
        and went until its time."""
        limit = self.spec.bounds.handshake_timeout
        since = self.loop.awake() - limit
        late = list(takewhile(lambda number: self._handshakes[number] <= since, self._handshakes))
        for number in late:
            del self._handshakes[number]
            if self.connections[number].session.export is None:
                self.connections[number].cut_off(f"no end of the handshake in {limit:g} s")
        self._handshake_watch = None
        if self._handshakes:
            self._handshake_watch = self.loop.after(limit / HANDSHAKE_CHECKS, self._watch_handshakes)

    def _sample(self) -> None:
        """With `clients.limit: auto`."""
        self._sampling = None
        if self.admission.limit is None:
            self.admission.sample()
            self._sampling = self.loop.after(SAMPLE, self._sample)

    def _look(self) -> None:
        """See to the shard's file and the log's. A shard that is not whole must not be served for another moment."""
        try:
            self.shard.look()
        except ShardError as error:
            self.report({"event": "failed", "reason": str(error)})
            raise
        self.log.look()
        self._looking = self.loop.after(LOOK, self._look)

    def _watch_clients(self) -> None:
        """Cut off those that hold memory and make no use of it; twice in the time they have, to see progress."""
        limit = self.spec.bounds.stall_timeout
        self._end_stalled(limit)
        self._client_watch = self.loop.after(limit / 2, self._watch_clients)

    def _end_stalled(self, limit: float) -> None:
        for connection in list(self.connections.values()):
            if reason := connection.stalled(limit):
                connection.cut_off(reason)

    def lost(self, connection: Connection, reason: str) -> None:
        """A client is gone; with a reason, it had to go."""
        del self.connections[connection.number]
        self.admission.gone(connection.origin)
        self._guests -= connection.inside
        self._landing.lost(connection)
        self._handshakes.pop(connection.number, None)
        if self.security is not None:
            self.security.gone(connection)
        if reason:
            self.bad_input += 1
            self.stranger(Event.BAD_INPUT, connection.number)
        if connection.session.export is not None:
            self.event(Event.LEFT, client=connection.number)
        if reason:
            self.notice(f"client {connection.number}: {reason}")
        self._check_drained()

    def settled(self, connection: Connection) -> None:
        """Of a client that is gone nothing is in flight any more: until then it has its place, and its memory."""
        if connection.slot is not None:
            self.admission.give_back(connection.slot)
            connection.slot = None
        self.eased()

    def eased(self) -> None:
        """Something that clients had under way is at its end."""

    def came_in(self, connection: Connection) -> None:
        """A client has opened an export, and may look at the memory from now on."""
        connection.inside = True
        self._guests += 1
        self._landing.came_in(connection)

    def take_slot(self, connection: Connection) -> None:
        """Give the client its place; raises Refused, with the reason for people, if it gets none."""
        slot = self.admission.take(connection.origin)
        if isinstance(slot, str):
            raise Refused(Rep.ERR_POLICY, slot)
        connection.slot = slot

    def event(self, event: Event, *, client: int = 0, value: int = 0) -> None:
        """Write into the log what happened to this server, or to a client of it."""
        self.log.event(event, self.spec.index, client=client, value=value)

    def stranger(self, event: Event, client: int, value: int = 0) -> None:
        """Write down what anybody can bring about, without a place and as often as it likes: not more than so many a
        second, or the owner's records would be rotated away by them. The others are counted."""
        second = self.monotonic_ns() // 1_000_000_000
        count = self._strangers[1] + 1 if self._strangers[0] == second else 1
        self._strangers = second, count
        if count <= STRANGERS_A_SECOND:
            self.event(event, client=client, value=value)
        else:
            self._unlogged += 1

    def _turned_away(self, reason: str) -> None:
        self.strangers += 1
        self.stranger(Event.REFUSED, 0, Reason.STRANGER)
        self.notice(f"a stranger was turned away: {reason}")

    def notice(self, text: str) -> None:
        """A line for people in the process's own output, as long as there are not too many."""
        self._notices.say(text)


def places(spec: NodeSpec) -> tuple[int | None, Callable[[], Usage] | None, int]:
    """How many clients there may be, how the machine is looked at where that says it, and how many of one address."""
    limit = spec.bounds.clients
    return limit, look_at_the_machine() if limit is None else None, spec.bounds.per_address
