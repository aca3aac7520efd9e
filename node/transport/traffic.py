"""What this process has received and sent since it began: bytes, and messages such as requests, replies and orders."""

from __future__ import annotations

from typing import Final


class Traffic:
    """Plain counters; a process has one."""

    def __init__(self) -> None:
        self.received = 0
        self.sent = 0
        """Bytes."""
        self.messages_in = 0
        self.messages_out = 0

    def to_head(self) -> dict[str, int]:
        """As part of a status."""
        return {
            "messages_in": self.messages_in,
            "messages_out": self.messages_out,
            "received": self.received,
            "sent": self.sent,
        }


TRAFFIC: Final = Traffic()
