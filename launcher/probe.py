"""The probe: asks a cluster that says it is ready for a byte of every shard, as any client would."""

from __future__ import annotations

from collections.abc import Callable

from node.address import Address
from node.layout import Layout, Striped
from node.link import Link
from node.loop import Loop
from node.nbd.client import Reply
from node.nbd.wire import Command

PATIENCE = 30.0


class Probe:
    """Calls `probed` once: with an empty text if every shard answered, or with what was wrong."""

    def __init__(self, loop: Loop, address: Address, layout: Layout, probed: Callable[[str], None]) -> None:
        self._probed = probed
        self._problems: list[str] = []
        self._pending = len(layout.sizes)
        self._loop = loop
        self._link = Link(loop, address, "", PATIENCE, memoryview(bytearray(1 << 16)))
        for server in range(len(layout.sizes)):
            offset = server * layout.stripe if isinstance(layout, Striped) else layout.range(server)[0]
            self._link.submit(Command.READ, server, offset, 1, 0, (), self._replied)

    def _replied(self, reply: Reply) -> None:
        if reply.error:
            self._problems.append(f"server{reply.cookie}: {reply.message or f'error {reply.error}'}")
        self._pending -= 1
        if not self._pending:
            self._loop.soon(self._finish)

    def _finish(self) -> None:
        self._link.close()
        self._probed("; ".join(self._problems))
