"""The log of real clusters: complete and exactly once whatever is killed, causal, and read as people read logs."""

from __future__ import annotations

import json
import os
import pty
import random
import resource
import select
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from harness import TIMEOUT, Cluster, memcluster_command
from numbered_log import read_segments

import memcluster
from memcluster.node.layout import make_layout
from memcluster.node.log.record import REPEATED, Kind

pytestmark = pytest.mark.timeout(180)
Line = dict[str, Any]
Make = Callable[..., Cluster]
Start = Callable[..., "subprocess.Popen[str]"]
STRIPES = {"layout": {"stripe": "4KiB"}, "memory": "768KiB"}
LAYOUT = make_layout([256 << 10] * 3, 4096)


def lines(cluster: Cluster, *words: str) -> list[Line]:
    return [json.loads(line) for line in cluster.command("logs", "--json", *words).stdout.splitlines()]


def wait_for(cluster: Cluster, true: Callable[[list[Line]], object], *words: str) -> list[Line]:
    """The log as soon as it is as wanted; the records follow what happens."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        found = lines(cluster, *words)
        if true(found):
            return found
        assert time.monotonic() < deadline, found[-5:]


def happened(name: str, about: str) -> Callable[[list[Line]], bool]:
    return lambda found: any(line["operation"] == name and line["about"] == about for line in found)


def check_stories(found: list[Line]) -> None:
    """Every request once, before its pieces; every piece once, on each server that holds some of its bytes."""
    requests = {line["request"]: line for line in found if line["kind"] == "request"}
    assert len(requests) == sum(line["kind"] == "request" for line in found)
    pieces = Counter((line["request"], line["node"]) for line in found if line["kind"] == "piece")
    assert not [story for story, count in pieces.items() if count > 1]
    given = set()
    for line in found:
        if line["kind"] == "request":
            given.add(line["request"])
        elif line["kind"] == "piece" and line["request"] in requests:
            assert line["request"] in given, line
    for identifier, line in requests.items():
        if line["length"] and not line["error"]:
            parts = {f"server{piece.server}" for piece in LAYOUT.split(line["offset"], line["length"])}
            if parts != {"server0"}:  # what lies on the server that took it as a whole is one record
                assert {node for story, node in pieces if story == identifier} == parts, line


# -- complete, exactly once --------------------------------------------------------------------------------------


def test_what_was_acknowledged_is_logged_once_whatever_is_killed(make_cluster: Make) -> None:
    """Two clients write while every server is killed in turn; each write has its own offset and length."""
    cluster = make_cluster(**STRIPES, restart={"deaths": 100})
    acknowledged: list[tuple[int, int]] = []
    stop = threading.Event()

    def write(seed: int) -> None:
        dice = random.Random(seed)
        with cluster.connect() as memory:
            for number in range(100_000):
                if stop.is_set():
                    return
                offset, length = number % 256 * 2048 + seed, dice.randrange(1, 40_000)
                memory.pwrite(bytes(length), offset)
                acknowledged.append((offset, length))

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(2)]
    for writer in writers:
        writer.start()
    for name in ("server1", "server2", "server0", "server1", "server0"):
        before = len(acknowledged)
        cluster.command("fault", "kill", name)
        deadline = time.monotonic() + TIMEOUT
        while len(acknowledged) < before + 20:
            assert time.monotonic() < deadline
    stop.set()
    for writer in writers:
        writer.join(TIMEOUT)
    found = wait_for(cluster, happened("restarted", "server2"))
    cluster.remember()
    check_stories(found)
    logged = Counter(
        (line["offset"], line["length"]) for line in found if line["kind"] == "request" and not line["error"]
    )
    assert not [write for write, count in Counter(acknowledged).items() if logged[write] < count]
    sequences = Counter((line["node"], line["sequence"]) for line in found)
    assert set(sequences.values()) == {1}
    assert b"are not there" not in cluster.command("logs").stderr


def test_a_piece_that_was_done_twice_stands_there_once(make_cluster: Make) -> None:
    """Its server does it, is killed before the reply leaves, and does it again in its next life."""
    cluster = make_cluster(**STRIPES)
    cluster.command("fault", "slow", "server1", "--delay", "1h")
    with cluster.connect() as memory:
        writer = threading.Thread(target=memory.pwrite, args=(b"x" * 4096, 4096))
        writer.start()
        wait_for(cluster, bool, "--node", "server1", "--op", "write")
        before = cluster.pid("server1")
        cluster.command("fault", "kill", "server1")
        wait_for(cluster, happened("restarted", "server1"))
        assert cluster.pid("server1") != before
        cluster.command("fault", "resume", "server1")
        cluster.command("fault", "partition", "server0", "server1", "--for", "50ms")  # what it answered slowly is lost
        writer.join(TIMEOUT)
        assert memory.pread(4096, 4096) == b"x" * 4096
    cluster.remember()
    directory = cluster.folder / "logs" / cluster.name / "server1"
    raw = [block.data for block in read_segments(directory)]
    kinds = [data[position + 44] for data in raw for position in range(0, len(data), 64)]
    flags = [data[position + 47] for data in raw for position in range(0, len(data), 64)]
    assert sum(flag >= REPEATED >> 8 for flag in flags) >= 1
    assert kinds.count(Kind.PIECE) >= 2
    [_request] = lines(cluster, "--op", "write", "--node", "server0")
    [piece] = lines(cluster, "--op", "write", "--node", "server1")
    assert piece["error"] is None


def test_a_cut_link_makes_no_doubles(make_cluster: Make) -> None:
    """Here the server lives on, and is asked again by another connection."""
    cluster = make_cluster(**STRIPES)
    with cluster.connect() as memory:
        for round in range(3):
            cluster.command("fault", "slow", "server2", "--delay", "1h")
            writer = threading.Thread(target=memory.pwrite, args=(bytes(4096), 8192))
            writer.start()
            done = ("--node", "server2", "--op", "write")
            wait_for(cluster, lambda found, wanted=round + 1: len(found) == wanted, *done)
            cluster.command("fault", "partition", "server0", "server2", "--for", "50ms")
            cluster.command("fault", "resume", "server2")
            writer.join(TIMEOUT)
            assert not writer.is_alive()
    check_stories(lines(cluster))
    assert len(lines(cluster, "--node", "server2", "--op", "write")) == 3


def test_the_lives_of_nodes_and_clients_are_in_the_log(make_cluster: Make) -> None:
    """Who started, connected, was refused, left, died and was restarted, and who broke what on purpose."""
    cluster = make_cluster(clients={"limit": 1})
    with cluster.connect(), pytest.raises(memcluster.Refused):
        cluster.connect(reconnect=False)
    cluster.command("fault", "pause", "server1")
    cluster.command("fault", "resume", "server1")
    cluster.command("fault", "slow", "server2", "--delay", "20ms")
    cluster.command("fault", "resume", "server2")
    cluster.command("fault", "kill", "server1")
    cluster.command("fault", "kill", "logger2")
    found = wait_for(cluster, happened("restarted", "server1"))
    found = wait_for(cluster, happened("died", "logger2"))
    cluster.remember()
    died = {line["about"]: line["value"] for line in found if line["operation"] == "died"}
    assert died == {"server1": -signal.SIGKILL, "logger2": -signal.SIGKILL}
    seen = {(line["node"], line["operation"], line["about"]) for line in found if line["kind"] == "event"}
    for server in ("server0", "server1", "server2"):
        assert {(server, "started", server), (server, "ready", server)} <= seen
    assert ("server0", "connected", "server0") in seen
    assert ("server0", "left", "server0") in seen
    assert {("server1", "paused", "server1"), ("server1", "resumed", "server1"), ("server1", "died", "server1")} <= seen
    assert ("server1", "killed", "server1") in seen
    assert {("server2", "slowed", "server2"), ("server2", "healed", "server2"), ("server2", "died", "logger2")} <= seen
    [refused] = [line for line in found if line["operation"] == "refused"]
    assert refused["value"] == 1
    text = cluster.command("logs", "--errors").stdout.decode()
    assert "all slots are taken" in text
    cluster.down()
    merged = (cluster.folder / "logs" / f"{cluster.name}.log").read_text()
    assert merged.count(" draining") >= 3 - 1


# -- following ---------------------------------------------------------------------------------------------------


def read_until(stream: Any, true: Callable[[str], bool]) -> list[str]:
    """The lines up to the first that is as wanted."""
    found = []
    while True:
        line = stream.readline()
        assert line, found
        found.append(line)
        if true(line):
            return found


@pytest.mark.parametrize("victim", ["logger0", "logger1"])
def test_a_lost_loggers_share_comes_back_by_itself(make_cluster: Make, start: Start, victim: str) -> None:
    """It is named, it is named again when it is back, and nothing is missing or told twice."""
    cluster = make_cluster(**STRIPES)
    process = start(
        *memcluster_command("logs", "-f", "--json", "--op", "write"), cwd=cluster.folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with cluster.connect() as memory:
        for number in range(20):
            memory.pwrite(bytes(12288), number * 12288)
        shown = read_until(process.stdout, lambda line: '"offset":233472,' in line)
        cluster.command("fault", "kill", victim, "--for", "200ms")
        read_until(process.stderr, lambda line: victim in line)
        for number in range(20):
            memory.pwrite(bytes(12288), number * 12288 + 4096)
        back = read_until(process.stderr, lambda line: "is back" in line)
        assert victim in back[-1]
        memory.pwrite(b"last", 0)
        shown += read_until(process.stdout, lambda line: '"length":4,' in line)
    cluster.remember()
    found = [json.loads(line) for line in shown]
    check_stories(found)
    wanted = {(line["node"], line["sequence"]) for line in lines(cluster, "--op", "write")}
    assert Counter((line["node"], line["sequence"]) for line in found) == Counter(wanted)


# -- reading -----------------------------------------------------------------------------------------------------


def test_filters(make_cluster: Make) -> None:
    """Each shows its own and nothing else; together they all must hold."""
    cluster = make_cluster(**STRIPES)
    with cluster.connect() as memory, cluster.connect() as other:
        memory.pwrite(bytes(8192), 4096)
        memory.pread(100, 0)
        other.pread(4096, 8192)
        json.loads(cluster.memclient("info", "--json").stdout)  # reads the map
    everything = lines(cluster)
    assert {line["kind"] for line in everything} == {"request", "piece", "event", "map"}
    clients = {line["client"] for line in everything if line["kind"] == "request" and line["operation"] == "WRITE"}
    [client] = clients
    mine = lines(cluster, "--client", str(client))
    assert {line["operation"] for line in mine} == {"connected", "WRITE", "READ", "left"} - (
        {"READ"} if not any(line["operation"] == "READ" for line in mine) else set()
    )
    assert {line["operation"] for line in lines(cluster, "--op", "write", "--op", "LEFT")} == {"WRITE", "left"}
    touched = lines(cluster, "--range", "8KiB:1")
    assert {(line["operation"], line["kind"]) for line in touched} >= {("WRITE", "request"), ("WRITE", "piece")}
    assert all(
        line["offset"] <= 8192 < line["offset"] + line["length"] for line in touched if line["kind"] == "request"
    )
    assert {line["node"] for line in touched if line["kind"] == "piece"} == {"server2"}
    assert "map" not in {line["kind"] for line in lines(cluster, "--range", "0:768KiB")}
    [slowest, *_] = sorted((line["duration_us"] for line in everything if "duration_us" in line), reverse=True)
    slow = lines(cluster, "--slower-than", f"{slowest / 1000:.6f}ms")
    assert [line["duration_us"] for line in slow] == [slowest]
    middle = everything[len(everything) // 2]["time"]
    assert len(lines(cluster, "--until", middle)) + len(lines(cluster, "--since", middle)) >= len(everything)
    assert lines(cluster, "--errors") == []
    assert lines(cluster, "--op", "write", "--node", "server1", "--range", "4KiB:4KiB")[0]["kind"] == "piece"


def test_the_tree_of_a_request(make_cluster: Make) -> None:
    cluster = make_cluster(**STRIPES)
    with cluster.connect() as memory:
        memory.pwrite(bytes(12288), 0)
    [write] = [line for line in lines(cluster, "--op", "write") if line["kind"] == "request"]
    tree = cluster.command("logs", "--request", write["request"]).stdout.decode().splitlines()
    assert len(tree) == 4
    assert tree[0].startswith("server0    ▕████")
    assert "+0.000 ms" in tree[0]
    assert sorted(line.split()[1] for line in tree[1:]) == ["server0", "server1", "server2"]
    assert [line[0] for line in tree[1:]] == ["├", "├", "└"]
    gone = cluster.command("logs", "--request", "0.1.999999", check=False)
    assert (gone.returncode, gone.stderr) == (1, b"memcluster: the log has no request 0.1.999999\n")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--op", "sleep"], "there is no 'sleep'; there are read, write"),
        (["--range", "5:0"], "a range of no bytes"),
        (["--range", "x"], "is not a size"),
        (["-n", "1000001"], "is not in the range 0<=x<=1000000"),
        (["--slower-than", "soon"], "is not a time span"),
        (["--until", "soon"], "is neither a time ago"),
        (["--request", "1.2"], "'1.2' is not a request's identifier, such as 0.3.17"),
    ],
)
def test_what_cannot_be_meant_gets_a_sentence(
    tmp_path: Any, new_cluster: Make, words: list[str], sentence: str
) -> None:
    done = new_cluster(tmp_path).command("logs", *words, check=False)
    assert done.returncode == 2
    assert sentence in done.stderr.decode()


def test_colour_on_a_terminal_only_and_not_where_it_is_unwanted(make_cluster: Make, start: Start) -> None:
    cluster = make_cluster()

    def on_a_terminal(**variables: str) -> bytes:
        ours, theirs = pty.openpty()
        process = start(
            *memcluster_command("logs", "-n", "1"),
            cwd=cluster.folder,
            stdout=theirs,
            env={"TERM": "xterm", **variables},
        )
        os.close(theirs)
        assert process.wait(TIMEOUT) == 0
        text = b""
        while select.select([ours], [], [], 0)[0]:
            try:
                text += os.read(ours, 4096)
            except OSError:
                break
        os.close(ours)
        return text

    assert b"\x1b[" in on_a_terminal(NO_COLOR="")
    assert b"\x1b[" not in on_a_terminal(NO_COLOR="1")
    assert b"\x1b[" not in cluster.command("logs").stdout


# -- what is kept ------------------------------------------------------------------------------------------------


def test_a_sampled_log_has_whole_stories(make_cluster: Make) -> None:
    cluster = make_cluster(**STRIPES, logs={"directory": "logs", "sample": 4})
    with cluster.connect() as memory:
        for number in range(200):
            memory.pwrite(bytes(12288), number % 16 * 4096)
    found = lines(cluster, "--op", "write")
    requests = [line for line in found if line["kind"] == "request"]
    assert 20 < len(requests) < 100
    assert len(found) == 4 * len(requests)
    check_stories(found)
    assert happened("ready", "server1")(lines(cluster, "--node", "server1", "--op", "ready"))


def test_a_log_of_errors_only(make_cluster: Make) -> None:
    cluster = make_cluster(logs={"directory": "logs", "level": "errors"})
    with cluster.connect() as memory:
        memory.pwrite(b"fine", 0)
    assert {line["kind"] for line in lines(cluster)} == {"event"}


def test_a_full_disk_stops_the_log_and_not_the_service(make_cluster: Make) -> None:
    """status says so; when there is room again the log goes on, and the gap is counted and named."""
    cluster = make_cluster(servers=1, logs={"directory": "logs", "retain": "1MiB"})
    pid = cluster.pid("server0")
    limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)

    def write(count: int) -> None:
        with cluster.connect() as memory:
            for future in [memory.start_pwrite(b"x", number) for number in range(count)]:
                future.result()

    resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, limits[1]))  # no new segment can be made
    write(6000)
    [server] = [node for node in cluster.status()["nodes"] if node["name"] == "server0"]
    assert server["records_lost"] > 0
    assert server["state"] == "ready"
    verdict = cluster.command("status").stdout.decode().splitlines()[-1]
    assert "the log of server0 has stopped (File too large), the service goes on" in verdict
    told = cluster.command("logs").stderr.decode()
    assert "the log of server0 has stopped (File too large): what happens there now is not in it" in told
    resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
    write(10_000)
    done = cluster.command("logs", "--json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    [stopped] = [line for line in found if line["operation"] == "log_stopped"]
    assert f"{stopped['value']} records of server0 are not there" in done.stderr.decode()
    assert "has stopped" not in done.stderr.decode()
    assert "has stopped" not in cluster.command("status").stdout.decode()
