"""A simulated client: a process with the client's own NBD session, which asks as its plan says and notes what it saw.

It knows the memory through one connection, or, where clients route, through one to each server. When a connection is
lost it makes another; what was under way is sent again, or given up, as the plan says. When its process is killed
another one takes its place and goes on with what is left.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from memcluster.node.layout import Layout, Piece, join_extents
from memcluster.node.nbd.client import Awaited, ClientSession
from memcluster.node.nbd.errors import NBDError
from memcluster.node.nbd.wire import Buffer, Command, CommandFlag, Status
from memcluster.node.transport.address import Address
from memcluster.node.transport.loop import Loop
from memcluster.node.transport.stream import Stream
from memcluster.node.transport.tcp import connecting
from memcluster.simulator.history import ACKNOWLEDGED, BLOCK, ERROR, UNKNOWN, Operation, identify, pattern, zeroes
from memcluster.simulator.plan import Ask
from memcluster.simulator.plan import Client as Errand
from memcluster.simulator.process import Process
from memcluster.simulator.world import World

TAG_SHIFT = 20
AGAIN = 0.005
"""Seconds until a lost connection is made again."""
BACK = 0.01
"""Seconds until another process takes the place of one that was killed."""
FLAGS = {1: CommandFlag.FUA, 2: CommandFlag.NO_HOLE, 4: CommandFlag.DF}


class Door:
    """One server that lets clients in, and what of the memory it shows: all, or one server's shard."""

    def __init__(self, address: Address, server: int | None) -> None:
        self.address = address
        self.server = server


class _Begun:
    """A request under way, of as many parts as there are servers to ask."""

    def __init__(self, number: int, ask: Ask, tag: int, invoked: int) -> None:
        self.number = number
        self.ask = ask
        self.tag = tag
        self.invoked = invoked
        self.repeats = 0
        self.parts: dict[int, tuple[Piece | None, Sequence[Buffer]]] = {}
        self.replies: dict[int, Awaited] = {}


class Client:
    """`done` is called when all has been asked and answered, or given up."""

    def __init__(
        self,
        world: World,
        number: int,
        errand: Errand,
        doors: Sequence[Door],
        layout: Layout,
        history: list[Operation],
        done: Callable[[Client], None],
    ) -> None:
        self.world = world
        self.name = f"client{number}"
        self.errand = errand
        self.history = history
        self.layout = layout
        self.doors = doors
        self.finished = False
        self._first_tag = (number + 1) << TAG_SHIFT
        self._done = done
        self.stays = False
        """More may still be asked for."""
        self.asked = 0
        self._asks = list(errand.asks)
        self._begun: dict[int, _Begun] = {}
        self._waits = False
        self.process = self._live()

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.process.run(self._connect)

    def _live(self) -> Process:
        process = Process(self.world, self.name, self._died)
        self._wires: list[_Wire | None] = [None] * len(self.doors)
        return process

    def _connect(self) -> None:
        for index in range(len(self.doors)):
            self._dial(index)

    def _dial(self, index: int) -> None:
        if self._wires[index] is None and not self.finished:
            sock = connecting(self.process.system, self.doors[index].address)
            self._wires[index] = _Wire(self, index, self.process.loop, sock)

    def _died(self, why: str) -> None:
        """All that was under way is given up from here on."""
        if self.finished:
            self._done(self)
            return
        for begun in list(self._begun.values()):
            self._finish(begun, UNKNOWN, why or "it has left")
        self._waits = False
        self.process = self._live()
        self.world.after(int(BACK * 1e9), self.start)

    def _check_done(self) -> None:
        if not (self.finished or self.stays) and self.asked == len(self._asks) and not self._begun:
            self.finished = True
            for wire in self._wires:
                if wire is not None and wire.open:
                    wire.session.disconnect()
                    wire.flush()
                    wire.close()
            self.process.loop.stop()

    # -- asking ------------------------------------------------------------------------------------------------------

    @property
    def asks(self) -> int:
        """How many it has been given."""
        return len(self._asks)

    def ask(self, ask: Ask) -> None:
        """For one thing more."""
        self._asks.append(ask)
        self.process.run(self.go_on)

    def leave(self) -> None:
        """Nothing more will be asked for."""
        self.stays = False
        self.process.run(self._check_done)

    def tag(self, number: int) -> int:
        """Of its request with this number, the first of which is 1."""
        return self._first_tag | number

    @property
    def ready(self) -> bool:
        return all(wire is not None and wire.session.ready for wire in self._wires)

    def go_on(self) -> None:
        """Ask for the next, if there may be one more under way."""
        asks = self._asks
        while not self._waits and self.ready and self.asked < len(asks) and len(self._begun) < self.errand.depth:
            ask = asks[self.asked]
            if ask.pause:
                self._waits = True
                self.process.loop.after(ask.pause / 1e9, self._ask_next)
                return
            self._ask(ask)

    def _ask_next(self) -> None:
        self._waits = False
        if self.ready and len(self._begun) < self.errand.depth:
            self._ask(self._asks[self.asked])
        self.go_on()

    def _ask(self, ask: Ask) -> None:
        now = self.process.system.monotonic_ns()  # it may be killed here
        self.asked += 1
        number = self.asked
        begun = _Begun(number, ask, self.tag(number), now)
        self._begun[number] = begun
        payload = memoryview(pattern(begun.tag, ask.offset, ask.length)) if ask.kind == "WRITE" else None
        if len(self.doors) == 1:
            begun.parts[0] = None, () if payload is None else (payload,)
        elif ask.kind == "FLUSH":
            begun.parts = dict.fromkeys(range(len(self.doors)), (None, ()))
        else:
            for piece in self.layout.split(ask.offset, ask.length):
                spans = () if payload is None else [payload[start:end] for start, end in piece.spans]
                begun.parts[piece.server] = piece, spans
        for index in begun.parts:
            self._send(index, begun, 0)

    def _send(self, index: int, begun: _Begun, flags: int) -> None:
        wire = self._wires[index]
        if wire is None or not wire.session.ready:
            return
        ask, (piece, payload) = begun.ask, begun.parts[index]
        offset, length = (ask.offset, ask.length) if piece is None else (piece.offset, piece.length)
        flags |= int(FLAGS.get(ask.flags, 0))
        wire.session.submit(Command[ask.kind], begun.number, offset, length, flags, payload)
        wire.send_soon()

    # -- what the connections say ------------------------------------------------------------------------------------

    def opened(self, index: int) -> None:
        """A connection may be used: what is under way is sent again."""
        for begun in list(self._begun.values()):
            if index in begun.parts and index not in begun.replies:
                begun.repeats += 1
                self._send(index, begun, 0)
        self.go_on()
        self._check_done()

    def answered(self, index: int, replies: Sequence[Awaited]) -> None:
        for reply in replies:
            begun = self._begun[reply.cookie]
            begun.replies[index] = reply
            if len(begun.replies) == len(begun.parts):
                self._answered(begun)
        self.go_on()
        self._check_done()

    def lost(self, index: int, why: str) -> None:
        """A connection is gone."""
        self._wires[index] = None
        if not self.errand.repeats:
            self._hang_up()
            for begun in list(self._begun.values()):
                self._finish(begun, UNKNOWN, why)
        self._check_done()
        if not self.finished:
            self.process.loop.after(AGAIN, self._connect)

    def _hang_up(self) -> None:
        """What was asked elsewhere is given up, too."""
        for index, wire in enumerate(self._wires):
            if wire is not None:
                wire.close()
                self._wires[index] = None

    def _answered(self, begun: _Begun) -> None:
        for reply in begun.replies.values():
            if reply.error:
                self._finish(begun, ERROR, f"error {reply.error}: {reply.message}")
                return
        self._finish(begun, ACKNOWLEDGED, "")

    def _finish(self, begun: _Begun, outcome: str, why: str) -> None:
        now = self.process.system.monotonic_ns() if self.process.alive else self.world.now  # it may be killed here
        del self._begun[begun.number]
        ask = begun.ask
        seen = self._seen(begun) if outcome == ACKNOWLEDGED else []
        known = (self.name, begun.number, ask.kind, ask.offset, ask.length, begun.tag, begun.invoked, now)
        self.history.append(Operation(*known, outcome, begun.repeats, seen, why))

    def _seen(self, begun: _Begun) -> list[int | str | None]:
        ask = begun.ask
        if ask.kind == "READ":
            whole = bytearray(ask.length)
            for index, reply in begun.replies.items():
                piece, data = begun.parts[index][0], memoryview(reply.data or b"")
                done = 0
                for start, end in ((0, ask.length),) if piece is None else piece.spans:
                    whole[start:end] = data[done : done + end - start]
                    done += end - start
            return identify(bytes(whole), ask.offset)
        if ask.kind == "BLOCK_STATUS":
            extents = begun.replies.get(0, next(iter(begun.replies.values()))).extents or []
            if len(self.doors) > 1:
                told = {index: reply.extents or [] for index, reply in begun.replies.items()}
                extents = join_extents(self.layout, ask.offset, ask.length, told)
            found, at = [], ask.offset
            for length, status in extents:
                found.append((at, length, bool(status & Status.ZERO)))
                at += length
            return zeroes(found, ask.offset, ask.length)
        return []


class _Wire(Stream):
    """One connection of a client."""

    def __init__(self, client: Client, index: int, loop: Loop, sock: socket.socket) -> None:
        self.session = ClientSession("", scratch=memoryview(bytearray(1 << 16)))
        super().__init__(loop, sock, self.session.outgoing)
        self._client = client
        self._index = index
        self.update()

    def _readable(self) -> None:
        try:
            count = self.sock.recv_into(self.session.receive_buffer())
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lost(error.strerror or "receive failed")
            return
        if not count:
            self._lost("closed by the server")
            return
        was_ready = self.session.ready
        try:
            replies = self.session.received(count)
        except NBDError as error:
            self._lost(str(error))
            return
        if self.session.outgoing:
            self.send_soon()
        if self.session.ready and not was_ready:
            self._client.opened(self._index)
        elif replies:
            self._client.answered(self._index, replies)  # type: ignore[arg-type]

    def _lost(self, reason: str) -> None:
        if self.open:
            self.close()
            self._client.lost(self._index, reason)


assert BLOCK % 16 == 0
