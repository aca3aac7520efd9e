"""The program that tries millions of inputs (`python -m bench.fuzz`): some thousand of them for each target, the same
each time, break no rule; and each target's rules can be broken."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from forms import planted
from harness import ROOT, run

sys.path.insert(0, str(ROOT))  # `bench` is not installed

from bench.fuzz.engine import by_chance, replay
from bench.fuzz.files import a_segment, room
from bench.fuzz.messages import a_config
from bench.fuzz.target import ROOM, joined
from bench.fuzz.targets import TARGETS
from memcluster.client import cluster_map
from memcluster.launcher.clusterfile import plain
from memcluster.launcher.run.directory import RunRecord
from memcluster.launcher.supervision import orders
from memcluster.node.handover import messages
from memcluster.node.log.segments import LogReader, Segment, SegmentReader
from memcluster.node.nbd import wire
from memcluster.node.nbd.client import ClientSession
from memcluster.node.nbd.negotiation import Negotiation
from memcluster.node.nbd.server import ServerSession
from memcluster.node.nbd.wire import Command, Option
from memcluster.node.tls.layer import Layer
from memcluster.node.transport.frames import Frame
from memcluster.node.transport.proof import Side

COUNT = {"tls": 500, "segments": 1000, "run-files": 1000}
"""Executions, where they are not 3,000: these take a millisecond each."""


@pytest.fixture(autouse=True)
def _room(monkeypatch, tmp_path):
    """Files lie where pytest disposes of them."""
    monkeypatch.setenv(ROOM, str(tmp_path))
    room.cache_clear()
    yield
    room.cache_clear()


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_breaks_a_rule(name, tmp_path):
    count = COUNT.get(name, 3000)
    outcome = by_chance(TARGETS[name], count, 17, tmp_path)
    assert not outcome.found
    assert outcome.executions == count


# -- what is planted, and must be found --------------------------------------------------------------------------------


def nothing(*_: Any, **__: Any) -> None:
    pass


def remembers(negotiation: Negotiation) -> None:
    """What was agreed on before TLS holds behind it."""
    if not hasattr(negotiation, "structured"):
        FORGET(negotiation)


def reads_from_the_start(reader: LogReader, segment: Segment) -> None:
    """What the segment before has, too."""
    reader.close()
    reader._number, reader._reader, reader._slot = segment.number, SegmentReader(segment), 0


FORGET = Negotiation._forget
FLAGS = wire.CLIENT_FLAGS.pack(3)
STRUCTURED, STARTTLS = (
    wire.OPTION.pack(wire.IHAVEOPT, option, 0) for option in (Option.STRUCTURED_REPLY, Option.STARTTLS)
)
GO = wire.OPTION.pack(wire.IHAVEOPT, Option.GO, 6) + bytes(6)
BEYOND = {"servers": [{"address": "h:1", "memory": -1}], "layout": {}}
BEYOND_END = wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, Command.READ, 9, 1 << 40, 512)
TOO_LARGE = {"do": "apply", "config": a_config() | {"stop_timeout": 10**400}, "stamp": "", "dry": True}
STATE = TARGETS["run-files"].seeds[0]
PLANTED = {
    "lets in without TLS": (
        "server-session",
        b"\1" + FLAGS + GO,
        Negotiation,
        "_wants_tls",
        lambda *_: False,
        "without TLS",
    ),
    "believes plain bytes": (
        "server-session",
        b"\1" + FLAGS + STARTTLS + GO,
        Negotiation,
        "_begins_tls",
        property(lambda _: False, nothing),
        "behind STARTTLS",
    ),
    "remembers what was said before TLS": (
        "server-session",
        b"\2" + joined(FLAGS + STRUCTURED + STARTTLS, GO),
        Negotiation,
        "_forget",
        remembers,
        "other terms",
    ),
    "a read without all of its bytes": (
        "client-session",
        TARGETS["client-session"].seeds[-3],
        ClientSession,
        "_join_early",
        nothing,
        "lacks bytes",
    ),
    "a request beyond the end": ("requests", b"\1" + BEYOND_END, ServerSession, "_check", nothing, "beyond the end"),
    "a reply without all of its bytes": (
        "replies",
        TARGETS["replies"].seeds[-4],
        ClientSession,
        "_join_early",
        nothing,
        "lacks bytes",
    ),
    "a time that is none": (
        "frames",
        Frame({"do": "down", "timeout": 10**400}).encode(),
        orders,
        "_is_span",
        lambda _: True,
        "too large",
    ),
    "a number that is none": (
        "frames",
        Frame(TOO_LARGE).encode(),
        plain,
        "BEYOND",
        float("inf"),
        "too large",
    ),
    "identifiers that are lost": (
        "handover",
        TARGETS["handover"].seeds[1],
        messages,
        "decode_done",
        lambda _: [],
        "assert",
    ),
    "believes everybody": ("proof", b"\0\3" + bytes(64), Side, "_is", lambda *_: True, "has proved himself are two"),
    "shakes hands with everybody": (
        "tls",
        TARGETS["tls"].seeds[0],
        Layer,
        "shake_hands",
        lambda _: True,
        "hands are shaken",
    ),
    "a memory of less than nothing": (
        "maps",
        b"\0" + json.dumps(BEYOND).encode(),
        cluster_map,
        "_check_number",
        nothing,
        "size",
    ),
    "records twice": (
        "segments",
        b"\0" + joined(a_segment(1, 4), a_segment(3, 4)),
        LogReader,
        "_turn_to",
        reads_from_the_start,
        "sorted",
    ),
    "a process that is none": (
        "run-files",
        STATE.replace(b'"pid": 5', b'"pid": -1'),
        RunRecord,
        "_is_sound",
        lambda _: True,
        "a signal would go elsewhere",
    ),
}


@planted
@pytest.mark.parametrize("what", PLANTED)
def test_a_rule_that_is_broken_is_told(what, monkeypatch):
    """By an input that breaks none as the code is."""
    name, data, owner, attribute, fault, words = PLANTED[what]
    assert not replay(TARGETS[name], data)
    monkeypatch.setattr(owner, attribute, fault, raising=False)
    assert words in replay(TARGETS[name], data)


def test_every_target_has_a_rule_that_can_be_broken():
    assert {planted[0] for planted in PLANTED.values()} == set(TARGETS)


# -- the program -------------------------------------------------------------------------------------------------------


def fuzz(*words: str, check: bool = True) -> str:
    return run(sys.executable, "-m", "bench.fuzz", *words, cwd=ROOT, check=check, timeout=110).stdout.decode()


def test_the_program_counts_what_it_runs_and_runs_one_again(tmp_path):
    """Without its engine; with it by hand, or below."""
    said = fuzz("--by-chance", "--runs", "400", "proof", "handover", "--folder", str(tmp_path))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines()]
    assert [(row[0], row[2]) for row in rows[2:]] == [("proof", "200"), ("handover", "200"), ("all", "400")]
    (tmp_path / "input").write_bytes(TARGETS["proof"].seeds[0])
    assert fuzz("--replay", str(tmp_path / "input"), "proof") == ""


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_the_engine_is_guided_by_what_inputs_reach(tmp_path):
    """It keeps inputs that reach something new, and leaves no other files."""
    before = {path.name for path in Path("/dev/shm").glob("memcluster-fuzz-*")}
    said = fuzz("--runs", "500", "frames", "--folder", str(tmp_path))
    _, _, row, _ = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines()]
    assert int(row[2].replace(",", "")) >= 500
    assert int(row[4].replace(",", "")) > 100
    assert {path.name for path in Path("/dev/shm").glob("memcluster-fuzz-*")} <= before
    assert int(row[5].replace(",", "")) > len(TARGETS["frames"].seeds)
