"""Followers of the merged log: what they are told, in which order, and where they go on."""

import socket
from time import time_ns

import pytest
from harness import SECRET
from loggers import Loggers, MakeLoggers, T, story

from memcluster.launcher.log.reader import read_batches
from memcluster.node.log.record import Kind, make_identifier
from memcluster.node.logger import answers, shares
from memcluster.node.logger.tallying import Census
from memcluster.node.nbd.wire import Command
from memcluster.node.transport.frames import Frame
from memcluster.node.transport.proof import Who


def test_following(make_loggers: MakeLoggers) -> None:
    """History first; then what happens, a cause before its effects although it is logged after them."""
    loggers = make_loggers(3)
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


def test_following_from_the_last_n(make_loggers: MakeLoggers) -> None:
    """A request in flight when the reader came is told before its piece, which is in the history already."""
    loggers = make_loggers(2)
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
def test_following_does_not_wait_for_other_clocks(make_loggers: MakeLoggers, hours: int) -> None:
    """A server whose clock is hours off is heard at once, and its piece still stands behind its request."""
    loggers = make_loggers(2)
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
def test_a_time_ago_is_by_each_servers_own_clock(make_loggers: MakeLoggers, skew: int) -> None:
    """In the history and when it is followed, from and up to it."""
    loggers = make_loggers(2)
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


def test_news_only(make_loggers: MakeLoggers) -> None:
    """Whatever the servers' clocks say: one is two hours behind, one ahead."""
    loggers = make_loggers(3)
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


def test_going_on_after_what_was_given(make_loggers: MakeLoggers) -> None:
    """By sequence numbers; where none is known the rest of the query holds."""
    loggers = make_loggers(3)
    for server in range(3):
        for number in range(1, 6):
            loggers.request(number, server=server, start=T - server * HOURS + number)
    query = {"ask": "merged", "last": 2, "since": T - HOURS, "after": {"server0": 4, "server1": 3}}
    found = story(loggers.ask(query).merged)
    assert sorted(found) == ["0:0.1.5", "1:1.1.4", "1:1.1.5"]
    query = {"ask": "merged", "last": 2, "after": {"server0": 4, "server1": 3}}
    assert sorted(story(loggers.ask(query).merged)) == ["0:0.1.5", "1:1.1.4", "1:1.1.5", "2:2.1.4", "2:2.1.5"]


def test_a_piece_that_waits_is_not_told_as_given(make_loggers: MakeLoggers) -> None:
    loggers = make_loggers(2)
    loggers.request(1, 1)
    slow = make_identifier(0, 1, 2)
    loggers.writers[1].append(T, 10, slow, 0, 512, 0, Kind.PIECE, Command.READ, 0, 0)
    loggers.request(3, 1)
    asker = loggers.asker()
    asker.channel.send({"ask": "merged", "follow": True})
    loggers.turn_until(lambda: any("live" in frame.head for frame in asker.frames))
    assert asker.last["after"] == {"server0": 2, "server1": 1}


def test_the_command_goes_on_where_it_was_whatever_the_clocks(make_loggers: MakeLoggers) -> None:
    """Logger 0 is lost and comes back; what a server far behind logged meanwhile is shown, and nothing twice."""
    loggers = make_loggers(2)
    seen: list[str] = []
    told: list[str] = []
    batches = read_batches(loggers.addresses[0], SECRET, follow=True, last=1, told=told.append)

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


def test_following_tells_of_a_logger_that_goes(make_loggers: MakeLoggers) -> None:
    loggers = make_loggers(3)
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


def test_a_share_that_was_lost_comes_back(make_loggers: MakeLoggers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A paused logger is found out by its silence; then its share goes on after the last record that came."""
    monkeypatch.setattr(answers, "SIGN", 0.02)
    monkeypatch.setattr(shares, "NEXT_ANSWER", 0.2)
    loggers = make_loggers(2)
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
    make_loggers: MakeLoggers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "NEXT_ANSWER", 0.05)  # signs of life come every 2 s: too late
    loggers = make_loggers(2)
    asker = loggers.asker()
    asker.channel.send({"ask": "merged", "follow": True})
    said = {"logger1": "has fallen silent"}
    loggers.turn_until(lambda: any(frame.head.get("trouble") == said for frame in asker.frames))


def test_clocks_that_disagree_by_hours_do_not_harm_the_order(make_loggers: MakeLoggers) -> None:
    """The pieces' servers are two hours behind and two hours ahead."""
    loggers = make_loggers(3)
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


def test_a_follower_that_leaves_costs_nothing(make_loggers: MakeLoggers) -> None:
    """The segments are not looked at any more, here and at the other loggers."""
    loggers = make_loggers(2)
    asker = loggers.asker()
    asker.channel.send({"ask": "merged", "follow": True})
    loggers.turn_until(lambda: any("live" in frame.head for frame in asker.frames))
    assert [logger.status()["clients"] for logger in loggers.loggers.values()] == [1, 1]
    asker.channel.close()
    loggers.turn_until(lambda: all(logger.status()["clients"] == 0 for logger in loggers.loggers.values()))


def test_a_follower_that_was_gone_before_the_first_word_costs_nothing(
    make_loggers: MakeLoggers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer begins to speak when it is made, and hears then that nobody listens: it must not go on for ever."""
    made: list[shares.LocalShare] = []
    monkeypatch.setattr(answers, "LocalShare", lambda *told: made.append(shares.LocalShare(*told)) or made[-1])
    loggers = make_loggers(1)
    near, far = socket.socketpair()  # which knows at once that the other end is closed
    with far:
        far.sendall(Frame({"ask": "share", "follow": True}).encode())
    loggers.loggers[0]._admit(near, Who.OWNER)
    loggers.turn_until(lambda: made)
    assert made[0]._closed
    assert loggers.loggers[0].status()["clients"] == 0


def test_a_census_that_is_given_up_ends_its_own_count(make_loggers: MakeLoggers) -> None:
    """Who asks for figures and leaves does not have the whole log counted all the same."""
    loggers = make_loggers(2)
    ended: list[bool] = []
    census = Census(loggers.loop, loggers.specs[0], {}, lambda _: lambda: ended.append(True), lambda *_: None)
    census.close()
    assert ended
