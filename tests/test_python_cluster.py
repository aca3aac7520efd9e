"""memcluster.Cluster: a cluster that a Python program starts, uses, breaks and stops."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time

import pytest
from harness import environment, run

import memcluster
from memcluster.client.discover import run_directory
from memcluster.launcher.cluster import Keys
from memcluster.launcher.clusterfile.schema import ClusterFile
from memcluster.launcher.run.directory import RunDirectory
from memcluster.launcher.run.identity import Identity
from memcluster.launcher.run.leftovers import wait_gone

TIMEOUT = 30.0


def test_the_keywords_are_the_keys_of_cluster_yaml():
    assert set(Keys.__annotations__) == set(ClusterFile.model_fields)


def test_a_cluster_is_started_used_broken_and_stopped(topology):
    """All that a test of a storage client needs, in every topology; and nothing is left."""
    with memcluster.Cluster(servers=3, topology=topology, memory="1MiB") as cluster:
        record = RunDirectory(cluster.name).record()
        assert cluster.status()["topology"] == topology
        with cluster.connect() as memory:
            memory[0:5] = b"hello"
            assert cluster.fault("kill", "server1") == ["server1"]
            assert memory[0:5] == b"hello"
            cluster.wait_ready()
            assert cluster.status()["state"] == "running"
            memory[(1 << 19) : (1 << 19) + 5] = b"again"
        killed = cluster.logs(op=["killed"])
        assert [(event["kind"], event["about"]) for event in killed] == [("event", "server1")]
        assert any("WRITE" in line for line in cluster.log_lines(last=50))
        folder = cluster.file.parent
    assert record is not None
    assert wait_gone([record.supervisor, *(node.identity for node in record.nodes)], TIMEOUT)
    assert not run_directory(cluster.name).exists()
    assert not folder.exists()
    with pytest.raises(memcluster.LaunchError, match="is not running"):
        cluster.logs()
    cluster.stop()  # once more is nothing


def test_a_cluster_of_a_file_keeps_its_name_and_its_folder(tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text(f"name: py{os.getpid()}\nmemory: 1MiB\nservers: 2\nlisten: 127.0.0.1:0\n")
    with memcluster.Cluster(file) as cluster:
        assert cluster.name == f"py{os.getpid()}"
        page = cluster.timeline(tmp_path / "page.html")
        assert "server1" in page.read_text()
        with pytest.raises(memcluster.LaunchError, match="already running, and would not stop with") as refused:
            memcluster.Cluster(file)
        assert refused.value.code == 5
    assert (tmp_path / "logs" / f"{cluster.name}.log").exists()


def test_a_folder_keeps_the_file_and_the_log_and_a_storage_keeps_the_bytes(tmp_path):
    keys = {"folder": tmp_path / "here", "storage": tmp_path / "shards", "memory": 65536, "name": f"keep{os.getpid()}"}
    with memcluster.Cluster(**keys) as cluster, cluster.connect() as memory:
        memory[0:4] = b"kept"
    with memcluster.Cluster(**keys) as cluster, cluster.connect() as memory:
        assert memory[0:4] == b"kept"
    assert (tmp_path / "here" / "cluster.yaml").exists()


DIES = """
import json, os, signal, sys
import memcluster
cluster = memcluster.Cluster(servers=2, memory="1MiB", folder=sys.argv[2])
print(json.dumps([cluster.name, cluster.status()["supervisor"]]), flush=True)
if sys.argv[1] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "fork":  # what the child does ends nothing
    if not os.fork():
        with cluster:
            os._exit(0) if cluster.status()["state"] == "running" else os._exit(1)
    assert os.wait()[1] == 0
    if not os.fork():
        cluster.__exit__(None, None, None)
        os._exit(0)
    assert os.wait()[1] == 0
    assert cluster.status()["state"] == "running"
"""


@pytest.mark.parametrize("how", ["kill", "return", "fork"])
def test_it_does_not_outlive_the_program_that_started_it(how, tmp_path, start):
    """kill -9, a program that forgets it, and one that forks meanwhile. The program is kept until the supervisor is
    known."""
    program = start(sys.executable, "-c", DIES, how, tmp_path, stdout=subprocess.PIPE)
    name, pid = json.loads(program.stdout.readline())
    supervisor = Identity.of(pid)  # None if it is gone already
    assert program.wait(TIMEOUT) == (-signal.SIGKILL if how == "kill" else 0)
    assert supervisor is None or wait_gone([supervisor], TIMEOUT)
    assert not run_directory(name).exists()
    assert not [line for line in run("ps", "-eo", "args").stdout.splitlines() if f"memcluster {name}:".encode() in line]


WAITS = "import memcluster; memcluster.Cluster(servers=2, memory='1MiB', folder={folder!r}, name={name!r})"


def test_a_program_that_is_interrupted_while_it_starts_leaves_nothing(tmp_path):
    """Ctrl-C as soon as `up` is under way: the run directory is there."""
    name = f"int{os.getpid()}"
    script = WAITS.format(folder=str(tmp_path), name=name)
    program = subprocess.Popen([sys.executable, "-c", script], env=environment(), stderr=subprocess.PIPE)
    deadline = time.monotonic() + TIMEOUT
    while not (run_directory(name) / "lock").exists():
        assert program.poll() is None
        assert time.monotonic() < deadline
    program.send_signal(signal.SIGINT)
    _, said = program.communicate(timeout=TIMEOUT)
    assert b"KeyboardInterrupt" in said
    assert not run_directory(name).exists()


@pytest.mark.parametrize(
    ("keys", "error", "words"),
    [
        ({"sevrers": 3}, TypeError, "no keyword 'sevrers'; did you mean 'servers'\\? there are name, memory"),
        ({"file": "cluster.yaml", "servers": 3}, TypeError, "a file or keywords, not both"),
        ({"servers": {1, 2}}, TypeError, "servers cannot hold a set"),
        ({"topology": "ring"}, memcluster.LaunchError, "topology: must be one of|topology must be one of"),
        ({"memory": "64 nibbles", "servers": 0}, memcluster.LaunchError, "(?s)memory.*servers must be at least 1"),
        ({"clients": {"limmit": 3}}, memcluster.LaunchError, "did you mean 'limit'"),
        ({"file": "/nowhere/cluster.yaml"}, memcluster.LaunchError, "/nowhere/cluster.yaml"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_started_is_told_and_leaves_nothing(keys, error, words, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(error, match=words) as raised:
        memcluster.Cluster(**keys)
    assert not list(tmp_path.iterdir())
    if error is memcluster.LaunchError:
        assert raised.value.code
        again = pickle.loads(pickle.dumps(raised.value))
        assert (str(again), again.code) == (str(raised.value), raised.value.code)


def test_a_taken_port_is_told_with_who_holds_it():
    with socket.create_server(("127.0.0.1", 0)) as holder:
        address = "{}:{}".format(*holder.getsockname())
        with pytest.raises(memcluster.LaunchError, match=str(os.getpid())) as raised:
            memcluster.Cluster(listen=address)
    assert raised.value.code == 5


def test_wrong_faults_and_wrong_questions_are_told():
    with memcluster.Cluster(servers=2, memory="1MiB") as cluster:
        with pytest.raises(ValueError, match="there is no fault 'explode'; there are pause, resume, kill"):
            cluster.fault("explode", "server1")
        with pytest.raises(ValueError, match="partition takes two nodes"):
            cluster.fault("partition", "server1")
        with pytest.raises(memcluster.LaunchError, match="'server9' is no node here"):
            cluster.fault("kill", "server9")
        with pytest.raises(ValueError, match="there is no 'wriet'; there are read"):
            cluster.logs(op=["wriet"])
        cluster.fault("pause", "server1", seconds=600)
        with pytest.raises(memcluster.LaunchError, match=r"not ready within 0 s: .*server1 is paused") as late:
            cluster.wait_ready(timeout=0)
        assert late.value.code == 124
        cluster.fault("resume", "server1")
        cluster.wait_ready()


def test_up_until_a_process_is_gone(tmp_path, new_cluster, start):
    """The same for any program: `memcluster up --pid`."""
    cluster = new_cluster(tmp_path)
    refused = cluster.command("up", "-d", "--pid", "999999999", check=False)
    assert (refused.returncode, b"there is no process 999999999" in refused.stderr) == (1, True)
    owner = start("cat", stdin=subprocess.PIPE)
    cluster.command("up", "-d", "--pid", str(owner.pid))
    cluster.remember()
    assert cluster.status()["state"] == "running"
    owner.stdin.close()
    owner.wait(TIMEOUT)
    assert not cluster.left_behind(TIMEOUT)
