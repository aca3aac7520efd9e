"""The supervisor and its helpers themselves: stopped, killed, starved of room; and who may touch what is theirs."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import socket
import subprocess
import sys

import pytest
from harness import ROOT, TIMEOUT, Cluster, memcluster_command, run, run_in_small_room

from memcluster.client.console import EXIT_DEGRADED, EXIT_IN_USE, EXIT_TIMEOUT, EXIT_USAGE
from memcluster.launcher.run.directory import RunDirectory
from memcluster.launcher.run.identity import Identity
from memcluster.launcher.run.leftovers import wait_gone
from memcluster.node import zygote

PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207
WALL = 0x40000000
"""Of waitpid: whatever it is."""


def said_by_the_supervisor(cluster: Cluster) -> str:
    return (cluster.folder / "logs" / cluster.name / "supervisor.out").read_text()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_until(cluster: Cluster, **restarts: int) -> None:
    """The cluster runs, and these nodes have been restarted so often."""

    def so_often(status: dict) -> bool:
        found = {node["name"]: node["restarts"] for node in status["nodes"]}
        return status["state"] == "running" and restarts.items() <= found.items()

    cluster.wait_for(so_often)


def test_down_of_a_cluster_of_which_everything_is_stopped(make_cluster):
    """SIGSTOP to every process: `status` says what it is, `down` is as graceful and as quick as ever."""
    cluster = make_cluster()
    record = cluster.record
    for identity in (*record.helpers, *(node.identity for node in record.nodes), record.supervisor):
        assert identity.signal(signal.SIGSTOP)
    status = cluster.status()
    assert status["state"] == "degraded"
    assert f"kill -CONT {record.supervisor.pid}" in status["problem"]
    assert {node["state"] for node in status["nodes"]} == {"paused"}
    done = cluster.down()
    assert done.stderr == b""
    assert b"log records merged" in done.stdout
    assert b"without" not in done.stdout
    assert cluster.left_behind() == []


def test_a_stopped_supervisor_is_told_from_a_dead_one(make_cluster):
    """Its nodes serve on, and are no orphans."""
    cluster = make_cluster()
    cluster.record.supervisor.signal(signal.SIGSTOP)
    status = cluster.status()
    assert {(node["state"], node["ready"]) for node in status["nodes"]} == {("running", True)}
    done = cluster.command("status", check=False)
    assert done.returncode == EXIT_DEGRADED
    cluster.record.supervisor.signal(signal.SIGCONT)
    assert cluster.status()["state"] == "running"


def test_the_command_checks_the_file_for_a_supervisor_in_the_background(tmp_path, new_cluster):
    """The supervisor takes orders, too, without pydantic, which takes long to load and much memory."""
    cluster = new_cluster(tmp_path, servers=2)
    run(*memcluster_command("up", "-d"), cwd=tmp_path)  # a forked command has loaded it: see preloaded.py
    cluster.command("fault", "pause", "server1", "--for", "10ms")
    with open(f"/proc/{cluster.record.supervisor.pid}/maps") as maps:
        assert "pydantic" not in maps.read()


@pytest.mark.parametrize("keys", [{"memory": 0}, {"name": "a b"}, {"servers": 3, "listen": "nowhere"}])
def test_a_file_that_is_wrong_calls_the_supervisor_off(tmp_path, new_cluster, keys):
    """The command says what is wrong, once, and nothing of the supervisor that it has forked is left."""
    cluster = new_cluster(tmp_path, **keys)
    refused = cluster.command("up", "-d", check=False)
    assert refused.returncode == EXIT_USAGE
    assert all(line.startswith(b"cluster.yaml:") for line in refused.stderr.splitlines())
    assert len(refused.stderr.splitlines()) == 1
    assert not RunDirectory(cluster.name).path.exists()


def test_a_node_dies_while_the_fork_server_is_stopped(make_cluster):
    """The fork server is woken: the node is restarted, and the supervisor waits for nobody in vain."""
    cluster = make_cluster()
    (fork_server,) = cluster.record.helpers
    fork_server.signal(signal.SIGSTOP)
    Identity(*next((node.pid, node.start) for node in cluster.record.nodes if node.name == "server1")).signal(9)
    wait_until(cluster, server1=1)
    assert said_by_the_supervisor(cluster) == ""
    cluster.remember()


def test_the_fork_server_is_killed(make_cluster):
    """With it go all nodes, and all come back."""
    cluster = make_cluster()
    with cluster.connect() as memory:
        memory.pwrite(b"kept", 0)
        for number in range(1, 4):
            (fork_server,) = cluster.record.helpers
            fork_server.signal(signal.SIGKILL)
            wait_until(cluster, server0=number)
            assert memory.pread(4, 0) == b"kept"
            cluster.remember()
    said = said_by_the_supervisor(cluster)
    assert said.count("the fork server killed by SIGKILL; it was started again, as pid ") == 3
    assert len(said.splitlines()) == 3


DYING = """
import itertools, os, signal
from memcluster.launcher import cli
from memcluster.launcher.supervision import child

def dies_when_asked_for_the_third_time(calls=itertools.count(1), fork_server=child.fork_server):
    pid = fork_server()
    if next(calls) == 3:
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid

child.fork_server = dies_when_asked_for_the_third_time
cli.main()
"""


def test_a_fork_server_that_dies_when_it_is_asked_is_replaced_by_one_like_it(tmp_path, new_cluster):
    """Whoever notices: multiprocessing, which starts another one by itself, would start one that is not tied to the
    supervisor. The next one goes with that, and the nodes with it, even if all of them stand still."""
    cluster = new_cluster(tmp_path, servers=1)
    (tmp_path / "dying.py").write_text(DYING)
    run(sys.executable, "-P", tmp_path / "dying.py", "up", "-d", cwd=tmp_path)
    cluster.remember()
    before = cluster.record.helpers
    cluster.command("fault", "kill", "logger0")
    wait_until(cluster, server0=1, logger0=1)
    cluster.remember()
    record = cluster.record
    assert record.helpers != before
    everyone = [*record.helpers, *(node.identity for node in record.nodes)]
    for identity in everyone:
        assert identity.signal(signal.SIGSTOP)
    record.supervisor.signal(signal.SIGKILL)
    assert wait_gone(everyone, TIMEOUT)


BROKEN = """
import os, pathlib, re, select, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "memcluster.node.process":
            with open({tries!r}, "a") as file:
                file.write("try\\n")
            if pathlib.Path({tries!r}).read_text().count("try") <= {failures}:
                if {asked}:  # a node waits at its socket, whose number is its first argument
                    code = sys.orig_argv[sys.orig_argv.index("-c") + 1]
                    select.select([int(re.search(r"main\\((\\d+)", code)[1])], [], [])
                raise RuntimeError("nothing comes of this")

if "MEMCLUSTER_SUPERVISOR" in os.environ:
    sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("asked", [False, True], ids=["at once", "when it is asked"])
@pytest.mark.parametrize("failures", [1, 1000])
def test_what_a_fork_server_says_that_dies_at_its_load_is_told(tmp_path, new_cluster, failures, asked):
    """How it died and its last words, whether the next one makes it or none does."""
    cluster = new_cluster(tmp_path, restart={"deaths": 5 if failures == 1 else 1}, servers=1)
    broken = BROKEN.format(tries=str(tmp_path / "tries"), failures=failures, asked=asked)
    (tmp_path / "sitecustomize.py").write_text(broken)
    done = cluster.command("up", "-d", check=False, PYTHONPATH=f"{tmp_path}:{ROOT}")
    said = said_by_the_supervisor(cluster)
    assert "\nRuntimeError: nothing comes of this\n" in said
    if failures == 1:
        assert done.returncode == 0, (done.stdout, done.stderr, said)
        cluster.remember()
        assert said.count("the fork server exited with status 1; it was started again, as pid ") == 1
    else:
        assert b"gave up" in done.stderr
    assert done.returncode == (failures > 1)


def test_a_supervisor_that_does_not_answer_is_killed_by_down(make_cluster):
    """At the end of all deadlines, with everything that was its own. It is held as by a debugger."""
    cluster = make_cluster(stop_timeout="100ms")
    supervisor = cluster.record.supervisor
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(PTRACE_SEIZE, supervisor.pid, 0, 0) or libc.ptrace(PTRACE_INTERRUPT, supervisor.pid, 0, 0):
        pytest.skip(f"no process may be held here: {os.strerror(ctypes.get_errno())}")
    os.waitpid(supervisor.pid, WALL)
    down = subprocess.Popen(memcluster_command("down"), cwd=cluster.folder, stderr=subprocess.PIPE)
    os.waitpid(supervisor.pid, WALL)  # who holds it hears of its end first
    assert down.stderr is not None
    assert b"does not answer" in down.stderr.read()
    assert down.wait(TIMEOUT) == EXIT_TIMEOUT
    assert cluster.left_behind() == []


def test_down_does_not_touch_what_another_is_just_starting(tmp_path, new_cluster):
    """The lock is held, and the record is that of an earlier run: `down` and `status` say so, and remove nothing."""
    cluster = new_cluster(tmp_path)
    cluster.up()
    record = cluster.record
    record.supervisor.signal(signal.SIGKILL)
    assert wait_gone([record.supervisor], TIMEOUT)
    run_directory = RunDirectory(cluster.name)
    run_directory.acquire()  # as `up` does first
    done = cluster.command("down", check=False)
    assert done.returncode == EXIT_IN_USE, done.stderr
    assert b"being started or stopped right now" in done.stderr
    assert "right now" in cluster.status()["problem"]
    assert (cluster.directory / "shard0").exists()
    run_directory.release()


def test_up_goes_on_when_nobody_reads_what_it_says(tmp_path, new_cluster, start):
    """`memcluster up | head -1`: the cluster does not die of the closed pipe."""
    cluster = new_cluster(tmp_path)
    up = start(*memcluster_command("up"), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    up.stdout.readline()
    up.stdout.close()
    wait_until(cluster)
    cluster.remember()
    cluster.command("fault", "kill", "server1")
    wait_until(cluster, server1=1)
    assert up.poll() is None
    cluster.down()
    assert up.wait(TIMEOUT) == 0


FULL_LOGS = """
set -e
mkdir logs
mount -t tmpfs -o size=4m tmpfs logs
$memcluster up -d >/dev/null
dd if=/dev/zero of=logs/filler bs=4k 2>/dev/null || true
$strangers
echo kept | $memclient write 0
$memclient read 0 4
$memcluster status
$memcluster down
"""
STRANGERS = """
import socket, sys
for _ in range(20):
    with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\\r\\n" * 3)
        try:
            while stranger.recv(1000):
                pass
        except ConnectionResetError:
            pass
"""


def test_a_full_disk_under_the_logs_is_no_end_of_a_node(tmp_path, new_cluster):
    """Neither records nor complaints about strangers can be written: the service goes on, and status says so."""
    port = free_port()
    cluster = new_cluster(tmp_path, listen=f"127.0.0.1:{port}")
    (tmp_path / "strangers.py").write_text(STRANGERS)
    done = run_in_small_room(tmp_path, FULL_LOGS, strangers=f"{memcluster_command()[0]} strangers.py 127.0.0.1 {port}")
    assert b"kept" in done.stdout
    assert b"died" not in done.stdout
    assert b"\xe2\x9c\x94 server0    stopped" in done.stdout
    assert cluster.left_behind() == []


FULL_TMPFS = """
set -e
mount -t tmpfs -o size=24m tmpfs /dev/shm
$memcluster up -d >/dev/null
head -c 100000 /dev/urandom > data
$memclient copy data memory:
dd if=/dev/zero of=/dev/shm/filler bs=4k 2>/dev/null || true
$memcluster fault kill server1 >/dev/null
until $memcluster status; do [ $? = 4 ]; done
until kill -9 $($fork_server); do :; done
until $memcluster status | grep 'is running'; do :; done
$memclient read 0 100000 | cmp - data
head -c 8000000 /dev/urandom > big
$memclient copy big memory: && exit 9
rm /dev/shm/filler
$memclient copy big memory:
$memclient read 0 8000000 | cmp - big
$memcluster down
rmdir /dev/shm/* 2>/dev/null || [ -z "$(ls /dev/shm)" ]
"""
FORK_SERVER = "import json, glob; print(json.load(open(glob.glob('/dev/shm/*/state.json')[0]))['helpers'][0]['pid'])"


def test_a_tmpfs_filled_by_clients_is_no_end_of_anything(tmp_path, new_cluster, topology):
    """Shards and the supervisor's own files share it: nodes and fork server are restarted all the same, clients get
    ENOSPC, and everything goes on when there is room again."""
    cluster = new_cluster(tmp_path, memory="16MiB", topology=topology)
    (tmp_path / "fork_server.py").write_text(FORK_SERVER)
    done = run_in_small_room(tmp_path, FULL_TMPFS, fork_server=f"{memcluster_command()[0]} fork_server.py")
    assert b"No space left on device (ENOSPC)" in done.stderr
    assert "Traceback" not in said_by_the_supervisor(cluster)


GROUP = """
import os, signal, sys
reading, writing = os.pipe()
child = os.fork()
if not child:
    os.read(reading, 1)  # for ever: the other end is open here, too
print(child, flush=True)
signal.pause()
"""


@pytest.mark.parametrize("leads", [True, False])
def test_a_kill_goes_to_the_group_that_a_process_leads(leads):
    """And to the process alone if it leads none: who killed it may be in the same group."""
    process = subprocess.Popen([sys.executable, "-c", GROUP], stdout=subprocess.PIPE, start_new_session=leads)
    assert process.stdout is not None
    child = Identity.of(int(process.stdout.readline()))
    leader = Identity.of(process.pid)
    assert child is not None
    assert leader is not None
    try:
        assert leader.kill()
        assert process.wait(10) == -signal.SIGKILL
        if tuple(map(int, platform.release().split(".")[:2])) >= (6, 9):
            assert wait_gone([child], 10 if leads else 0) == leads
        assert not leader.kill()
    finally:
        child.signal(signal.SIGKILL)
        process.stdout.close()


NAMED = r"import ctypes, signal; ctypes.CDLL(None).prctl(15, b'\xff) R 1 (\xc3'); print(flush=True); signal.pause()"


def test_a_process_may_be_called_anything(start):
    """Half a letter too, where the kernel cuts a name: a recorded pid may be that of any process by now."""
    process = start(sys.executable, "-c", NAMED, stdout=subprocess.PIPE)
    process.stdout.readline()
    identity = Identity.of(process.pid)
    assert identity is not None
    assert identity.alive
    assert not identity.stopped
    assert not Identity(process.pid, identity.start + 1).alive


def test_a_fork_server_whose_supervisor_is_gone_dies_without_a_word():
    """As after a Ctrl-C while it loads: where its output should go is gone, too, which is nobody's affair."""
    gone = {zygote.SUPERVISOR: "1", zygote.OUTPUT: "/proc/1/fd/no-such-file"}
    done = run(sys.executable, "-c", "import memcluster.node.zygote", check=False, **gone)
    assert done.returncode == -signal.SIGKILL
    assert done.stderr == b""
