"""A non-blocking stream socket on the loop: gathered sends, and back-pressure by what it asks the loop to watch.

The base of everything that talks: a client's connection, a link between nodes, a channel of frames. It knows no
protocol. What a subclass adds is `_readable` (take bytes), `_lost` (the other side is gone) and `wants_read`.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol, Union, cast

from memcluster.node.native import mypyc_attr
from memcluster.node.nbd.wire import Buffer
from memcluster.node.transport.loop import READ, WRITE, Loop
from memcluster.node.transport.traffic import TRAFFIC

if TYPE_CHECKING:
    from memcluster.node.tls.secured import Secured  # else it would load OpenSSL

IOV_MAX: Final = 1024
"""Buffers in one sendmsg, at most (Linux)."""
SHARE = 512 << 10
"""Bytes that a stream sends in one turn, at most, if it takes turns with others: beside a client that streams 1 MiB
reads, 99 of 100 single reads are answered in 0.3 ms instead of 1.0. A client by itself is 1.2 times as fast without."""
WAKE_AT: Final = 128 << 10
"""Bytes of a large payload that the loop is woken for: each wake-up is a call, and an interrupt for whoever sends. A
client streams writes of 1 MiB at 6.4 GB/s instead of 4.8; with half of this, or four times of it, at 5."""
RECORD_HELD: Final = 1 << 15
"""More than a record of TLS: what may have come of one that is not all there."""


class Lender(Protocol):
    """Whose bytes are sent as views of them, and may change; it calls `settle` of its readers before they do."""

    readers: set[Stream]


class Carrier(Protocol):
    """What bytes go through: the socket, or TLS on it."""

    def recv_into(self, buffer: memoryview, /) -> int: ...
    def sendmsg(self, buffers: Sequence[Buffer], /) -> int: ...


Line = Union[socket.socket, "Secured"]
"""A connection as its owner gets it: a socket, or one with TLS on it already."""


def parts(line: Line) -> tuple[socket.socket, Secured | None]:
    """The socket, and the TLS on it if any, which is told by its layer: what a simulation has is no socket.socket."""
    if not hasattr(line, "layer"):
        return line, None
    secured = cast("Secured", line)
    return secured.sock, secured


@mypyc_attr(allow_interpreted_subclasses=True)
class Stream:
    """`outgoing` is filled by the owner, `send_soon` sends it at the end of the turn, `flush` now.

    `queued` is the number of bytes that the socket did not take at the last flush.
    """

    def __init__(self, loop: Loop, line: Line, outgoing: list[Buffer]) -> None:
        sock, secured = parts(line)
        sock.setblocking(False)
        self.loop = loop
        self.sock = sock
        self.outgoing = outgoing
        self.queued = 0
        self.open = True
        self.sent = 0
        """Bytes sent so far: whether a slow reader reads at all."""
        self._mask = 0
        self.wakes_at = 1
        """Bytes that the loop is woken for (SO_RCVLOWAT)."""
        self.lender: Lender | None = None
        """Of what is sent, where that is not this stream's own."""
        self.secured = secured
        """What bytes go through instead of the socket, once there is TLS on it."""
        self.carrier: Carrier = line
        self._comes_again = False
        self._flush_is_due = False
        self._on_ready = self._ready  # one bound method, so that the loop sees the same handler each time

    # -- what a subclass says ----------------------------------------------------------------------------------------

    @property
    def wants_read(self) -> bool:
        """Whether more bytes are welcome; false is back-pressure, from the next `update` on."""
        return True

    @property
    def takes_turns(self) -> bool:
        """Whether others may be waiting while this stream sends."""
        return False

    def _readable(self) -> None:
        raise NotImplementedError

    def _lost(self, reason: str) -> None:
        """The connection cannot be used any more; must close it."""
        raise NotImplementedError

    def _flushed(self) -> None:
        """The socket has taken what it could; `queued` is what is left."""

    def _failed(self, error: OSError) -> None:
        """The system could not receive or send."""
        self._lost(error.strerror or "receive or send failed")

    # -- sending -----------------------------------------------------------------------------------------------------

    def send_soon(self) -> None:
        """Send what is outgoing when this turn of the loop ends."""
        if not self._flush_is_due:
            self._flush_is_due = True
            if self.loop.lag:
                self.loop.hold_up(self.flush)
            else:
                self.loop.soon(self.flush)

    def flush(self) -> None:
        """Send as much as the socket takes, in as few calls as can be."""
        self._flush_is_due = False
        if not self.open:
            self.outgoing.clear()
            return
        outgoing = self.outgoing
        queued = 0
        for buffer in outgoing:
            queued += len(buffer)
        left = SHARE if queued > SHARE and self.takes_turns else queued
        while left > 0:
            whole = len(outgoing) <= IOV_MAX
            buffers = outgoing if whole else outgoing[:IOV_MAX]
            try:
                sent = self.carrier.sendmsg(buffers if left == queued else head(buffers, left))
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._failed(error)
                return
            self.sent += sent
            TRAFFIC.sent += sent
            queued -= sent
            left -= sent
            if not queued:
                outgoing.clear()
            elif drop(outgoing, sent) or whole:
                break  # the socket is full
        self.queued = queued
        self._flushed()
        self.update()

    def settle(self) -> None:
        """What is queued of a buffer of which a part has been sent stays as it is now."""
        if self.queued and self.outgoing and isinstance(self.outgoing[0], memoryview):
            self.outgoing[0] = self.outgoing[0].tobytes()

    def keep(self, lent: object = None) -> None:
        """What is outgoing of this memory, or of any, stays as it is now."""
        outgoing = self.outgoing
        for index, buffer in enumerate(outgoing):
            if isinstance(buffer, memoryview) and (lent is None or buffer.obj is lent):
                outgoing[index] = buffer.tobytes()

    # -- receiving -------------------------------------------------------------------------------------------------

    def receive(self, most: int) -> bytes | None:
        """What has come; none at all (b"") from a side that is gone, None if there is nothing yet."""
        try:
            if self.secured is None:
                return self.sock.recv(most)
            buffer = memoryview(bytearray(most))
            count = self.secured.recv_into(buffer)  # not within the slice: mypyc 2.4 would do it twice
            return bytes(buffer[:count])
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return b""

    def expect(self, count: int) -> None:
        """So many bytes of a large payload are still to come; 0: whatever comes next is to be looked at at once."""
        if self.secured is not None:  # which has some of them, up to a record that is not all there
            count = max(0, count - RECORD_HELD)
        wake_at = min(count, WAKE_AT) or 1
        if wake_at != self.wakes_at:
            self.wakes_at = wake_at
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wake_at)

    # -- the loop ----------------------------------------------------------------------------------------------------

    def update(self) -> None:
        """Tell the loop what to watch for now."""
        if not self.open:
            return
        mask = READ if self.wants_read else 0
        if self.secured is not None and mask and self.secured.more and not self._comes_again:
            self._comes_again = True
            self.loop.soon(self._come_again)
        if self.queued:
            mask |= WRITE
            if self.lender is not None:
                self.lender.readers.add(self)
        if mask != self._mask:
            self._mask = mask
            self.loop.watch(self.sock, mask, self._on_ready)

    def _come_again(self) -> None:
        """TLS has bytes of which the loop knows nothing."""
        self._comes_again = False
        if self.open and self.wants_read:
            self._readable()
            self.update()

    def _ready(self, mask: int) -> None:
        if mask & WRITE:
            self.flush()
        if mask & READ and self.open:
            self._readable()
            if self.secured is not None:  # which may have more than was taken
                self.update()

    def end_sending(self) -> None:
        """Say that nothing more will be sent; all that was to be has been. Raises OSError."""
        if self.secured is not None:
            self.secured.end()
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket now; what is still queued is lost."""
        if self.open:
            self.open = False
            self.loop.unwatch(self.sock)
            self.sock.close()
            self.outgoing.clear()
            if self.lender is not None:
                self.lender.readers.discard(self)


def head(buffers: list[Buffer], count: int) -> list[Buffer]:
    """The first `count` bytes of the list, or all that it has."""
    first: list[Buffer] = []
    for buffer in buffers:
        if count <= len(buffer):
            first.append(memoryview(buffer)[:count])
            break
        first.append(buffer)
        count -= len(buffer)
    return first


def drop(buffers: list[Buffer], count: int) -> bool:
    """Take the first `count` bytes off the list; true if that ends within a buffer."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            del buffers[:index]
            if count:
                buffers[0] = memoryview(buffer)[count:]
            return bool(count)
        count -= len(buffer)
    buffers.clear()
    return False
