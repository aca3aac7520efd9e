"""How a process comes to a server that may go and come back: it connects, and connects again with growing pauses.

It makes sockets and knows no protocol: who gets them says whether the server has answered there. To a node of the
cluster it proves itself first, and has it prove itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from memcluster.node.transport.address import Address
from memcluster.node.transport.introduction import Introduction, introduce
from memcluster.node.transport.loop import Loop, Timer
from memcluster.node.transport.proof import Pass
from memcluster.node.transport.stream import Line
from memcluster.node.transport.tcp import connecting

RECONNECT_AT_MOST = 0.5
"""Seconds between two attempts to connect, at most."""


class Connection(Protocol):
    """What the owner has made of a socket."""

    def lose(self, reason: str) -> None:
        """End it, and say `lost`."""


class Dialer:
    """`connected(line)` gets each socket on its way to `address`, one at a time; the owner says `reached` when there is
    an answer, and `lost` when the connection is gone."""

    def __init__(
        self, loop: Loop, address: Address, connected: Callable[[Line], None], key: Pass | None = None
    ) -> None:
        """`key` is for the door of a node; none where clients come in."""
        self.address = address
        self.trouble = "not yet connected"
        """Why there is no connection, if there is none."""
        self._loop = loop
        self._connected = connected
        self._key = key
        self._introduction: Introduction | None = None
        self._attempts = 0
        self._cut = self._closed = False
        self._again: Timer | None = None

    def dial(self) -> None:
        """Connect now, unless cut or closed; there must be no connection."""
        self._hang_up()
        if self._cut or self._closed:
            return
        try:
            if self._key is not None:
                self._introduction = introduce(self._loop, self.address, self._key, self._met, self.lost)
                return
            sock = connecting(self._loop.system, self.address)
        except OSError as error:  # no descriptors left, perhaps: there may be one the next time
            self.lost(error.strerror or str(error))
            return
        self._connected(sock)

    def reached(self) -> None:
        """The server has answered: the next failure is the first again."""
        self._attempts = 0
        self.trouble = ""

    def lost(self, reason: str) -> None:
        """The connection is gone: make another, at once the first time."""
        self._introduction = None
        self.trouble = f"{self.address}: {reason}"
        self._again = self._loop.after(pause_before(self._attempts), self.dial)
        self._attempts += 1

    def cut(self, cut: bool, connection: Connection | None) -> None:
        """Lose `connection`, if there is one, and make no other until it is given back."""
        self._cut = cut
        if cut and connection is not None:
            connection.lose("cut by a fault")
        elif cut:
            self._hang_up()
            self.trouble = f"{self.address}: cut by a fault"
        elif connection is None:
            self.dial()

    def close(self) -> None:
        """Connect never again."""
        self._closed = True
        self._hang_up()

    def _met(self, line: Line) -> None:
        self._introduction = None
        self._connected(line)

    def _hang_up(self) -> None:
        """Give up what is on its way, and what is due."""
        if self._again is not None:
            self._again.cancel()
        if self._introduction is not None:
            self._introduction.close()
            self._introduction = None


def pause_before(attempt: int) -> float:
    """Seconds until the next attempt to connect when so many have failed; the first follows at once."""
    return min(RECONNECT_AT_MOST, 0.01 * ((1 << min(attempt, 10)) - 1))
