"""The loggers of a cluster on one loop, with real sockets: what they give, whom they miss, what cannot hurt them."""

import os
import socket
from pathlib import Path
from time import time_ns
from typing import Any

import pytest
from harness import SECRET
from loggers import MakeLoggers, T, story

from memcluster.launcher.log.reader import LogsError
from memcluster.node.log.filter import MAX_LAST
from memcluster.node.log.record import RECORD_SIZE, Event, Kind, make_identifier
from memcluster.node.log.segments import HEADER_SIZE, MAGIC
from memcluster.node.log.writer import MIN_SEGMENT
from memcluster.node.logger import answers, shares
from memcluster.node.logger import logger as role
from memcluster.node.transport.address import Address
from memcluster.node.transport.frames import Frame
from memcluster.node.transport.introduction import Doorkeeper
from memcluster.node.transport.proof import Who

# -- the merged log ----------------------------------------------------------------------------------------------


def test_ready_is_reported(make_loggers: MakeLoggers) -> None:
    assert make_loggers(2).events == [{"event": "ready"}] * 2


def test_the_merged_log_tells_causes_before_effects(make_loggers: MakeLoggers) -> None:
    """Through all loggers; the long request that ended last began first."""
    loggers = make_loggers(3)
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


def test_a_log_of_many_segments_and_batches(make_loggers: MakeLoggers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost or doubled where segments, batches and credits end; requests overlap all the time."""
    monkeypatch.setattr(answers, "BATCH", 7)
    loggers = make_loggers(3, retain=4 << 20)
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


def test_the_log_of_an_idle_cluster_is_empty(make_loggers: MakeLoggers) -> None:
    assert make_loggers(2).read() == []


def test_a_log_that_is_off_is_empty(make_loggers: MakeLoggers) -> None:
    assert make_loggers(2, retain=0).read() == []


def test_filters(make_loggers: MakeLoggers) -> None:
    loggers = make_loggers(3)
    for number in range(1, 301):
        loggers.request(number, 1)
    assert story(loggers.read(nodes=["server1"], last=2)) == ["1:-0.1.299", "1:-0.1.300"]
    assert story(loggers.read(last=3)) == ["1:-0.1.299", "0:0.1.300", "1:-0.1.300"]
    assert story(loggers.read(request=make_identifier(0, 1, 17))) == ["0:0.1.17", "1:-0.1.17"]
    assert story(loggers.read(since=T + 3_000_000)) == ["0:0.1.300", "1:-0.1.300"]
    assert loggers.read(last=0) == []
    assert len(loggers.read(last=MAX_LAST)) == 600
    until = loggers.ask({"ask": "merged", "until": T + 20_000})
    assert story(until.merged) == ["0:0.1.1", "1:-0.1.1", "0:0.1.2"]


@pytest.mark.parametrize("follow", [False, True])
def test_the_last_n_are_the_last_although_a_server_has_done_nothing_for_long(
    make_loggers: MakeLoggers, follow: bool
) -> None:
    """Pieces of long ago, whose requests are not among the last of their server, do not take the place of those."""
    loggers = make_loggers(2)
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


def test_since_reads_from_the_segments_that_were_being_written_then(make_loggers: MakeLoggers) -> None:
    """With times as they are when the log is written, where whole segments are passed over."""
    loggers = make_loggers(1)
    for number in range(1, 200):
        loggers.request(number, start=time_ns(), duration=1)
    since = time_ns()
    loggers.request(200, start=since)
    for number in range(201, 300):
        loggers.request(number, start=time_ns(), duration=1)
    found = loggers.read(since=since)
    assert [record.identifier for _, record in found] == [make_identifier(0, 1, n) for n in range(200, 300)]


def test_a_share(make_loggers: MakeLoggers) -> None:
    """What logger 0 asks the others for: one server's log, in the order of starts, and how far it goes."""
    loggers = make_loggers(2)
    loggers.request(2, 1)
    loggers.request(1, 1)
    asker = loggers.ask({"ask": "share"}, server=1)
    assert [record.identifier for record in asker.share] == [make_identifier(0, 1, 1), make_identifier(0, 1, 2)]
    assert asker.last == {"node": "server1", "end": True, "after": 2, "gaps": []}
    assert {frame.head["node"] for frame in asker.frames} == {"server1"}
    asker = loggers.ask({"ask": "share", "after": 1}, server=1)
    assert [record.identifier for record in asker.share] == [make_identifier(0, 1, 1)]


def test_a_share_comes_only_as_fast_as_it_is_asked_for(
    make_loggers: MakeLoggers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "BATCH", 10)
    loggers = make_loggers(1)
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


def test_gaps_are_counted_and_named(make_loggers: MakeLoggers) -> None:
    """What retention has dropped is told, with the server's name."""
    loggers = make_loggers(2, retain=4 * MIN_SEGMENT)
    for number in range(1, 1001):
        loggers.request(number, 1)
    told: list[str] = []
    found = loggers.read(told=told.append)
    gone = {server: 1000 - sum(node == server for node, _ in found) for server in (0, 1)}
    assert gone[0] > 0
    assert told == [
        f"{gone[server]} records of server{server} are not there: no longer kept, damaged, or never written"
        for server in (0, 1)
    ]


# -- loggers that are not there ----------------------------------------------------------------------------------


def test_a_logger_that_is_down_is_named_and_left_out(make_loggers: MakeLoggers) -> None:
    loggers = make_loggers(3)
    loggers.request(1, 1, 2)
    loggers.stop(1)
    told: list[str] = []
    assert story(loggers.read(told=told.append)) == ["0:0.1.1", "2:-0.1.1"]
    assert told == ["logger1 is missing (Connection refused); the log is without its share"]


def test_a_logger_that_is_silent_is_left_out(make_loggers: MakeLoggers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process is dead or stopped; connections wait in the backlog of the socket that the supervisor holds."""
    monkeypatch.setattr(shares, "FIRST_ANSWER", 0.05)
    loggers = make_loggers(3)
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
    make_loggers: MakeLoggers, monkeypatch: pytest.MonkeyPatch, answer: bytes, trouble: str
) -> None:
    """Whatever it sends, logger 0 lives on and says what is wrong with it."""
    monkeypatch.setattr(shares, "NEXT_ANSWER", 0.05)
    loggers = make_loggers(2)
    loggers.request(1, 1)
    loggers.loop.unwatch(loggers.listeners[1])
    asker = loggers.asker()
    asker.channel.send({"ask": "merged"})
    accepted: list[socket.socket] = []

    def admitted(sock: socket.socket, _who: Who) -> None:
        accepted.append(sock)
        sock.sendall(answer)
        if trouble == "hung up":
            sock.shutdown(socket.SHUT_WR)

    door = Doorkeeper(loggers.loop, SECRET, "logger1", [Who.LOGGER], admitted, pytest.fail)
    loggers.loop.watch(loggers.listeners[1], 1, lambda _: door.take(loggers.listeners[1].accept()[0]))
    loggers.turn_until(lambda: asker.done)
    assert story(asker.merged) == ["0:0.1.1"]
    assert asker.last["trouble"] == {"logger1": trouble}
    accepted[0].close()


@pytest.mark.parametrize("content", [b"", b"thesis" * 1000, MAGIC + bytes(120), MAGIC + b"\xff" * 120])
def test_a_damaged_segment_takes_nothing_else_along(make_loggers: MakeLoggers, content: bytes) -> None:
    """Its records are counted as missing; those before and after it, and the other servers', are told."""
    loggers = make_loggers(2)
    for number in range(1, 301):
        loggers.request(number, 1)
    path = loggers.folder / "server1" / "000002.seg"
    held = (path.stat().st_size - HEADER_SIZE) // RECORD_SIZE
    path.write_bytes(content)
    told: list[str] = []
    found = loggers.read(told=told.append)
    assert sum(server == 0 for server, _ in found) == 300
    assert sum(server == 1 for server, _ in found) == 300 - held
    assert told == [f"{held} records of server1 are not there: no longer kept, damaged, or never written"]


def test_a_forged_start_of_a_server_does_not_end_the_logger(make_loggers: MakeLoggers) -> None:
    """While somebody follows: no server has so many incarnations."""
    loggers = make_loggers(1)
    asker = loggers.asker()
    asker.channel.send({"ask": "merged", "follow": True})
    loggers.turn_until(lambda: any(frame.head.get("live") for frame in asker.frames))
    loggers.writers[0].append(T, 0, 0, (1 << 64) - 1, 0, 0, Kind.EVENT, Event.STARTED, 0, 0)
    loggers.turn_until(lambda: asker.merged)


def test_without_logger_0_there_is_a_sentence(make_loggers: MakeLoggers) -> None:
    loggers = make_loggers(1)
    loggers.stop(0)
    with pytest.raises(LogsError, match="cannot be reached: Connection refused"):
        loggers.read()


# -- collecting at the stop --------------------------------------------------------------------------------------


def test_collect_writes_the_merged_log(make_loggers: MakeLoggers) -> None:
    """All that the segments hold, in lines and nothing else; the file of an earlier time is replaced at once."""
    loggers = make_loggers(3)
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


def test_a_merged_log_that_cannot_be_written_is_told(make_loggers: MakeLoggers) -> None:
    loggers = make_loggers(1)
    (loggers.folder / "logs").write_text("a file where the folder should be")
    answers: list[dict[str, Any]] = []
    loggers.loggers[0].command({"do": "collect"}, answers.append)
    loggers.turn_until(lambda: answers)
    assert answers[0]["collected"] == 0
    assert answers[0]["error"] == f"{loggers.folder / 'logs' / 'demo.log'}: Not a directory"


def test_a_merged_log_that_takes_too_long_is_told(make_loggers: MakeLoggers) -> None:
    """Nothing half-done is left, and the one of an earlier time stays."""
    loggers = make_loggers(3)
    loggers.request(1, 1, 2)
    path = Path(loggers.specs[0].merged_log)
    path.parent.mkdir()
    path.write_text("an earlier log")
    answers: list[dict[str, Any]] = []
    loggers.loggers[0].command({"do": "collect", "within": 0.0}, answers.append)
    loggers.turn_until(lambda: answers)
    [answer] = answers
    assert (answer["collected"], answer["error"]) == (0, "it was not done within 0.0 s")
    assert path.read_text() == "an earlier log"
    assert os.listdir(path.parent) == [path.name]


def test_another_logger_does_not_collect(make_loggers: MakeLoggers) -> None:
    answers: list[dict[str, Any]] = []
    make_loggers(2).loggers[1].command({"do": "collect"}, answers.append)
    assert answers == [{"error": "logger1 does not understand 'collect'"}]


# -- draining ----------------------------------------------------------------------------------------------------


def test_drain_finishes_answers_and_ends_followers(make_loggers: MakeLoggers) -> None:
    """A long answer under way comes to its end; who follows or has not asked is let go; new ones are not let in."""
    loggers = make_loggers(1, retain=8 << 20, segment_size=1 << 18)
    for number in range(1, 20_001):
        loggers.request(number)
    follower, idle, reader = loggers.asker(), loggers.asker(), loggers.asker()
    follower.channel.send({"ask": "merged", "follow": True, "last": 1})
    loggers.turn_until(lambda: any("live" in frame.head for frame in follower.frames))
    reader.channel.send({"ask": "merged"})
    loggers.turn_until(lambda: loggers.loggers[0].busy(Who.OWNER) == 2)
    done: list[bool] = []
    loggers.loggers[0].drain("now", lambda: done.append(True))
    loggers.turn_until(lambda: all([follower.done, idle.closed, reader.done, *done]))
    loggers.turn_until(lambda: done)
    assert done == [True]
    assert follower.last["end"]
    assert reader.last["end"]
    assert len(reader.merged) == 20_000
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(Address.parse(loggers.addresses[0]).sockaddr)


def test_drain_does_not_wait_for_ever(make_loggers: MakeLoggers, monkeypatch: pytest.MonkeyPatch) -> None:
    """For an asker that never reads."""
    monkeypatch.setattr(role, "DRAIN", 0.05)
    loggers = make_loggers(1, retain=64 << 20, segment_size=1 << 20)
    for number in range(1, 200_001):
        loggers.request(number)
    asker = loggers.asker()
    asker.channel.send({"ask": "merged"})
    loggers.loop.unwatch(asker.channel.sock)
    loggers.turn_until(lambda: loggers.loggers[0].busy(Who.OWNER))
    done: list[bool] = []
    loggers.loggers[0].drain("now", lambda: done.append(True))
    loggers.turn_until(lambda: done)
    assert loggers.loggers[0].status()["clients"] == 0


def test_drain_with_nothing_to_do(make_loggers: MakeLoggers) -> None:
    done: list[bool] = []
    make_loggers(1).loggers[0].drain("finish", lambda: done.append(True))
    assert done == [True]
