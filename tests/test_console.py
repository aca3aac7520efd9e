"""client/console.py: what both commands share, in real pipes."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Cluster, memclient_command, memcluster_command

Start = Callable[..., subprocess.Popen[Any]]


@pytest.fixture
def busy(make_cluster: Callable[..., Cluster]) -> Cluster:
    """A cluster whose log is longer than a pipe and what `head` reads at once."""
    cluster = make_cluster(servers=1)
    with cluster.connect() as memory:
        for future in [memory.start_pwrite(b"x" * 64, number * 64) for number in range(4000)]:
            future.result()
    return cluster


def pipeline(start: Start, cluster: Cluster, command: list[str], reader: str) -> tuple[subprocess.Popen[Any], Path]:
    """`COMMAND | READER` in a shell; COMMAND's exit code will stand in the file. (`pipefail` is not in every sh.)"""
    code = cluster.folder / "code"
    script = f"{{ {shlex.join(command)}; echo $? >code; }} | {reader}"
    buffered = {"PYTHONUNBUFFERED": ""}  # else CPython forgets what a pipe did not take of one write
    process = start(
        "sh", "-c", script, cwd=cluster.folder, env=buffered, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    return process, code


@pytest.mark.parametrize(
    ("command", "reader"),
    [
        (memcluster_command("logs"), "head -n 1"),
        (memcluster_command("logs", "--json"), "head -n 1"),
        (memclient_command("read", "0", "1MiB"), "head -c 1"),
    ],
    ids=["logs", "logs --json", "read"],
)
def test_a_reader_that_has_enough_ends_the_command_quietly(
    busy: Cluster, start: Start, command: list[str], reader: str
) -> None:
    """As SIGPIPE ends cat: 141, not the 1 of an error, and not a word."""
    process, code = pipeline(start, busy, command, reader)
    output, errors = process.communicate(timeout=60)
    assert output
    assert (code.read_text(), errors) == ("141\n", b"")


def test_a_reader_that_has_enough_ends_a_log_that_is_followed(busy: Cluster, start: Start) -> None:
    """At once: nothing more is logged."""
    process, code = pipeline(start, busy, memcluster_command("logs", "-f", "-n", "1"), "head -n 1")
    output, errors = process.communicate(timeout=60)
    assert output
    assert (code.read_text(), errors) == ("141\n", b"")
