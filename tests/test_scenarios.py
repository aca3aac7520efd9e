"""Scenarios: those of docs/scenarios/ come true whatever else happens, look as they are drawn there, and what makes no
sense in a file is told with its place."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from memcluster.launcher.cli import cli
from memcluster.simulator.picture import draw
from memcluster.simulator.plan import TOPOLOGIES
from memcluster.simulator.play import play
from memcluster.simulator.scenario import SENTENCES, ScenarioError, read, understand

FOLDER = Path(__file__).parent.parent / "docs" / "scenarios"
FILES = sorted(FOLDER.glob("*.yaml"))
SEEDS = 6


def write(tmp_path: Path, *steps: str, **keys: str) -> Path:
    path = tmp_path / "story.yaml"
    settings = {"title": "a story", "servers": "2", "memory": "32KiB", "clients": "2", **keys}
    lines = [f"{key}: {value}" for key, value in settings.items()]
    path.write_text("\n".join([*lines, "steps:", *(f"- {step}" for step in steps), ""]))
    return path


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_scenario_comes_true(path: Path) -> None:
    """In whatever order the rest happens; and all rules of a run hold."""
    scenario = read(path)
    for seed in range(SEEDS):
        assert play(scenario, seed).outcome.broken == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_page_has_the_scenario_as_it_runs(path: Path) -> None:
    """Its picture is the one that `memcluster simulate --scenario` draws, its question stands on the page."""
    scenario, page = read(path), (FOLDER / "README.md").read_text()
    assert path.with_suffix(".svg").read_text() == draw(play(scenario))
    assert f"## {scenario.title}" in page
    assert f"({path.stem}.svg)" in page
    assert scenario.story
    assert scenario.story in page
    assert scenario.question
    assert scenario.question in page


def test_there_is_a_scenario_of_each_topology() -> None:
    assert len(FILES) >= 6
    assert {read(path).shape.topology for path in FILES} == set(TOPOLOGIES)


def test_each_kind_of_sentence_is_understood() -> None:
    """By the example that is told to whoever says something else."""
    for example, _, _ in SENTENCES:
        understand(example.partition(" (")[0])


def test_a_picture_shows_who_died_and_what_was_lost(tmp_path: Path) -> None:
    played = play(read(write(tmp_path, "client0 writes A, 4KiB at 16KiB",
                             "server1 dies when it has received A and has not answered A",
                             "server1 serves again", "A is answered")))  # fmt: skip
    assert not played.outcome.broken
    assert [(mark.process, mark.over) for mark in played.marks if mark.words == "dies"] == [("server1", True)]
    passed = [message.receiver for message in played.messages if message.sender == "server0" and message.name == "A"]
    assert passed.count("server1") == 2
    picture = ET.fromstring(draw(played))
    texts = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a story", "client0", "server1", "dies", "serves again", "A is answered"} <= set(texts)
    assert texts.count("WRITE A") == 3


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        (["client0 writes A, 4KiB at 0", "A is given up"], "it is acknowledged"),
        (["client0 writes A, 4KiB at 0", "A is answered", "client1 reads R, 8KiB at 0", "R shows A"],
         "it shows zeroes in 8 of its 16 blocks"),
        (["client0 writes A, 4KiB at 0", "A is answered", "A is not answered yet"], "it is acknowledged"),
        (["client0 writes A, 4KiB at 0", "server1 dies when it has the bytes of A"], "the moment does not come"),
    ],
)  # fmt: skip
def test_what_does_not_come_true_is_told_with_its_place(tmp_path: Path, steps: list[str], sentence: str) -> None:
    path = write(tmp_path, *steps)
    [told] = play(read(path)).outcome.broken
    assert told.startswith(f"progress: {path}:{5 + len(steps)}:3: {steps[-1]!r}: {sentence}")


def test_all_that_can_be_done_is_done(tmp_path: Path) -> None:
    """Stops and cuts are ended again, what is trimmed and zeroed reads as zeroes."""
    path = write(
        tmp_path, "client0 writes A, 8KiB at 12KiB", "A is answered", "server1 has the bytes of A",
        "client0 trims T, 4KiB at 16KiB", "T is answered", "server1 has the bytes of T", "client0 flushes F",
        "F is answered", "server1 stops", "client1 reads R, 4KiB at 12KiB", "R shows A",
        "client1 reads S, 4KiB at 16KiB", "20ms pass", "S is not answered yet", "server1 goes on", "S shows zeroes",
        "server0 has logged S", "client1 zeroes Z, 512 at 12KiB", "Z is answered", "client1 dies",
        "client1 reads Last, 1KiB at 12KiB", "Last shows A or zeroes",
    )  # fmt: skip
    assert play(read(path)).outcome.broken == []


WRONG = """\
title: [1]
topology: ring
memory: 5KiB
rain: 1
layout: {stripe: 3}
steps:
- client0 writes A, 8KiB at 12KiB
- server9 dies
- it rains
- R shows A
- client0 reads R, 7 at 0
- client0 has the bytes of A
- 3 weeks pass
"""


def test_all_that_is_wrong_with_a_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(WRONG)
    with pytest.raises(ScenarioError) as found:
        read(path)
    places = [(problem.line, problem.column) for problem in found.value.problems]
    assert places == [(1, 8), (2, 11), (3, 9), (4, 1), (5, 18), *((line, 3) for line in range(7, 14))]
    assert "topology must be one of primary-secondary, dispatcher" in str(found.value)
    assert "there is no server9" in str(found.value)


def invoke(*words: str) -> Result:
    return CliRunner().invoke(cli, ["simulate", *words], standalone_mode=False)


def test_the_command_tells_the_story(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """When each sentence came true; and it leaves the picture, the log and the timeline."""
    monkeypatch.chdir(tmp_path)
    told = invoke("--scenario", str(FOLDER / "chain.yaml"))
    assert told.return_value == 0
    for words in (*read(FOLDER / "chain.yaml").question.splitlines(), " ms  A is answered", "no rule is broken"):
        assert words in told.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chain.html", "chain.log", "chain.svg"]


@pytest.mark.parametrize(("content", "told"), [("steps: {", "1:9: not YAML"), ("- 1", "1:1: a scenario has keys")])
def test_the_command_tells_what_is_wrong(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(content)
    failure = invoke("--scenario", str(path)).exception
    assert f"{path}:{told}" in str(failure)
    assert getattr(failure, "code", None) == 2
