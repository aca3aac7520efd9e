"""Loggers on one loop, the logs they keep, and somebody who asks them."""

import socket
import struct
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from harness import SECRET

from memcluster.launcher.log.reader import read_log
from memcluster.node.cluster_map import ClusterMap, ServerEntry
from memcluster.node.log.record import RECORD_SIZE, Kind, Record, format_identifier, make_identifier, unpack
from memcluster.node.log.writer import MIN_SEGMENT, LogWriter
from memcluster.node.logger.logger import Logger
from memcluster.node.nbd.wire import Command
from memcluster.node.spec import Bounds, NodeSpec
from memcluster.node.transport.address import Address
from memcluster.node.transport.channel import Channel
from memcluster.node.transport.frames import Frame
from memcluster.node.transport.introduction import introduce
from memcluster.node.transport.loop import Loop
from memcluster.node.transport.proof import Pass, Who

DEADLINE = 20.0
T = 1_700_000_000 * 10**9


class Loggers:
    """The loggers of `count` servers on one loop; `writers` are the servers' logs."""

    def __init__(self, folder: Path, count: int, retain: int = 1 << 20, segment_size: int = MIN_SEGMENT) -> None:
        self.folder = folder
        self.loop = Loop()
        self.listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
        self.addresses = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in self.listeners]
        servers = tuple(ServerEntry("127.0.0.1:1", address, 4096, "secondary") for address in self.addresses)
        cluster = ClusterMap("demo", "primary-secondary", "parallel", 0, servers)
        self.events: list[dict[str, Any]] = []
        self.specs = [
            NodeSpec(
                name=f"logger{i}",
                role="logger",
                index=i,
                cluster=cluster,
                shard="",
                durable=False,
                log_directory=str(folder / f"server{i}"),
                log_retain=retain,
                merged_log=str(folder / "logs" / "demo.log"),
                secret=SECRET,
                bounds=Bounds(),
            )
            for i in range(count)
        ]
        self.writers = [
            LogWriter(spec.log_directory, spec.index, retain, segment_size, cluster="demo") for spec in self.specs
        ]
        self.loggers = {
            i: Logger(self.loop, self.specs[i], [self.listeners[i]], self.events.append) for i in range(count)
        }
        for logger in self.loggers.values():
            logger.start()

    def close(self) -> None:
        for logger in self.loggers.values():
            logger.close()
        for writer in self.writers:
            writer.close()
        self.loop.close()

    def stop(self, server: int) -> None:
        """This logger is gone; its socket, which the supervisor holds, is too."""
        self.loggers.pop(server).close()
        self.listeners[server].close()

    def turn_until(self, true: Callable[[], object]) -> None:
        deadline = monotonic() + DEADLINE
        while not true():
            assert monotonic() < deadline, "this never came true"
            self.loop.turn(0.1)

    # -- what the servers log --------------------------------------------------------------------------------------

    def request(self, number: int, *pieces: int, start: int = 0, server: int = 0, duration: int = 1000) -> int:
        """A WRITE that `server` took, with pieces on other servers, appended as it ends; returns its identifier."""
        start = start or T + number * 10_000
        identifier = make_identifier(server, 1, number)
        for position, other in enumerate(pieces):
            self.writers[other].append(start + 1 + position, 10, identifier, 0, 512, 0, Kind.PIECE, Command.WRITE, 0, 0)
        self.writers[server].append(
            start, duration, identifier, 4096 * number, 4096, 7, Kind.REQUEST, Command.WRITE, 1, 0
        )
        return identifier

    # -- what askers see -------------------------------------------------------------------------------------------

    def asker(self, server: int = 0, who: Who = Who.OWNER) -> "Asker":
        return Asker(self, server, who)

    def ask(self, head: dict[str, Any], server: int = 0) -> "Asker":
        asker = self.asker(server)
        asker.channel.send(head)
        self.turn_until(lambda: asker.done)
        return asker

    def read(self, **wanted: Any) -> list[tuple[int, Record]]:
        """What the command line's reader, which blocks, gets."""
        entries = read_log(self.addresses[0], SECRET, **wanted)
        return self.in_thread(lambda: [(server, record) for server, record in entries])

    def in_thread(self, call: Callable[[], Any]) -> Any:
        with ThreadPoolExecutor(1) as pool:
            future: Future[Any] = pool.submit(call)
            self.turn_until(future.done)
            return future.result()


class Asker:
    """A connection to a logger, on the same loop."""

    def __init__(self, loggers: Loggers, server: int, who: Who) -> None:
        self.frames: list[Frame] = []
        self.closed = False
        met: list[socket.socket] = []
        address, key = Address.parse(loggers.addresses[server]), Pass(SECRET, who, f"logger{server}")
        introduce(loggers.loop, address, key, met.append, pytest.fail)
        loggers.turn_until(lambda: met)
        self.channel = Channel(
            loggers.loop,
            met[0],
            lambda _, frame: self.frames.append(frame),
            lambda _: setattr(self, "closed", True),
        )

    @property
    def done(self) -> bool:
        """The answer is at its end: then the asker hangs up."""
        done = self.closed or bool(self.frames and self.frames[-1].head.keys() & {"end", "error"})
        if done:
            self.channel.close()
        return done

    @property
    def last(self) -> dict[str, Any]:
        return self.frames[-1].head

    @property
    def share(self) -> list[Record]:
        return [record for frame in self.frames for record in unpack(frame.body)]

    @property
    def merged(self) -> list[tuple[int, Record]]:
        found: list[tuple[int, Record]] = []
        for frame in self.frames:
            count = frame.head.get("records", 0)
            records = unpack(frame.body[: count * RECORD_SIZE])
            found += zip(struct.unpack(f"<{count}H", frame.body[count * RECORD_SIZE :]), records, strict=True)
        return found


def story(entries: list[tuple[int, Record]]) -> list[str]:
    """`server:identifier`, with a - before pieces."""
    return [
        f"{server}:{'-' if record.kind == Kind.PIECE else ''}{format_identifier(record.identifier)}"
        for server, record in entries
    ]


MakeLoggers = Callable[..., Loggers]
"""The fixture `make_loggers`."""
