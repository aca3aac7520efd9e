"""What can go wrong in the protocol, by whose fault. Each error carries its facts; `str` makes the sentence."""

from __future__ import annotations

from memcluster.node.nbd.wire import Rep


class NBDError(Exception):
    """Base of the protocol's errors."""


class ProtocolError(NBDError):
    """The peer broke the protocol; the connection cannot go on."""


class Refused(NBDError):
    """An option was refused, with one of the error replies and a message for people."""

    def __init__(self, reply: int, message: str = "") -> None:
        self.reply = reply
        self.message = message
        super().__init__(reply, message)

    def __str__(self) -> str:
        name = Rep(self.reply).name if self.reply in Rep.__members__.values() else f"{self.reply:#x}"
        return f"the server refused: {self.message} ({name})" if self.message else f"the server refused ({name})"
