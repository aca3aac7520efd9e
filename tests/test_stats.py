"""Figures from the log: the histogram's promises, `memcluster stats`, and the page for Prometheus."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Cluster
from hypothesis import given
from hypothesis import strategies as st
from numbered_log import SLOTS, append, writer
from prometheus_client.parser import text_string_to_metric_families

from memcluster.launcher.log.stats import stats_table
from memcluster.node.log.filter import Filter
from memcluster.node.log.history import History
from memcluster.node.log.record import RECORD, Event, Kind
from memcluster.node.log.tally import MIN_CELL, Figures, Tally, bucket, bucket_end
from memcluster.node.log.writer import MIN_SEGMENT
from memcluster.node.logger.metrics import MetricsPage
from memcluster.node.logger.tallying import Count
from memcluster.node.nbd.wire import Command, Error
from memcluster.node.transport.loop import Loop

DURATIONS = st.integers(0, 10**12)


def slot(
    duration: int, *, offset: int = 0, length: int = 512, kind: int = Kind.REQUEST, operation: int = 1, error: int = 0
) -> bytes:
    return RECORD.pack(1, duration, 1, offset, length, 1, kind, operation, 0, error, 1)


# -- the histogram -----------------------------------------------------------------------------------------------


@given(DURATIONS)
def test_a_bucket_is_narrow(ns: int) -> None:
    """Its end is at most a thirty-second above, and buckets follow one another without a hole."""
    index = bucket(ns)
    assert ns <= bucket_end(index) <= ns + ns / 32
    assert bucket(bucket_end(index)) == index
    assert bucket(bucket_end(index) + 1) == index + 1


@given(st.lists(DURATIONS, min_size=1, max_size=200), st.sampled_from((0.5, 0.9, 0.99, 1.0)))
def test_percentiles_are_right_within_a_bucket(durations: list[int], part: float) -> None:
    tally = Tally()
    tally.add(map(slot, durations))
    found = tally.figures[Kind.REQUEST, Command.WRITE].percentile(part)
    ordered = sorted(durations)
    exact = ordered[max(0, -int(-part * len(ordered) // 1) - 1)]
    assert exact <= found <= exact + exact / 32


RECORDS = st.lists(st.tuples(DURATIONS, st.integers(0, 1 << 24), st.integers(0, 1 << 16)), max_size=60)


@given(RECORDS, st.integers(0, 60))
def test_tallies_add_up(records: list[tuple[int, int, int]], cut: int) -> None:
    """The figures of two stretches together are those of the whole, also after a journey in a frame."""
    slots = [slot(ns, offset=offset, length=length) for ns, offset, length in records]
    whole, first, second = Tally(1 << 24), Tally(1 << 24), Tally(1 << 24)
    whole.add(slots)
    first.add(slots[:cut])
    second.add(slots[cut:])
    first.join(Tally.from_head(json.loads(json.dumps(second.to_head()))))
    assert first.figures == whole.figures
    assert first.cells == whole.cells
    assert first.cell_bytes == whole.cell_bytes
    assert sum(whole.cell_bytes.values()) == sum(length for _, _, length in records)


def test_failures_move_no_bytes_and_events_are_counted_apart() -> None:
    tally = Tally()
    tally.add([slot(10), slot(20, error=Error.EIO), slot(0, kind=Kind.EVENT, operation=Event.READY)])
    assert tally.figures == {
        (Kind.REQUEST, Command.WRITE): Figures(2, 512, 1, 30, 20, Counter({bucket(10): 1, bucket(20): 1}))
    }
    assert tally.events == {Event.READY: 1}


def test_the_busiest_range_is_found() -> None:
    tally = Tally(1 << 20)
    tally.add([slot(1, offset=number * MIN_CELL) for number in range(10)] + [slot(1, offset=3 * MIN_CELL + 7)] * 5)
    assert tally.cells.most_common(1) == [(3, 6)]


def test_a_table_of_nothing() -> None:
    nothing: dict[str, Any] = {
        "over": 10, "seconds": 10, "sample": 1, "operations": [], "busiest": [], "events": {}, "missing": {},
        "records_missing": {},
    }  # fmt: skip
    assert stats_table(nothing) == "nothing was asked in the last 10 s"


def test_a_table_leaves_out_what_has_no_room() -> None:
    latency = {"mean": 1.0, "p50": 1.0, "p90": 1.0, "p99": 1.0, "p999": 1.0, "max": 1.0}
    row = {"node": "server0", "kind": "request", "operation": "WRITE", "rate": 1000.0, "bytes_per_second": 4e6,
           "errors": 0, "latency_us": latency}  # fmt: skip
    stats: dict[str, Any] = {
        "over": 10, "seconds": 10, "sample": 1, "operations": [row], "busiest": [], "events": {}, "missing": {},
        "records_missing": {},
    }  # fmt: skip
    assert stats_table(stats).splitlines()[0].split()[-6:] == ["MEAN", "P50", "P90", "P99", "P99.9", "MAX"]
    head, line = stats_table(stats, 80).splitlines()
    assert len(line) <= 80
    assert "P99.9" not in head
    assert head.split()[-1] == "MAX"
    stats["missing"] = {"logger1": "it does not answer, and will not for a while"}
    narrow = stats_table(stats, 40).splitlines()
    assert narrow[0].split() == ["NODE", "OPERATION", "RATE", "P50", "P99"]
    assert max(map(len, narrow)) <= 40


# -- of a cluster ------------------------------------------------------------------------------------------------


def work(cluster: Cluster) -> None:
    with cluster.connect() as memory:
        for number in range(30):
            memory.pwrite(bytes(8192), number * 4096)
        for number in range(20):
            memory.pread(4096, number * 4096)


def logged(cluster: Cluster) -> Counter[tuple[str, str, str]]:
    lines = map(json.loads, cluster.command("logs", "--json").stdout.splitlines())
    return Counter(
        (line["node"], line["kind"], line["operation"])
        for line in lines
        if line["kind"] != "event" and "PROBE" not in line["flags"]
    )


def metrics_address(cluster: Cluster) -> str:
    return next(node["metrics"] for node in cluster.status()["nodes"] if "metrics" in node)


def get(address: str, path: str = "/metrics", method: str = "GET") -> tuple[int, str]:
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.request(method, path)
    response = connection.getresponse()
    return response.status, response.read().decode()


def samples(text: str, name: str) -> dict[tuple[str, ...], float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name:
                found[tuple(sample.labels[label] for label in ("node", "kind", "operation"))] = sample.value
    return found


def test_stats_count_what_the_log_holds(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(layout={"stripe": "4KiB"})
    work(cluster)
    stats = json.loads(cluster.command("stats", "--json", "--over", "1h").stdout)
    counts = {(row["node"], row["kind"], row["operation"]): row["count"] for row in stats["operations"]}
    assert counts == logged(cluster)
    [writes] = [row for row in stats["operations"] if (row["kind"], row["operation"]) == ("request", "WRITE")]
    assert (writes["count"], writes["errors"]) == (30, 0)
    latency = writes["latency_us"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p999"] <= latency["max"]
    assert stats["busiest"][0]["requests"] >= 2
    table = cluster.command("stats", "--over", "1h").stdout.decode()
    assert "server0  request  WRITE" in table
    assert "busiest ranges:" in table


def test_rates_are_of_the_time_that_the_cluster_runs(make_cluster: Callable[..., Cluster]) -> None:
    """Not of the whole hour that is asked for, and what its last run did is not counted; the table says so."""
    began = time.monotonic()
    cluster = make_cluster()
    work(cluster)
    cluster.down()
    cluster.up()
    with cluster.connect() as memory:
        for number in range(30):
            memory.pwrite(bytes(8192), number * 4096)
    stats = json.loads(cluster.command("stats", "--json", "--over", "1h").stdout)
    lived = time.monotonic() - began
    [writes] = [row for row in stats["operations"] if (row["kind"], row["operation"]) == ("request", "WRITE")]
    assert (stats["over"], writes["count"]) == (3600, 30)
    assert 0 < writes["seconds"] <= stats["seconds"] < lived
    assert writes["rate"] == pytest.approx(30 / writes["seconds"], rel=0.01)
    assert writes["bytes_per_second"] == pytest.approx(30 * 8192 / writes["seconds"], rel=0.01)
    assert " s, for the cluster is no older" in cluster.command("stats", "--over", "1h").stdout.decode()
    assert "is no older" not in cluster.command("stats", "--over", "1ms").stdout.decode()


def test_rates_are_of_the_time_that_the_log_reaches_back(tmp_path: Path) -> None:
    """What was dropped (logs.retain) is not counted, so the time it took must not be, either."""
    now = time.time_ns()
    log = writer(tmp_path, retain=2 * MIN_SEGMENT, clock=lambda: now)
    while log.sequence < 4 * SLOTS:
        now += 10**6
        append(log)
    loop = Loop()
    count = Count(loop, History(tmp_path, 0, clock=lambda: now), 0, Filter(), lambda _: loop.stop(), follow=False)
    loop.run()
    kept = sum(figures.count for figures in count.tally.figures.values())
    assert count.tally.missing == log.sequence - kept > 0
    assert count.tally.age == pytest.approx(kept * 10**6, rel=0.01)
    log.close()
    loop.close()


def test_stats_name_a_logger_that_is_missing(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster()
    work(cluster)
    cluster.command("fault", "kill", "logger1", "--for", "1h")
    table = cluster.command("stats").stdout.decode()
    assert "logger1 is missing (" in table
    assert "server0  request" in table


def test_prometheus_reads_the_same_figures(make_cluster: Callable[..., Cluster]) -> None:
    """Counters that only grow, histograms that agree with them, nothing but GET /metrics."""
    cluster = make_cluster(layout={"stripe": "4KiB"}, metrics="127.0.0.1:0")
    address = metrics_address(cluster)
    before = samples(get(address)[1], "memcluster_operations_total")
    work(cluster)
    wanted = logged(cluster)
    text = get(address)[1]
    while samples(text, "memcluster_operations_total") != wanted:  # they follow the log; the test's time is the bound
        text = get(address)[1]
    assert all(before.get(key, 0) <= count for key, count in wanted.items())
    assert samples(text, "memcluster_latency_seconds_count") == wanted
    key = ("server0", "request", "WRITE")
    assert samples(text, "memcluster_bytes_total")[key] == 30 * 8192
    assert 'memcluster_logger_up{node="logger2"} 1.0' in text
    assert 'memcluster_events_total{event="connected",node="server0"}' in text
    assert get(address, "/other")[0] == 404
    assert get(address, method="POST")[0] == 405
    assert get(address, method="HEAD") == (200, "")


def test_the_metrics_page_minds_its_bounds(make_cluster: Callable[..., Cluster]) -> None:
    """Who sends too much is told, who sends nonsense or nothing harms nobody."""
    cluster = make_cluster(metrics="127.0.0.1:0")
    host, _, port = metrics_address(cluster).rpartition(":")
    silent = socket.create_connection((host, int(port)))
    with socket.create_connection((host, int(port)), timeout=30) as sock:
        sock.sendall(b"GET /" + b"x" * 20_000)
        assert sock.recv(100).startswith(b"HTTP/1.1 431 ")
    with socket.create_connection((host, int(port)), timeout=30) as sock:
        sock.sendall(b"\xff\xfe\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 405 ")
    assert get(f"{host}:{port}")[0] == 200
    silent.close()


def test_the_metrics_address_reads_as_in_cluster_yaml() -> None:
    loop = Loop()
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        page = MetricsPage(loop, listener, lambda _: None)
        assert page.address == f"[::1]:{listener.getsockname()[1]}"
        page.close()
    loop.close()


def test_a_taken_metrics_port_starts_nothing(tmp_path: Any, new_cluster: Callable[..., Cluster]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        cluster = new_cluster(tmp_path, metrics=f"127.0.0.1:{taken.getsockname()[1]}")
        done = cluster.command("up", "-d", check=False)
    assert done.returncode == 5
    assert b"is already in use" in done.stderr
    assert not cluster.left_behind()
