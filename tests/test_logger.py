"""The loggers of a cluster on one loop, with real sockets: what they give, whom they miss, what cannot hurt them."""

import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import monotonic, time_ns
from typing import Any

import pytest

from launcher.log.reader import LogsError, read_batches, read_log
from node.cluster_map import ClusterMap, ServerEntry
from node.log.filter import MAX_LAST
from node.log.record import RECORD_SIZE, Kind, Record, format_identifier, make_identifier, unpack
from node.log.writer import MIN_SEGMENT, LogWriter
from node.logger import answers, shares
from node.logger import logger as role
from node.logger.logger import Logger
from node.logger.tallying import Census
from node.nbd.wire import Command
from node.spec import Bounds, NodeSpec
from node.transport.channel import Channel
from node.transport.frames import Frame
from node.transport.loop import Loop

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

    def asker(self, server: int = 0) -> "Asker":
        return Asker(self, server)

    def ask(self, head: dict[str, Any], server: int = 0) -> "Asker":
        asker = self.asker(server)
        asker.channel.send(head)
        self.turn_until(lambda: asker.done)
        return asker

    def read(self, **wanted: Any) -> list[tuple[int, Record]]:
        """What the command line's reader, which blocks, gets."""
        return self.in_thread(lambda: [(server, record) for server, record in read_log(self.addresses[0], **wanted)])

    def in_thread(self, call: Callable[[], Any]) -> Any:
        with ThreadPoolExecutor(1) as pool:
            future: Future[Any] = pool.submit(call)
            self.turn_until(future.done)
            return future.result()


class Asker:
    """A connection to a logger, on the same loop."""

    def __init__(self, loggers: Loggers, server: int) -> None:
        host, port = loggers.addresses[server].split(":")
        self.frames: list[Frame] = []
        self.closed = False
        self.channel = Channel(
            loggers.loop,
            socket.create_connection((host, int(port))),
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


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Loggers]]:
    made: list[Loggers] = []

    def make_loggers(count: int = 3, **more: Any) -> Loggers:
        made.append(Loggers(tmp_path, count, **more))
        return made[-1]

    yield make_loggers
    for loggers in made:
        loggers.close()


# -- the merged log ----------------------------------------------------------------------------------------------


def test_ready_is_reported(make: Callable[..., Loggers]) -> None:
    assert make(2).events == [{"event": "ready"}] * 2


def test_the_merged_log_tells_causes_before_effects(make: Callable[..., Loggers]) -> None:
    """Through all loggers; the long request that ended last began first."""
    loggers = make(3)
    loggers.request(2, 1)
    loggers.request(3, 2, 1)
    loggers.request(1, 1, 2, duration=90_000)
    found = loggers.read()
    assert story(found) == ["0:0.1.1", "1:-0.1.1", "2:-0.1.1", "0:0.1.2", "1:-0.1.2", "0:0.1.3", "2:-0.1.3", "1:-0.1.3"]
    first = found[0][1]
    assert (first.start, first.duration, first.offset, first.length, first.client) == (
        T + 10_000,
        90_000,
        4096,
        4096,
        7,
    )


def test_a_log_of_many_segments_and_batches(make: Callable[..., Loggers], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost or doubled where segments, batches and credits end; requests overlap all the time."""
    monkeypatch.setattr(answers, "BATCH", 7)
    loggers = make(3, retain=4 << 20)
    for number in range(1, 2001):
        loggers.request(number, 1 + number % 2, start=T + (number ^ 5) * 1000, duration=number % 50 * 1000)
    found = loggers.read()
    assert len(found) == 4000
    assert [record.start for _, record in found] == sorted(record.start for _, record in found)
    given = set()
    for _, record in found:
        if record.kind == Kind.REQUEST:
            given.add(record.identifier)
        assert record.identifier in given


def test_the_log_of_an_idle_cluster_is_empty(make: Callable[..., Loggers]) -> None:
    assert make(2).read() == []


def test_a_log_that_is_off_is_empty(make: Callable[..., Loggers]) -> None:
    assert make(2, retain=0).read() == []


def test_filters(make: Callable[..., Loggers]) -> None:
    loggers = make(3)
    for number in range(1, 301):
        loggers.request(number, 1)
    assert story(loggers.read(node="server1", last=2)) == ["1:-0.1.299", "1:-0.1.300"]
    assert story(loggers.read(last=3)) == ["1:-0.1.299", "0:0.1.300", "1:-0.1.300"]
    assert story(loggers.read(request=make_identifier(0, 1, 17))) == ["0:0.1.17", "1:-0.1.17"]
    assert story(loggers.read(since=T + 3_000_000)) == ["0:0.1.300", "1:-0.1.300"]
    assert loggers.read(last=0) == []
    assert len(loggers.read(last=MAX_LAST)) == 600
    until = loggers.ask({"ask": "merged", "until": T + 20_000})
    assert story(until.merged) == ["0:0.1.1", "1:-0.1.1", "0:0.1.2"]


@pytest.mark.parametrize("follow", [False, True])
def test_the_last_n_are_the_last_although_a_server_has_done_nothing_for_long(
    make: Callable[..., Loggers], follow: bool
) -> None:
    """Pieces of long ago, whose requests are not among the last of their server, do not take the place of those."""
    loggers = make(2)
    for number in range(1, 8):
        loggers.request(number, 1)
    for number in range(8, 15):
        loggers.request(number)
    for last, wanted in ((3, ["0:0.1.12", "0:0.1.13", "0:0.1.14"]), (1, ["0:0.1.14"])):
        asker = loggers.asker()
        asker.channel.send({"ask": "merged", "last": last, "follow": follow})
        loggers.turn_until(lambda asker=asker: asker.done or any("live" in frame.head for frame in asker.frames))
        assert story(asker.merged) == wanted
        asker.channel.close()


def test_since_reads_from_the_segments_that_were_being_written_then(make: Callable[..., Loggers]) -> None:
    """With times as they are when the log is written, where whole segments are passed over."""
    loggers = make(1)
    for number in range(1, 200):
        loggers.request(number, start=time_ns(), duration=1)
    since = time_ns()
    loggers.request(200, start=since)
    for number in range(201, 300):
        loggers.request(number, start=time_ns(), duration=1)
    found = loggers.read(since=since)
    assert [record.identifier for _, record in found] == [make_identifier(0, 1, n) for n in range(200, 300)]


def test_a_share(make: Callable[..., Loggers]) -> None:
    """What logger 0 asks the others for: one server's log, in the order of starts, and how far it goes."""
    loggers = make(2)
    loggers.request(2, 1)
    loggers.request(1, 1)
    asker = loggers.ask({"ask": "share"}, server=1)
    assert [record.identifier for record in asker.share] == [make_identifier(0, 1, 1), make_identifier(0, 1, 2)]
    assert asker.last == {"node": "server1", "end": True, "after": 2, "gaps": []}
    assert {frame.head["node"] for frame in asker.frames} == {"server1"}
    asker = loggers.ask({"ask": "share", "after": 1}, server=1)
    assert [record.identifier for record in asker.share] == [make_identifier(0, 1, 1)]


def test_a_share_comes_only_as_fast_as_it_is_asked_for(
    make: Callable[..., Loggers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "BATCH", 10)
    loggers = make(1)
    for number in range(1, 101):
        loggers.request(number)
    asker = loggers.asker()
    asker.channel.send({"ask": "share", "window": 2})
    loggers.turn_until(lambda: len(asker.share) == 20)
    for _ in range(20):
        loggers.loop.turn(0)
    assert len(asker.share) == 20
    asker.channel.send({"ask": "more"})
    loggers.turn_until(lambda: len(asker.share) == 30)
    for _ in range(20):
        asker.channel.send({"ask": "more"})
    loggers.turn_until(lambda: asker.done)
    assert asker.last["end"]
    assert len(asker.share) == 100


def test_gaps_are_counted_and_named(make: Callable[..., Loggers]) -> None:
    """What retention has dropped is told, with the server's name."""
    loggers = make(2, retain=4 * MIN_SEGMENT)
    for number in range(1, 1001):
        loggers.request(number, 1)
    told: list[str] = []
    found = loggers.read(told=told.append)
    gone = {server: 1000 - sum(node == server for node, _ in found) for server in (0, 1)}
    assert gone[0] > 0
    assert told == [
        f"{gone[server]} records of server{server} are not there: no longer kept, or never written" for server in (0, 1)
    ]


# -- loggers that are not there ----------------------------------------------------------------------------------


def test_a_logger_that_is_down_is_named_and_left_out(make: Callable[..., Loggers]) -> None:
    loggers = make(3)
    loggers.request(1, 1, 2)
    loggers.stop(1)
    told: list[str] = []
    assert story(loggers.read(told=told.append)) == ["0:0.1.1", "2:-0.1.1"]
    assert told == ["logger1 is missing (Connection refused); the log is without its share"]


def test_a_logger_that_is_silent_is_left_out(make: Callable[..., Loggers], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process is dead or stopped; connections wait in the backlog of the socket that the supervisor holds."""
    monkeypatch.setattr(shares, "FIRST_ANSWER", 0.05)
    loggers = make(3)
    loggers.request(1, 1, 2)
    loggers.loop.unwatch(loggers.listeners[2])
    asker = loggers.ask({"ask": "merged"})
    assert story(asker.merged) == ["0:0.1.1", "1:-0.1.1"]
    assert asker.last == {"end": True, "missing": ["logger2"], "trouble": {"logger2": "does not answer"}, "gaps": []}


@pytest.mark.parametrize(
    ("answer", "trouble"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "hung up"),
        (b"", "hung up"),
        (Frame({"error": "server1 is on fire"}).encode(), "server1 is on fire"),
        (Frame({"node": "server1", "records": 2}, bytes(64)).encode(), "does not keep to the protocol"),
        (Frame({"node": "server1", "records": "x"}, bytes(64)).encode(), "does not keep to the protocol"),
        (Frame({"node": "server1", "end": True, "gaps": 5}).encode(), "does not keep to the protocol"),
        (Frame({"node": "server1", "records": 0}).encode(), "has fallen silent"),
    ],
)
def test_a_logger_that_breaks_off_is_left_out(
    make: Callable[..., Loggers], monkeypatch: pytest.MonkeyPatch, answer: bytes, trouble: str
) -> None:
    """Whatever it sends, logger 0 lives on and says what is wrong with it."""
    monkeypatch.setattr(shares, "NEXT_ANSWER", 0.05)
    loggers = make(2)
    loggers.request(1, 1)
    loggers.loop.unwatch(loggers.listeners[1])
    asker = loggers.asker()
    asker.channel.send({"ask": "merged"})
    accepted: list[socket.socket] = []

    def accept(_: int) -> None:
        sock, _address = loggers.listeners[1].accept()
        accepted.append(sock)
        sock.sendall(answer)
        if trouble == "hung up":
            sock.shutdown(socket.SHUT_WR)

    loggers.loop.watch(loggers.listeners[1], 1, accept)
    loggers.turn_until(lambda: asker.done)
    assert story(asker.merged) == ["0:0.1.1"]
    assert asker.last["trouble"] == {"logger1": trouble}
    accepted[0].close()


def test_a_strange_file_among_the_segments_is_told(make: Callable[..., Loggers]) -> None:
    loggers = make(2)
    loggers.request(1, 1)
    (loggers.folder / "server1" / "000009.seg").write_bytes(b"thesis")
    (loggers.folder / "server0" / "000009.seg").write_bytes(b"thesis")
    asker = loggers.ask({"ask": "merged"})
    assert asker.last["missing"] == ["logger0", "logger1"]
    assert "000009.seg is not a segment of a memcluster log" in asker.last["trouble"]["logger1"]


def test_without_logger_0_there_is_a_sentence(make: Callable[..., Loggers]) -> None:
    loggers = make(1)
    loggers.stop(0)
    with pytest.raises(LogsError, match="cannot be reached: Connection refused"):
        loggers.read()


# -- following ---------------------------------------------------------------------------------------------------


def test_following(make: Callable[..., Loggers]) -> None:
    """History first; then what happens, a cause before its effects although it is logged after them."""
    loggers = make(3)
    loggers.request(1, 1)
    asker = loggers.asker()
    asker.channel.send({"ask": "merged", "follow": True})
    loggers.turn_until(lambda: any("live" in frame.head for frame in asker.frames))
    assert story(asker.merged) == ["0:0.1.1", "1:-0.1.1"]
    now = time_ns()
    slow = make_identifier(0, 1, 2)
    loggers.writers[1].append(now + 5, 10, slow, 0, 512, 0, Kind.PIECE, Command.READ, 0, 0)
    loggers.request(3, 2, start=now + 10)
    loggers.turn_until(lambda: len(asker.merged) >= 4)
    assert story(asker.merged)[2:] == ["0:0.1.3", "2:-0.1.3"]
    loggers.writers[0].append(now, 10**6, slow, 0, 512, 1, Kind.REQUEST, Command.READ, 0, 0)
    loggers.turn_until(lambda: len(asker.merged) >= 6)
    assert story(asker.merged)[4:] == ["0:0.1.2", "1:-0.1.2"]


def test_following_from_the_last_n(make: Callable[..., Loggers]) -> None:
    """A request in flight when the reader came is told before its piece, which is in the history already."""
    loggers = make(2)
    for number in range(1, 200):
        loggers.request(number, start=time_ns())
    now = time_ns()
    slow = make_identifier(0, 1, 200)
    loggers.writers[1].append(now + 5, 10, slow, 0, 512, 0, Kind.PIECE, Command.READ, 0, 0)
    asker = loggers.asker()
    asker.channel.send({"ask": "merged", "follow": True, "last": 2})
    loggers.turn_until(lambda: any("live" in frame.head for frame in asker.frames))
    assert story(asker.merged) == ["0:0.1.198", "0:0.1.199"]
    loggers.writers[0].append(now, 10**6, slow, 0, 512, 1, Kind.REQUEST, Command.READ, 0, 0)
    loggers.turn_until(lambda: len(asker.merged) == 4)
    assert story(asker.merged)[2:] == ["0:0.1.200", "1:-0.1.200"]


@pytest.mark.parametrize("hours", [-2, 2])
def test_following_does_not_wait_for_other_clocks(make: Callable[..., Loggers], hours: int) -> None:
    """A server whose clock is hours off is heard at once, and its piece still stands behind its request."""
    loggers = make(2)
    asker = loggers.asker()
    asker.channel.send({"ask": "merged", "follow": True})
    loggers.turn_until(lambda: any("live" in frame.head for frame in asker.frames))
    now = time_ns()
    there = now + hours * 3600 * 10**9
    slow = make_identifier(0, 1, 1)
    loggers.writers[1].append(there, 10, slow, 0, 512, 0, Kind.PIECE, Command.READ, 0, 0)
    loggers.request(1, server=1, start=there)
    loggers.turn_until(lambda: len(asker.merged) == 1)
    assert story(asker.merged) == ["1:1.1.1"]
    loggers.writers[0].append(now, 10**6, slow, 0, 512, 1, Kind.REQUEST, Command.READ, 0, 0)
    loggers.turn_until(lambda: len(asker.merged) == 3)
    assert story(asker.merged) == ["1:1.1.1", "0:0.1.1", "1:-0.1.1"]


HOURS = 3600 * 10**9


def set_clock(loggers: Loggers, server: int, skew: int) -> None:
    loggers.loggers[server].history.clock = lambda: time_ns() + skew


@pytest.mark.parametrize("skew", [-2 * HOURS, 2 * HOURS])
def test_a_time_ago_is_by_each_servers_own_clock(make: Callable[..., Loggers], skew: int) -> None:
    """In the history and when it is followed, from and up to it."""
    loggers = make(2)
    set_clock(loggers, 1, skew)
    ago, recent = time_ns() - 600 * 10**9, time_ns() - 30 * 10**9
    for server, there in ((0, 0), (1, skew)):
        loggers.request(1, server=server, start=ago + there)
        loggers.request(2, server=server, start=recent + there)
    minutes = 300 * 10**9
    assert sorted(story(loggers.ask({"ask": "merged", "since": -minutes}).merged)) == ["0:0.1.2", "1:1.1.2"]
    assert sorted(story(loggers.ask({"ask": "merged", "until": -minutes}).merged)) == ["0:0.1.1", "1:1.1.1"]
    asker = loggers.asker()
    asker.channel.send({"ask": "merged", "since": -minutes, "follow": True})
    loggers.turn_until(lambda: any("live" in frame.head for frame in asker.frames))
    loggers.request(3, server=1, start=time_ns() + skew)
    loggers.turn_until(lambda: len(asker.merged) == 3)
    assert sorted(story(asker.merged)) == ["0:0.1.2", "1:1.1.2", "1:1.1.3"]


def test_news_only(make: Callable[..., Loggers]) -> None:
    """Whatever the servers' clocks say: one is two hours behind, one ahead."""
    loggers = make(3)
    for number, skew in enumerate((0, -2 * HOURS, 2 * HOURS)):
        loggers.request(1, server=number, start=time_ns() + skew)
    asker = loggers.asker()
    asker.channel.send({"ask": "merged", "news": True, "follow": True})
    loggers.turn_until(lambda: any("live" in frame.head for frame in asker.frames))
    assert asker.last["after"] == {"server0": 1, "server1": 1, "server2": 1}
    for number, skew in enumerate((0, -2 * HOURS, 2 * HOURS)):
        loggers.request(2, server=number, start=time_ns() + skew)
    loggers.turn_until(lambda: len(asker.merged) == 3)
    assert sorted(story(asker.merged)) == ["0:0.1.2", "1:1.1.2", "2:2.1.2"]


def test_going_on_after_what_was_given(make: Callable[..., Loggers]) -> None:
    """By sequence numbers; where none is known the rest of the query holds."""
    loggers = make(3)
    for server in range(3):
        for number in range(1, 6):
            loggers.request(number, server=server, start=T - server * HOURS + number)
    query = {"ask": "merged", "last": 2, "since": T - HOURS, "after": {"server0": 4, "server1": 3}}
    found = story(loggers.ask(query).merged)
    assert sorted(found) == ["0:0.1.5", "1:1.1.4", "1:1.1.5"]
    query = {"ask": "merged", "last": 2, "after": {"server0": 4, "server1": 3}}
    assert sorted(story(loggers.ask(query).merged)) == ["0:0.1.5", "1:1.1.4", "1:1.1.5", "2:2.1.4", "2:2.1.5"]


def test_a_piece_that_waits_is_not_told_as_given(make: Callable[..., Loggers]) -> None:
    loggers = make(2)
    loggers.request(1, 1)
    slow = make_identifier(0, 1, 2)
    loggers.writers[1].append(T, 10, slow, 0, 512, 0, Kind.PIECE, Command.READ, 0, 0)
    loggers.request(3, 1)
    asker = loggers.asker()
    asker.channel.send({"ask": "merged", "follow": True})
    loggers.turn_until(lambda: any("live" in frame.head for frame in asker.frames))
    assert asker.last["after"] == {"server0": 2, "server1": 1}


def test_the_command_goes_on_where_it_was_whatever_the_clocks(make: Callable[..., Loggers]) -> None:
    """Logger 0 is lost and comes back; what a server far behind logged meanwhile is shown, and nothing twice."""
    loggers = make(2)
    seen: list[str] = []
    told: list[str] = []
    batches = read_batches(loggers.addresses[0], follow=True, last=1, told=told.append)

    def read(count: int) -> None:
        while len(seen) < count:
            seen.extend(story([tuple(entry) for entry in next(batches)]))

    loggers.request(1, start=time_ns())
    loggers.in_thread(lambda: read(1))
    loggers.request(2, server=1, start=time_ns() - 2 * HOURS)
    loggers.in_thread(lambda: read(2))
    loggers.loggers[0].cut("logger0", True)  # its queries are closed
    loggers.request(3, server=1, start=time_ns() - 2 * HOURS)
    loggers.loggers[0].cut("logger0", False)
    loggers.in_thread(lambda: read(3))
    assert seen == ["0:0.1.1", "1:1.1.2", "1:1.1.3"]
    assert "trying again until it is back" in told[0]
    batches.close()


def test_following_tells_of_a_logger_that_goes(make: Callable[..., Loggers]) -> None:
    loggers = make(3)
    asker = loggers.asker()
    asker.channel.send({"ask": "merged", "follow": True})
    loggers.turn_until(lambda: any("live" in frame.head for frame in asker.frames))
    loggers.stop(2)
    loggers.turn_until(lambda: asker.last.get("missing") == ["logger2"])
    assert asker.last["trouble"] == {"logger2": "hung up"}
    loggers.request(1, 1, 2, start=time_ns())
    loggers.turn_until(lambda: len(asker.merged) == 2)
    assert story(asker.merged) == ["0:0.1.1", "1:-0.1.1"]
    loggers.loggers[0].drain("", lambda: None)
    loggers.turn_until(lambda: "end" in asker.last)
    assert asker.last["missing"] == []  # it was told; once is enough


def test_a_share_that_was_lost_comes_back(make: Callable[..., Loggers], monkeypatch: pytest.MonkeyPatch) -> None:
    """A paused logger is found out by its silence; then its share goes on after the last record that came."""
    monkeypatch.setattr(answers, "SIGN", 0.02)
    monkeypatch.setattr(shares, "NEXT_ANSWER", 0.2)
    loggers = make(2)
    loggers.request(1, 1, start=time_ns())
    asker = loggers.asker()
    asker.channel.send({"ask": "merged", "follow": True})
    loggers.turn_until(lambda: any("live" in frame.head for frame in asker.frames))
    logger = loggers.loggers[1]
    logger.cut("logger0", True)  # what it has is lost, and who asks it waits in the backlog
    loggers.turn_until(lambda: asker.last.get("missing") == ["logger1"])
    loggers.request(2, 1, start=time_ns())
    logger.cut("logger0", False)
    loggers.turn_until(lambda: any(frame.head.get("back") == ["logger1"] for frame in asker.frames))
    loggers.request(3, 1, start=time_ns())
    loggers.turn_until(lambda: len(asker.merged) == 6)
    assert sorted(story(asker.merged)) == sorted(f"{who}0.1.{n}" for n in (1, 2, 3) for who in ("0:", "1:-"))


def test_a_silent_logger_is_found_out_while_it_is_followed(
    make: Callable[..., Loggers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "NEXT_ANSWER", 0.05)  # signs of life come every 2 s: too late
    loggers = make(2)
    asker = loggers.asker()
    asker.channel.send({"ask": "merged", "follow": True})
    said = {"logger1": "has fallen silent"}
    loggers.turn_until(lambda: any(frame.head.get("trouble") == said for frame in asker.frames))


def test_clocks_that_disagree_by_hours_do_not_harm_the_order(make: Callable[..., Loggers]) -> None:
    """The pieces' servers are two hours behind and two hours ahead."""
    loggers = make(3)
    hours = 3600 * 10**9
    for number in range(1, 201):
        identifier = make_identifier(0, 1, number)
        start = T + number * 1000
        for server, skew in ((1, -2 * hours), (2, 2 * hours)):
            loggers.writers[server].append(start + skew, 10, identifier, 0, 1, 0, Kind.PIECE, Command.READ, 0, 0)
        loggers.request(number, start=start)
    found = story(loggers.read())
    assert len(found) == 600
    for number in range(1, 201):
        assert found.index(f"0:0.1.{number}") < found.index(f"1:-0.1.{number}")
        assert found.index(f"0:0.1.{number}") < found.index(f"2:-0.1.{number}")


def test_a_follower_that_leaves_costs_nothing(make: Callable[..., Loggers]) -> None:
    """The segments are not looked at any more, here and at the other loggers."""
    loggers = make(2)
    asker = loggers.asker()
    asker.channel.send({"ask": "merged", "follow": True})
    loggers.turn_until(lambda: any("live" in frame.head for frame in asker.frames))
    assert [logger.status()["clients"] for logger in loggers.loggers.values()] == [1, 1]
    asker.channel.close()
    loggers.turn_until(lambda: all(logger.status()["clients"] == 0 for logger in loggers.loggers.values()))


def test_a_follower_that_was_gone_before_the_first_word_costs_nothing(
    make: Callable[..., Loggers], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer begins to speak when it is made, and hears then that nobody listens: it must not go on for ever."""
    made: list[shares.LocalShare] = []
    monkeypatch.setattr(answers, "LocalShare", lambda *told: made.append(shares.LocalShare(*told)) or made[-1])
    loggers = make(1)
    near, far = socket.socketpair()  # which knows at once that the other end is closed
    with far:
        far.sendall(Frame({"ask": "share", "follow": True}).encode())
    loggers.loggers[0]._accept(near)
    loggers.turn_until(lambda: made)
    assert made[0]._closed
    assert loggers.loggers[0].status()["clients"] == 0


def test_a_census_that_is_given_up_ends_its_own_count(make: Callable[..., Loggers]) -> None:
    """Who asks for figures and leaves does not have the whole log counted all the same."""
    loggers = make(2)
    ended: list[bool] = []
    census = Census(loggers.loop, loggers.specs[0], {}, lambda _: lambda: ended.append(True), lambda *_: None)
    census.close()
    assert ended


# -- collecting at the stop --------------------------------------------------------------------------------------


def test_collect_writes_the_merged_log(make: Callable[..., Loggers]) -> None:
    """All that the segments hold, in lines and nothing else; the file of an earlier time is replaced at once."""
    loggers = make(3)
    for number in range(1, 101):
        loggers.request(number, 1, 2)
    path = Path(loggers.specs[0].merged_log)
    path.parent.mkdir()
    path.write_text("an earlier log")
    loggers.stop(2)
    answers: list[dict[str, Any]] = []
    loggers.loggers[0].command({"do": "collect"}, answers.append)
    assert path.read_text() == "an earlier log"
    loggers.turn_until(lambda: answers)
    assert answers == [
        {
            "collected": 200,
            "path": str(path),
            "missing": ["logger2"],
            "trouble": {"logger2": "Connection refused"},
            "gaps": [],
        }
    ]
    lines = path.read_text().splitlines()
    assert len(lines) == 200
    assert " server0  0.1.1 " in lines[0]
    assert " server1  └ 0.1.1 " in lines[1]
    assert os.listdir(path.parent) == [path.name]


def test_a_merged_log_that_cannot_be_written_is_told(make: Callable[..., Loggers]) -> None:
    loggers = make(1)
    (loggers.folder / "logs").write_text("a file where the folder should be")
    answers: list[dict[str, Any]] = []
    loggers.loggers[0].command({"do": "collect"}, answers.append)
    loggers.turn_until(lambda: answers)
    assert answers[0]["collected"] == 0
    assert answers[0]["error"] == f"{loggers.folder / 'logs' / 'demo.log'}: File exists"


def test_another_logger_does_not_collect(make: Callable[..., Loggers]) -> None:
    answers: list[dict[str, Any]] = []
    make(2).loggers[1].command({"do": "collect"}, answers.append)
    assert answers == [{"error": "logger1 does not understand 'collect'"}]


# -- draining ----------------------------------------------------------------------------------------------------


def test_drain_finishes_answers_and_ends_followers(make: Callable[..., Loggers]) -> None:
    """A long answer under way comes to its end; who follows or has not asked is let go; new ones are not let in."""
    loggers = make(1, retain=8 << 20, segment_size=1 << 18)
    for number in range(1, 20_001):
        loggers.request(number)
    follower, idle, reader = loggers.asker(), loggers.asker(), loggers.asker()
    follower.channel.send({"ask": "merged", "follow": True, "last": 1})
    loggers.turn_until(lambda: any("live" in frame.head for frame in follower.frames))
    reader.channel.send({"ask": "merged"})
    loggers.turn_until(lambda: loggers.loggers[0].busy == 2)
    done: list[bool] = []
    loggers.loggers[0].drain("now", lambda: done.append(True))
    loggers.turn_until(lambda: all([follower.done, idle.closed, reader.done, *done]))
    loggers.turn_until(lambda: done)
    assert done == [True]
    assert follower.last["end"]
    assert reader.last["end"]
    assert len(reader.merged) == 20_000
    with pytest.raises(OSError, match="refused"):
        loggers.asker()


def test_drain_does_not_wait_for_ever(make: Callable[..., Loggers], monkeypatch: pytest.MonkeyPatch) -> None:
    """For an asker that never reads."""
    monkeypatch.setattr(role, "DRAIN", 0.05)
    loggers = make(1, retain=64 << 20, segment_size=1 << 20)
    for number in range(1, 200_001):
        loggers.request(number)
    asker = loggers.asker()
    asker.channel.send({"ask": "merged"})
    loggers.loop.unwatch(asker.channel.sock)
    loggers.turn_until(lambda: loggers.loggers[0].busy)
    done: list[bool] = []
    loggers.loggers[0].drain("now", lambda: done.append(True))
    loggers.turn_until(lambda: done)
    assert loggers.loggers[0].status()["clients"] == 0


def test_drain_with_nothing_to_do(make: Callable[..., Loggers]) -> None:
    done: list[bool] = []
    make(1).loggers[0].drain("finish", lambda: done.append(True))
    assert done == [True]


# -- what askers may send ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ({}, "ask must be merged, share, stats or tally, not None"),
        ({"ask": "everything"}, "ask must be merged, share, stats or tally, not 'everything'"),
        ({"ask": "more"}, "ask must be merged, share, stats or tally, not 'more'"),
        ({"ask": ["merged"]}, "ask must be merged, share, stats or tally, not ['merged']"),
        ({"ask": "merged", "since": "yesterday"}, "since must be a whole number from -"),
        ({"ask": "merged", "after": {"server9": 1}}, "after must be sequence numbers by the names of servers"),
        ({"ask": "merged", "after": 7}, "after must be sequence numbers by the names of servers"),
        ({"ask": "merged", "last": -1}, "last must be a whole number from 0 to 1000000, not -1"),
        ({"ask": "merged", "last": True}, "last must be a whole number"),
        ({"ask": "merged", "last": 10**9}, "last must be a whole number"),
        ({"ask": "merged", "request": 1 << 64}, "request must be a whole number"),
        ({"ask": "merged", "follow": 1}, "follow must be true or false, not 1"),
        ({"ask": "merged", "node": "server9"}, "there is no node 'server9' with a log; there are server0, server1"),
        ({"ask": "merged", "node": {}}, "there is no node {} with a log"),
        ({"ask": "share", "window": 0}, "window must be a whole number from 1, not 0"),
    ],
)
def test_a_query_that_makes_no_sense_gets_a_sentence(
    make: Callable[..., Loggers], query: dict[str, Any], sentence: str
) -> None:
    loggers = make(2)
    asker = loggers.ask(query)
    assert asker.last["error"].startswith(sentence)
    loggers.request(1, 1)
    assert len(loggers.read()) == 2


def test_only_logger_0_merges(make: Callable[..., Loggers]) -> None:
    asker = make(2).ask({"ask": "merged"}, server=1)
    assert asker.last["error"] == "logger1 gives its own share only; logger0 has the merged log"


def test_one_connection_asks_once(make: Callable[..., Loggers]) -> None:
    loggers = make(1)
    asker = loggers.asker()
    asker.channel.send({"ask": "share", "follow": True})
    asker.channel.send({"ask": "share"})
    loggers.turn_until(lambda: asker.done)
    assert asker.last == {"error": "one connection asks once"}


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\xff" * 100,
        struct.pack(">II", 2, 0) + b"[]",
        struct.pack(">II", 5, 0) + b"hello",
    ],
)
def test_what_is_not_a_frame_closes_the_connection(make: Callable[..., Loggers], data: bytes) -> None:
    loggers = make(1)
    asker = loggers.asker()
    asker.channel.sock.sendall(data)
    loggers.turn_until(lambda: asker.closed)
    assert loggers.loggers[0].status()["clients"] == 0


def test_who_never_asks_is_let_go(make: Callable[..., Loggers], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(role, "ASK_TIMEOUT", 0.01)
    loggers = make(1)
    asker = loggers.asker()
    asker.channel.sock.sendall(b"\0\0")
    loggers.turn_until(lambda: asker.closed)


def test_who_never_hangs_up_is_let_go(make: Callable[..., Loggers], monkeypatch: pytest.MonkeyPatch) -> None:
    """After an answer and after an error, whatever else it sends."""
    monkeypatch.setattr(role, "LINGER", 0.01)
    loggers = make(1)
    answered, refused = loggers.asker(), loggers.asker()
    answered.channel.send({"ask": "merged"})
    refused.channel.send({"ask": "nothing"})
    refused.channel.send({"ask": "merged"})
    loggers.turn_until(lambda: answered.closed and refused.closed)
    assert answered.last["end"]
    assert "error" in refused.last


def test_queries_are_bounded(make: Callable[..., Loggers], monkeypatch: pytest.MonkeyPatch) -> None:
    """More are told to come later, more connections are closed, and who was there is not harmed."""
    monkeypatch.setattr(role, "MAX_QUERIES", 2)
    monkeypatch.setattr(role, "MAX_CONNECTIONS", 4)
    loggers = make(1)
    followers = [loggers.asker() for _ in range(2)]
    for follower in followers:
        follower.channel.send({"ask": "merged", "follow": True})
    loggers.turn_until(lambda: all(follower.frames for follower in followers))
    third = loggers.ask({"ask": "merged"})
    assert third.last == {"error": "logger0 answers 2 queries already; try again later"}
    loggers.turn_until(lambda: loggers.loggers[0].status()["clients"] == 2)
    others = [loggers.asker() for _ in range(3)]
    loggers.turn_until(lambda: sum(other.closed for other in others) == 1)
    for asker in others:
        asker.channel.close()
    followers[0].channel.close()
    loggers.turn_until(lambda: loggers.loggers[0].status()["clients"] == 1)
    assert loggers.ask({"ask": "merged"}).last["end"]


def test_an_asker_that_does_not_read_costs_bounded_memory(make: Callable[..., Loggers]) -> None:
    """Its answer waits, others are answered, and when it reads on it gets everything."""
    loggers = make(2, retain=64 << 20, segment_size=1 << 20)
    count = 150_000
    for number in range(1, count + 1):
        loggers.request(number)
    slow = loggers.asker()
    slow.channel.send({"ask": "merged"})
    loggers.loop.unwatch(slow.channel.sock)
    loggers.turn_until(lambda: loggers.loggers[0].busy)
    (query,) = loggers.loggers[0]._queries
    loggers.turn_until(lambda: query.channel.queued > answers.QUEUE)
    assert len(loggers.read(last=10)) == 10
    assert query.channel.queued < 2 * answers.QUEUE
    loggers.loop.watch(slow.channel.sock, 1, slow.channel._on_ready)
    loggers.turn_until(lambda: slow.done)
    assert len(slow.merged) == count


def test_status_counts(make: Callable[..., Loggers]) -> None:
    loggers = make(2)
    assert loggers.loggers[0].status() == {"clients": 0, "requests": 0, "records": 0}
    loggers.request(1, 1)
    loggers.request(2, 1)
    loggers.read()
    loggers.turn_until(lambda: loggers.loggers[0].status() == {"clients": 0, "requests": 1, "records": 2})
    assert json.dumps(loggers.loggers[1].status())
