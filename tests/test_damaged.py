"""What cannot be right is believed by nobody: the record of a run, the map of one, and what comes in frames, whoever
wrote it. Each gives nothing, or the error that is declared, in words that a line has room for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from memcluster.client.cluster_map import parse_map
from memcluster.client.discover import _record
from memcluster.client.errors import ClusterError
from memcluster.client.uri import Target
from memcluster.launcher.log.reader import check_answer
from memcluster.launcher.run.directory import NodeRecord, RunDirectory, RunRecord
from memcluster.launcher.run.identity import Identity
from memcluster.launcher.run.maps import map_path, read_map
from memcluster.launcher.supervision.orders import OrderError, parse
from memcluster.node.cluster_map import ClusterMap, ServerEntry
from memcluster.node.log.filter import Filter
from memcluster.node.log.tally import Tally
from memcluster.node.nbd.printable import shown
from memcluster.node.transport.frames import Frame, FrameError, FrameReader

DEEP = 900
"""Lists in one another: JSON that is read, and that Python cannot write in a sentence from everywhere."""


def a_record() -> dict[str, Any]:
    one = Identity(5, 6)
    nodes = tuple(NodeRecord(name, "x", 9, 8, "127.0.0.1:1", (0, 9), 9) for name in ("server0", "logger0"))
    record = RunRecord("demo", "/f", "chain", 9, "nbd://h:1", 10.0, 1, one, (one,), nodes)
    return json.loads(record.to_json())


def changed(path: str, value: object) -> dict[str, Any]:
    """A record with another value at this place."""
    record = found = a_record()
    *way, last = path.split(".")
    for key in way:
        found = found[int(key) if key.isdecimal() else key]
    found[last] = value
    return record


@pytest.fixture
def run_directory(tmp_path):
    found = RunDirectory("nobodys")
    found.state = tmp_path / "state.json"
    return found


@pytest.mark.parametrize(
    ("path", "value"),
    [("supervisor.pid", -1), ("supervisor.pid", 0), ("helpers.0.pid", "5"), ("nodes.0.pid", 1 << 40),
     ("nodes.1.start", 1.5), ("nodes.0.address", 7), ("nodes.0.range", [1]), ("nodes.0.range", [0, "9"]),
     ("nodes.0.memory", -1), ("file", None), ("nodes.1.name", "logger7"), ("nodes", []), ("stop_timeout", "soon"),
     ("stop_timeout", 1e300), ("sample", True)],
)  # fmt: skip
def test_a_record_of_a_run_is_right_to_the_last_value_or_none(run_directory, path, value):
    """What it says is believed: its pids get signals."""
    run_directory.state.write_text(json.dumps(a_record()))
    assert run_directory.record() is not None
    run_directory.state.write_text(json.dumps(changed(path, value)))
    assert run_directory.record() is None


@pytest.mark.parametrize("content", [b"[" * 100_000, b"{", b"\xff", b"7", b"", b'{"cluster": 1e999}'])
def test_a_record_that_is_no_record_is_none(run_directory, content):
    """For who looks for clusters, too."""
    run_directory.state.write_bytes(content)
    assert run_directory.record() is None
    assert _record(run_directory.state.parent) in ({}, {"cluster": float("inf")})


@pytest.mark.parametrize(
    "change", [{"servers": []}, {"servers": 5}, {"layout": {"stripe": 3}}, {"layout": {"stripe": -4096}}, {"memory": 1}]
)
def test_a_map_of_a_run_makes_sense_or_is_none(tmp_path, change):
    """The log is read without it."""
    entries = (ServerEntry("10.0.0.1:1", "", 8192, "server"),)
    right = ClusterMap("demo", "chain", "parallel", 0, entries)
    map_path(tmp_path, 1).write_bytes(right.to_json())
    assert read_map(tmp_path, 1) == right
    map_path(tmp_path, 1).write_text(json.dumps(json.loads(right.to_json()) | change))
    assert read_map(tmp_path, 1) is None


def test_a_map_without_servers_leads_nowhere():
    with pytest.raises(ClusterError, match="cannot be right: it has no servers"):
        parse_map(b'{"servers": [], "layout": {}}', Target("127.0.0.1"))


# -- what comes in frames ----------------------------------------------------------------------------------------------


def nested(count: int) -> str:
    return "[" * count + "]" * count


def test_a_value_is_shown_however_long_or_deep_it_is():
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "a list of 1"
    assert shown({1: 2, 3: 4}) == "a dict of 2"
    assert shown("\x1b[2J" + "x" * 1000) == r"'\x1b[2J" + "x" * 52
    assert shown(10**5000) == "a number beyond all measure"


@pytest.mark.parametrize(
    "name", ["since", "operations", "subjects", "news", "request", "do", "timeout", "targets", "drain", "config"]
)
def test_questions_and_orders_that_are_deep_get_a_sentence(name):
    """Of bounded length, whatever is asked for."""
    words = f'{{"do": "apply", "{name}": {nested(DEEP)}}}'.encode()
    (frame,) = FrameReader().receive(len(words).to_bytes(4, "big") + bytes(4) + words)
    for take, declared in ((Filter.from_head, ValueError), (parse, OrderError)):
        told = ""
        try:
            take(frame.head)
        except declared as error:
            told = str(error)
        assert len(told) < 1000
        assert told.isprintable()


@pytest.mark.parametrize("seconds", [-1, 1e300, pytest.param(10**400, id="long"), float("nan"), float("inf"), "5"])
def test_no_order_has_a_time_that_a_clock_could_not_add_up(seconds):
    fault = {"do": "fault", "kind": "slow", "targets": ["x"], "delay": seconds}
    for order in ({"do": "down", "timeout": seconds}, fault):
        with pytest.raises(OrderError, match="must be seconds"):
            parse(order)


@pytest.mark.parametrize(
    "head",
    [{"error": []}, {"back": "x"}, {"missing": [5]}, {"trouble": ["x"]}, {"trouble": {"logger1": 5}}, {"after": 5},
     {"after": {"server0": "5"}}, {"gaps": [5]}, {"gaps": [{"node": "server0"}]}, {"stats": []}],
)  # fmt: skip
def test_a_logger_that_does_not_say_what_loggers_say_is_none(head):
    with pytest.raises(FrameError, match=next(iter(head))):
        check_answer(Frame(head))


RIGHT = {"cell": 4096, "missing": 1, "age": -5, "figures": [[1, 0, 2, 100, 0, 3000, 2000, [[5, 1], [7, 1]]]],
         "events": [[4, 1]], "cells": [[0, 2, 100]]}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [{"cell": 0}, {"cell": 1e999}, {"missing": -1}, {"age": None}, {"figures": [[1, 0, 0, 0, 0, 0, 0, []]]},
     {"figures": [[1, 0, 1, 0, 0, 0, 0, [[1 << 60, 1]]]]}, {"figures": [[[], 0, 1, 0, 0, 0, 0, []]]},
     {"events": [[4, -1]]}, {"events": {"4": 1}}, {"cells": [[0, 2]]}, {"cells": [["0", 2, 3]]}, {"figures": 5}],
)  # fmt: skip
def test_figures_are_numbers_that_can_be_right_or_none(change):
    assert json.loads(json.dumps(Tally.from_head(RIGHT).to_head())) == RIGHT
    with pytest.raises((ValueError, TypeError)):
        Tally.from_head(RIGHT | change)
