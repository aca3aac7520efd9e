"""What the live page shows, and when: the cluster is looked at while somebody watches, and only then.

Each message is all there is to show. So a browser that is slow, or that has just come, gets the newest one and misses
nothing, and nothing is kept for anybody.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from memcluster.client.console import Failure
from memcluster.client.discover import DiscoverError
from memcluster.launcher.checked import secret_of
from memcluster.launcher.live.recent import Recent
from memcluster.launcher.log.reader import LogsError, read_batches
from memcluster.launcher.log.stories import shape_of
from memcluster.launcher.run.directory import RunDirectory, RunRecord
from memcluster.launcher.run.identity import Identity
from memcluster.launcher.status import read_status
from memcluster.launcher.statusview import state_words, verdict

PACE = 0.5
"""Seconds between two looks."""
PACE_OF_SAMPLES = 2.0
"""Seconds between two looks at the log while there is more traffic than a look takes in: sooner would show more samples
than anybody follows, at the cost of that traffic."""
LOG_WITHIN = 2.0
"""Seconds that logger 0 may be silent."""

Message = dict[str, Any]


class Looker:
    """Looks at the cluster of a file: `status`, and the last requests in the log. Blocking."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._supervisor: Identity | None = None
        self._recent = Recent("", "", "")
        self._looked = 0.0

    def look(self) -> Message:
        try:
            status = read_status(self._file)
        except (Failure, DiscoverError, OSError) as trouble:
            return {"verdict": str(trouble), "state": "stopped", "nodes": []}
        nodes = [{**node, "words": state_words(status, node)} for node in status["nodes"]]
        message: Message = {
            "verdict": verdict(status),
            "state": status["state"],
            "cluster": status["cluster"],
            "topology": status["topology"],
            "faults": status["faults"],
            "nodes": nodes,
            "at": time.monotonic(),
            **_ways(status["topology"], nodes),
        }
        record = RunDirectory(status["cluster"]).record() if nodes else None
        if record is not None:
            try:
                self._glance(record, nodes)
            except (LogsError, Failure) as trouble:
                message["trouble"] = str(trouble)
            message["log"] = self._recent.data()
        return message

    def _glance(self, record: RunRecord, nodes: list[dict[str, Any]]) -> None:
        """Raises LogsError."""
        if record.supervisor != self._supervisor:
            self._supervisor = record.supervisor
            self._recent = Recent(record.cluster, record.topology, record.fan_out, record.homes)
        loggers = [node for node in nodes if node["role"] == "logger"]
        asked = {node["name"]: node["records"] for node in loggers if node["ready"] and "records" in node}
        ends = {name.replace("logger", "server"): end for name, end in asked.items()}
        now = time.monotonic()
        if "logger0" not in asked or (self._recent.passes_over and now < self._looked + PACE_OF_SAMPLES):
            return
        if not (after := self._recent.asked(ends)):
            return
        self._looked = now
        # For the share of a logger that does not answer nobody waits.
        wanted = [*ends, *asked] if len(asked) < len(loggers) else []
        at = time.time_ns()
        address, secret = record.logger0.address, secret_of(record)
        batches = read_batches(address, secret, timeout=LOG_WITHIN, after=after, nodes=wanted, run=-1)
        self._recent.take([entry for batch in batches for entry in batch], after, at)


def _ways(topology: str, nodes: list[dict[str, Any]]) -> Message:
    """Who asks whom, and who answers clients though they asked another, as the topology has it."""
    shape, servers = shape_of(topology), [node["name"] for node in nodes if node["role"] != "logger"]
    doors = servers if shape.every_server_is_a_door else servers[:1]
    asks = [("clients", door) for door in doors]
    asks += [(servers[asker], servers[asked]) for asker, asked in shape.links(len(servers))]
    return {"asks": asks, "answers": servers[1:] if shape.hands_over else []}


class Feed:
    """The messages for those who watch."""

    def __init__(self, look: Callable[[], Message]) -> None:
        self.watchers = 0
        self._look = look
        self._message = ""
        self._number = 0
        self._news = asyncio.Condition()
        self._hurry = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._closed = False

    async def messages(self) -> AsyncIterator[str]:
        """The newest message each time there is a new one, until the feed is closed."""
        self.watchers += 1
        seen = self._number
        if self._looking is None:
            self._looking = asyncio.create_task(self._go_on())
        self.hurry()
        try:
            while True:
                async with self._news:
                    while not self._closed and self._number == seen:
                        await self._news.wait()
                if self._closed:
                    return
                seen = self._number
                yield self._message
        finally:
            self.watchers -= 1
            self.hurry()

    def hurry(self) -> None:
        """Look now: something has been done."""
        self._hurry.set()

    async def close(self) -> None:
        """Everybody's messages end."""
        self._closed = True
        self.hurry()
        async with self._news:
            self._news.notify_all()
        if self._looking is not None:
            await self._looking

    async def _go_on(self) -> None:
        while self.watchers and not self._closed:
            self._hurry.clear()
            message = await asyncio.to_thread(self._look)
            self._message = json.dumps({**message, "watchers": self.watchers}, separators=(",", ":"))
            async with self._news:
                self._number += 1
                self._news.notify_all()
            try:
                await asyncio.wait_for(self._hurry.wait(), PACE)
            except TimeoutError:
                pass
        self._looking = None
