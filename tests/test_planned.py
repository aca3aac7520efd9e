"""`stop`, `start` and `restart` of nodes: planned, so no fault, no restart that counts, and nothing lost."""

from __future__ import annotations

import json
import re

import pytest
from harness import Cluster

SIZE = 1 << 20


def nodes(cluster: Cluster) -> dict[str, dict]:
    return {node["name"]: node for node in cluster.status()["nodes"]}


@pytest.fixture
def cluster(make_cluster, topology) -> Cluster:
    return make_cluster(topology=topology)


def test_what_a_stopped_server_holds_is_waited_for(cluster):
    """A request to it waits, as it does for a server that restarts, and is answered when it is back; nothing is lost,
    no restart is counted, and the log has it as a stop."""
    with cluster.connect(timeout=60.0) as memory:
        memory[0:SIZE] = bytes(range(256)) * (SIZE // 256)
        last = [name for name, node in nodes(cluster).items() if node["role"] != "logger"][-1]
        assert cluster.command("stop", last).stdout.decode() == f"stopped: {last}\n"
        shown = cluster.command("status", check=False)
        assert shown.returncode == 4
        assert f"{last} is stopped (on purpose)" in shown.stdout.decode()
        assert f"start {last}` ends that" in shown.stdout.decode()
        assert nodes(cluster)[last]["state"] == "stopped"
        assert nodes(cluster)[last]["pid"] is None
        assert cluster.command("stop", last).stdout.decode() == f"stopped: {last}\n"
        waiting = memory.start_pread(256, SIZE - 256)
        assert not waiting.done
        assert cluster.command("start", last).stdout.decode() == f"ready: {last}\n"
        assert waiting.result() == bytes(range(256))
        assert memory[0:SIZE] == bytes(range(256)) * (SIZE // 256)
    assert {node["restarts"] for node in nodes(cluster).values()} == {0}
    words = [word for event in ("stopped", "died", "restarted") for word in ("--op", event)]
    entries = map(json.loads, cluster.command("logs", "--json", *words).stdout.splitlines())
    assert [(entry["operation"], entry.get("about", entry["node"])) for entry in entries] == [("stopped", last)]
    assert cluster.status()["state"] == "running"


def test_all_nodes_are_restarted_at_once_under_a_client(cluster):
    """Each has a new process, no restart is counted, and the client notices nothing."""
    before = nodes(cluster)
    with cluster.connect(timeout=60.0) as memory:
        writes = [memory.start_pwrite(bytes([number]) * 1000, number * 4000) for number in range(250)]
        done = cluster.command("restart", "server", "logger").stdout.decode()
        assert done == f"ready: {', '.join(before)}\n"
        for write in writes:
            write.result()
        for number in range(250):
            assert memory[number * 4000 : number * 4000 + 1000] == bytes([number]) * 1000
    after = nodes(cluster)
    assert not {node["pid"] for node in before.values()} & {node["pid"] for node in after.values()}
    assert {node["restarts"] for node in after.values()} == {0}
    assert cluster.status()["state"] == "running"


def test_what_is_stopped_is_drawn_as_planned_and_the_cluster_goes_down_with_it(make_cluster, tmp_path):
    """In the timeline it is no death, for a server and for a logger; `down` needs neither, and removes everything."""
    cluster = make_cluster()
    cluster.command("restart", "server1", "logger1")
    cluster.command("timeline", "-o", str(tmp_path / "page.html"))
    page = re.search(r"const DATA = (\{.*\});", (tmp_path / "page.html").read_text())
    assert page is not None
    down = {lane["name"]: [planned for _, _, planned in lane["down"]] for lane in json.loads(page[1])["lanes"]}
    assert (down["server1"], down["logger1"], down["server2"]) == ([True], [True], [])
    cluster.command("stop", "server1", "logger0")
    said = cluster.command("down")
    assert "the merged log was not written: logger0 is not there; `memcluster logs` shows" in said.stderr.decode()
    assert cluster.left_behind() == []
    assert "server1  • stopped" in cluster.command("logs").stdout.decode()


def test_it_can_be_stopped_whatever_was_done_to_it(make_cluster):
    """A node that is paused, slow or held down after a kill; `start` ends the hold."""
    cluster = make_cluster()
    cluster.command("fault", "pause", "server1")
    cluster.command("fault", "kill", "server2", "--for", "1h")
    cluster.command("fault", "slow", "server0")
    cluster.command("stop", "server1")
    assert [fault["kind"] for fault in cluster.status()["faults"]] == ["kill", "slow"]
    cluster.command("start", "server1", "server2")
    assert {node["state"] for node in cluster.status()["nodes"]} == {"ready"}
    assert [fault["kind"] for fault in cluster.status()["faults"]] == ["slow"]


def test_wrong_words_are_told(make_cluster, tmp_path):
    cluster = make_cluster()
    wrong = cluster.command("stop", "server9", check=False)
    assert wrong.returncode == 1
    assert b"'server9' is no node here; say one of server0, server1" in wrong.stderr
    for verb, words in (("stop", "memcluster down"), ("start", "memcluster up"), ("restart", "has it begin anew")):
        none = cluster.command(verb, check=False)
        assert none.returncode == 2
        assert words in none.stderr.decode()
    assert {node["state"] for node in cluster.status()["nodes"]} == {"ready"}
    cluster.down()
    gone = cluster.command("restart", "server1", check=False)
    assert gone.returncode == 3
    assert b"is not running" in gone.stderr
