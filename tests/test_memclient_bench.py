"""`memclient bench`: what it reports is true, it destroys nothing unasked, and it leaves no process behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess

import pytest
from harness import TIMEOUT, memclient_command, run
from hypothesis import given
from hypothesis import strategies as st
from peers import nbdkit

from memcluster.client.bench import PERCENTILES, Histogram, Load, Result
from memcluster.client.beside import Beside

SHORT = ("bench", "--runtime", "50ms", "--json")


@given(st.lists(st.integers(0, 1 << 40), min_size=1))
def test_percentiles_are_exact_to_one_in_64(latencies):
    histogram = Histogram()
    for latency in latencies:
        histogram.add(latency)
    latencies.sort()
    assert histogram.total == len(latencies)
    assert histogram.percentile(100) == histogram.greatest == latencies[-1]
    for percent in PERCENTILES:
        exact = latencies[max(0, -(-len(latencies) * percent // 100).__trunc__() - 1)]
        assert exact <= histogram.percentile(percent) <= exact + exact // 64


@given(st.lists(st.integers(0, 1 << 40)), st.lists(st.integers(0, 1 << 40)))
def test_merged_histograms_are_one_of_both(first, second):
    one, other, both = Histogram(), Histogram(), Histogram()
    for latency in first:
        one.add(latency)
        both.add(latency)
    for latency in second:
        other.add(latency)
        both.add(latency)
    one.merge(other)
    assert (one.counts, one.greatest) == (both.counts, both.greatest)


def test_a_histogram_of_nothing_has_no_latency():
    assert Histogram().percentile(99) == 0


def test_reads_are_the_default_and_change_nothing(make_cluster):
    cluster = make_cluster()
    content = os.urandom(1 << 20)
    with cluster.connect() as memory:
        memory.pwrite(content, 0)
    found = json.loads(cluster.memclient(*SHORT, "--clients", "2", "--depth", "4").stdout)
    with cluster.connect() as memory:
        assert memory.pread(1 << 20, 0) == content
    assert found["uri"] == cluster.uri
    assert (found["block"], found["depth"], found["clients"], found["length"]) == (4096, 4, 2, 1 << 20)
    assert found["write"] is None
    read = found["read"]
    assert read["requests"] >= 8
    assert read["iops"] == pytest.approx(read["requests"] / found["seconds"])
    assert read["bytes_per_second"] == pytest.approx(read["iops"] * 4096)
    latency = read["latency_us"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p99.9"] <= latency["max"]


@pytest.mark.parametrize("mode", ["--write", "--mix"])
def test_writes_stay_in_the_region(make_cluster, mode):
    cluster = make_cluster()
    found = json.loads(cluster.memclient(*SHORT, mode, "--offset", "64KiB", "--length", "70000").stdout)
    assert found["write"]["requests"] > 0
    assert (found["read"] is None) == (mode == "--write")
    with cluster.connect() as memory:
        content = memory.pread(1 << 20, 0)
    end = (64 << 10) + 70000 // 4096 * 4096
    assert any(content[64 << 10 : end])
    assert not any(content[: 64 << 10])
    assert not any(content[end:])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--write",), "say with --offset and --length which bytes may be lost"),
        (("--mix", "--offset", "0"), "say with --offset and --length which bytes may be lost"),
        (("--block", "2MiB"), "do not fit"),
        (("--offset", "2MiB"), "do not fit"),
        (("--block", "0"), "do not fit"),
        (("--block", "fast"), "is not a size"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_sentence(make_cluster, words, said):
    done = make_cluster(servers=1).memclient(*SHORT, *words, check=False)
    assert done.returncode == 2
    assert said in done.stderr.decode()
    assert not done.stdout


def test_the_result_in_words(make_cluster):
    said = make_cluster(servers=1).memclient("bench", "--runtime", "50ms").stdout.decode()
    assert "4KiB, 32 in flight, 1 client" in said
    for word in ("reads", "IOPS", "MB/s", "p50", "p90", "p99", "p99.9", "max"):
        assert word in said


def test_another_server_gets_the_same_load_in_turns(make_cluster):
    """Both are told of in full, and the ratio; the region is what both have."""
    cluster, other = make_cluster(), make_cluster(servers=1, memory="512KiB")
    words = [*SHORT, "--mix", "--offset", "0", "--length", "64KiB", "--pairs", "2", "--against", other.uri]
    found = json.loads(cluster.memclient(*words).stdout)
    assert (found["uri"], found["against"]["uri"]) == (cluster.uri, other.uri)
    for kind in ("read", "write"):
        assert found[kind]["requests"] > 0
        assert found["against"][kind]["requests"] > 0
        ratio = found["ratio"][kind]
        assert ratio["pairs"] == 2
        assert 0 < ratio["least"] <= ratio["median"] <= ratio["greatest"]
    assert json.loads(cluster.memclient(*SHORT, "--against", other.uri).stdout)["length"] == 512 << 10


def test_the_ratio_is_of_pairs_and_above_1_for_the_faster():
    """The median of the pairs, and the least and the greatest; what only one of both was asked for has none."""
    load = Load(4096, 1, 0.0, 0, 4096)

    def result(requests: int) -> Result:
        made = Result(load, 1, seconds=2.0)
        for _ in range(requests):
            made.latencies["read"].add(1000)
        return made

    both = Beside(Result(load, 1), Result(load, 1))
    for ours, theirs in ((3, 1), (1, 2), (4, 2)):
        both.add(result(ours), result(theirs))
    assert both.to_json() == {"read": {"median": 2.0, "least": 0.5, "greatest": 3.0, "pairs": 3}, "write": None}
    assert (both.ours.requests, both.ours.seconds, both.theirs.rate("read")) == (8, 6.0, 5 / 6)


def test_beside_a_server_of_another_make_in_words(make_cluster):
    with nbdkit("memory", "1M") as uri:
        said = make_cluster(servers=1).memclient("bench", "--runtime", "50ms", "--pairs", "1", "--against", uri)
    *_, title, ratio = said.stdout.decode().splitlines()
    assert title == f"this beside {uri}"
    assert re.fullmatch(r"  reads +\d+\.\d\d×  \(\d+\.\d\d to \d+\.\d\d in 1 pair\)", ratio)


def test_both_must_have_the_region(make_cluster):
    cluster, other = make_cluster(servers=1), make_cluster(servers=1, memory="64KiB")
    done = cluster.memclient(*SHORT, "--length", "128KiB", "--against", other.uri, check=False)
    assert done.returncode == 2
    assert f"do not fit 131072 bytes at 0 of {other.uri}, a memory of 65536 bytes" in done.stderr.decode()
    done = cluster.memclient(*SHORT, "--against", "nbd+unix:///?socket=/nowhere", check=False)
    assert done.returncode == 3
    assert b"/nowhere" in done.stderr


def test_a_client_that_is_refused_ends_them_all_and_says_why(make_cluster):
    cluster = make_cluster(servers=1, clients={"limit": 3})
    done = cluster.memclient("bench", "--runtime", "60s", "--clients", "6", check=False)
    assert done.returncode == 1
    assert "all 3 client slots are taken" in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_nobody_to_measure(tmp_path):
    (tmp_path / "cluster.yaml").write_text("name: nobody\nmemory: 1MiB\n")
    done = run(*memclient_command(*SHORT), cwd=tmp_path, check=False)
    assert done.returncode == 3


def test_ctrl_c_ends_it_early_with_what_was_found(make_cluster, start):
    cluster = make_cluster(servers=1)
    before = cluster.status()["nodes"][0]["requests"]
    process = start(
        *memclient_command("--uri", cluster.uri, "bench", "--runtime", "60s", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    cluster.wait_for(lambda status: process.poll() is not None or status["nodes"][0]["requests"] >= before + 1000)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130
    assert json.loads(out)["read"]["requests"] >= 1000
    assert not err
