"""What askers may send to a logger, and how much of it they may take up."""

import json
import struct
from typing import Any

import pytest
from loggers import MakeLoggers

from memcluster.node.logger import answers
from memcluster.node.logger import logger as role
from memcluster.node.transport.proof import Who


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ({}, "ask must be merged, share, stats or tally, not None"),
        ({"ask": "everything"}, "ask must be merged, share, stats or tally, not 'everything'"),
        ({"ask": "more"}, "ask must be merged, share, stats or tally, not 'more'"),
        ({"ask": ["merged"]}, "ask must be merged, share, stats or tally, not a list of 1"),
        ({"ask": "merged", "since": "yesterday"}, "since must be a whole number from -"),
        ({"ask": "merged", "after": {"server9": 1}}, "after must be sequence numbers by the names of servers"),
        ({"ask": "merged", "after": 7}, "after must be sequence numbers by the names of servers"),
        ({"ask": "merged", "last": -1}, "last must be a whole number from 0 to 1000000, not -1"),
        ({"ask": "merged", "last": True}, "last must be a whole number"),
        ({"ask": "merged", "last": 10**9}, "last must be a whole number"),
        ({"ask": "merged", "request": 1 << 64}, "request must be a whole number"),
        ({"ask": "merged", "follow": 1}, "follow must be true or false, not 1"),
        ({"ask": "merged", "subjects": [9]}, "there is no node 9; there are 2"),
        ({"ask": "merged", "subjects": {}}, "subjects must be a list of numbers, not a dict of 0"),
        ({"ask": "share", "window": 0}, "window must be a whole number from 1, not 0"),
    ],
)
def test_a_query_that_makes_no_sense_gets_a_sentence(
    make_loggers: MakeLoggers, query: dict[str, Any], sentence: str
) -> None:
    loggers = make_loggers(2)
    asker = loggers.ask(query)
    assert asker.last["error"].startswith(sentence)
    loggers.request(1, 1)
    assert len(loggers.read()) == 2


def test_only_logger_0_merges(make_loggers: MakeLoggers) -> None:
    asker = make_loggers(2).ask({"ask": "merged"}, server=1)
    assert asker.last["error"] == "logger1 gives its own share only; logger0 has the merged log"


def test_one_connection_asks_once(make_loggers: MakeLoggers) -> None:
    loggers = make_loggers(1)
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
def test_what_is_not_a_frame_closes_the_connection(make_loggers: MakeLoggers, data: bytes) -> None:
    loggers = make_loggers(1)
    asker = loggers.asker()
    asker.channel.sock.sendall(data)
    loggers.turn_until(lambda: asker.closed)
    assert loggers.loggers[0].status()["clients"] == 0


def test_who_never_asks_is_let_go(make_loggers: MakeLoggers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(role, "ASK_TIMEOUT", 0.01)
    loggers = make_loggers(1)
    asker = loggers.asker()
    asker.channel.sock.sendall(b"\0\0")
    loggers.turn_until(lambda: asker.closed)


def test_who_never_hangs_up_is_let_go(make_loggers: MakeLoggers, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an answer and after an error, whatever else it sends."""
    monkeypatch.setattr(role, "LINGER", 0.01)
    loggers = make_loggers(1)
    answered, refused = loggers.asker(), loggers.asker()
    answered.channel.send({"ask": "merged"})
    refused.channel.send({"ask": "nothing"})
    refused.channel.send({"ask": "merged"})
    loggers.turn_until(lambda: answered.closed and refused.closed)
    assert answered.last["end"]
    assert "error" in refused.last


def test_queries_are_bounded(make_loggers: MakeLoggers, monkeypatch: pytest.MonkeyPatch) -> None:
    """More are told to come later, more connections are closed, and who was there is not harmed."""
    monkeypatch.setitem(role.PLACES, Who.OWNER, 2)
    monkeypatch.setattr(role, "MAX_CONNECTIONS", 4)
    loggers = make_loggers(1)
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


def test_however_many_follow_no_share_is_missing(make_loggers: MakeLoggers, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have all the owner's places at both loggers; the merged log of the stop is whole all the same."""
    monkeypatch.setitem(role.PLACES, Who.OWNER, 3)
    loggers = make_loggers(2)
    loggers.request(1, 1)
    followers = [loggers.asker(server) for server in (0, 0, 0, 1, 1, 1)]
    for follower in followers:
        follower.channel.send({"ask": "share" if follower in followers[3:] else "merged", "follow": True})
    loggers.turn_until(lambda: all(follower.frames for follower in followers))
    assert "queries already" in loggers.ask({"ask": "merged"}).last["error"]
    collected: list[dict[str, Any]] = []
    loggers.loggers[0].command({"do": "collect"}, collected.append)
    loggers.turn_until(lambda: collected)
    assert (collected[0]["collected"], collected[0]["missing"]) == (2, [])


def test_an_asker_that_does_not_read_costs_bounded_memory(make_loggers: MakeLoggers) -> None:
    """Its answer waits, others are answered, and when it reads on it gets everything."""
    loggers = make_loggers(2, retain=64 << 20, segment_size=1 << 20)
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


def test_status_counts(make_loggers: MakeLoggers) -> None:
    loggers = make_loggers(2)
    assert loggers.loggers[0].status() == {"clients": 0, "requests": 0, "records": 0, "strangers": 0}
    loggers.request(1, 1)
    loggers.request(2, 1)
    loggers.read()
    counters = {"clients": 0, "requests": 1, "records": 2, "strangers": 0}
    loggers.turn_until(lambda: loggers.loggers[0].status() == counters)
    assert json.dumps(loggers.loggers[1].status())
