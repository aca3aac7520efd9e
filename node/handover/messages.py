"""The messages by which one server passes clients' requests on to another that answers them. No I/O.

Forward go: HELLO from the one who passes on; ADOPT with a client's socket beside it (SCM_RIGHTS), DROP when the client
is gone; ORDER, a request, with the bytes of a write or those that a read has gathered so far. Back come WELCOME when
orders may come, DONE with the identifiers of orders that are answered, DATA with what an order asked to be sent back,
DROPPED, and LOST if a client's stream cannot be used any more. All have the same header; a payload may follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import IntEnum
from struct import Struct
from typing import Final

from memcluster.node.native import mypyc_attr
from memcluster.node.nbd.replies import Asked
from memcluster.node.nbd.server import REQUEST_COST, cost_of
from memcluster.node.nbd.wire import MAX_PAYLOAD

HEADER: Final = Struct(">BxHHHIIQQQQQQI")
"""kind, command, flags, error, client, ticket, identifier, cookie, offset, start, length, sent, payload bytes."""
_pack: Final = HEADER.pack
_Fields = tuple[int, int, int, int, int, int, int, int, int, int, int, int, int]
IDENTIFIER: Final = Struct(">Q")
EXTENT: Final = Struct(">QQ")
"""Length and status, in the payload of an order; a chain puts a server's number and how many follow before them."""
LONGEST: Final = MAX_PAYLOAD
"""Bytes of a payload, at most."""


class HandoverError(Exception):
    """The other side does not keep to this; the connection cannot go on."""


class Message(IntEnum):
    HELLO = 1  # client: the number of the server that passes on
    WELCOME = 2
    ADOPT = 3  # client, ticket: its gate, flags: the Terms agreed on with it
    DROP = 4  # client
    DROPPED = 5  # client
    ORDER = 6
    DONE = 7  # payload: identifiers
    DATA = 8  # identifier, error; payload: the bytes, or why not
    LOST = 9  # client


# Plain numbers for the data path: looking up a member of an enum costs 65 ns (Python 3.11).
HELLO: Final = int(Message.HELLO)
WELCOME: Final = int(Message.WELCOME)
ADOPT: Final = int(Message.ADOPT)
DROP: Final = int(Message.DROP)
DROPPED: Final = int(Message.DROPPED)
ORDER: Final = int(Message.ORDER)
DONE: Final = int(Message.DONE)
DATA: Final = int(Message.DATA)
LOST: Final = int(Message.LOST)


class Order(Asked):
    """A message. Plain slots: this is the data path.

    Of an ORDER `offset` and `length` are the request's in the memory, `start` when it was taken (ns), `client` the
    number of its client, `sent` when it left (by the monotonic clock, which both sides share); with an `error` that
    happened on the way the payload says why (`message`). `ticket` counts the pieces of a request that several servers
    answer (see gates.py). `owned` means that the payload does not lie in the receive buffer.
    """

    __slots__ = (
        "client", "error", "identifier", "kind", "message", "owned", "payload", "sent", "start", "ticket",
    )  # fmt: skip

    def __init__(
        self,
        kind: int,
        command: int = 0,
        flags: int = 0,
        error: int = 0,
        client: int = 0,
        ticket: int = 0,
        identifier: int = 0,
        cookie: int = 0,
        offset: int = 0,
        start: int = 0,
        length: int = 0,
        sent: int = 0,
    ) -> None:
        self.kind = kind
        self.command = command
        self.flags = flags
        self.error = error
        self.client = client
        self.ticket = ticket
        self.identifier = identifier
        self.cookie = cookie
        self.offset = offset
        self.start = start
        self.length = length
        self.sent = sent
        self.payload: memoryview = _NOTHING
        self.owned = False
        self.message = ""

    def fail(self, error: int, message: str) -> None:
        """It went wrong here."""
        self.error = error
        self.message = message

    def read_message(self) -> None:
        """Take the reason of the error out of the payload."""
        self.message, self.payload = bytes(self.payload).decode(errors="replace"), _NOTHING

    def __repr__(self) -> str:
        return f"<{Message(self.kind).name} client {self.client} {self.identifier:#x} +{len(self.payload)}>"

    def encode(self, payload: int = 0) -> bytes:
        """The header, for so many bytes of payload."""
        return _pack(
            self.kind, self.command, self.flags, self.error, self.client, self.ticket,
            self.identifier, self.cookie, self.offset, self.start, self.length, self.sent, payload,
        )  # fmt: skip


_NOTHING: Final = memoryview(b"")
SEND_BACK: Final = 1 << 14
"""A flag of an order beside the request's own: the bytes are to come back as DATA, and not to go to the client."""


def encode_done(identifiers: Iterable[int]) -> bytes:
    """One message for many orders."""
    body = b"".join(map(IDENTIFIER.pack, identifiers))
    return Order(DONE).encode(len(body)) + body


def decode_done(order: Order) -> list[int]:
    """Raises HandoverError."""
    if len(order.payload) % IDENTIFIER.size:
        raise HandoverError(f"{len(order.payload)} bytes of identifiers")
    return [identifier for (identifier,) in IDENTIFIER.iter_unpack(order.payload)]


UNBOUNDED: Final = 1 << 62


def fresh(length: int) -> memoryview:
    """Memory for a payload, made for it alone."""
    return memoryview(bytearray(length))


@mypyc_attr(allow_interpreted_subclasses=True)
class OrderReader:
    """Bytes in, messages out; the same calls as an NBD session's (see nbd/server.py).

    `room(length)` is asked for the memory that shall receive a payload which is not complete in the receive buffer.
    """

    def __init__(self, scratch: memoryview, room: Callable[[int], memoryview]) -> None:
        self._scratch = scratch
        self._room = room
        self._rest = b""
        self._end = 0
        self._sink: memoryview | None = None
        self._sunk = 0
        self._receiving: Order | None = None
        self.waiting = False
        """Messages are parked."""

    def receive_buffer(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        if self._sink is not None:
            return self._sink[self._sunk :]
        rest = self._rest
        self._end = len(rest)
        if rest:
            self._scratch[: len(rest)] = rest  # and kept: who finds nothing to receive asks again
        return self._scratch[self._end :]

    def received(self, count: int, budget: int = UNBOUNDED) -> list[Order]:
        """The messages that are complete after `count` more bytes; when they are worth `budget`, others are left, and
        `waiting` is true: the next call, after `receive_buffer`, goes on with no bytes. Raises HandoverError."""
        self.waiting = False
        if self._sink is not None:
            self._sunk += count
            if self._sunk < len(self._sink):
                return []
            assert self._receiving is not None
            order, self._receiving, self._sink = self._receiving, None, None
            return [order]
        self._end += count
        orders: list[Order] = []
        position = self._parse(orders, budget)
        self._rest = bytes(self._scratch[position : self._end])
        return orders

    def _parse(self, orders: list[Order], budget: int) -> int:
        position, end, scratch = 0, self._end, self._scratch
        unpack, header = HEADER.unpack_from, HEADER.size
        while end - position >= header:
            fields: _Fields = unpack(scratch, position)
            (
                kind, command, flags, error, client, ticket, identifier, cookie, offset, started, asked, sent, length
            ) = fields  # fmt: skip
            if not HELLO <= kind <= LOST or length > LONGEST:
                raise HandoverError(f"a message of kind {kind} with {length} bytes")
            if budget <= 0:
                self.waiting = True
                break
            order = Order(kind, command, flags, error, client, ticket, identifier, cookie, offset, started, asked, sent)
            budget -= REQUEST_COST + cost_of(order.command, order.flags, order.length)
            start = position + header
            if length:
                here = end - start
                if here < length:
                    if length + header <= len(scratch) >> 2:
                        break  # small: wait for the rest of it here
                    sink = self._room(length)
                    sink[:here] = scratch[start:end]
                    order.payload, order.owned = sink, True
                    self._sink, self._sunk, self._receiving = sink, here, order
                    return end
                order.payload = scratch[start : start + length]
            orders.append(order)
            position = start + length
        return position
