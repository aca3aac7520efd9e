"""Several hosts over the command line, without a lab: in the place of ssh is a script that runs the command here."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from harness import ROOT, TIMEOUT, Cluster, environment, memcluster_command, run

from memcluster.launcher.run.identity import Identity
from memcluster.launcher.run.leftovers import wait_gone

FAKE = """#!/bin/sh
for last; do :; done
{before}
exec setsid --fork --wait sh -c "$last"
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An ssh that runs the command here, in a session of its own, which does not end with it."""

    def make(before: str = "") -> None:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "ssh").write_text(FAKE.format(before=before))
        (tmp_path / "bin" / "ssh").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    return make


HOSTS = {
    "servers": 2,
    "hosts": [{"name": "host-b", "address": "127.0.0.1"}],
    "engine": {"ssh": {"command": " ".join(memcluster_command())}},
}


@pytest.mark.parametrize(
    ("before", "sentence"),
    [
        ("echo 'no route to host' >&2; exit 255", "host-b: ssh ended with status 255: no route to host"),
        ("exec sh -c 'exec memclustre guardian'", "memclustre: not found"),
    ],
)
def test_up_says_why_a_host_does_not_come(new_cluster, tmp_path: Path, fake, before: str, sentence: str) -> None:
    """The engine's own words; and nothing is left of the start."""
    fake(before)
    cluster: Cluster = new_cluster(tmp_path, **HOSTS)
    done = cluster.command("up", "-d", check=False)
    assert done.returncode == 1
    assert sentence in done.stderr.decode()
    assert not cluster.directory.exists()


def test_a_host_of_another_version_is_refused(new_cluster, fake, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text(
        "import memcluster\nmemcluster.__version__ = '0.0.1'\n"
        "from memcluster.launcher.start import main\nmain()\n"
    )
    fake()
    cluster: Cluster = new_cluster(tmp_path, **{**HOSTS, "engine": {"ssh": {"command": f"{sys.executable} {other}"}}})
    done = cluster.command("up", "-d", check=False)
    assert done.returncode == 1
    assert "host-b has memcluster 0.0.1, and this is" in done.stderr.decode()


def test_a_host_that_nobody_knows_is_told_before_anything_is_started(new_cluster, tmp_path: Path, fake) -> None:
    fake()
    cluster: Cluster = new_cluster(tmp_path, **{**HOSTS, "hosts": ["nobody.invalid"]})
    done = cluster.command("up", "-d", check=False)
    assert done.returncode == 1
    assert "nobody here knows where nobody.invalid is" in done.stderr.decode()


@pytest.mark.parametrize("encrypted", [True, False])
def test_large_requests_come_through_between_hosts(new_cluster, tmp_path: Path, fake, encrypted: bool) -> None:
    """Whole shards, both ways, and more of them at a time than a socket takes; with TLS and without."""
    fake()
    cluster: Cluster = new_cluster(tmp_path, **HOSTS, memory="8MiB", host_encryption=encrypted)
    cluster.up()
    content = os.urandom(8 << 20)
    with cluster.connect() as memory:
        memory[:] = content
        assert memory[:] == content
        assert memory[4 << 20 : 6 << 20] == content[4 << 20 : 6 << 20]
    assert cluster.status()["nodes"][1]["sent"] > 6 << 20
    cluster.down()


# -- the end -----------------------------------------------------------------------------------------------------------


def there(cluster: Cluster) -> Path:
    """What host-b has of it in /dev/shm."""
    return cluster.directory.with_name(f"{cluster.directory.name}@host-b")


def guardian(cluster: Cluster) -> Identity:
    """The one of host-b, whose fork server has started server1."""
    pid = cluster.status()["nodes"][1]["pid"]
    found = Identity.of(psutil.Process(psutil.Process(pid).ppid()).ppid())
    assert found is not None
    return found


def test_down_throws_away_what_a_host_kept_when_its_guardian_left(new_cluster, tmp_path: Path, fake) -> None:
    """One that its engine has ended is run again for that."""
    fake()
    cluster: Cluster = new_cluster(tmp_path, **HOSTS)
    cluster.up()
    leaving = guardian(cluster)
    leaving.signal(signal.SIGTERM)
    assert wait_gone([leaving], TIMEOUT)
    assert (there(cluster) / "shard1").exists()
    cluster.down()
    assert not there(cluster).exists()


def test_down_waits_for_a_guardian_that_is_being_run_again(new_cluster, tmp_path: Path, fake) -> None:
    """And has it throw away what the one that was killed has left."""
    gate = tmp_path / "gate"
    fake(f"if [ -e {gate} ]; then read _ < {gate}; fi")
    cluster: Cluster = new_cluster(tmp_path, **HOSTS, stop_timeout="1s")
    cluster.up()
    here = [node.identity for node in cluster.record.nodes if not node.host]
    os.mkfifo(gate)
    guardian(cluster).signal(signal.SIGKILL)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    down = subprocess.Popen(memcluster_command("down"), cwd=tmp_path, env=environment(), **streams)
    try:
        assert wait_gone(here, TIMEOUT)
        gate.write_text("open\n")
        said, _ = down.communicate(timeout=TIMEOUT)
    finally:
        down.kill()
        down.communicate()
    assert down.returncode == 124  # for server1, of which it has heard no more
    assert b"is away" not in said
    assert not there(cluster).exists()


# -- while it runs -----------------------------------------------------------------------------------------------------


def test_apply_reaches_every_host_and_refuses_what_needs_a_new_start(new_cluster, tmp_path: Path, fake) -> None:
    """What it refuses is named with its place, and nothing is changed."""
    fake()
    cluster: Cluster = new_cluster(tmp_path, **HOSTS)
    cluster.up()
    before = [node["pid"] for node in cluster.status()["nodes"]]

    def write(**keys: object) -> None:
        cluster.file.write_text(json.dumps(cluster.keys | keys))

    write(logs={"level": "errors"})
    assert json.loads(cluster.command("apply", "--yes", "--json").stdout)["applied"]
    cluster.memclient("write", "0", "in no log, on neither host")
    assert not cluster.logged_writes()
    write(logs={"level": "errors"}, memory="4MiB", layout={"stripe": "64KiB"})
    refused = cluster.command("apply", "--yes", check=False)
    assert refused.returncode == 1
    for key in ("memory", "layout.stripe"):
        assert f"{key}: over several hosts only what running nodes can be told" in refused.stderr.decode()
    assert [node["pid"] for node in cluster.status()["nodes"]] == before
    cluster.down()


def test_status_asks_the_nodes_of_other_hosts_themselves_when_the_supervisor_does_not_answer(
    new_cluster, tmp_path: Path, fake
) -> None:
    """A pid of another machine says nothing here."""
    fake()
    cluster: Cluster = new_cluster(tmp_path, **HOSTS, host_lease="60s")
    cluster.up()
    supervisor = cluster.record.supervisor
    supervisor.signal(signal.SIGSTOP)
    found = {node["name"]: (node["state"], node["ready"], node.get("host")) for node in cluster.status()["nodes"]}
    supervisor.signal(signal.SIGCONT)
    assert found["server1"] == found["logger1"] == ("running", True, "host-b")
    assert found["server0"] == ("running", True, None)
    cluster.down()


RAY = "memory: 2MiB\nservers: 2\nlisten: 127.0.0.1:0\nhosts: [{name: b, address: 127.0.0.1}]\nengine: ray\n"


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed here")
def test_who_has_no_ray_is_told_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(RAY)
    refused = run(*memcluster_command("-f", str(tmp_path / "cluster.yaml"), "up", "-d"), check=False)
    assert refused.returncode == 1
    assert b"there is no Ray here: pip install 'memcluster[ray]'" in refused.stderr


def test_what_ray_says_is_told_by_the_first_of_its_lines(tmp_path: Path) -> None:
    """Its place is taken by a package that finds no cluster of Ray's, as the real one says it."""
    (tmp_path / "ray" / "util").mkdir(parents=True)
    said = '"Could not find any running Ray instance.\\nAdvice follows."'
    (tmp_path / "ray" / "__init__.py").write_text(f"def init(**words):\n    raise ConnectionError({said})\n")
    (tmp_path / "ray" / "util" / "scheduling_strategies.py").write_text("NodeAffinitySchedulingStrategy = None\n")
    (tmp_path / "cluster.yaml").write_text(RAY)
    command = memcluster_command("-f", str(tmp_path / "cluster.yaml"), "up", "-d")
    refused = run(*command, check=False, PYTHONPATH=f"{ROOT}:{tmp_path}")
    assert refused.returncode == 1
    assert "b: Ray's driver ended: Ray: Could not find any running Ray instance.\n" in refused.stderr.decode()
