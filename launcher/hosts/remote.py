"""A node on another host, as the supervisor has it: what a Child is here, over the conversation with its guardian."""

from __future__ import annotations

import signal
import socket
from typing import TYPE_CHECKING, Any

from memcluster.launcher.run.identity import Identity
from memcluster.launcher.supervision.process import Answered, Gone, Told
from memcluster.node.spec import NodeSpec

if TYPE_CHECKING:
    from memcluster.launcher.hosts.host import FarHost


class RemoteChild:
    """See process.Process. `life` is its number among all that were started there."""

    def __init__(self, host: FarHost, life: int, spec: NodeSpec, told: Told, gone: Gone) -> None:
        self.host = host
        self.life = life
        self.spec = spec
        self.pid = 0
        self.identity = Identity(0, 0)
        self.ready = False
        self.status: int | None = None
        self.short = False
        self.place = ""
        self._told = told
        self._gone = gone
        self._answers: dict[int, Answered] = {}
        self._asked = 0
        self._stopped = self._ended = False
        self._signals = 0  # sent and not known to have come: until then the guardian has an older picture

    def __repr__(self) -> str:
        return f"<RemoteChild {self.spec.name}, {self.host.name}/{self.pid}>"

    @property
    def alive(self) -> bool:
        return not self._ended

    @property
    def stopped(self) -> bool:
        return self._stopped

    @property
    def away(self) -> str:
        return self.host.away

    def tell(self, head: dict[str, Any]) -> None:
        if head["do"] != "drain" or not self.host.forget(self):
            self._say({"do": "tell", "order": head})

    def ask(self, head: dict[str, Any], answered: Answered, handed: socket.socket | None = None) -> None:
        assert handed is None, "no socket can be handed to another host"
        self._asked += 1
        self._answers[self._asked] = answered
        self._say({"do": "ask", "id": self._asked, "order": head})

    def signal(self, *signums: int) -> None:
        for signum in signums:
            if signum in (signal.SIGSTOP, signal.SIGCONT):
                self._stopped = signum == signal.SIGSTOP
        self._signals += 1
        self._say({"do": "signal", "signums": [int(signum) for signum in signums]})

    def kill(self) -> None:
        """One of a host that is away is given up: it ends with its guardian's lease, or by this word."""
        if self.host.forget(self):
            return
        self._say({"do": "kill"})
        if self.host.away:
            self.host.loop.soon(lambda: self.host.lose(self, self.host.away))

    # -- the guardian's side -----------------------------------------------------------------------------------------

    def heard(self, head: dict[str, Any]) -> None:
        """Its guardian speaks of it."""
        if "born" in head:
            self.pid, start = head["born"]
            self.identity = Identity(self.pid, start)
        elif "said" in head:
            self.ready = self.ready or head["said"].get("event") == "ready"
            self._told(self, head["said"])
        elif "answer" in head:
            if answered := self._answers.pop(head["answer"], None):
                answered(head["reply"])
        elif "signalled" in head:
            self._signals -= 1
        elif "hung" in head:
            self.host.hung(self.spec.name, head["hung"])
        elif "gone" in head:
            self.status, self.short, self.place = head["status"], head["short"], head["place"]
            self.host.lose(self, head["gone"])

    def seen(self, stopped: bool) -> None:
        """By its guardian, a moment ago."""
        if not self._signals:
            self._stopped = stopped

    def ended(self, how: str) -> None:
        """It is gone, or given up."""
        self._ended = True
        for answered in self._answers.values():
            answered({"error": f"{self.spec.name} ended"})
        self._answers.clear()
        self._gone(self, how)

    def fail(self, reason: str) -> None:
        """It cannot run there."""
        self._told(self, {"event": "failed", "reason": reason})
        self.ended(reason)

    def _say(self, head: dict[str, Any]) -> None:
        self.host.say({"life": self.life, **head})
