"""The command line's side of the control socket: ask the supervisor, hear what happens. Blocking, with deadlines."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memcluster.client.units import LONGEST_WAIT
from memcluster.node.transport.frames import Frame, FrameError, FrameReader


class NoAnswer(Exception):
    """The supervisor is not there, or says nothing."""


class FrameStream:
    """Frames over a blocking socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._reader = FrameReader()

    def send(self, head: dict[str, Any]) -> None:
        """Raises NoAnswer if the other side is gone."""
        try:
            self._sock.sendall(Frame(head).encode())
        except OSError as error:
            raise NoAnswer(str(error)) from error

    def frames(self, deadline: float | None) -> Iterator[dict[str, Any]]:
        """What the other side says until it closes. Raises NoAnswer when `deadline` (monotonic) has passed."""
        while True:
            self._sock.settimeout(_left(deadline))
            try:
                data = self._sock.recv(1 << 16)
                frames = self._reader.receive(data)
            except TimeoutError as error:
                raise NoAnswer("no answer in time") from error
            except ConnectionResetError:
                return
            except FrameError as error:
                raise NoAnswer(str(error)) from error
            if not data:
                return
            for frame in frames:
                yield frame.head

    def close(self) -> None:
        self._sock.close()


def _left(deadline: float | None) -> float | None:
    """Seconds as a socket takes them for its timeout."""
    return None if deadline is None else min(max(0.001, deadline - time.monotonic()), LONGEST_WAIT)


def connect(path: Path) -> FrameStream:
    """A connection to the supervisor's control socket. Raises NoAnswer."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(str(path))
    except OSError as error:
        sock.close()
        raise NoAnswer(f"{path}: {error.strerror}") from error
    return FrameStream(sock)


def ask(path: Path, head: dict[str, Any], seconds: float) -> dict[str, Any]:
    """One question, one answer. Raises NoAnswer."""
    stream = connect(path)
    try:
        stream.send(head)
        for answer in stream.frames(time.monotonic() + seconds):
            return answer
        raise NoAnswer("the supervisor closed the connection")
    finally:
        stream.close()
