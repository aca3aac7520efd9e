"""The benchmark runs, keeps what it finds, draws it, and leaves nothing. What the figures are is no test's affair."""

from __future__ import annotations

import itertools
import json
import os
import sys
import xml.etree.ElementTree as ET

import pytest
from harness import ROOT, need, run

from bench import instructions

SHORT = ("--quick", "--pairs", "1", "--runtime", "0.2")


def bench(*words: str, check: bool = True, **environment: str):
    return run(sys.executable, "-m", "bench", *words, cwd=ROOT, check=check, timeout=100, **environment)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """(what one small case printed, its results, what it left in its folder for temporary files)"""
    for command in ("fio", "nbdkit"):
        need(command, command)
    folder = tmp_path_factory.mktemp("bench")
    path = tmp_path_factory.mktemp("results") / "latest.json"
    done = bench(*SHORT, "--only", "read-4k-d1", "--results", str(path), TMPDIR=str(folder))
    return done.stdout.decode(), json.loads(path.read_text()), list(folder.glob("memcluster-*"))


def test_a_case_is_measured_beside_its_peer(measured):
    printed, results, _ = measured
    (case,) = results["cases"].values()
    sides = [case[f"{side}_figures"] for side in ("memcluster", "peer", "ceiling")]
    assert [len(figures) for figures in (*sides, case["ratios"])] == [1, 1, 1, 1]
    assert min(*itertools.chain(*sides), case["limit"]) > 0
    assert case["ratio_min"] <= case["ratio_median"] <= case["ratio_max"]
    assert case["met"] == (case["ratio_median"] >= case["target"])
    for word in ("memcluster", "peer", "ratio", "target", "met", "limit"):
        assert word in printed


def test_the_machine_is_described_without_names_and_paths(measured):
    _, results, _ = measured
    machine = results["machine"]
    assert {"processors", "kernel", "python", "nbdkit", "fio"} <= machine.keys()
    assert "/" not in json.dumps(machine)


def test_nothing_is_left(measured):
    _, _, left = measured
    assert not left


def test_the_pictures_are_svg_and_the_tables_find_their_place(measured, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from bench import plots, report

    _, results, _ = measured
    curve = {"title": "a <b>", "x_label": "x", "y_label": "y", "x_is_size": True, "log_y": True}
    results["curves"] = {"block": curve | {"series": {"one": [[1, 3.0], [1 << 20, 4000.0]], "two": [[1, 7], [64, 8]]}}}
    for path in plots.draw(results, tmp_path):
        assert ET.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert {path.name for path in tmp_path.iterdir()} == {"performance-ratios.svg", "performance-block.svg"}
    document = tmp_path / "page.md"
    document.write_text("before\n<!-- bench: cases -->\nold\n<!-- bench end -->\nafter\n")
    assert report.write_documents(results, [document]) == [document]
    text = document.read_text()
    assert text.startswith("before\n<!-- bench: cases -->\n| case |")
    assert text.endswith("|\n<!-- bench end -->\nafter\n")
    assert "old" not in text
    assert report.write_documents(results, [document]) == []


@pytest.mark.parametrize("servers", [1, 4])
def test_the_ceiling_is_a_memory(servers, monkeypatch):
    """What the C program is measured by is what it keeps: bytes written are read, small ones and large ones."""
    need("cc", "gcc")
    monkeypatch.syspath_prepend(ROOT)
    import memcluster
    from bench.ceiling import ceiling
    from bench.peers import MEMORY

    part = MEMORY // servers
    with ceiling(servers) as service, memcluster.connect(service.uri) as memory:
        for offset, length in ((0, 4096), (part - 4096, 4096), (MEMORY - part, 1 << 20), (MEMORY - 512, 512)):
            data = os.urandom(length)
            memory.pwrite(data, offset)
            assert memory.pread(length, offset) == data


def test_an_unknown_case_is_a_usage_error():
    done = bench("--only", "nonsense", check=False)
    assert done.returncode == 2
    assert b"--list" in done.stderr


def test_a_checkout_is_measured_beside_another_one():
    """Itself, here: a row for each load, with as much on both sides as could be measured."""
    need("fio", "fio")
    done = run(sys.executable, "-m", "bench.against", ".", "--pairs", "1", "--runtime", "0.1", cwd=ROOT, timeout=100)
    heading, _, *rows = [line.strip("| ").split(" | ") for line in done.stdout.decode().splitlines()]
    assert heading == ["servers", "load", "unit", "this", "that", "ratio", "quartiles"]
    assert [row[:2] for row in rows] == [[n, f"4 KiB {kind}"] for n in ("1", "4") for kind in ("reads", "writes")]
    assert all(float(cell.replace(",", "")) > 0 for row in rows for cell in row[3:5])


def test_both_forms_and_both_kinds_of_links_are_measured_beside_nbdkit():
    """Here the form that runs, twice; a row for each peer, a cell for each side."""
    need("fio", "fio")
    need("nbdkit", "nbdkit")
    words = [".", "--pairs", "1", "--runtime", "0.05", "--only", "secondary, 1 MiB reads"]
    done = run(sys.executable, "-m", "bench.targets", *words, cwd=ROOT, timeout=100)
    _, _, *rows = [line.strip("| ").split(" | ") for line in done.stdout.decode().splitlines()]
    assert [row[1] for row in rows] == ["nbdkit memory", "the proxy"]
    assert all(float(cell.removesuffix("×")) > 0 for row in rows for cell in row[2:6])


@pytest.mark.skipif(os.geteuid() != 0, reason="another root is entered, which takes root")
def test_servers_of_another_root_are_measured_beside_those_of_this_machine():
    """Here that root is this machine's, too."""
    for command in ("fio", "nbdkit", "qemu-nbd"):
        need(command, command)
    words = ["/", "--pairs", "1", "--runtime", "0.05", "--only", "4 KiB reads, depth 1"]
    done = run(sys.executable, "-m", "bench.newest", *words, cwd=ROOT, timeout=100).stdout.decode()
    of, newest, _, _, _, *rows = done.splitlines()
    assert of.removeprefix("as installed") == newest.removeprefix("newest")
    peers = ["nbdkit memory", "qemu-nbd", "nbdkit memory", "nbdkit proxy"]
    assert [row.split(" | ")[2] for row in rows] == peers
    assert all(float(cell.strip("| ×")) > 0 for row in rows for cell in row.split(" | ")[3:])


def test_the_library_is_measured_beside_itself():
    """An event loop beside a thread, the guard beside none, and the start of memclient beside that of a commit."""
    words = ["--pairs", "1", "--runtime", "0.05", "--against", "HEAD"]
    done = run(sys.executable, "-m", "bench.library", *words, cwd=ROOT, timeout=100)
    heading, _, *rows = [line.strip("| ").split(" | ") for line in done.stdout.decode().splitlines()]
    assert heading == ["what", "beside", "unit", "this", "that", "ratio", "from, to"]
    assert [row[2] for row in rows] == ["IOPS", "IOPS", "s"]
    assert all(float(cell.replace(",", "")) > 0 for row in rows for cell in row[3:5])


def test_every_marker_of_the_documents_has_a_table(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from bench import report

    for path in report.DOCUMENTS:
        for name in report.markers(path.read_text()):
            assert name in report.TABLES


def test_the_requests_whose_instructions_are_counted_are_answered_in_every_topology():
    """The counter itself is valgrind, which takes a minute."""
    links = [f"{topology},{links}" for topology, links in instructions.TOPOLOGIES]
    cases = [f"{case},{command},{depth},3" for case in links for command, depth in (("READ", 4), ("WRITE", 1))]
    run(sys.executable, str(instructions.SCRIPT), *cases, cwd=ROOT, PYTHONPATH=str(ROOT), timeout=60)
