"""`memcluster compare`: a short run, what it says of the topologies, and that nothing of it stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from harness import TIMEOUT, memcluster_command, run, wait_gone

from bench import topologies
from memcluster.launcher.comparison import case_name, picture, table
from memcluster.launcher.run.identity import Identity
from memcluster.node.topology import names

pytestmark = pytest.mark.timeout(180)


def left_behind() -> list[str]:
    """Run directories of comparisons that are not this test's own any more."""
    return [path.name for path in Path("/dev/shm").glob(f"memcluster-{os.getuid()}-compare-*")]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict]:
    words = ["--topology", "dispatcher", "--topology", "chain", "--for", "200ms", "--servers", "3", "--json"]
    folder = tmp_path_factory.mktemp("compare")
    done = run(*memcluster_command("compare", *words, "--plot", "plot.svg"), cwd=folder, timeout=170)
    assert (folder / "plot.svg").read_text().startswith("<svg ")
    assert b"dispatcher, serial: 1MiB reads" in done.stderr
    return json.loads(done.stdout)["cases"]


def test_every_case_has_its_figures(results):
    """Each topology, and serial beside parallel where that is a choice."""
    assert [(case["topology"], case["fan_out"]) for case in results] == [
        ("dispatcher", "parallel"), ("dispatcher", "serial"), ("chain", None),
    ]  # fmt: skip
    for case in results:
        assert len(case["workloads"]) == 4
        for found in case["workloads"]:
            assert found["requests"] > 0
            assert found["latency_us"]["p50"] <= found["latency_us"]["p99"]
            assert [process["name"] for process in found["processes"]] == [
                f"server{number}" for number in range(4 if case["topology"] == "dispatcher" else 3)
            ]


def test_the_figures_show_who_carries_the_bytes(results):
    """The dispatcher carries none of a read's; in a chain each server passes on what those before it gathered."""
    large = {case["topology"]: case["workloads"][3] for case in results}
    dispatcher, *servers = large["dispatcher"]["processes"]
    assert dispatcher["sent"] + dispatcher["received"] < 10_000
    assert sum(server["sent"] for server in servers) > 1 << 20
    sent = [process["sent"] for process in large["chain"]["processes"]]
    assert sent[0] < sent[1] < sent[2]
    assert sent[2] > 1 << 20


def test_the_table_and_the_picture_name_every_case(results):
    text, svg = table(results), picture(results)
    for words in ("dispatcher, parallel", "dispatcher, serial", "chain", "server0 (dispatcher)", "4KiB writes"):
        assert words in text
    assert svg.count("<rect") == 1 + 4 * len(results)


def test_the_page_has_the_figures_of_the_last_run(tmp_path):
    """What stands in docs/topologies.md comes from the stored results, all of it, and so does the picture."""
    stored, page = json.loads(topologies.RESULTS.read_text()), tmp_path / "page.md"
    page.write_text(topologies.DOCUMENT.read_text())
    topologies.write_document(stored, page)
    assert page.read_text() == topologies.DOCUMENT.read_text()
    assert picture(stored["cases"]) == topologies.PICTURE.read_text()
    for case in stored["cases"]:
        assert page.read_text().count(f"| {case_name(case)} |") == 3
    assert {case["topology"] for case in stored["cases"]} == set(names())


def test_a_wrong_topology_is_named(tmp_path):
    done = run(*memcluster_command("compare", "--topology", "ring"), cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert f"there are {', '.join(names())}".encode() in done.stderr


def test_a_picture_that_cannot_be_written_costs_no_figures(tmp_path):
    words = ["--topology", "chain", "--for", "50ms", "--servers", "2", "--plot", "no/such/plot.svg"]
    done = run(*memcluster_command("compare", *words), cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert b"no/such/plot.svg: No such file or directory" in done.stderr
    assert b"server1 (" in done.stdout


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_one_that_is_ended_leaves_nothing(tmp_path, start, signum):
    """Whatever ends it while a cluster runs: that stops, and a folder stays only where nobody could remove it."""
    process = start(
        *memcluster_command("compare", "--topology", "chain", "--for", "60s"),
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert process.stderr is not None
    while "4KiB reads" not in (line := process.stderr.readline()):
        assert line, "it has ended"
    name = f"memcluster-{os.getuid()}-compare-{process.pid}"
    state = json.loads((Path("/dev/shm") / name / "state.json").read_text())
    alive = [Identity(each["pid"], each["start"]) for each in (*state["nodes"], state["supervisor"])]
    process.send_signal(signum)
    process.communicate(timeout=TIMEOUT)
    if signum == signal.SIGKILL:
        assert process.returncode == -signum
        assert wait_gone(alive, TIMEOUT)
    else:
        assert process.returncode == 128 + signum
        assert not list(tmp_path.iterdir())
        assert not [identity for identity in alive if identity.alive]
    assert name not in left_behind()
