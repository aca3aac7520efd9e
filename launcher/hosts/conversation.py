"""What a supervisor and a guardian say to each other: JSON frames, whose order outlives the connections they travel on.

Each side numbers what it says and keeps it until the other has said how far it has heard; on a new connection it says
the rest again. So a link that is cut and comes back costs time, and no word. Beside the words go beats, which nobody
keeps: a sign of life, and the way by which what was heard is acknowledged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from memcluster.node.transport.channel import Channel
from memcluster.node.transport.frames import Frame

Head = dict[str, Any]


class Conversation:
    """`heard(head)` gets each word of the other side once, in order, and `beaten(head)` its beats."""

    def __init__(self, heard: Callable[[Head], None], beaten: Callable[[Head], None]) -> None:
        self._heard = heard
        self._beaten = beaten
        self._channel: Channel | None = None
        self._unheard: deque[tuple[int, Head]] = deque()
        self._said = 0
        self.taken = 0
        """Words heard of the other side."""

    def __repr__(self) -> str:
        state = "under way" if self.present else "interrupted"
        return f"<Conversation {state}, {self.taken} heard, {len(self._unheard)} of {self._said} said not known to be>"

    @property
    def present(self) -> bool:
        """There is a connection."""
        return self._channel is not None and self._channel.open

    @property
    def done(self) -> bool:
        """The other side has heard everything."""
        return not self._unheard

    def say(self, head: Head) -> None:
        """Now, or when there is a connection."""
        self._said += 1
        self._unheard.append((self._said, head))
        self._send(self._said, head)

    def beat(self, head: Head) -> None:
        """Now, or never."""
        if self._channel is not None:
            self._channel.send({"beat": head, "taken": self.taken})

    def go_on(self, channel: Channel, taken: int) -> None:
        """There is a new connection; the other side has heard so many words."""
        self._channel = channel
        self._acknowledged(taken)
        for number, head in tuple(self._unheard):
            self._send(number, head)

    def interrupt(self) -> None:
        """The connection is gone."""
        self._channel = None

    def received(self, frame: Frame) -> None:
        """Raises KeyError, TypeError if it is none of ours."""
        head = frame.head
        self._acknowledged(int(head["taken"]))
        if "beat" in head:
            self._beaten(head["beat"])
        elif head["number"] > self.taken:
            self.taken = int(head["number"])
            self._heard(head["word"])

    def _send(self, number: int, head: Head) -> None:
        if self._channel is not None:
            self._channel.send({"number": number, "taken": self.taken, "word": head})

    def _acknowledged(self, taken: int) -> None:
        while self._unheard and self._unheard[0][0] <= taken:
            self._unheard.popleft()
