"""Frames: what memcluster's own processes say to one another, as bytes. No sockets here.

A frame is a JSON object and some raw bytes: u32 length of the JSON, u32 length of the bytes (both big-endian), the
JSON, the bytes. The supervisor's control channels, the command line's requests and the loggers' answers all use it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from struct import Struct
from typing import Any

PREFIX = Struct(">II")
MAX_FRAME = 1 << 24
"""Bytes of a frame, at most: of the figures of many servers, or a batch of records."""
MAX_QUESTION = 1 << 16
"""Bytes of a frame that asks for something, at most. Anybody may begin one, and what has come of it is kept."""


class FrameError(Exception):
    """The bytes received are not frames; the connection cannot be used any further."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One message: `head` says what it is, `body` carries bytes that JSON could not."""

    head: dict[str, Any]
    body: bytes = b""

    def encode(self) -> bytes:
        head = json.dumps(self.head, separators=(",", ":")).encode()
        return PREFIX.pack(len(head), len(self.body)) + head + self.body


class FrameReader:
    """Turns received bytes into frames of at most `most` bytes, however they were cut."""

    def __init__(self, most: int = MAX_FRAME) -> None:
        self._most = most
        self._received = bytearray()

    def receive(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes. Raises FrameError."""
        received = self._received
        received += data
        frames: list[Frame] = []
        start = 0
        while len(received) - start >= PREFIX.size:
            head_length, body_length = PREFIX.unpack_from(received, start)
            if PREFIX.size + head_length + body_length > self._most:
                raise FrameError(f"a frame of {head_length} + {body_length} bytes is beyond all bounds")
            body_start = start + PREFIX.size + head_length
            end = body_start + body_length
            if end > len(received):
                break
            frames.append(Frame(_parse(received[start + PREFIX.size : body_start]), bytes(received[body_start:end])))
            start = end
        del received[:start]
        return frames


def _parse(data: bytearray) -> dict[str, Any]:
    try:
        head = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"a frame's head is not JSON: {error}") from error
    if not isinstance(head, dict):
        raise FrameError("a frame's head is not a JSON object")
    return head
