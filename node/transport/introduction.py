"""A handshake within the cluster (proof.py) on a socket and the loop, and, on the side that is connected to, the places
for those who have not proved themselves yet: anybody can take one of these, and nobody keeps it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection

from memcluster.node.transport.address import Address
from memcluster.node.transport.loop import READ, Loop
from memcluster.node.transport.proof import NONCE_SIZE, Opener, Pass, ProofError, Server, Side, Who
from memcluster.node.transport.tcp import connecting

PLACES = 256
"""Connections in their handshake, at most. The oldest makes way for the next: one of ours answers within a turn or two
of the loop, in which 64 are accepted each, so strangers cannot keep it out by being many."""
PATIENCE = 5.0
"""Seconds that a handshake may take."""


class Introduction:
    """One connection's handshake: calls `over(reason)` once, with the socket given up if there is a reason, else with
    the socket, from which not a byte too much was read, left in `sock` for its owner."""

    def __init__(self, loop: Loop, sock: socket.socket, side: Side, over: Callable[[str], None]) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.side = side
        self._loop = loop
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
        if self._send() and not self.side.needs:
            self._end()
            self._over("")

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
    loop: Loop, address: Address, key: Pass, met: Callable[[socket.socket], None], failed: Callable[[str], None]
) -> Introduction:
    """Connect to the node of `key` at `address`, and prove oneself there: `met` gets the socket when both sides have,
    `failed` the reason if that is not to be. Raises OSError."""

    def over(reason: str) -> None:
        if reason:
            failed(reason)
        else:
            met(introduction.sock)

    sock = connecting(loop.system, address)
    introduction = Introduction(loop, sock, Opener(key, loop.system.random(NONCE_SIZE)), over)
    return introduction


class Doorkeeper:
    """Lets only those in at the node of this name who know the secret and are one of `admits`: `admitted(sock, who)`.
    Of the others `turned_away(reason)` is told."""

    def __init__(
        self,
        loop: Loop,
        secret: bytes,
        node: str,
        admits: Collection[Who],
        admitted: Callable[[socket.socket, Who], None],
        turned_away: Callable[[str], None],
    ) -> None:
        self._loop = loop
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
        side = Server(self._secret, self._node, self._loop.system.random(NONCE_SIZE))
        introduction = Introduction(self._loop, sock, side, lambda reason: self._over(introduction, side, reason))
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
            self._admitted(introduction.sock, side.who)
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
