"""A handshake within the cluster (proof.py) on a socket and the loop, and, on the side that is connected to, the places
for those who have not proved themselves yet: anybody can take one of these, and nobody keeps it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from memcluster.node.transport.address import Address
from memcluster.node.transport.loop import READ, Loop
from memcluster.node.transport.proof import NONCE_SIZE, Opener, Pass, ProofError, Server, Side, Who
from memcluster.node.transport.stream import Line
from memcluster.node.transport.tcp import connecting, make_far

if TYPE_CHECKING:
    import ssl

    from memcluster.node.tls.secured import Secured  # else it would load OpenSSL

PLACES = 256
"""Connections in their handshake, at most. The oldest makes way for the next: one of ours answers within a turn or two
of the loop, in which 64 are accepted each, so strangers cannot keep it out by being many."""
PATIENCE = 5.0
"""Seconds that a handshake may take."""


class Introduction:
    """One connection's handshake: calls `over(reason)` once, with the socket given up if there is a reason, else with
    the socket, from which not a byte too much was read, left in `line` for its owner. With a context of `tls` that of
    TLS follows the proof, and the owner gets a line with TLS on it. (What goes before tells nobody anything, and who
    stands between the two has no certificate that either would take.)"""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        side: Side,
        over: Callable[[str], None],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.line: Line = sock
        self.side = side
        self._loop = loop
        self._tls = tls
        self._secured: Secured | None = None
        self._over = over
        self._open = True
        loop.watch(sock, READ, self._ready)

    def begin(self) -> None:
        """Say the first word, if it is this side's; `over` may be called."""
        self._send()

    def lose(self, reason: str) -> None:
        """Give it up."""
        if self._open:
            self._end()
            self.sock.close()
            self._over(reason)

    def close(self) -> None:
        """Give it up, and say nothing."""
        if self._open:
            self._end()
            self.sock.close()

    def _end(self) -> None:
        self._open = False
        self._loop.unwatch(self.sock)

    def _ready(self, _mask: int) -> None:
        if self._secured is not None:
            self._shake_hands(self._secured)
            return
        try:
            data = self.sock.recv(self.side.needs)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.lose(error.strerror or "receive failed")
            return
        if not data:
            self.lose("hung up")
            return
        try:
            self.side.received(data)
        except ProofError as error:
            self.lose(str(error))
            return
        if not self._send() or self.side.needs:
            return
        if self._tls is None:
            self._end()
            self._over("")
        else:
            self._secure(self._tls)

    def _secure(self, tls: ssl.SSLContext) -> None:
        """The one that has connected begins."""
        from memcluster.node.tls.layer import Layer, TLSError
        from memcluster.node.tls.secured import Secured

        serves = isinstance(self.side, Server)
        self.line = self._secured = Secured(self.sock, Layer(tls, server=serves))
        if not serves:
            try:
                self._secured.shake_hands()
            except TLSError as error:
                self.lose(error.message)

    def _shake_hands(self, secured: Secured) -> None:
        try:
            if not secured.receive():
                self.lose("hung up")
            elif secured.shake_hands():
                self._end()
                self._over("")
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:  # of TLS, too
            self.lose(error.strerror or "receive failed")

    def _send(self) -> bool:
        """So few bytes go into an empty socket whole, or not at all."""
        data, self.side.outgoing = self.side.outgoing, b""
        try:
            sent = self.sock.send(data) if data else 0
        except OSError as error:
            self.lose(error.strerror or "send failed")
            return False
        if sent < len(data):
            self.lose("takes nothing")
        return self._open


def introduce(
    loop: Loop, address: Address, key: Pass, met: Callable[[Line], None], failed: Callable[[str], None]
) -> Introduction:
    """Connect to the node of `key` at `address`, and prove oneself there: `met` gets the line when both sides have,
    `failed` the reason if that is not to be. Raises OSError."""

    def over(reason: str) -> None:
        if reason:
            failed(reason)
        else:
            met(introduction.line)

    sock = connecting(loop.system, address, far=key.far)
    introduction = Introduction(loop, sock, Opener(key, loop.system.random(NONCE_SIZE)), over, key.tls)
    return introduction


class Doorkeeper:
    """Lets only those in at the node of this name who know the secret and are one of `admits`: `admitted(sock, who)`.
    Of the others `turned_away(reason)` is told. Those who come from other hosts (`far`) have TLS, with the context of
    `tls`."""

    def __init__(
        self,
        loop: Loop,
        secret: bytes,
        node: str,
        admits: Collection[Who],
        admitted: Callable[[Line, Who], None],
        turned_away: Callable[[str], None],
        *,
        tls: ssl.SSLContext | None = None,
        far: bool = False,
    ) -> None:
        self._loop = loop
        self._tls = tls
        self._far = far
        self._secret = secret
        self._node = node
        self._admits = admits
        self._admitted = admitted
        self._turned_away = turned_away
        self._waiting: dict[Introduction, float] = {}  # and since when, the first to come first
        self._watches = False

    def __repr__(self) -> str:
        return f"<Doorkeeper of {self._node}, {len(self._waiting)} at the door>"

    def take(self, sock: socket.socket) -> None:
        """Somebody has connected."""
        if len(self._waiting) >= PLACES:
            next(iter(self._waiting)).lose(f"no proof, and {PLACES} others came after it")
        if self._far:
            make_far(sock)
        side = Server(self._secret, self._node, self._loop.system.random(NONCE_SIZE))
        introduction = Introduction(
            self._loop, sock, side, lambda reason: self._over(introduction, side, reason), self._tls
        )
        self._waiting[introduction] = self._loop.awake()
        introduction.begin()
        if not self._watches:
            self._watch()

    def close(self) -> None:
        """Nobody at the door is let in any more."""
        waiting, self._waiting = self._waiting, {}
        for introduction in waiting:
            introduction.close()

    def _over(self, introduction: Introduction, side: Server, reason: str) -> None:
        del self._waiting[introduction]
        if not reason and side.who in self._admits:
            assert side.who is not None
            self._admitted(introduction.line, side.who)
            return
        if not reason:
            introduction.sock.close()
            reason = f"{self._node} has nothing to say to a {side.who!r}"
        self._turned_away(reason)

    def _watch(self) -> None:
        """One timer for all."""
        since = self._loop.awake() - PATIENCE
        for late in [one for one, came in self._waiting.items() if came <= since]:
            late.lose(f"no proof in {PATIENCE:g} s")
        self._watches = bool(self._waiting)
        if self._waiting:
            self._loop.after(PATIENCE / 4, self._watch)
