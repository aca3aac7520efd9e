"""A link: the way from one node to a server. An NBD client on the loop that outlives its connections.

What is submitted stays in the table of what is in flight, payload and all, until its reply has come. When the
connection is lost the link makes a new one and sends the whole table again, in the order of the cookies, which grow:
every command may be repeated, and a server answers one connection in order, so a later overlapping write can never be
answered while an earlier one waits to be repeated. Only what is older than `retry_timeout` is given up, with EIO.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from time import monotonic_ns
from typing import Final, cast

from memcluster.node.forwarding.window import Window
from memcluster.node.log.record import REPEATED
from memcluster.node.native import mypyc_attr
from memcluster.node.nbd.client import Awaited, ClientSession, Reply
from memcluster.node.nbd.errors import NBDError
from memcluster.node.nbd.wire import BASE_ALLOCATION, Buffer, Error
from memcluster.node.serving.pool import Pool
from memcluster.node.transport.address import Address
from memcluster.node.transport.dialer import Dialer
from memcluster.node.transport.loop import Loop, Timer
from memcluster.node.transport.proof import Pass
from memcluster.node.transport.stream import Line, Stream
from memcluster.node.transport.tcp import tune
from memcluster.node.transport.traffic import TRAFFIC

SHUTDOWN: Final = int(Error.ESHUTDOWN)


@mypyc_attr(allow_interpreted_subclasses=True)
class Submission(Awaited):
    """A request in flight, with all that it takes to repeat it. It becomes its own reply, and is told so once, from the
    loop, by `answered`. The payload must stay as it is until then; `spans` say where it lies in the staging area, if it
    does. The `lender` has lent the bytes of a READ: whoever holds them must be known to it."""

    __slots__ = ("flags", "lender", "missed", "payload", "since", "spans")

    def __init__(
        self, command: int, cookie: int, offset: int, length: int, flags: int, payload: Sequence[Buffer], since: int
    ) -> None:
        """`since` is the time from which the link's `retry_timeout` counts, by the link's clock."""
        super().__init__(command, cookie, offset, length, None)
        self.flags = flags
        self.payload = payload
        self.since = since
        self.missed = 0  # by the loop, until then
        self.spans = b""
        self.lender: Window | None = None

    def wanted(self) -> bool:
        """Whether it may be sent again, or at last: not what a client asked for that is gone."""
        return True

    def answered(self) -> None:
        """The reply is complete."""
        raise NotImplementedError


class Link:
    """Submits requests to an export of the server at `address`; `ready(link)` is called at each connection."""

    def __init__(
        self,
        loop: Loop,
        address: Address,
        export: str,
        retry_timeout: float,
        scratch: memoryview,
        ready: Callable[[Link], None] = lambda _: None,
        pool: Pool | None = None,
        clock: Callable[[], int] = monotonic_ns,
        *,
        key: Pass | None = None,
        extended: bool = False,
        window: Window | None = None,
    ) -> None:
        """`key` is for a node's door, none where clients come in; `extended` headers are needed where a request may be
        longer than 32 bits can say; a `window` where the server's memory is to be shared."""
        self.loop = loop
        self.address = address
        self.export = export
        self.connections = 0
        """Times a connection was made."""
        self._retry_timeout = retry_timeout
        self._scratch = scratch
        self._ready = ready
        self._room = None if pool is None else pool.take
        self._clock = clock
        self._extended = extended
        self._far = key is not None and key.far
        self.window = window
        self._word = ""
        self._in_flight: dict[int, Submission] = {}
        self._wire: _Wire | None = None
        self._expiry: Timer | None = None
        self._dialer = Dialer(loop, address, self._connected, key)
        self._dialer.dial()

    def __repr__(self) -> str:
        state = "ready" if self.ready else f"waiting: {self.trouble}"
        return f"<Link to {self.address} {state}, {len(self._in_flight)} in flight>"

    @property
    def ready(self) -> bool:
        """There is a connection in the transmission phase."""
        return self._wire is not None and self._wire.session.ready

    @property
    def trouble(self) -> str:
        """Why there is no connection, if there is none."""
        return self._dialer.trouble

    def submit(self, request: Submission) -> None:
        """Send a request, now or when there is a connection; its cookie must not be in flight."""
        TRAFFIC.messages_out += 1
        request.missed = self.loop.missed
        self._in_flight[request.cookie] = request
        wire = self._wire
        if wire is not None and wire.session.ready:
            if self.window is None:
                wire.session.send(request, request.flags, request.payload)
            else:
                self.window.send(wire.session, request, request.flags)
            wire.send_soon()
        if self._expiry is None:
            self._expiry = self.loop.after(self._retry_timeout, self._expire)

    def close(self) -> None:
        """Say goodbye and stay closed; nothing may be in flight."""
        self._dialer.close()
        if self._expiry is not None:
            self._expiry.cancel()
        wire, self._wire = self._wire, None
        if wire is not None:
            if wire.session.ready:
                wire.session.disconnect()
                wire.flush()
            wire.close()
        if self.window is not None:
            self.window.close()

    def give_up_after(self, retry_timeout: float) -> None:
        """From now on, for what is in flight, too."""
        self._retry_timeout = retry_timeout
        if self._expiry is not None:
            self._expiry.cancel()
            self._expire()

    def cut(self, cut: bool) -> None:
        """Lose the connection and make no other until it is given back."""
        self._dialer.cut(cut, self._wire)

    # -- the connection's side ---------------------------------------------------------------------------------------

    def received(self, replies: list[Reply]) -> None:
        """Pass replies on. A server that is going down has not carried the request out: it stays in the table."""
        TRAFFIC.messages_in += len(replies)
        window = self.window
        for reply in cast(list[Submission], replies):  # they were submitted here
            if reply.error == SHUTDOWN:
                self._in_flight[reply.cookie] = reply
            elif window is None or window.answered(reply):
                reply.answered()
            else:
                self._ask_again(reply)

    def established(self, wire: _Wire) -> None:
        """A handshake is over: repeat what is in flight."""
        tune(wire.sock, far=self._far)
        self._dialer.reached()
        self.connections += 1
        window = self.window
        if window is not None:
            window.begin(agreed=self._word in wire.session.contexts.values())
        for sent in sorted(self._in_flight.values(), key=attrgetter("cookie")):
            if not sent.wanted():
                self._give_up(sent, "its client is gone")
                continue
            sent.reset()
            flags = sent.flags | REPEATED if self.connections > 1 else sent.flags
            if window is None:
                wire.session.send(sent, flags, sent.payload)
            else:
                window.send(wire.session, sent, flags)
        wire.send_soon()
        self._ready(self)

    def lost(self, reason: str) -> None:
        """The connection is gone: what is in flight waits for another."""
        self._wire = None
        if self.window is not None:
            self.window.lost()
        self._dialer.lost(reason)

    def _connected(self, line: Line) -> None:
        self._word = "" if self.window is None else self.window.word()
        session = ClientSession(
            self.export,
            scratch=self._scratch,
            room=self._room,
            extended=self._extended,
            contexts=(BASE_ALLOCATION, self._word) if self._word else (BASE_ALLOCATION,),
            awaited=cast(dict[int, Awaited], self._in_flight),  # it adds none of its own
        )
        self._wire = _Wire(self, line, session)

    def _expire(self) -> None:
        """Give up what has waited too long. Its late reply would be nobody's, so the connection goes with it."""
        limit = self._clock() - self.loop.missed - int(self._retry_timeout * 1e9)
        self._expiry = None
        late = [sent for sent in self._in_flight.values() if sent.since - sent.missed <= limit]
        if late:
            for sent in late:
                del self._in_flight[sent.cookie]
                if self.window is not None:
                    self.window.gave_up(sent)
            if self._wire is not None:
                self._wire.lose("no reply in time")
            message = f"no answer from {self.address} for {self._retry_timeout:g} s (retry_timeout)"
            for sent in late:
                self._give_up(sent, message)
        if self._in_flight and self._expiry is None:
            oldest = min(sent.since - sent.missed for sent in self._in_flight.values())
            self._expiry = self.loop.after((oldest - limit) / 1e9, self._expire)

    def _ask_again(self, request: Submission) -> None:
        """Bytes that are about to change cannot be taken where they are: they are to be sent. The server has done the
        same once before, so its record is a repetition's."""
        request.reset()
        request.in_place = False
        self._in_flight[request.cookie] = request
        wire = self._wire
        if wire is not None and wire.session.ready:
            wire.session.send(request, request.flags | REPEATED, ())
            wire.send_soon()

    def _give_up(self, sent: Submission, message: str) -> None:
        self._in_flight.pop(sent.cookie, None)
        sent.reset()
        sent.error, sent.message = int(Error.EIO), message
        sent.answered()


class _Wire(Stream):
    """One connection of a link."""

    def __init__(self, link: Link, line: Line, session: ClientSession) -> None:
        super().__init__(link.loop, line, session.outgoing)
        self.link = link
        self.session = session
        self.update()

    def _readable(self) -> None:
        session = self.session
        try:
            count = self.carrier.recv_into(session.receive_buffer())
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lost(error.strerror or "receive failed")
            return
        if not count:
            self._lost("closed by the server")
            return
        TRAFFIC.received += count
        was_ready = session.ready
        try:
            replies = session.received(count)
        except NBDError as error:
            self._lost(str(error))
            return
        if session.missing or self.wakes_at > 1:
            self.expect(session.missing)
        if session.ready and not was_ready:
            self.link.established(self)
        elif replies:
            self.link.received(replies)
        if self.open and session.outgoing:
            self.send_soon()

    def _lost(self, reason: str) -> None:
        if self.open:
            self.close()
            self.link.lost(reason)

    def lose(self, reason: str) -> None:
        """Give it up."""
        self._lost(reason)
