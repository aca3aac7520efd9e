"""Simulated streams: both ends of a connection, and who listens for one.

TCP has a buffer at either side, and the end of a stream comes behind what waits in the sender's; a unix socket has one.
All are of one host. How much of what could be sent or received is, their processes say (sockets.py).
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from memcluster.simulator.descriptions import ERR, HUP, IN, OUT, RDHUP, UNIX, Description, failure
from memcluster.simulator.world import World

Rights = list[Description]


class Stream(Description):
    """One end of a connection, or of one that is to be."""

    def __init__(self, world: World, family: int, name: Any = "", *, send_buffer: int, receive_buffer: int) -> None:
        super().__init__(world, family)
        self.name = name
        self.is_unix = family == UNIX
        self.peer: Stream | None = None
        self.send_buffer = send_buffer
        self.receive_buffer = receive_buffer
        self.inbox = bytearray()
        self.outbox = bytearray()
        self.wakes_at = 1
        self.under_way = False
        """It was to be connected, and nobody has asked yet whether it is."""
        self.error = 0
        self.reset = False
        """Nothing can be sent or will come any more."""
        self.ended = False
        """The other side's end has come."""
        self.finished = False
        """This side sends no more."""
        self.deaf = False
        """This side receives no more."""
        self.resets_at_close = False
        self.held = 0
        """How many faults hold up what goes between the two sides."""
        self._sent = self._taken = 0
        self._rights: deque[tuple[int, int, Rights]] = deque()  # where in the stream, to where, what

    # -- what it is ready for ----------------------------------------------------------------------------------------

    def ready(self, wanted: int) -> int:
        if self.peer is None and not self.reset:
            return wanted & (OUT | HUP) if self.is_unix else 0
        waiting = len(self.inbox)
        enough = waiting and (waiting >= self.wakes_at or self.is_unix or waiting >= self.receive_buffer)
        events = IN if enough else 0
        if self.ended or self.deaf or self.reset or self.finished or self.error:
            events |= self._ends()
        elif wanted & OUT and not self._is_crowded():
            events |= OUT
        return events & wanted

    def _ends(self) -> int:
        """What it is ready for as something of it is over."""
        events = 0
        if self.ended or self.deaf or self.reset:
            events |= IN | RDHUP
        if self.reset or ((self.ended or self.deaf) and self.finished):
            events |= HUP
        if self.error:
            events |= ERR
        if self.finished or self.reset or not self._is_crowded():
            events |= OUT
        return events

    def is_empty(self) -> bool:
        """Nothing that was sent waits."""
        return not self.outbox and (self.peer is None or not self.peer.inbox)

    def _room(self) -> int:
        if self.is_unix:
            return self.send_buffer - len(self.peer.inbox) if self.peer is not None else 0
        return self.send_buffer - len(self.outbox)

    def _is_crowded(self) -> bool:
        """There is too little room to be told of: less than a third, of a unix socket less than three quarters."""
        return self._room() * 4 < self.send_buffer * 3 if self.is_unix else self._room() * 3 < self.send_buffer

    # -- connecting --------------------------------------------------------------------------------------------------

    def connect(self, listener: Listener) -> bool:
        """Into the listener's backlog, if that has room."""
        if len(listener.backlog) > listener.limit:
            return False
        other = listener.make()
        self.peer, other.peer = other, self
        other.name = listener.name
        listener.backlog.append(other)
        other.hold()
        listener.changed()
        self.changed()
        return True

    def end_connecting(self) -> None:
        """It is connected. Raises OSError: EALREADY if it is still under way, or why it is not."""
        if self.peer is None and not self.reset:
            raise failure(errno.EALREADY)
        self.under_way = False
        if self.reset:
            error, self.error = self.error or errno.ECONNABORTED, 0
            raise failure(error)

    # -- sending -----------------------------------------------------------------------------------------------------

    def may_send(self) -> int:
        """Bytes that it takes. Raises OSError."""
        if self.error:
            error, self.error = self.error, 0
            raise failure(error)
        if self.finished or self.reset or (self.peer is not None and self.family == UNIX and self._is_deaf(self.peer)):
            raise failure(errno.EPIPE)
        if self.peer is None:
            raise failure(errno.EAGAIN if self.family != UNIX else errno.ENOTCONN)
        room = self._room()
        if room <= 0:
            raise failure(errno.EAGAIN)
        return room

    @staticmethod
    def _is_deaf(peer: Stream) -> bool:
        return peer.deaf or not peer.references

    def send(self, data: bytes, rights: Rights) -> None:
        """As much as there is room for."""
        peer = self.peer
        assert peer is not None
        if rights:
            for right in rights:
                right.hold()
            peer._rights.append((self._sent, self._sent + len(data), rights))
        self._sent += len(data)
        at_once = self.is_unix or len(data) <= peer.receive_buffer - len(peer.inbox)
        if at_once and peer.references and not (self.outbox or self.held):
            peer.inbox += data
            peer.changed()
        else:
            self.outbox += data
            self._move()

    def _move(self) -> None:
        """What waits in this side's buffer goes to the other's, as far as that has room; and the end behind it."""
        peer = self.peer
        if peer is None or self.held:
            return
        if self.outbox:
            if not peer.references and self.family != UNIX:
                self._refused()
                return
            room = len(self.outbox) if self.family == UNIX else peer.receive_buffer - len(peer.inbox)
            if room > 0:
                peer.inbox += self.outbox[:room]
                del self.outbox[:room]
                peer.changed()
        if self.finished and not self.outbox and not peer.ended:
            peer.ended = True
            peer.changed()

    def _refused(self) -> None:
        """Data came to a socket that nobody has any more: it answers with a reset."""
        self._break(errno.EPIPE if self.ended else errno.ECONNRESET)

    def _break(self, error: int) -> None:
        """A reset has come."""
        if not self.reset:
            self.reset = True
            self.error = error
            self.outbox.clear()
            self.changed()

    # -- receiving ---------------------------------------------------------------------------------------------------

    def may_receive(self) -> int:
        """Bytes that are there; 0 at the end. Raises OSError."""
        if self.inbox:
            return len(self.inbox)
        if self.ended and self.family != UNIX:
            return 0
        if self.error:
            error, self.error = self.error, 0
            raise failure(error)
        if self.ended or self.deaf or self.reset:
            return 0
        if self.peer is None and self.family == UNIX:
            raise failure(errno.EINVAL)
        raise failure(errno.EAGAIN)

    def receive(self, count: int) -> tuple[bytes, Rights]:
        """So many at most; not beyond a message that hands something over."""
        found: Rights = []
        if self._rights:
            start, end, rights = self._rights[0]
            if start < self._taken + count:
                count = min(count, end - self._taken)
                found = rights
                self._rights.popleft()
        peer = self.peer
        is_awaited = peer is not None and (peer.outbox or peer._is_crowded())
        data = bytes(self.inbox[:count])
        del self.inbox[:count]
        self._taken += count
        if peer is not None and is_awaited:
            peer._move()
            peer.changed()
        return data, found

    # -- ending ------------------------------------------------------------------------------------------------------

    def shut(self, how: int) -> None:
        """Raises OSError."""
        if self.peer is None or (self.reset and self.family != UNIX):
            raise failure(errno.ENOTCONN)
        if how in (socket.SHUT_WR, socket.SHUT_RDWR):
            self.finished = True
            self._move()
        if how in (socket.SHUT_RD, socket.SHUT_RDWR):
            self.deaf = True
            self.peer.changed()
        self.changed()

    def closed(self) -> None:
        peer = self.peer
        unread = bool(self.inbox)
        for _, _, rights in self._rights:
            for right in rights:
                right.release()
        self._rights.clear()
        if peer is None or self.reset or self.held:
            return
        if self.family == UNIX:
            peer.ended = peer.finished = True
            if unread or self.resets_at_close:
                peer.error = errno.ECONNRESET
            peer.changed()
        elif unread or self.resets_at_close:
            self.reset = True
            self.outbox.clear()
            peer._break(errno.EPIPE if peer.ended else errno.ECONNRESET)
        else:
            self.finished = True
            if peer.outbox:
                peer._refused()
            else:
                self._move()

    def let_go(self) -> None:
        """One of those who hold it up does no longer."""
        self.held -= 1
        if not self.held:
            if not self.references:
                self.closed()
            self._move()
            self.changed()

    def is_gone(self) -> bool:
        """As memcluster.node.transport.peer.is_gone has it."""
        events = self.ready(IN | RDHUP | HUP | ERR)
        if not events:
            return False
        if events & (HUP | ERR) or self.family == UNIX:
            return bool(events & (HUP | ERR))
        return self.peer is None or not (self.peer.references or self.held)


class Listener(Description):
    """A listening socket; `make` makes this side of a connection."""

    def __init__(self, world: World, family: int, name: Any, make: Callable[[], Stream], limit: int = 128) -> None:
        super().__init__(world, family)
        self.name = name
        self.make = make
        self.limit = limit
        self.backlog: deque[Stream] = deque()

    def ready(self, wanted: int) -> int:
        return wanted & IN if self.backlog else 0

    def closed(self) -> None:
        self.world.names.pop(self.name, None)
        for stream in self.backlog:
            stream.resets_at_close = True
            stream.release()
