"""What goes between simulated processes, as messages about requests: who sent what to whom, and when it came.

Watches sockets where that is asked for (`World.tap`), and reads there what the protocol says: NBD's requests and
replies, orders that servers hand over. Whatever else is sent (handshakes, logs, a supervisor's words) is left out. It
counts on sends that go through whole, as they do in a calm world.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from memcluster.node.handover import messages as handover
from memcluster.node.layout import Layout
from memcluster.node.nbd import wire
from memcluster.node.nbd.wire import Command
from memcluster.simulator.streams import Stream
from memcluster.simulator.world import World

REQUEST, ORDER, ANSWER, DONE = "request", "order", "answer", "done"
Name = Callable[[str, int], str]
"""Which request a command that begins at an address of the whole memory is of; "" if nobody's."""


@dataclass
class Message:
    """One message about the request `name`. Times are the world's, ns; -1: it never came."""

    kind: str
    name: str
    words: str
    sender: str
    sent: int
    receiver: str = ""
    received: int = -1


@dataclass
class _Way:
    """One direction of a connection: how far it was read, and what is on its way."""

    sent: int = 0
    taken: int = 0
    under_way: list[tuple[int, Message]] = field(default_factory=list)


class Messages:
    """`servers` has the addresses of the servers' sockets, by number; `name` knows the requests."""

    def __init__(self, world: World, layout: Layout, servers: dict[Any, int], name: Name) -> None:
        self.world = world
        self.layout = layout
        self.servers = servers
        self.name = name
        self.all: list[Message] = []
        self._ways: dict[Stream, _Way] = {}
        self._asked: dict[tuple[frozenset[Stream | None], int], tuple[str, str, int]] = {}
        self._orders: dict[int, str] = {}

    # -- the tap -----------------------------------------------------------------------------------------------------

    def sent(self, process: str, stream: Stream, data: bytes) -> None:
        way = self._ways.setdefault(stream, _Way())
        for start, kind, name, words in self._read(stream, data):
            message = Message(kind, name, words, process, self.world.now)
            self.all.append(message)
            way.under_way.append((way.sent + start, message))
        way.sent += len(data)

    def received(self, process: str, stream: Stream, count: int) -> None:
        way = self._ways.get(stream.peer) if stream.peer is not None else None
        if way is None:
            return
        way.taken += count
        while way.under_way and way.under_way[0][0] < way.taken:
            message = way.under_way.pop(0)[1]
            message.receiver, message.received = process, self.world.now

    # -- what it says ------------------------------------------------------------------------------------------------

    def _read(self, stream: Stream, data: bytes) -> Iterator[tuple[int, str, str, str]]:
        """Of each message where it begins, its kind, the request, and words."""
        peer = stream.peer
        if stream.family == socket.AF_INET:
            server = self.servers.get(peer.name if peer is not None else None)
            yield from self._read_nbd(frozenset((stream, peer)), server, data)
        elif stream.name or (peer is not None and peer.name):
            yield from self._read_orders(data)

    def _read_nbd(
        self, connection: frozenset[Stream | None], server: int | None, data: bytes
    ) -> Iterator[tuple[int, str, str, str]]:
        at = 0
        while at + 16 <= len(data):
            magic, begin = int.from_bytes(data[at : at + 4], "big"), at
            if magic in (wire.REQUEST_MAGIC, wire.EXTENDED_REQUEST_MAGIC):
                form = wire.REQUEST if magic == wire.REQUEST_MAGIC else wire.EXTENDED_REQUEST
                _, flags, code, cookie, offset, length = form.unpack_from(data, at)
                at += form.size
                if code == Command.WRITE or flags & wire.CommandFlag.PAYLOAD_LEN:
                    at += length
                if server is None or code not in _CODES:
                    continue
                command = Command(code).name
                name = self.name(command, self.layout.address(server, offset) if length else 0)
                self._asked[connection, cookie] = name, command, length
                if name:
                    yield begin, REQUEST, name, f"{command} {name}"
            elif magic == wire.SIMPLE_REPLY_MAGIC:
                _, error, cookie = wire.SIMPLE_REPLY.unpack_from(data, at)
                name, command, length = self._asked.get((connection, cookie), ("", "", 0))
                at += wire.SIMPLE_REPLY.size + (length if command == "READ" and not error else 0)
                if name:
                    yield begin, ANSWER, name, _answer(name, command, error)
            elif magic in (wire.CHUNK_MAGIC, wire.EXTENDED_CHUNK_MAGIC):
                form = wire.CHUNK if magic == wire.CHUNK_MAGIC else wire.EXTENDED_CHUNK
                fields = form.unpack_from(data, at)
                kind, cookie, length = fields[2], fields[3], fields[-1]
                name, command, _ = self._asked.get((connection, cookie), ("", "", 0))
                error = int.from_bytes(data[at + form.size : at + form.size + 4], "big") if kind >> 15 else 0
                at += form.size + length
                if name and fields[1] & 1:  # the last chunk of a reply
                    yield begin, ANSWER, name, _answer(name, command, error)
            else:
                return

    def _read_orders(self, data: bytes) -> Iterator[tuple[int, str, str, str]]:
        at = 0
        while at + handover.HEADER.size <= len(data):
            fields = handover.HEADER.unpack_from(data, at)
            kind, command, identifier, offset, length, payload = (fields[index] for index in (0, 1, 6, 8, 10, 12))
            begin, at = at, at + handover.HEADER.size
            body = data[at : at + payload]
            at += payload
            if kind == handover.ORDER and command in _CODES:
                name = self.name(Command(command).name, offset if length else 0)
                self._orders[identifier] = name
                if name:
                    yield begin, ORDER, name, f"{Command(command).name} {name}, to answer"
            elif kind == handover.DONE:
                for (done,) in handover.IDENTIFIER.iter_unpack(body):
                    if name := self._orders.get(done, ""):
                        yield begin, DONE, name, f"{name} is done"


_CODES = {int(command) for command in Command}


def _answer(name: str, command: str, error: int) -> str:
    if error:
        return f"{name}: error {error}"
    return f"{name}: bytes" if command == "READ" else f"{name}: ok"
