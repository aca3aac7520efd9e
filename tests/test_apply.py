"""`memcluster apply` of what running nodes can be told: it holds at once, for the nodes that run and for their next
lives, or nothing has changed and a sentence says why."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import TIMEOUT, Cluster, environment, memcluster_command
from test_stats import get, metrics_address

import memcluster
from memcluster.client.console import EXIT_DEGRADED, EXIT_IN_USE

Make = Callable[..., Cluster]


def write(cluster: Cluster, **keys: Any) -> None:
    """Edit cluster.yaml."""
    cluster.keys |= keys
    cluster.file.write_text(yaml.safe_dump({key: value for key, value in cluster.keys.items() if value is not None}))


def apply(cluster: Cluster, **keys: Any) -> dict[str, Any]:
    """Edit the file and apply it; no process is another one than before."""
    write(cluster, **keys)
    before = [node.pid for node in cluster.record.nodes]
    told: dict[str, Any] = json.loads(cluster.command("apply", "--yes", "--json").stdout)
    assert [node.pid for node in cluster.record.nodes] == before
    return told


def wait_for(fact: Callable[[], object]) -> None:
    """Each look is a question to the cluster."""
    deadline = time.monotonic() + TIMEOUT
    while not fact():
        assert time.monotonic() < deadline, "it does not become true"


def operations(cluster: Cluster) -> list[str]:
    """Those of the log of this run."""
    return [json.loads(line)["operation"] for line in cluster.command("logs", "--json").stdout.splitlines()]


def refused(cluster: Cluster, code: int, *words: str) -> str:
    """What apply says that changes nothing; `diff` finds what it found before."""
    before = cluster.command("diff", check=False).stdout
    done = cluster.command("apply", *(words or ("--yes",)), check=False)
    assert done.returncode == code, (done.returncode, done.stderr.decode())
    assert b"Traceback" not in done.stderr
    assert cluster.command("diff", check=False).stdout == before
    return done.stderr.decode()


def test_a_limit_holds_at_once_and_in_the_next_life(make_cluster: Make, topology: str) -> None:
    """Who is in stays in; one more is refused and told the new number; so it is after kill -9 of the server."""
    cluster = make_cluster(topology=topology)
    with cluster.connect() as first:
        first.pwrite(b"kept", 700_000)
        told = apply(cluster, clients={"limit": 1})
        assert [change["key"] for change in told["changes"]] == ["clients.limit"]
        with pytest.raises(memcluster.Refused, match=r"clients\.limit: 1"):
            cluster.connect(timeout=5.0)
        assert first.pread(4, 700_000) == b"kept"
        cluster.command("fault", "kill", "server0")
        cluster.wait_until_running()
        assert first.pread(4, 700_000) == b"kept"  # it has come back, and has the only place
        with pytest.raises(memcluster.Refused, match=r"clients\.limit: 1"):
            cluster.connect(timeout=5.0)
    apply(cluster, clients={"limit": "auto", "handshake_timeout": "7s"})
    with cluster.connect() as one, cluster.connect() as other:
        assert one.pread(4, 700_000) == other.pread(4, 700_000) == b"kept"


@pytest.mark.parametrize("topology", ["primary-secondary", "dispatcher"])
def test_the_patience_with_a_server_that_is_away(make_cluster: Make, topology: str) -> None:
    """The client gets its error after the new time, which the error names."""
    cluster = make_cluster(topology=topology, retry_timeout="300s")
    apply(cluster, retry_timeout="250ms", fan_out="serial")
    cluster.command("stop", "secondary")
    with cluster.connect() as memory, pytest.raises(memcluster.ServerError, match=r"0\.25 s \(retry_timeout\)"):
        memory.pread(4, 500_000)


def test_how_the_log_is_kept(make_cluster: Make) -> None:
    """From off to all, to what failed, to off and to all again: each holds from the answer on, no number is used twice,
    and the log says when."""
    cluster = make_cluster(logs={"level": "off"}, layout={"stripe": "4KiB"})
    with cluster.connect() as memory:
        memory.pwrite(bytes(20_000), 0)
        apply(cluster, logs={"level": "requests", "retain": "1MiB", "retain_age": "1h"})
        memory.pread(20_000, 0)
        assert {"READ", "applied"} <= set(operations(cluster))
        apply(cluster, logs={"level": "errors"})
        memory.pwrite(bytes(20_000), 0)
        apply(cluster, logs={"level": "off"})
        memory.pwrite(bytes(20_000), 0)
        apply(cluster, logs={"level": "requests"})
        memory.pread(20_000, 0)
    found = operations(cluster)
    assert "WRITE" not in found
    entries = map(json.loads, cluster.command("logs", "--json", "--op", "read").stdout.splitlines())
    requests = [entry["request"] for entry in entries if entry["kind"] == "request"]
    assert len(requests) == len(set(requests)) == 2
    assert b"3 keys of cluster.yaml" in cluster.command("logs").stdout
    assert cluster.status()["nodes"][0]["records_lost"] == 0


def test_the_address_of_the_figures(make_cluster: Make, tmp_path: Path) -> None:
    """There is a page where there was none, then elsewhere and not there, then none; one that is taken changes nothing,
    and the page is there in logger 0's next life."""
    cluster = make_cluster()
    apply(cluster, metrics="127.0.0.1:0")
    first = metrics_address(cluster)
    with cluster.connect() as memory:
        memory.pwrite(b"x", 0)
    wait_for(lambda: 'operation="WRITE"' in get(first)[1])
    write(cluster, metrics=cluster.status()["nodes"][0]["address"])
    assert "already in use" in refused(cluster, EXIT_IN_USE)
    assert get(first)[0] == 200
    apply(cluster, metrics="127.0.0.2:0")
    second = metrics_address(cluster)
    assert get(second)[0] == 200
    with pytest.raises(ConnectionRefusedError):
        get(first)
    cluster.command("restart", "logger0")
    assert metrics_address(cluster) == second
    assert get(second)[0] == 200
    apply(cluster, metrics=None)
    assert not any("metrics" in node for node in cluster.status()["nodes"])


def test_hangs_are_found_at_the_new_pace(make_cluster: Make, start: Callable[..., Any]) -> None:
    """A node that would have been left alone for an hour is found, ended, and started as the new policy has it."""
    cluster = make_cluster(hang_timeout="1h")
    told = apply(cluster, hang_timeout="300ms", restart={"cap": "1s", "deaths": 1}, stop_timeout="9s")
    assert len(told["changes"]) == 4
    assert cluster.record.stop_timeout == 9
    cluster.command("fault", "hang", "server1")
    cluster.wait_for(lambda status: "failed" in {node["state"] for node in status["nodes"]})
    assert "server1 is failed (died 1 times" in cluster.command("status", check=False).stdout.decode()


def test_who_reads_the_map_goes_on_with_the_one_it_opened(make_cluster: Make) -> None:
    """Another map is another content, for those who come then."""
    cluster = make_cluster()
    with memcluster.connect(f"{cluster.uri}/cluster.json") as old:
        before = old.pread(old.size, 0)
        apply(cluster, fan_out="serial")
        assert old.pread(old.size, 0) == before
        with memcluster.connect(f"{cluster.uri}/cluster.json") as new:
            now = json.loads(new.pread(new.size, 0))
    assert now == json.loads(before) | {"fan_out": "serial"}


def test_one_apply_at_a_time(make_cluster: Make, start: Callable[..., Any]) -> None:
    """A second one is refused while a node has not answered the first; a node that dies instead of answering has the
    settings when it is back."""
    cluster = make_cluster(hang_timeout="1h")
    cluster.command("fault", "hang", "server0")
    write(cluster, clients={"limit": 1})
    first = start(*memcluster_command("apply", "--yes"), cwd=cluster.folder, stdout=subprocess.PIPE)
    assert b"KEY" in first.stdout.readline()  # it has read the file

    def is_under_way() -> bool:
        done = cluster.command("apply", "--yes", "--dry-run", check=False)
        return b"another apply is under way: server0 has not answered yet" in done.stderr

    write(cluster, clients={"limit": 2})
    wait_for(is_under_way)
    assert first.poll() is None
    cluster.command("fault", "kill", "server0")
    assert first.wait(TIMEOUT) == 0
    cluster.wait_until_running()
    with cluster.connect(), pytest.raises(memcluster.Refused, match=r"clients\.limit: 1"):
        cluster.connect(timeout=5.0)
    assert json.loads(cluster.command("apply", "--yes", "--json").stdout)["applied"]


def test_a_cluster_that_is_not_well_is_left_alone(make_cluster: Make) -> None:
    """It says what is wrong; once that is over, it can be done."""
    cluster = make_cluster()
    write(cluster, clients={"limit": 9})
    for what, words in [("stop", "server1 is stopped"), ("pause", "server1 is paused")]:
        cluster.command(*(("stop",) if what == "stop" else ("fault", "pause")), "server1")
        assert words in refused(cluster, EXIT_DEGRADED)
        cluster.command(*(("start",) if what == "stop" else ("fault", "resume")), "server1")
        cluster.wait_until_running()
    apply(cluster)


def test_what_cannot_be_changed_is_refused_at_its_place(make_cluster: Make) -> None:
    """With what can be changed beside it: all or nothing. Each key has its line, and what to do is told."""
    cluster = make_cluster()
    more = "storage: elsewhere\nlogs: {directory: there}\nclients: {limit: 9}\n"
    cluster.file.write_text(cluster.file.read_text() + more)
    said = refused(cluster, 1).splitlines()
    text = cluster.file.read_text().splitlines()
    line = 1 + text.index("storage: elsewhere")
    assert f"cluster.yaml:{line}:10: storage: the bytes are copied" in said[0]
    assert f"cluster.yaml:{line + 1}:19: logs.directory: " in said[1]
    assert "nothing was changed" in said[-1]
    assert "memcluster down" in said[-1]
    usable = cluster.file.read_text()
    cluster.file.write_text("memory: 1 suns\n")
    assert "is not a size" in cluster.command("apply", check=False).stderr.decode()
    cluster.file.write_text(usable)


def test_it_is_done_only_when_somebody_wants_it(make_cluster: Make) -> None:
    """--dry-run shows the plan; where nobody can be asked --yes must be said; on a terminal n is no and y is yes."""
    cluster = make_cluster()
    assert b"runs as cluster.yaml says" in cluster.command("apply").stdout
    write(cluster, clients={"limit": 9})
    shown = cluster.command("apply", "--dry-run").stdout.decode()
    assert "clients.limit  64    9        at once, without a restart" in shown
    assert "nothing was changed" in shown
    assert "say --yes" in refused(cluster, 2, "--json")
    for answer, code, words in [(b"n\n", 1, "nothing was changed"), (b"y\n", 0, "applied: clients.limit")]:
        with on_terminal(cluster, "apply") as (terminal, process):
            os.write(terminal, answer)
            assert words in read_all(terminal)
            assert process.wait(TIMEOUT) == code
    assert cluster.command("diff").returncode == 0
    assert b"note:" not in cluster.command("status").stdout
    cluster.command("down")
    assert cluster.command("apply", "--yes", check=False).returncode == 3


@contextmanager
def on_terminal(cluster: Cluster, *words: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A command whose standard streams are a terminal, and our end of it."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        memcluster_command(*words), cwd=cluster.folder, stdin=theirs, stdout=theirs, stderr=theirs, env=environment()
    ) as process:
        os.close(theirs)
        yield ours, process
    os.close(ours)


def read_all(terminal: int) -> str:
    """Until the other side is closed."""
    shown = b""
    while True:
        try:
            data = os.read(terminal, 1 << 16)
        except OSError:  # EIO
            return shown.decode()
        if not data:
            return shown.decode()
        shown += data
