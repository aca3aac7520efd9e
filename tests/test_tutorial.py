"""docs/tutorial.md, from its first command to its last, as a reader runs them, held against what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import ROOT, environment, memcluster_command, run

PAGE = (ROOT / "docs" / "tutorial.md").read_text()
BLOCKS = re.findall(r"```console ?([^\n]*)\n(.*?)```", PAGE, re.DOTALL)
"""How each is to be read, and what stands in it. `yours`: figures that are the reader's own, of which each line's first
word is the same. `any order`: what was at once may be in another order."""
SHORTER = {"compare --for 2s": "compare --servers 2 --for 20ms"}
"""What the test spares itself: the figures of `compare` are not looked at."""
MARK = "@@@ next @@@"
VARIES = (
    (r"\d\d:\d\d:\d\d[.\d]*", "TIME"),
    (r"nbd://[\d.:]+", "URI"),
    (r"127\.0\.0\.1:\d+", "ADDRESS"),
    (r"(?<!\S)\d+(?=MiB +\d+\.\d$)", "#"),  # the memory of a process that happens to be whole
    (r"\d+(?:\.\d+)+", "#"),  # spans, sizes and identifiers
    (r"(?<!\S)[\d,]+(?!\S)", "#"),  # counts, but neither offsets (0x…) nor lengths (+18)
    (r"\s+", " "),
)


def plain(line: str) -> str:
    """A line without what is another one each time."""
    for found, instead in VARIES:
        line = re.sub(found, instead, line)
    return line.strip()


def examples(text: str) -> list[tuple[str, list[str]]]:
    """Commands, and what they must print."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def same(expected: list[str], printed: list[str], reading: str) -> bool:
    ours, theirs = [plain(line) for line in expected], [plain(line) for line in printed]
    if reading == "yours":
        return [line.split()[0] for line in ours] == [line.split()[0] for line in theirs]
    for lines in (ours, theirs):
        if reading == "any order" or any(line.startswith("✔") for line in lines):
            lines.sort()  # in whatever order nodes are ready, or stopped
    patterns = [".*".join(map(re.escape, line.split("…"))) for line in ours]
    return len(patterns) == len(theirs) and all(map(re.fullmatch, patterns, theirs))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder, after which the reader's cluster is called, in one with a cluster.yaml, as a clone has; and the
    two commands of this checkout."""
    folder, commands = tmp_path / f"hello-{os.getpid()}", tmp_path / "commands"
    folder.mkdir()
    commands.mkdir()
    (tmp_path / "cluster.yaml").write_text((ROOT / "cluster.yaml").read_text())
    for name, module in (("memcluster", "memcluster"), ("memclient", "memcluster.client.cli")):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m {module} "$@"\n')
        (commands / name).chmod(0o755)
    yield folder
    run(*memcluster_command("down", "--timeout", "10s"), cwd=folder, check=False)


@pytest.mark.timeout(300)
def test_the_tutorial_is_true(folder: Path) -> None:
    """Each command prints what stands below it."""
    path = f"{folder.parent / 'commands'}:{os.environ['PATH']}"
    wrong = []
    for reading, text in BLOCKS:
        found = examples(text)
        script = "".join(f"{command}\nprintf '\\n{MARK}\\n'\n" for command, _ in found)
        for long, short in SHORTER.items():
            script = script.replace(long, short)
        done = subprocess.run(
            ["bash", "-c", script], cwd=folder, env=environment(PATH=path), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=250, check=False,
        )  # fmt: skip
        answers = done.stdout.replace(folder.name, "hello").split(MARK)
        for (command, expected), answer in zip(found, answers, strict=False):
            printed = [line for line in answer.splitlines() if line.strip()]
            if not same(expected, printed, reading):
                wrong.append("\n".join([f"$ {command}", *printed, "-- but the page says", *expected]))
    assert not wrong, "\n\n".join(wrong)


def test_every_command_of_the_tutorial_is_run() -> None:
    """But for what sets a clone up, and the live page, which tests/test_live.py opens."""
    kinds = [line.split()[0] for line in re.findall(r"^```(\S.*)$", PAGE, re.MULTILINE)]
    assert len(BLOCKS) >= 10
    assert sorted(kinds) == ["console"] * len(BLOCKS) + ["sh"] * 2
    spared = ("make ", "pip ", "mkdir ", "memcluster watch")
    commands = "".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)).splitlines()
    assert all(command.startswith(spared) for command in commands)
