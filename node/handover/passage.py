"""A passage: the connection over which one server hands clients' sockets and requests to another.

`Passage` is one connection (a unix socket: only those carry descriptors), `PassageLink` the end that connects and
connects again. They know the messages (messages.py), not what is done with them.
"""

from __future__ import annotations

import array
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from memcluster.node.handover.messages import HELLO, ORDER, UNBOUNDED, WELCOME, HandoverError, Order, OrderReader, fresh
from memcluster.node.native import mypyc_attr
from memcluster.node.nbd.wire import Buffer
from memcluster.node.transport.address import Address
from memcluster.node.transport.dialer import Dialer
from memcluster.node.transport.loop import Loop
from memcluster.node.transport.proof import Pass
from memcluster.node.transport.stream import IOV_MAX, Lender, Line, Stream, drop, parts
from memcluster.node.transport.traffic import TRAFFIC

MAX_DESCRIPTORS: Final = 64
"""Descriptors that one receive takes, at most; the kernel gives those of one message at a time."""
NONE_LEFT: Final = -1
"""In the place of a descriptor that the system had no room for."""
_CUT: Final = int(socket.MSG_CTRUNC)  # to ask for a flag by its enum takes as long as the receive


@mypyc_attr(native_class=False)  # a compiled one cannot be bytes
class _Handed(bytes):
    """A message that takes a descriptor along: one of its own, closed when it is sent."""

    descriptor: int


@mypyc_attr(allow_interpreted_subclasses=True)
class Passage(Stream):
    """`received(passage, orders)` and `gone(passage, reason)` are called from the loop; the reason is empty when
    nothing was wrong."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        scratch: memoryview,
        received: Callable[[Passage, list[Order]], None],
        gone: Callable[[Passage, str], None],
        lender: Lender | None = None,
        room: Callable[[int], memoryview] = fresh,
        turn: int = UNBOUNDED,
    ) -> None:
        """A turn of the loop takes orders that are worth `turn` bytes."""
        super().__init__(loop, sock, [])
        self.lender = lender
        self._reader = OrderReader(scratch, room)
        self._turn = turn
        self._received = received
        self._gone = gone
        self._clock = loop.system.monotonic_ns
        self._handed = 0  # messages in `outgoing` that take a descriptor along
        self._descriptors: deque[int] = deque()
        self.update()

    def __repr__(self) -> str:
        return f"<Passage {'open' if self.open else 'closed'}, {self.queued} bytes to send>"

    def send(self, order: Order, buffers: Sequence[Buffer] = ()) -> None:
        """Queue a message; it leaves at the end of this turn. The buffers must stay as they are until then."""
        if self.open:
            TRAFFIC.messages_out += 1
            if order.kind == ORDER:
                order.sent = self._clock()
            length = 0
            for buffer in buffers:
                length += len(buffer)
            self.outgoing.append(order.encode(length))
            self.outgoing += buffers
            self.send_soon()

    def send_bytes(self, data: bytes) -> None:
        """Queue an encoded message."""
        if self.open:
            TRAFFIC.messages_out += 1
            self.outgoing.append(data)
            self.send_soon()

    def hand(self, order: Order, descriptor: int) -> None:
        """Queue a message that takes a descriptor along, which is given away with it."""
        if not self.open:
            self.loop.system.close(descriptor)
            return
        message = _Handed(order.encode())
        message.descriptor = descriptor
        self.outgoing.append(message)
        self._handed += 1
        self.send_soon()

    def take_descriptor(self) -> int | None:
        """The descriptor that came with the message being looked at; None if the system had none left."""
        descriptor = self._descriptors.popleft() if self._descriptors else NONE_LEFT
        return None if descriptor == NONE_LEFT else descriptor

    def flush(self) -> None:
        """A message with a descriptor is sent by itself, those between two of them together."""
        while self._handed and self.open:
            outgoing = self.outgoing
            first = outgoing[0]
            try:
                if isinstance(first, _Handed):
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [first.descriptor]))]
                    sent = self.sock.sendmsg([first], rights)
                    self.loop.system.close(first.descriptor)
                    self._handed -= 1
                else:
                    until = next(at for at, buffer in enumerate(outgoing) if isinstance(buffer, _Handed))
                    sent = self.sock.sendmsg(outgoing[: min(until, IOV_MAX)])
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._failed(error)
                return
            self.sent += sent
            TRAFFIC.sent += sent
            drop(outgoing, sent)
        if not self._handed:
            super().flush()
            return
        self._flush_is_due = False
        self.queued = sum(map(len, self.outgoing))
        self.update()

    def close(self) -> None:
        if self.open:
            for message in self.outgoing:
                if isinstance(message, _Handed):
                    self.loop.system.close(message.descriptor)
            while self._descriptors:
                if (descriptor := self.take_descriptor()) is not None:
                    self.loop.system.close(descriptor)
            super().close()

    def _readable(self) -> None:
        try:
            buffer = self._reader.receive_buffer()
            space = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)
            count, extra, flags, _ = self.sock.recvmsg_into([buffer], space, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            count, extra, flags = 0, [], 0
        if flags & _CUT:  # without its place held, its message would take the next one's: another client's
            self._descriptors.append(NONE_LEFT)
        for level, kind, data in extra:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._descriptors.extend(array.array("i", data[: len(data) // 4 * 4]))
        if not count:
            self._lost("")
            return
        TRAFFIC.received += count
        self._take(count)

    @property
    def wants_read(self) -> bool:
        """Orders that are parked come first."""
        return not self._reader.waiting

    def _go_on(self) -> None:
        if self.open:
            self._reader.receive_buffer()  # what is parked lies in the shared buffer again
            self._take(0)

    def _take(self, count: int) -> None:
        try:
            orders = self._reader.received(count, self._turn)
        except HandoverError as error:
            self._lost(str(error))
            return
        if self._reader.waiting:
            self.loop.soon(self._go_on)
        self.update()
        if orders:
            TRAFFIC.messages_in += len(orders)
            self._received(self, orders)

    def _failed(self, error: OSError) -> None:
        """Who is dead, or has closed it, has done nothing wrong."""
        if isinstance(error, ConnectionError):
            self._lost("")
        else:
            super()._failed(error)

    def _lost(self, reason: str) -> None:
        if self.open:
            self.close()
            self._gone(self, reason)

    def lose(self, reason: str) -> None:
        """Give it up."""
        self._lost(reason)


@mypyc_attr(allow_interpreted_subclasses=True)
class PassageLink:
    """The way to a server that is to answer: `joined`, `answered(orders)` and `lost` are called from the loop.

    It keeps nothing that was sent: what is to become of the requests that a dead server had is its owner's to say.
    """

    def __init__(
        self,
        loop: Loop,
        number: int,
        address: Address,
        own_number: int,
        scratch: memoryview,
        key: Pass,
        *,
        joined: Callable[[PassageLink], None],
        answered: Callable[[PassageLink, list[Order]], None],
        lost: Callable[[PassageLink], None],
        lender: Lender,
    ) -> None:
        self.number = number
        """The server's."""
        self.passage: Passage | None = None
        """There while orders may be sent."""
        self._loop = loop
        self._own_number = own_number
        self._scratch = scratch
        self._joined = joined
        self._answered = answered
        self._lost_it = lost
        self._lender = lender
        self._connection: Passage | None = None
        self._dialer = Dialer(loop, address, self._connected, key)
        self._dialer.dial()

    def __repr__(self) -> str:
        return f"<PassageLink to server{self.number} {'ready' if self.passage else f'waiting: {self.trouble}'}>"

    @property
    def trouble(self) -> str:
        """Why there is no connection, if there is none."""
        return self._dialer.trouble

    def cut(self, cut: bool) -> None:
        """Lose the connection and make no other until it is given back."""
        self._dialer.cut(cut, self._connection)

    def renew(self) -> None:
        """Begin afresh, of this side's own will: the server there drops what it has for this one."""
        self._hang_up()
        self._dialer.dial()

    def close(self) -> None:
        self._dialer.close()
        self._hang_up()

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self.passage = None

    def _connected(self, line: Line) -> None:
        sock, _ = parts(line)  # servers that hand sockets over are on one host
        self._connection = Passage(self._loop, sock, self._scratch, self._received, self._gone, self._lender)
        self._connection.send(Order(HELLO, client=self._own_number))

    def _received(self, passage: Passage, orders: list[Order]) -> None:
        if self.passage is None and orders[0].kind == WELCOME:
            del orders[0]
            self._dialer.reached()
            self.passage = passage
            self._joined(self)
        if orders:
            self._answered(self, orders)

    def _gone(self, _passage: Passage, reason: str) -> None:
        was_ready, self.passage, self._connection = self.passage is not None, None, None
        self._dialer.lost(reason or "closed by the server")
        if was_ready:
            self._lost_it(self)
