"""The log after the stop, of this run and of earlier ones, from the segments that are kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from harness import Cluster

from memcluster.launcher.log.reader import parse_since

pytestmark = pytest.mark.timeout(180)
Make = Callable[..., Cluster]
Line = dict[str, Any]


def lines(cluster: Cluster, *words: str) -> list[Line]:
    return [json.loads(line) for line in cluster.command("logs", "--json", *words).stdout.splitlines()]


def writes(found: list[Line]) -> list[int]:
    return [line["length"] for line in found if line["operation"] == "WRITE" and line["kind"] == "request"]


def runs(cluster: Cluster) -> list[Line]:
    found: list[Line] = json.loads(cluster.command("logs", "--runs", "--json").stdout)
    return found


def write(cluster: Cluster, *lengths: int) -> None:
    with cluster.connect() as memory:
        for length in lengths:
            memory.pwrite(bytes(length), memory.size // 3)
    cluster.remember()


def test_the_log_is_there_after_the_stop(make_cluster: Make, topology: str) -> None:
    """The same, in the same order, as while it ran, and what the stop has added; and so are picture and figures."""
    cluster = make_cluster(topology=topology)
    write(cluster, 100_000, 7)
    before = lines(cluster)
    cluster.down()
    shown = cluster.command("logs", "--json")
    assert b"is not running; of its last run, from " in shown.stderr
    after = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [line for line in after if line in before] == before
    assert {line["operation"] for line in after if line not in before} <= {"left", "draining", "stopped"}
    request = next(line["request"] for line in after if line["operation"] == "WRITE")
    assert cluster.command("logs", "--request", request).stdout.splitlines()[0].startswith(b"server")
    assert b"open it in a browser" in cluster.command("timeline", "-o", "out.html").stdout
    assert topology in (cluster.folder / "out.html").read_text()
    figures = json.loads(cluster.command("stats", "--json", "--over", "1h").stdout)
    counts = [row["count"] for row in figures["operations"] if row["kind"] == "request" and row["operation"] == "WRITE"]
    assert sum(counts) >= 2


def test_every_run_has_a_number(make_cluster: Make) -> None:
    """The newest is shown, another one by its number, all of them if that is said; while one is going on, too."""
    cluster = make_cluster()
    write(cluster, 1)
    cluster.down()
    cluster.file.write_text(cluster.file.read_text() + "topology: chain\n")
    cluster.up()
    write(cluster, 2)
    for state in ("running", "over"):
        assert writes(lines(cluster)) == writes(lines(cluster, "--run", "2")) == [2]
        assert writes(lines(cluster, "--run", "1")) == [1]
        assert writes(lines(cluster, "--all-runs")) == [1, 2]
        assert [(run["run"], run["state"], run["topology"]) for run in runs(cluster)] == [
            (1, "over", "primary-secondary"), (2, state, "chain"),
        ]  # fmt: skip
        assert runs(cluster)[0]["end_ns"] <= runs(cluster)[1]["begin_ns"]
        if state == "running":
            cluster.down()
    table = cluster.command("logs", "--runs").stdout.decode().splitlines()
    assert table[0].split() == ["RUN", "FROM", "TO", "TOPOLOGY", "SERVERS", "RECORDS"]
    assert len(table) == 3
    gone = cluster.command("logs", "--run", "7", check=False)
    assert (gone.returncode, b"there is no run 7 in " in gone.stderr) == (1, True)
    assert cluster.command("logs", "-f", check=False).returncode == 3
    assert cluster.command("logs", "--run", "1", "--all-runs", check=False).returncode == 2
    assert json.loads(cluster.command("stats", "--run", "1", "--json").stdout)["operations"]


def test_figures_of_a_run_that_is_over_are_of_all_of_it(make_cluster: Make) -> None:
    """Of what runs they are of the last 10 s, of what is over not of its stop alone; --over says otherwise."""
    cluster = make_cluster()
    write(cluster, 1, 2, 3)
    assert json.loads(cluster.command("stats", "--json").stdout)["over"] == 10
    cluster.down()
    [run] = runs(cluster)
    for words in ((), ("--run", "1")):
        figures = json.loads(cluster.command("stats", "--json", *words).stdout)
        assert figures["over"] == figures["seconds"] == round((run["end_ns"] - run["begin_ns"]) / 1e9, 3)
        assert sum(row["count"] for row in figures["operations"] if row["operation"] == "WRITE") >= 3
    assert json.loads(cluster.command("stats", "--json", "--over", "1ms").stdout)["seconds"] == 0.001


def test_a_folder_that_is_damaged_gives_what_it_has(make_cluster: Make) -> None:
    """One server's log deleted, another's segment emptied, the maps rubbish: sentences, and the rest of the log."""
    cluster = make_cluster()
    write(cluster, 100_000)
    cluster.down()
    logs = cluster.folder / "logs" / cluster.name
    shutil.rmtree(logs / "server2")
    os.truncate(logs / "server1" / "000001.seg", 0)
    (logs / "run-000001.json").write_text("[]")
    (logs / "serverx").mkdir()
    (logs / "server5").write_text("no folder")
    assert writes(lines(cluster)) == [100_000]
    assert cluster.command("logs", "--runs").stdout.count(b"\n") == 2
    assert cluster.command("timeline").returncode == 0
    assert cluster.command("stats").returncode == 0
    for path in (logs / "server0").iterdir():
        path.write_bytes(b"rubbish")
    nothing = cluster.command("logs", check=False)
    assert nothing.returncode == 3
    assert b"Traceback" not in nothing.stderr
    assert b"no run is kept in" in cluster.command("logs", "--runs", check=False).stderr


def test_nodes_are_named_as_arguments(make_cluster: Make) -> None:
    """A logger's own events are told by the server of its number, and are not that server's."""
    cluster = make_cluster()
    cluster.command("fault", "kill", "logger1")
    cluster.command("fault", "kill", "server2")
    while not {"logger1", "server2"} <= {line.get("about") for line in lines(cluster, "--op", "restarted")}:
        pass
    write(cluster, 400_000)
    for _ in ("running", "over"):
        whole = lines(cluster)
        for names in (["server1"], ["logger1"], ["server2", "logger1"]):
            wanted = [line for line in whole if line.get("about", line["node"]) in names]
            assert wanted
            assert lines(cluster, *names) == wanted
            assert lines(cluster, *(word for name in names for word in ("--node", name))) == wanted
            assert lines(cluster, *names, "--tail", "1") == wanted[-1:]
        assert lines(cluster, "--tail", "all") == whole
        unknown = cluster.command("logs", "server9", check=False)
        assert unknown.returncode == 2
        assert b"there is no node 'server9'; there are server0, " in unknown.stderr
        if cluster.directory.exists():
            cluster.down()


def test_a_time_as_the_log_prints_it(make_cluster: Make) -> None:
    cluster = make_cluster()
    write(cluster, 1, 2, 3)
    shown = cluster.command("logs", "--op", "write").stdout.decode().splitlines()
    requests = [line.split()[0] for line in shown if "└" not in line]
    assert writes(lines(cluster, "--since", requests[1])) == [2, 3]
    assert writes(lines(cluster, "--until", requests[1][:-7])) in ([], [1], [1, 2], [1, 2, 3])


@pytest.mark.parametrize(("text", "back"), [("00:00:00", 0), ("23:59:59.999999", 1)])
def test_a_time_of_day_is_the_last_one(text: str, back: int) -> None:
    before = datetime.now()
    found = datetime.fromtimestamp(parse_since(text) / 1e9)
    assert found <= datetime.now()
    assert found.date() in {(moment - timedelta(days=back)).date() for moment in (before, datetime.now())}


def test_what_up_itself_reads_is_marked(make_cluster: Make, topology: str) -> None:
    """On every server that it comes to; what clients ask is not, and clients cannot have it marked."""
    cluster = make_cluster(topology=topology)
    with cluster.connect() as memory:
        memory.pread(1, 0)
    reads = [line for line in lines(cluster, "--op", "read") if line["kind"] in ("request", "piece")]
    marked = [line for line in reads if "PROBE" in line["flags"]]
    assert len([line for line in marked if line["kind"] == "request"]) == 3
    assert {line["length"] for line in marked if line["kind"] == "request"} == {1}
    assert [line["offset"] for line in reads if line["kind"] == "request" and line not in marked] == [0]
    assert b"'probe'" not in cluster.memclient("info").stdout


def test_a_short_read_asks_nothing_first(make_cluster: Make) -> None:
    """Of more than one request it is worth knowing which of it is a hole."""
    cluster = make_cluster()
    assert cluster.memclient("read", "0", "4096").stdout == bytes(4096)
    assert not lines(cluster, "--op", "block_status")
    assert cluster.memclient("read", "0", "1MiB").stdout == bytes(1 << 20)
    assert [line for line in lines(cluster, "--op", "block_status") if line["kind"] == "request"]
