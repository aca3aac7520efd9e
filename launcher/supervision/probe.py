"""The probe: asks a cluster that says it is ready for a byte of every shard, as any client would; but through an export
of its own, so that its reads are marked in the log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import monotonic_ns
from typing import Any

from memcluster.launcher.supervision.process import Process
from memcluster.node.forwarding.link import Link, Submission
from memcluster.node.log.record import PROBE
from memcluster.node.nbd.client import Reply
from memcluster.node.nbd.wire import Command
from memcluster.node.transport.address import Address
from memcluster.node.transport.loop import Loop

PATIENCE = 30.0


class Probe:
    """Calls `probed` once: with an empty text if every question was answered, or with what was wrong. A question is
    the name of a server, the address where clients ask for its bytes, and the offset of one of them there. `elsewhere`
    are servers on other hosts whose guardians are asked the same."""

    def __init__(
        self,
        loop: Loop,
        export: str,
        questions: Sequence[tuple[str, Address, int]],
        probed: Callable[[str], None],
        elsewhere: Mapping[str, Process] | None = None,
    ) -> None:
        elsewhere = elsewhere or {}
        self._probed = probed
        self._problems: list[str] = []
        self._pending = len(questions) + len(elsewhere)
        self._loop = loop
        scratch = memoryview(bytearray(1 << 16))
        addresses = dict.fromkeys(address for _, address, _ in questions)
        self._links = {address: Link(loop, address, export, PATIENCE, scratch) for address in addresses}
        for cookie, (name, address, offset) in enumerate(questions):
            self._links[address].submit(_Question(self, name, cookie, offset))
        for name, process in elsewhere.items():
            process.ask({"do": "probe"}, partial(self._answered_elsewhere, name))

    def replied(self, name: str, reply: Reply) -> None:
        """The server of this name has answered."""
        self._answered(f"{name}: {reply.message or f'error {reply.error}'}" if reply.error else "")

    def _answered_elsewhere(self, name: str, answer: dict[str, Any]) -> None:
        self._answered(str(answer["problem"]) if "problem" in answer else f"{name}: {answer.get('error')}")

    def _answered(self, problem: str) -> None:
        if problem:
            self._problems.append(problem)
        self._pending -= 1
        if not self._pending:
            self._loop.soon(self._finish)

    def _finish(self) -> None:
        for link in self._links.values():
            link.close()
        self._probed("; ".join(self._problems))


class _Question(Submission):
    def __init__(self, probe: Probe, name: str, cookie: int, offset: int) -> None:
        super().__init__(Command.READ, cookie, offset, 1, PROBE, (), monotonic_ns())
        self.probe = probe
        self.name = name

    def answered(self) -> None:
        self.probe.replied(self.name, self)
