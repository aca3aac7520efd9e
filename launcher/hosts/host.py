"""Another host as the supervisor has it: whether its guardian is heard, what runs there, and how far its clock is off.

A guardian that says `leave` goes in peace. One that is no longer heard, and did not say so, is run again: at once if
the engine believes that it has ended, else when its lease is over. Till then nothing is said of its nodes, which may
serve on: the way to them is not the way to it.

In the end each is told to leave. A host without a guardian, whose shards are to be thrown away, has one run for that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from memcluster.launcher.hosts.conversation import Conversation, Head
from memcluster.launcher.hosts.remote import RemoteChild
from memcluster.launcher.supervision.process import Gone, Told
from memcluster.node.spec import NodeSpec
from memcluster.node.transport.channel import Channel
from memcluster.node.transport.loop import Loop, Timer

SILENT = 2.0
"""Seconds without a word after which a host is unreachable."""
MARGIN = 2.0
"""Seconds beyond its lease after which a host is taken for gone."""
SAMPLES = 8
"""Round trips before a node is started there: the quickest says how far its clock is off."""
GIVEN_UP = "given up"
"""In the place of a session: another guardian is to come, however long that takes."""
AGAIN_AT_MOST = 10.0
"""Seconds between two attempts to run a guardian, at most."""
AT_THE_END = 2
"""Guardians that are run to throw shards away, at most: a host that is down gets none."""


class FarHost:
    """`prepare` is what its guardian is told first; `again()` has the engine run one."""

    def __init__(self, loop: Loop, name: str, lease: float, again: Callable[[], None]) -> None:
        self.loop = loop
        self.name = name
        self.prepare: Head | None = None
        self.addresses: dict[str, str] = {}
        """Where its nodes listen."""
        self.runs = (1, 1, 1)
        """What its logs say of runs; see takeover.next_run."""
        self.trouble = ""
        """Why nothing can run there."""
        self.ended = ""
        """How the engine says that the last guardian has ended; "" as long as it runs one."""
        self.held = False
        """It had a part of a memory when it left."""
        self.gone = False
        """It has left."""
        self.hung: Callable[[str, str], None] = lambda _name, _how: None
        self.left: Callable[[str, list[str]], None] = lambda _name, _nodes: None
        self._lease = lease
        self._again = again
        self._children: dict[int, RemoteChild] = {}
        self._queued: dict[int, NodeSpec] = {}  # to be started when the host is prepared
        self._lives = 0
        self._prepared = False
        self._session = ""
        self._given_up: set[str] = set()
        self._conversation: Conversation | None = None
        self._channel: Channel | None = None
        self._heard = time.monotonic()
        self._attempts = 0
        self._due: Timer | None = None
        self._peace = False
        self._under_way = False  # one that has been run again, and of which the engine has not said that it ended
        self._ours = False  # there are shards of this memory
        self._closing = self._discarding = False
        self._expected = False  # to leave, or to come and throw the shards away
        self._runs_left = AT_THE_END
        self._cut = False
        self._samples = 0
        self._quickest = float("inf")
        self._offset = 0

    def __repr__(self) -> str:
        return f"<FarHost {self.name} {self.away or 'heard'}, {len(self._children)} nodes>"

    @property
    def ready(self) -> bool:
        """Nodes can be started there."""
        return self._prepared and self._samples >= SAMPLES

    @property
    def never_came(self) -> bool:
        """No guardian of it has been here."""
        return not self._session

    def over(self, *, engine_tells: bool) -> bool:
        """It has left, and its guardian has ended as far as can be known; or it is not there to be waited for."""
        if self.gone:
            return bool(self.ended) if engine_tells else not self.present
        return not self.present and not self._expected

    @property
    def present(self) -> bool:
        """It can be told something now."""
        return self._conversation is not None and self._conversation.present

    @property
    def away(self) -> str:
        """Since when, in words; "" while it is heard."""
        silent = time.monotonic() - self._heard
        return "" if self.present and silent < SILENT else f"{self.name} has not been heard for {silent:.0f} s"

    # -- nodes -------------------------------------------------------------------------------------------------------

    def child(self, spec: NodeSpec, told: Told, gone: Gone) -> RemoteChild:
        """Start a node, now or when the host is there."""
        self._lives += 1
        child = RemoteChild(self, self._lives, spec, told, gone)
        self._children[child.life] = child
        self._queued[child.life] = spec
        if self.ready:
            self._start_queued()
        elif self._peace or self.trouble:
            self._peace, self.trouble = False, ""
            self._run_again()
        return child

    def forget(self, child: RemoteChild) -> bool:
        """It need not be started any more; false if it has been."""
        if self._queued.pop(child.life, None) is None:
            return False
        self.loop.soon(lambda: self.lose(child, f"{self.name} was not there to start it"))
        return True

    def lose(self, child: RemoteChild, how: str) -> None:
        """It is gone, or nothing is to be known of it."""
        if self._children.pop(child.life, None) is not None:
            child.ended(how)

    def say(self, head: Head) -> None:
        """To the guardian that is there; what was meant for an earlier one is nobody's."""
        if self._conversation is not None:
            self._conversation.say(head)

    # -- the guardian comes and goes -----------------------------------------------------------------------------------

    def came(self, channel: Channel, run: str, session: str, taken: int) -> None:
        """Its guardian has connected, for the first time or again; is told which `run` of a supervisor this is."""
        if self._closing and session != self._session and not self._discarding:
            channel.send({"refused": "the cluster is being stopped"})
            channel.finish()
            return
        if self._cut:
            channel.close()
            return
        if session in self._given_up:
            channel.send({"refused": f"{self.name} was not heard for too long, and is being started afresh"})
            channel.finish()
            return
        self._heard, self._attempts = time.monotonic(), 0
        self._peace = self.gone = self._under_way = False
        if session != self._session:  # it has the lock: the one before is dead, and its nodes are
            how = f"the guardian of {self.name} ended" + (f" ({self.ended})" if self.ended else "")
            self._session = session
            self._conversation = Conversation(self._told, self._beaten)
            self._prepared, self._samples, self._quickest = False, 0, float("inf")
            if self._discarding:
                self._conversation.say(self._word(keep=False))
            elif self.prepare is not None:
                self._conversation.say(self.prepare)
            self._lost(how)
        self.ended = ""
        if self._channel is not None:
            self._channel.close()
        self._channel = channel
        assert self._conversation is not None
        channel.send({"welcome": self._conversation.taken, "run": run})
        self._conversation.go_on(channel, taken)
        self.beat()

    def received(self, frame: Any) -> None:
        """Raises KeyError, TypeError if it is none of ours."""
        self._heard = time.monotonic()
        if self._conversation is not None:
            self._conversation.received(frame)

    def hung_up(self, channel: Channel) -> None:
        """A connection is gone."""
        if channel is self._channel:
            self._channel = None
            if self._conversation is not None:
                self._conversation.interrupt()
            self.consider()

    def engine_says(self, how: str) -> None:
        """The engine believes that the guardian has ended."""
        self.ended, self._under_way = how, False
        self._expected = self._expected and self._discarding
        self.consider()

    def consider(self) -> None:
        """Does a guardian have to be run?"""
        if self._discarding:
            self._consider_shards()
        if self._closing or self._peace or self.trouble or self.present or not self.ended or self._due is not None:
            return
        if not self._session:
            return  # it has never been here: those who wait for it decide
        pause = 0.0 if not self._attempts else min(AGAIN_AT_MOST, 0.5 * 2 ** min(self._attempts, 10))
        self._attempts += 1
        self._due = self.loop.after(pause, self._run_again)

    def _consider_shards(self) -> None:
        """Does a guardian have to be run to throw them away?"""
        if self.present or self.gone or not (self.ended or self._peace):
            return
        self._expected = self._runs_left > 0
        if self._expected:
            self._runs_left -= 1
            self.ended, self._peace = "", False
            self._have_it_run()

    def look(self) -> None:
        """From time to time: beats, and an end to waiting."""
        self.beat()
        silent = time.monotonic() - self._heard
        waited_for = self._session in ("", GIVEN_UP)
        if not (waited_for or self._closing or self._peace or self.trouble) and silent > self._lease + MARGIN:
            self._given_up.add(self._session)
            if self._channel is not None:
                self._channel.close()
            self._session, self._conversation, self._prepared = GIVEN_UP, None, False
            self._lost(f"{self.name} was not heard for {silent:.0f} s")
            self._run_again()

    def beat(self) -> None:
        """Ask for a sign of life."""
        if self._conversation is not None:
            self._conversation.beat({"sent": time.monotonic_ns()})

    def cut(self, cut: bool) -> None:
        """Hear nothing of it, and have it hear nothing, until that is taken back."""
        self._cut = cut
        if cut and self._channel is not None:
            self._channel.close()

    def end(self, keep: bool, *, again: bool) -> None:
        """Tell it to end. Where it is not there to `keep` no shards, and can be run `again`, another one is told to."""
        self._closing = True
        if self._due is not None:
            self._due.cancel()
        self.say(self._word(keep))
        self._expected = self.present
        if again and not keep and self._ours:
            self._discarding = True
            self._expected = self.present or self._under_way
            self.gone = False
            self.consider()

    def _word(self, keep: bool) -> Head:
        """By which a guardian ends. Of another memory, which has come there meanwhile, it throws nothing away."""
        return {"do": "end", "keep": keep, "memory": "" if self.prepare is None else self.prepare["memory"]}

    def close(self) -> None:
        """Nothing more is to be heard."""
        self._closing = True
        if self._due is not None:
            self._due.cancel()
        if self._channel is not None:
            self._channel.close()

    def _run_again(self) -> None:
        self._due = None
        if not self._closing:
            self.ended, self._under_way = "", True
            self._have_it_run()

    def _have_it_run(self) -> None:
        try:
            self._again()
        except OSError as error:  # no process to be had, or no such program any more
            how = f"it cannot be run again: {error.strerror}"
            self.loop.soon(lambda: self.engine_says(how))

    # -- what its guardian says ----------------------------------------------------------------------------------------

    def _beaten(self, head: Head) -> None:
        now = time.monotonic_ns()
        trip = now - head["sent"]
        self._samples += 1
        if trip < self._quickest:
            self._quickest, self._offset = trip, (now + head["sent"]) // 2 - head["clock"]
        for life, child in self._children.items():
            child.seen(life in head["stopped"])
        if self._samples < SAMPLES:
            self.beat()
        elif self._samples == SAMPLES:
            self._start_queued()

    def _told(self, head: Head) -> None:
        if "prepared" in head:
            self.addresses, self.runs, self._prepared = head["prepared"], tuple(head["run"]), True
            self._ours = True
            self._start_queued()
        elif "refused" in head:
            self.trouble = head["refused"]
            self.say(self._word(keep=True))
            for child in tuple(self._children.values()):
                self._queued.pop(child.life, None)
                del self._children[child.life]
                child.fail(self.trouble)
        elif "leave" in head:
            self._peace = True
            self.beat()  # it waits until this has been heard
            self.left(self.name, [child.spec.name for child in self._children.values()])
        elif "left" in head:
            self.held, self.gone, self._peace, self._prepared = head["left"], True, True, False
            self.beat()
            self._lost(f"the guardian of {self.name} has left")
        elif head["life"] in self._children:
            self._children[head["life"]].heard(head)

    def _start_queued(self) -> None:
        """The host is prepared, and its clock is known."""
        if not self.ready:
            return
        for life, spec in self._queued.items():
            # Its clock is another one: with this epoch its records have the times of the supervisor's.
            # And what its guardian has, or has its own of, need not travel.
            run = replace(spec.run, epoch=spec.run.epoch + self._offset)
            there = replace(spec, run=run, secret=b"", probe="")
            self.say({"do": "start", "life": life, "spec": there.to_head()})
        self._queued.clear()

    def _lost(self, how: str) -> None:
        """All that ran there; what waits to be started waits on."""
        for life, child in tuple(self._children.items()):
            if life not in self._queued:
                self.lose(child, how)
