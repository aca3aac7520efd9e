"""What a supervisor says on its terminal, or into its file: said by a thread of its own, so that a terminal that takes
nothing (Ctrl-S, a pager, a full pipe) never holds up the loop.

When too much waits, the oldest is kept, and how much was not said is told.
"""

from __future__ import annotations

import os
import queue
import threading
from typing import TextIO

from memcluster.client.stdio import silence

MOST = 1000
"""Lines that wait, at most."""
LAST_WORDS = 1.0
"""Seconds that a process waits at its end for what is not said yet."""


class Speech:
    """Says lines in order. The thread is made with the first one, and does not keep the process."""

    def __init__(self) -> None:
        self._lines: queue.Queue[tuple[str, TextIO] | None] = queue.Queue(MOST)
        self._thread: threading.Thread | None = None
        self._unsaid = 0

    def say(self, text: str, stream: TextIO) -> None:
        """Have a line, or some, written."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="speech", daemon=True)
            self._thread.start()
        try:
            if self._unsaid:
                self._lines.put_nowait((f"({self._unsaid} lines were not said: the output took nothing)", stream))
                self._unsaid = 0
            self._lines.put_nowait((text, stream))
        except queue.Full:
            self._unsaid += 1

    def finish(self, seconds: float = LAST_WORDS) -> None:
        """Wait until everything is said, or for so long."""
        if self._thread is not None:
            try:
                self._lines.put(None, timeout=seconds)
            except queue.Full:
                return
            self._thread.join(seconds)
            self._thread = None

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            _write(*line)


SPEECH = Speech()
"""That of this process."""


def _write(text: str, stream: TextIO) -> None:
    """Past the stream's own buffer: who waits for its lock at the exit would wait for the terminal."""
    data = (text + "\n").encode(stream.encoding or "utf-8", "replace")
    try:
        while data:
            data = data[os.write(stream.fileno(), data) :]
    except OSError:  # a cluster does not depend on who reads about it, or on room for that
        silence(stream)
    except ValueError:  # closed by the program that we are in
        pass
