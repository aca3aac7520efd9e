"""A share: one server's log on its way to where it is wanted, from this logger's own files or from another logger.

A share gives a batch each time it is asked for one, so a slow asker costs no memory: first the history in the order of
starts, then, if the log is followed, what is added to it in the order of ends. It knows nothing of merging.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from memcluster.node.log.filter import Filter
from memcluster.node.log.history import History
from memcluster.node.log.merge import Bound, Entry, entries
from memcluster.node.log.record import RECORD_SIZE
from memcluster.node.log.segments import LogReader
from memcluster.node.transport.address import Address
from memcluster.node.transport.channel import Channel
from memcluster.node.transport.frames import Frame
from memcluster.node.transport.introduction import Introduction, introduce
from memcluster.node.transport.loop import Loop, Timer
from memcluster.node.transport.proof import Pass
from memcluster.node.transport.stream import Line

BATCH = 4096
"""Records in a frame, at most."""
AHEAD = 2
"""Frames that a logger sends before it is asked for more."""
FIRST_ANSWER = 2.0
"""Seconds a logger has to answer at all: it has little else to do, so silence means that it is not there."""
NEXT_ANSWER = 10.0
"""Seconds between its answers."""
RETRY_AT_MOST = 2.0
"""Seconds between two attempts to reach a lost logger, at most, while somebody follows."""
NO_SENSE = "does not keep to the protocol"
POLL = 0.05
"""Seconds between two looks at the segments while somebody follows."""


class Sink(Protocol):
    """What takes a share. It gets one batch each time it calls the share's `more`, and at last the end."""

    def fed(self, server: int, batch: list[Entry], missing: int, run: int) -> None:
        """The next entries, not none, all of one run of the cluster (0: of now, after the history); `missing` records
        should have stood before them (only after the history)."""

    def ended(self, server: int, gaps: Sequence[tuple[int, int]], trouble: str) -> None:
        """The history's end. When the log is followed `more` may be called on; else, or in trouble, it is the end, but
        for a RemoteShare's `retry`."""

    def back(self, server: int) -> None:
        """A share that was in trouble goes on where it stopped."""


class LocalShare:
    """This logger's own server's log: its history, then, if it is followed, what is added to it."""

    def __init__(self, loop: Loop, history: History, wanted: Filter, sink: Sink) -> None:
        self.loop = loop
        self.history = history
        self.wanted = wanted
        self.sink = sink
        self._reading = history.read(wanted)
        self._batches: Iterator[list[Entry]] = iter(self._reading)
        self._reader: LogReader | None = None
        self._timer: Timer | None = None
        self._closed = False

    @property
    def after(self) -> int:
        """The sequence number of the last record that was looked at, once the history is given."""
        return self._reading.after if self._reader is None else self._reader.after

    @property
    def age(self) -> int:
        """How far the log reaches back, in ns, once the history is given; 0 if there is none."""
        return self._reading.age

    def more(self) -> None:
        self.loop.soon(self._step if self._reader is None else self._poll)

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._reader is not None:
            self._reader.close()

    def _step(self) -> None:
        """One turn's work."""
        if self._closed:
            return
        try:
            batch = next(self._batches, None)
        except OSError as error:
            self.close()
            self.sink.ended(self.history.server, [], str(error))
            return
        if batch is None:
            self._reader = LogReader(self.history.directory, self.after)
            self._reading.wanted = self._reading.wanted.onwards(self.after)
            self.sink.ended(self.history.server, self._reading.gaps, "")
        elif batch:
            self.sink.fed(self.history.server, batch, 0, self._reading.run)
        else:
            self.loop.soon(self._step)

    def _poll(self) -> None:
        """See what was added."""
        if self._closed:
            return
        assert self._reader is not None
        try:
            block = self._reader.read(BATCH)
        except OSError as error:
            self.close()
            self.sink.ended(self.history.server, [], str(error))
            return
        if block is None:
            self._timer = self.loop.after(POLL, self._poll)
            return
        found = entries(self.history.server, block.data)
        batch = self._reading.keep(self.history.without_doubles(block.first, block.data, found))
        if batch or block.missing:
            self.sink.fed(self.history.server, batch, block.missing, 0)
        else:
            self.loop.soon(self._poll)


class RemoteShare:
    """Another logger's share, over TCP. `retry` takes one that is followed up again where it was lost."""

    def __init__(
        self, loop: Loop, server: int, address: str, key: Pass, wanted: Filter, follow: bool, sink: Sink
    ) -> None:
        self.loop = loop
        self.server = server
        self.address = address
        self.key = key
        self.wanted = wanted
        self.follow = follow
        self.sink = sink
        self._frames: deque[Frame] = deque()  # come but not yet asked for: AHEAD of them at most
        self._asked = False
        self._history = True
        self._lost = False
        self._attempts = 0
        self._given: tuple[int, Bound] = (0, ())  # run and last entry of what of the history was handed over
        self._introduction: Introduction | None = None
        self._channel: Channel | None = None
        self._closed = False
        self._deadline: Timer | None = None
        self.loop.soon(self._open)  # not now: whoever makes it must know it before it hears of it

    @property
    def after(self) -> int:
        """The sequence number of the last record that was looked at, once the history is given."""
        return self.wanted.after

    def more(self) -> None:
        self._asked = True
        self.loop.soon(self._deliver)

    def retry(self) -> None:
        """Try to reach the logger again in a moment; the sink hears `back` if that succeeds."""
        self._lost = True
        delay = min(RETRY_AT_MOST, 0.05 * 2**self._attempts)
        self._attempts = min(self._attempts + 1, 10)
        self._deadline = self.loop.after(delay, self._open)

    def close(self) -> None:
        self._closed = True
        self._hang_up()

    def _open(self) -> None:
        if self._closed:
            return
        self._set_deadline(FIRST_ANSWER, "does not answer")
        try:
            self._introduction = introduce(
                self.loop, Address.parse(self.address), self.key, self._met, self._unmet
            )
        except OSError as error:
            self._fail(error.strerror or str(error))

    def _unmet(self, reason: str) -> None:
        self._introduction = None
        self._fail(reason)

    def _met(self, line: Line) -> None:
        self._introduction = None
        self._channel = Channel(self.loop, line, self._received, self._hung_up)
        self._channel.send({"ask": "share", "window": AHEAD, "follow": self.follow, **self.wanted.to_head()})

    def _received(self, _channel: Channel, frame: Frame) -> None:
        head = frame.head
        if "error" in head:
            self._fail(reason_of(head["error"]))
        elif not _is_sound(frame) or len(self._frames) > AHEAD:
            self._fail(NO_SENSE)
        else:
            if self._lost:
                self._lost = False
                self._attempts = 0
                self.sink.back(self.server)
            self._set_deadline(NEXT_ANSWER, "has fallen silent")
            if head.get("records") or head.get("missing") or head.get("end"):  # else it is a sign of life
                self._frames.append(frame)
                self._deliver()

    def _deliver(self) -> None:
        """Hand the next frame over, if it is there and asked for."""
        if self._closed or not (self._asked and self._frames):
            return
        frame = self._frames.popleft()
        self._asked = False
        if "after" in frame.head:
            self.wanted = replace(self.wanted, after=frame.head["after"])
        if frame.head.get("end"):
            self._history = False
            self._given = (0, ())
            self.wanted = self.wanted.onwards(self.wanted.after)
            if not self.follow:
                self.close()
            self.sink.ended(self.server, [(gap["after"], gap["records"]) for gap in frame.head.get("gaps", [])], "")
        else:
            batch = entries(self.server, frame.body)
            run = frame.head.get("run", 0)
            if self._history and self.follow and batch:
                batch = [entry for entry in batch if (run, entry) > self._given]  # what was given before it was lost
                self._given = max(self._given, (run, max(batch, default=())))
            if batch or frame.head.get("missing"):
                self.sink.fed(self.server, batch, frame.head.get("missing", 0), run)
            else:
                self._asked = True
                self.loop.soon(self._deliver)
        if self._channel is not None:
            self._channel.send({"ask": "more"})

    def _set_deadline(self, seconds: float, reason: str) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.after(seconds, lambda: self._fail(reason))

    def _hung_up(self, channel: Channel) -> None:
        """That is well if it has sent all it had, asked for or not."""
        if channel is not self._channel:
            return  # it was this side that did
        if self.follow or not (self._frames and self._frames[-1].head.get("end")):
            self._fail("hung up")
        elif self._deadline is not None:
            self._deadline.cancel()

    def _fail(self, reason: str) -> None:
        if self._closed:
            return
        self._hang_up()
        if self._lost:
            self.retry()
        else:
            self.sink.ended(self.server, [], reason)

    def _hang_up(self) -> None:
        """Give the connection back; what came and was not asked for will come again."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._frames.clear()
        self._history = True
        if self._introduction is not None:
            self._introduction.close()
            self._introduction = None
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()


def reason_of(found: Any) -> str:
    """What another logger says that it could not do."""
    return found if isinstance(found, str) else NO_SENSE


def _is_sound(frame: Frame) -> bool:
    """Whether a logger's answer can be taken for one."""
    records, missing, after, run, gaps = (frame.head.get(name, default) for name, default in _ANSWER)
    return (
        type(records) is type(missing) is type(after) is type(run) is int
        and len(frame.body) == records * RECORD_SIZE
        and isinstance(gaps, list)
        and all(isinstance(gap, dict) and type(gap.get("after")) is type(gap.get("records")) is int for gap in gaps)
    )


_ANSWER: tuple[tuple[str, Any], ...] = (("records", 0), ("missing", 0), ("after", 0), ("run", 0), ("gaps", []))
