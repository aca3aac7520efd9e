"""What the machine and other people do to a running cluster: limits, signals, terminals, files that vanish."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from harness import TIMEOUT, Cluster, memclient_command, memcluster_command, need, run

from memcluster.launcher.clusterfile import config as configuration
from memcluster.launcher.run.identity import Identity
from memcluster.launcher.run.leftovers import wait_gone
from memcluster.launcher.speech import Speech
from memcluster.node.serving.cgroup import memory_limit

MIB = 1 << 20


def trying() -> Iterator[int]:
    """Again and again until the time is up."""
    end = time.monotonic() + TIMEOUT
    for number in itertools.count():
        assert time.monotonic() < end, "time is up"
        yield number


def until(fact: Callable[[dict], object], cluster: Cluster) -> dict:
    """The status in which something is so."""
    return next(status for _ in trying() if fact(status := cluster.status()))


# -- the limit of processes ------------------------------------------------------------------------------------------


NO_ROOM = """
import os, sys
if "MEMCLUSTER_SUPERVISOR" in os.environ:
    fork, state = os.fork, {state!r}
    def short():
        if os.path.exists(state):
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return fork()
    os.fork = short
"""


def test_a_fork_server_that_may_not_fork_lives_and_its_nodes_with_it(tmp_path, new_cluster):
    """As root no limit of processes holds, so fork itself says it here: in the real fork server."""
    cluster = new_cluster(tmp_path, servers=2, restart={"cap": "100ms", "deaths": 3})
    full = tmp_path / "full"
    (tmp_path / "sitecustomize.py").write_text(NO_ROOM.format(state=str(full)))
    cluster.command("up", "-d", PYTHONPATH=str(tmp_path))
    cluster.remember()
    before = {node["name"]: node["pid"] for node in cluster.status()["nodes"]}
    full.touch()
    Identity.of(cluster.pid("server1")).signal(signal.SIGKILL)
    status = until(lambda status: "limit of processes" in status["nodes"][1]["reason"], cluster)
    assert status["nodes"][1]["state"] == "restarting"
    until(lambda status: status["nodes"][1]["restarts"] > 5, cluster)  # more often than `deaths`: it has not failed
    full.unlink()
    status = until(lambda status: status["state"] == "running", cluster)
    after = {node["name"]: node["pid"] for node in status["nodes"]}
    assert {name for name in before if before[name] != after[name]} == {"server1"}
    cluster.remember()


# -- terminals and signals -------------------------------------------------------------------------------------------


def test_a_stopped_terminal_does_not_stop_supervision(tmp_path, new_cluster, start):
    """Ctrl-S in the terminal of a foreground `up`: nodes are restarted all the same, and `down` is as fast as ever."""
    cluster = new_cluster(tmp_path, servers=1, restart={"deaths": 1000, "cap": "10ms"})
    ours, theirs = pty.openpty()
    up = start(*memcluster_command("up"), cwd=tmp_path, stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)
    said = b""
    while b"to stop it" not in said:
        said += os.read(ours, 4096)
    termios.tcflow(ours, termios.TCOOFF)
    cluster.remember()
    for restarts in range(1, 4):
        Identity.of(until(lambda status: status["nodes"][0]["pid"], cluster)["nodes"][0]["pid"]).signal(signal.SIGKILL)
        until(lambda status, least=restarts: back(status["nodes"][0], least), cluster)
    cluster.remember()
    assert cluster.command("down").returncode == 0
    assert up.wait(TIMEOUT) == 0
    os.close(ours)


def back(node: dict, restarts: int) -> bool:
    return node["ready"] and node["restarts"] >= restarts


def test_what_an_output_does_not_take_is_dropped_and_counted():
    reader, writer = os.pipe()
    os.set_blocking(writer, True)
    speech = Speech()
    with os.fdopen(writer, "w") as stream:
        for number in range(5000):
            speech.say(f"{number:0100}", stream)
        speech.finish(0.01)
        seen = b""
        while b"lines were not said" not in seen and select.select([reader], [], [], TIMEOUT)[0]:
            seen += os.read(reader, 1 << 16)
            speech.say("more", stream)
        assert b"lines were not said" in seen
        speech.finish()
    os.close(reader)


def test_the_order_of_the_stop_holds_when_every_process_gets_the_signal(make_cluster, topology):
    """As systemd's KillMode=control-group sends it: the merged log is written, and nothing in it is missing."""
    cluster = make_cluster(topology=topology, servers=3)
    with cluster.connect() as memory:
        memory.pwrite(b"kept", 0)
    record = cluster.record
    everybody = [*(node.identity for node in record.nodes), *record.helpers, record.supervisor]
    for identity in everybody:
        identity.signal(signal.SIGTERM)
    assert cluster.left_behind() == []
    log = (cluster.folder / "logs" / f"{cluster.name}.log").read_text()
    assert "WRITE" in log
    assert {f"server{index}" for index in range(3)} <= {word for line in log.splitlines() for word in line.split()}
    said = (cluster.folder / "logs" / cluster.name / "supervisor.out").read_text()
    assert "without" not in said


def test_a_node_that_alone_gets_the_signal_stops_gracefully_and_comes_back(make_cluster):
    cluster = make_cluster(servers=2)
    before = cluster.pid("server1")
    Identity.of(before).signal(signal.SIGTERM)
    status = until(lambda status: status["state"] == "running" and status["nodes"][1]["pid"] != before, cluster)
    assert status["nodes"][1]["restarts"] == 1
    assert "server1  • stopped" in cluster.command("logs").stdout.decode()
    cluster.remember()


def test_the_unit_that_is_shipped_starts_and_stops_it():
    """docs/memcluster.service: its commands are ours, and it leaves the order of the stop to the supervisor."""
    unit = (Path(__file__).parent.parent / "docs" / "memcluster.service").read_text()
    assert "ExecStart=%h/.local/bin/memcluster -f %h/demo/cluster.yaml up\n" in unit
    assert "KillMode=mixed\n" in unit
    if shutil.which("systemd-analyze") is None:
        return
    done = run("systemd-analyze", "verify", "--user", Path(__file__).parent.parent / "docs" / "memcluster.service",
               check=False)  # fmt: skip
    assert b"Unknown" not in done.stderr


# -- files that vanish -----------------------------------------------------------------------------------------------


def test_a_run_directory_that_is_removed_is_made_again_and_the_loss_is_told(make_cluster):
    """As logind does at a logout. The cluster is still found, and no second one starts beside it with zeroes."""
    cluster = make_cluster(servers=2)
    with cluster.connect() as memory:
        memory.pwrite(b"kept", 0)
        shutil.rmtree(cluster.directory)
        for _ in trying():
            status = json.loads(cluster.command("status", "--json", check=False).stdout)
            if status["state"] == "degraded" and status.get("missing"):
                break
        assert "shard0, shard1 are gone" in status["missing"][0]
        assert memory.pread(4, 0) == b"kept"
    again = cluster.command("up", "-d", check=False)
    assert again.returncode == 4
    assert b"already running, but" in again.stderr
    assert cluster.memclient("read", "0", "4").stdout == b"kept"
    assert b"WRITE" in cluster.command("logs").stdout  # by the secret, which is there again
    assert cluster.command("down").returncode == 0
    assert not cluster.directory.exists()
    said = (cluster.folder / "logs" / cluster.name / "supervisor.out").read_text()
    assert f"{cluster.directory} was removed, and has been made again" in said


def test_the_end_of_one_cluster_never_removes_the_directory_of_another(make_cluster):
    """The first one's was removed, and somebody has put another in its place before it looked."""
    cluster = make_cluster(servers=1)
    record = cluster.record
    record.supervisor.signal(signal.SIGSTOP)
    shutil.rmtree(cluster.directory)
    cluster.directory.mkdir(mode=0o700)
    other = cluster.directory / "lock"
    with other.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (cluster.directory / "shard0").write_bytes(b"another's")
        record.supervisor.signal(signal.SIGCONT)
        record.supervisor.signal(signal.SIGTERM)
        assert wait_gone([record.supervisor, *(node.identity for node in record.nodes)], TIMEOUT)
        assert (cluster.directory / "shard0").read_bytes() == b"another's"
    shutil.rmtree(cluster.directory)


def test_a_removed_socket_and_a_removed_log_are_told_in_status(make_cluster):
    cluster = make_cluster(servers=1, listen="unix:door")
    (cluster.folder / "door").unlink()
    shutil.rmtree(logs := cluster.folder / "logs" / cluster.name)
    logs.mkdir(parents=True)  # as a node does that has something to write there: what was in it is lost all the same
    status = until(lambda status: len(status["missing"]) >= 2, cluster)
    assert any("the socket" in problem and "is gone" in problem for problem in status["missing"])
    assert any(f"{logs} was removed" in problem for problem in status["missing"])
    assert cluster.command("status", check=False).returncode == 4


# -- room ------------------------------------------------------------------------------------------------------------


def test_memory_beyond_the_limit_of_the_control_group_is_refused(tmp_path, monkeypatch):
    """A container with 256 MiB cannot hold 512, whatever the host has."""
    group = tmp_path / "sys/fs/cgroup/box"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/box\n")
    (group / "memory.max").write_text("268435456\n")
    assert memory_limit(tmp_path) == 256 * MIB
    monkeypatch.setattr(configuration, "memory_limit", lambda: 256 * MIB)
    file = tmp_path / "cluster.yaml"
    file.write_text("memory: 512MiB\n")
    with pytest.raises(configuration.ConfigError, match=r"cluster.yaml:1:9: .* \(256 MiB: memory limit of the control"):
        configuration.load(file)
    file.write_text("memory: 128MiB\n")
    configuration.load(file)


def test_memory_beyond_the_room_in_the_file_system_is_refused(tmp_path):
    """A /dev/shm of 64 MiB, as containers have, does not take the repository's own cluster.yaml of 64 MiB."""
    tried = run("unshare", "--mount", "true", check=False)
    if tried.returncode:
        pytest.skip("mounting is not allowed here: " + tried.stderr.decode().strip())
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump({"name": tmp_path.name[-30:], "memory": "64MiB"}))
    script = "mount -t tmpfs -o size=64m tmpfs /dev/shm && exec " + " ".join(memcluster_command("up", "-d"))
    done = run("unshare", "--mount", "sh", "-c", script, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert b"memory of 64MiB is more than there is room for (63 MiB: free room in /dev/shm" in done.stderr


def test_who_starts_nothing_does_not_look_for_room(tmp_path, new_cluster):
    """What has no room can be asked for, be down already, and have its log."""
    cluster = new_cluster(tmp_path, memory="4000TiB")
    refused = cluster.command("up", "-d", check=False)
    assert refused.returncode == 2
    assert b"is more than there is room for" in refused.stderr
    for words in (["status"], ["down"], ["logs"], ["stats"]):
        done = cluster.command(*words, check=False)
        assert done.returncode == 3, (words, done.stderr)
        assert b"room" not in done.stdout + done.stderr


# -- small things ----------------------------------------------------------------------------------------------------


def test_a_file_of_proc_is_copied_though_it_says_that_it_is_empty(make_cluster):
    cluster = make_cluster(servers=1)
    text = Path("/proc/version").read_bytes()
    assert Path("/proc/version").stat().st_size == 0
    cluster.memclient("copy", "/proc/version", "memory:")
    assert cluster.memclient("read", "0", str(len(text))).stdout == text


def test_a_client_does_not_connect_to_itself():
    """The system may choose the port that nobody listens on for the client's own end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = f"""
import memcluster
from memcluster.client import system
real = system.Kernel.make_socket
def from_that_port(kernel, family, kind):
    sock = real(kernel, family, kind)
    sock.bind(("127.0.0.1", {port}))
    return sock
system.Kernel.make_socket = from_that_port
try:
    memcluster.connect("nbd://127.0.0.1:{port}", timeout=5)
except memcluster.ClusterError as error:
    print(error)
"""
    assert b"Connection refused" in run(sys.executable, "-c", code).stdout


@pytest.mark.parametrize("verb", [["config"], ["up", "-d"]], ids=["config", "up"])
def test_a_description_from_a_pipe_is_read_once(tmp_path, new_cluster, verb):
    """`memcluster -f <(generate) up -d`."""
    cluster = new_cluster(tmp_path, servers=1)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    text = (tmp_path / "cluster.yaml").read_bytes()
    code = "import sys; open(sys.argv[1], 'wb').write(sys.argv[2].encode())"
    writer = subprocess.Popen([sys.executable, "-c", code, str(pipe), text])
    done = run(*memcluster_command("-f", str(pipe), *verb), cwd=tmp_path, timeout=60)
    assert done.returncode == 0
    writer.wait(TIMEOUT)
    if verb != ["config"]:
        cluster.remember()
        cluster.command("down")


def test_an_empty_variable_is_none(make_cluster):
    cluster = make_cluster(servers=1)
    assert run(*memcluster_command("status"), cwd=cluster.folder, MEMCLUSTER_FILE="").returncode == 0
    assert run(*memclient_command("info"), cwd=cluster.folder, MEMCLUSTER_FILE="", MEMCLUSTER_URI="").returncode == 0


def test_a_folder_that_is_no_text_is_a_sentence(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    (folder / "cluster.yaml").write_text("name: x\nmemory: 1MiB\nlisten: unix:s\n")
    done = run(*memcluster_command("config"), cwd=folder, check=False)
    assert done.returncode == 2
    assert b"cluster.yaml:3:9: a unix socket must lie in a folder whose name is UTF-8" in done.stderr


def test_a_tilde_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    file = tmp_path / "cluster.yaml"
    file.write_text("memory: 1MiB\nstorage: ~/shards\nlogs: {directory: ~/logs}\n")
    config = configuration.load(file)
    assert (config.storage, config.logs.directory) == (tmp_path / "home/shards", tmp_path / "home/logs")


def test_the_limit_of_descriptors_is_raised_where_it_may_be(tmp_path, new_cluster):
    """64 servers need hundreds; a shell has 1024 of 1048576, or, as here, fewer."""
    cluster = new_cluster(tmp_path, servers=24, memory="24MiB")
    script = "ulimit -Sn 64; exec " + " ".join(memcluster_command("up", "-d"))
    assert run("sh", "-c", script, cwd=tmp_path, check=False).returncode == 0
    cluster.remember()


def test_as_the_first_process_of_a_container_it_waits_for_who_is_left_to_it(tmp_path, new_cluster):
    """Else they would be zombies for ever."""
    tried = run("unshare", "--pid", "--fork", "--mount-proc", "true", check=False)
    if tried.returncode:
        pytest.skip("no namespaces here: " + tried.stderr.decode().strip())
    new_cluster(tmp_path, servers=1)
    process = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *memcluster_command("up")],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert any(b"to stop it" in line for line in process.stdout)
        first = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().strip()
        # One that ends after its parent, which waits for a line that comes when it is the first process's own.
        run("nsenter", "--target", first, "--pid", "--mount", "sh", "-c", "(sh -c 'exit 7' &) ; :")
        children = Path(f"/proc/{first}/task/{first}/children")
        for _ in trying():
            if "Z" not in [_state(child) for child in children.read_text().split()]:
                break
        os.kill(int(first), signal.SIGTERM)
        process.stdout.read()
        assert process.wait(TIMEOUT) == 0
    finally:
        process.kill()
        process.wait()


def _state(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


# -- qemu ------------------------------------------------------------------------------------------------------------


def test_qemu_s_rounding_is_told_where_the_size_is_chosen(tmp_path, new_cluster):
    """qemu-img takes a memory of 41943041 bytes for 41943552: it fails at the end, and a copy has 511 bytes more."""
    qemu_img = need("qemu-img", "qemu-utils")
    cluster = new_cluster(tmp_path, memory="41943041", servers=1)
    done = cluster.command("up", "-d")
    cluster.remember()
    told = "qemu's tools take it for 511 bytes more, and fail at its end; 41943040 or 41943552 suits them"
    assert told in done.stdout.decode()
    assert told in cluster.command("config").stderr.decode()
    with cluster.connect() as memory:
        memory.pwrite(b"x", 0)
    run(qemu_img, "convert", "-O", "raw", cluster.uri, tmp_path / "back")
    assert (tmp_path / "back").stat().st_size - 41943041 in (0, 511)  # 0 once qemu has mended it
    (tmp_path / "image").write_bytes(b"y" * 41943552)
    convert = qemu_img, "convert", "-n", "-f", "raw", "-O", "raw"
    assert run(*convert, tmp_path / "image", cluster.uri, check=False).returncode
