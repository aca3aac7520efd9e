"""What people see on a terminal: tables that fit it, whatever its width, with colours; in a pipe all of it, plain."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios

import pytest
from harness import TIMEOUT, Cluster, environment, memcluster_command

from memcluster.launcher.comparison import advice, table
from memcluster.launcher.statusview import status_table

COLOUR = re.compile("\x1b\\[[0-9;]*m")


def on_terminal(cluster: Cluster, width: int, *words: str) -> list[str]:
    """The lines that a command shows on a terminal of so many columns, with their colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    variables = {name: value for name, value in environment().items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    with subprocess.Popen(
        memcluster_command(*words), cwd=cluster.folder, stdin=theirs, stdout=theirs, stderr=theirs, env=variables
    ) as command:
        os.close(theirs)
        shown = b""
        while True:
            try:
                data = os.read(ours, 1 << 16)
            except OSError:  # EIO: the other side is closed
                break
            if not data:
                break
            shown += data
        command.wait(TIMEOUT)
    os.close(ours)
    return shown.decode().replace("\r\n", "\n").rstrip("\n").split("\n")


@pytest.mark.parametrize("width", [40, 80])
def test_status_fits_the_terminal(make_cluster, width):
    """No line is longer than the terminal is wide, but for an address that nobody could use in two halves."""
    cluster = make_cluster(layout={"stripe": "64KiB"}, memory="3MiB")
    cluster.command("fault", "slow", "server1", "--delay", "1ms", "--for", "500s")
    lines = [COLOUR.sub("", line) for line in on_terminal(cluster, width, "status")]
    assert all(len(line) <= width for line in lines), lines
    assert {"NAME", "STATE"} <= set(lines[0].split())
    assert ("ADDRESS" in lines[0]) == (width == 80)
    assert "with 1 fault on purpose" in " ".join(map(str.strip, lines))
    assert "CPU%" in on_terminal(cluster, width, "status", "--wide")[0]
    piped = cluster.command("status").stdout.decode().splitlines()
    assert "CPU%" in piped[0]
    assert "64KiB stripes" in piped[1]


@pytest.mark.parametrize("width", [40, 80])
def test_lists_fit_the_terminal(make_cluster, width):
    """The runs that are kept, the clusters that run, and the faults in force."""
    cluster = make_cluster(topology="client-routed")
    cluster.command("fault", "slow", "all", "--delay", "1ms", "--for", "500s")
    for words in (("logs", "--runs"), ("fault", "list")):
        shown = on_terminal(cluster, width, *words)
        assert max(map(len, shown)) <= width, shown
    assert on_terminal(cluster, width, "logs", "--runs")[0].split()[:2] == ["RUN", "FROM"]


def test_sockets_of_the_clusters_own_leave_room(make_cluster):
    """Their folder, the same for all, is left out; who asks by --json has the whole path. And a wider terminal shows
    no less than a narrow one."""
    cluster = make_cluster(topology="dispatcher")
    shown = on_terminal(cluster, 100, "status")
    assert {"ADDRESS", "RANGE", "CLIENTS", "RESTARTS", "PID"} <= set(shown[0].split())
    assert "unix:…/server1.sock" in shown[2]
    whole = cluster.status()["nodes"][1]["address"]
    assert whole.startswith("unix:/dev/shm/")
    assert whole.endswith("/server1.sock")


def test_status_is_coloured_by_state_on_a_terminal_alone(make_cluster):
    """Green is ready, yellow is on its way or broken on purpose."""
    cluster = make_cluster()
    cluster.command("fault", "pause", "logger1")
    lines = {line.split()[0]: line for line in on_terminal(cluster, 80, "status") if line.strip()}
    assert "\x1b[32mready" in lines["server1"]
    assert "\x1b[33mpaused" in lines["logger1"]
    assert b"\x1b" not in cluster.command("status", check=False).stdout


def test_the_columns_that_matter_stay_longest():
    """Whatever the width: names and states are there, and nothing sticks out once they have room."""
    node = {
        "name": "server0", "role": "primary", "state": "ready", "ready": True, "pid": 4242, "restarts": 0, "clients": 1,
        "address": "127.0.0.1:10809", "range": [0, 1 << 20], "uptime_s": 5.0, "requests": 7, "rss_bytes": 1 << 24,
        "cpu_percent": 0.5, "memory": 1 << 20,
    }  # fmt: skip
    status = {
        "cluster": "demo", "state": "running", "topology": "primary-secondary", "memory": 1 << 20,
        "file": "cluster.yaml", "uri": "nbd://127.0.0.1:10809", "faults": [], "nodes": [node],
    }  # fmt: skip
    seen: set[str] = set()
    for width in range(20, 140):
        head, line, *_ = status_table(status, width).splitlines()
        assert max(len(head), len(line)) <= width
        titles = set(head.split())
        assert {"NAME", "STATE"} <= titles
        seen |= titles
    assert len(seen) == 13
    assert status_table(status, 139).splitlines()[0] == status_table(status).splitlines()[0]


def results(**rates: tuple[float, float]) -> list[dict]:
    """What `compare` measured: requests a second of small and of large requests."""
    process = {"received": 1 << 20, "sent": 1 << 20, "messages_in": 9.5, "messages_out": 9.5, "cpu_us": 123.4}
    return [
        {
            "topology": name.replace("_", "-"),
            "fan_out": "parallel",
            "links": "",
            "workloads": [
                {
                    "workload": f"reads of {block}", "block": block, "depth": 1, "iops": rate,
                    "bytes_per_second": rate * block, "latency_us": {"p50": 1000.0, "p99": 2e6 / rate},
                    "processes": [{"name": f"server{index}", "role": "secondary", **process} for index in range(4)],
                }
                for block, rate in zip((4096, 1 << 20), pair, strict=True)
            ],
        }
        for name, pair in rates.items()
    ]  # fmt: skip


@pytest.mark.parametrize("width", [40, 80])
def test_compare_fits_the_terminal(width):
    found = results(primary_secondary=(70000.0, 2500.0), client_routed=(60000.0, 3200.0))
    assert max(map(len, table(found, width).splitlines())) <= width
    assert max(map(len, table(found).splitlines())) > width


def test_compare_ends_with_a_verdict_in_words():
    """Who is fastest at what and by how much; who is as fast as makes no difference is named with it."""
    found = results(chain=(30000.0, 2000.0), primary_secondary=(60000.0, 2490.0), client_routed=(20000.0, 2500.0))
    assert advice(found) == [
        "reads of 4096: primary-secondary, parallel is fastest, 3 times as fast as client-routed, parallel.",
        "reads of 1048576: client-routed, parallel and primary-secondary, parallel are fastest, "
        "1.2 times as fast as chain, parallel.",
    ]
    assert advice(results(chain=(30000.0, 2000.0))) == []
    even = results(chain=(1000.0, 1000.0), dispatcher=(1010.0, 1010.0))
    assert advice(even)[0] == "reads of 4096: it makes no difference; all are within 5 % of one another."
