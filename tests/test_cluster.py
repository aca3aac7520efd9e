"""The commands and the processes end to end: up, status, logs, down."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from harness import TIMEOUT, Cluster, memclient_command, memcluster_command, run

import memcluster
from memcluster.client.console import EXIT_DEGRADED, EXIT_IN_USE, EXIT_INTERRUPTED, EXIT_USAGE
from memcluster.launcher.run.identity import Identity
from memcluster.launcher.run.leftovers import wait_gone


def read_line(process: subprocess.Popen, wanted: str) -> list[str]:
    """The lines up to the one that contains `wanted`."""
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if wanted in line:
            return lines
    raise AssertionError((wanted, lines, process.stderr.read() if process.stderr else ""))


@pytest.fixture
def foreground(start):
    """Starts `memcluster up` of a cluster; returns the process, which has a session of its own, as in a terminal."""
    return lambda cluster, **variables: start(
        *memcluster_command("up"), cwd=cluster.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True, env=variables,
    )  # fmt: skip


def test_a_cluster_from_start_to_stop(make_cluster):
    """up -d returns when it is ready; status shows every process; down collects the log and leaves nothing."""
    cluster = make_cluster()
    status = cluster.status()
    assert (status["cluster"], status["state"], status["topology"]) == (cluster.name, "running", "primary-secondary")
    assert status["uri"] == cluster.uri
    assert status["memory"] == 1 << 20
    assert [(node["name"], node["role"]) for node in status["nodes"]] == [
        ("server0", "primary"), ("server1", "secondary"), ("server2", "secondary"),
        ("logger0", "logger"), ("logger1", "logger"), ("logger2", "logger"),
    ]  # fmt: skip
    for node in status["nodes"]:
        assert node["ready"], node
        assert node["state"] == "ready"
        assert node["restarts"] == 0
        assert node["rss_bytes"] > 0
        assert cluster.name in " ".join(psutil.Process(node["pid"]).cmdline())
        assert node["name"] in " ".join(psutil.Process(node["pid"]).cmdline())
    ranges = [node["range"] for node in status["nodes"][:3]]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == 1 << 20
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ranges))
    with cluster.connect() as memory:
        memory[0:5] = b"hello"
    done = cluster.down()
    assert b"merged into" in done.stdout
    assert cluster.left_behind() == []
    assert "WRITE" in (cluster.folder / "logs" / f"{cluster.name}.log").read_text()
    assert cluster.command("status", check=False).returncode == 3
    assert cluster.command("down", check=False).returncode == 3


def test_the_order_of_the_stop_and_that_all_exit_0(tmp_path, new_cluster, foreground):
    """Server 0, the other servers, the merged log, the other loggers, logger 0: each with status 0."""
    cluster = new_cluster(tmp_path)
    process = foreground(cluster)
    read_line(process, "to stop it")
    cluster.remember()
    cluster.record.supervisor.signal(signal.SIGTERM)
    lines = [" ".join(line.split()[1:]) for line in process.stdout]
    assert process.wait(TIMEOUT) == 0
    stopped = [line for line in lines if "stopped" in line or "merged" in line]
    assert stopped[0] == "server0 stopped"
    assert set(stopped[1:3]) == {"server1 stopped", "server2 stopped"}
    assert "merged into" in stopped[3]
    assert set(stopped[4:6]) == {"logger1 stopped", "logger2 stopped"}
    assert stopped[6] == "logger0 stopped"
    assert cluster.left_behind() == []


def test_up_on_a_running_cluster_says_so(make_cluster):
    """The same file again: 0 and a sentence, 4 if not all of it runs; another file of the same name: 5."""
    cluster = make_cluster()
    again = cluster.command("up", "-d")
    assert b"already running" in again.stdout
    cluster.command("fault", "pause", "server1")
    degraded = cluster.command("up", "-d", check=False)
    assert (degraded.returncode, degraded.stdout) == (EXIT_DEGRADED, b"")
    assert b"already running" in degraded.stderr
    assert b"server1 is paused" in degraded.stderr
    other = cluster.folder / "other.yaml"
    other.write_text(cluster.file.read_text())
    refused = cluster.command("-f", str(other), "up", "-d", check=False)
    assert refused.returncode == 5
    assert b"is in use by the cluster of" in refused.stderr


@pytest.mark.parametrize("edited", ["memory: 2TiB\nlogs: {sample: 5}\n", "memory: nothing\n"])
def test_a_running_cluster_is_what_was_started_whatever_cluster_yaml_says_by_now(make_cluster, edited):
    """Every command goes by what runs; the file has to be right, and is read, for the next start."""
    cluster = make_cluster()
    with cluster.connect() as memory:
        memory.pwrite(b"some", 0)
    cluster.file.write_text(f"name: {cluster.name}\n{edited}")
    assert cluster.status()["memory"] == 1 << 20
    assert len(cluster.logged_writes()) == 1
    stats = json.loads(cluster.command("stats", "--json").stdout)
    assert (stats["sample"], [row["count"] for row in stats["operations"] if row["operation"] == "WRITE"]) == (1, [1])
    assert b"in a browser" in cluster.command("timeline").stdout
    assert b"resume" in cluster.command("fault", "resume", "server1").stdout
    done = cluster.command("logs", "--range", "1048575:2", check=False)
    assert done.returncode == EXIT_USAGE
    assert b"--range ends at byte 1048577, but the memory has 1048576 bytes" in done.stderr
    record = cluster.record
    record.supervisor.signal(signal.SIGKILL)
    assert wait_gone([record.supervisor, *(node.identity for node in record.nodes)], TIMEOUT)
    dead = cluster.status()
    assert (dead["state"], dead["memory"], dead["topology"]) == ("stopped", 1 << 20, "primary-secondary")
    cluster.command("down")
    assert cluster.command("status", check=False).returncode in (2, 3)


def test_a_cluster_of_the_same_name_in_another_folder_is_not_touched(tmp_path, make_cluster):
    """What is asked of a cluster that does not run never reaches one that does, whatever it is called: exit 3."""
    running = make_cluster()
    with running.connect() as memory:
        memory.pwrite(b"theirs", 0)
    file = tmp_path / "cluster.yaml"
    file.write_text(running.file.read_text())
    for words in (["down"], ["status"], ["logs"], ["stats"], ["fault", "kill", "server0"]):
        done = run(*memcluster_command(*words), cwd=tmp_path, check=False)
        assert done.returncode == 3, words
        assert f"is in use by the cluster of {running.file}" in (done.stdout + done.stderr).decode()
    done = run(*memclient_command("write", "0", "mine"), cwd=tmp_path, check=False)
    assert done.returncode == 3
    assert f"is in use by the cluster of {running.file}" in done.stderr.decode()
    assert json.loads(run(*memcluster_command("status", "--json"), cwd=tmp_path, check=False).stdout)["nodes"] == []
    assert running.status()["state"] == "running"
    supervisor = Identity.of(running.status()["supervisor"])
    supervisor.signal(signal.SIGKILL)
    assert wait_gone([supervisor], TIMEOUT)
    done = run(*memcluster_command("up", "-d"), cwd=tmp_path, check=False)  # it would have the memory that is left
    assert done.returncode == 5
    assert f"is in use by the cluster of {running.file}" in done.stderr.decode()
    running.up()
    with running.connect() as memory:
        assert memory.pread(6, 0) == b"theirs"


@pytest.mark.parametrize("way", ["below/../cluster.yaml", "../cluster.yaml", "link/cluster.yaml"])
def test_a_cluster_is_the_same_by_whatever_way_its_file_is_reached(tmp_path, new_cluster, way):
    """The folder that gives it its name is where the file lies, not what the path to it says last."""
    folder = tmp_path / f"t{os.getpid()}"
    below = folder / "below"
    below.mkdir(parents=True)
    (folder / "link").symlink_to(folder)
    cluster = new_cluster(folder, name=folder.name)
    cluster.file.write_text(yaml.safe_dump({key: value for key, value in cluster.keys.items() if key != "name"}))
    here = below if way.startswith("..") else folder
    cluster.up()
    assert b"is already running" in run(*memcluster_command("-f", way, "up", "-d"), cwd=here).stdout
    run(*memclient_command("write", "0", "here"), cwd=here, MEMCLUSTER_FILE=way)
    run(*memcluster_command("-f", way, "down"), cwd=here)
    assert cluster.left_behind() == []


def test_a_working_directory_that_has_been_removed_is_no_traceback(tmp_path):
    """A relative path is nowhere then; that of a file elsewhere is as good as ever."""
    gone, elsewhere = tmp_path / "gone", tmp_path / "cluster.yaml"
    gone.mkdir()
    elsewhere.write_text(f"name: {tmp_path.name}\nmemory: 1MiB\n")
    for file, code in ((Path("cluster.yaml"), 2), (elsewhere, 3)):
        words = shlex.join(memcluster_command("-f", str(file), "status"))
        done = run("sh", "-c", f"rmdir {shlex.quote(str(gone))}; {words}", cwd=gone, check=False)
        assert (done.returncode, done.stderr.count(b"Traceback")) == (code, 0), done.stderr
        gone.mkdir()


@pytest.mark.parametrize("way", [("-f", "my.yaml"), ()])
def test_what_is_advised_names_the_file_that_was_given(tmp_path, new_cluster, way):
    """By -f or by MEMCLUSTER_FILE: a command that is shown can be typed as it stands."""
    cluster = new_cluster(tmp_path)
    (tmp_path / "my.yaml").write_text(cluster.file.read_text())
    variables = {} if way else {"MEMCLUSTER_FILE": "my.yaml"}
    for words in (["status"], ["logs"], ["fault", "kill", "server0"]):
        done = cluster.command(*way, *words, check=False, **variables)
        assert done.returncode == 3
        assert "my.yaml up" in (done.stdout + done.stderr).decode()
    started = cluster.command(*way, "up", "-d", **variables)
    cluster.remember()
    assert b"memcluster -f my.yaml down" in started.stdout


def test_a_port_in_use_names_its_holder_and_starts_nothing(tmp_path, new_cluster):
    """Exit 5, the pid that holds it, nothing left: no claim on the storage either."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        cluster = new_cluster(tmp_path, listen=f"127.0.0.1:{taken.getsockname()[1]}", storage="data")
        before = sorted(tmp_path.rglob("*"))
        done = cluster.command("up", "-d", check=False)
        assert done.returncode == 5
        assert f"(pid {os.getpid()})" in done.stderr.decode()
        assert cluster.left_behind() == []
        assert sorted(tmp_path.rglob("*")) == before


def test_an_up_that_is_refused_for_its_storage_leaves_no_socket(tmp_path, new_cluster):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shard0").write_bytes(b"somebody's")
    cluster = new_cluster(tmp_path, listen="unix:here.sock", storage="data")
    assert cluster.command("up", "-d", check=False).returncode == 1
    assert not (tmp_path / "here.sock").exists()
    assert cluster.left_behind() == []


def test_an_address_that_is_not_to_be_had_is_an_error_and_starts_nothing(tmp_path, new_cluster):
    """Exit 1: nobody is in the way, so it is not 5; the sentence says what the system says."""
    cluster = new_cluster(tmp_path, listen="unix:no/such/folder.sock")
    done = cluster.command("up", "-d", check=False)
    assert done.returncode == 1
    assert b"cannot listen on unix:" in done.stderr
    assert b"nothing was started" in done.stderr
    assert cluster.left_behind() == []


def test_a_stale_unix_socket_is_replaced_and_a_living_one_is_not(tmp_path, new_cluster):
    """A socket file on which nobody listens is no reason to refuse; somebody who listens is, and a plain file."""
    cluster = new_cluster(tmp_path, listen="unix:m.sock")
    (tmp_path / "m.sock").write_text("not a socket")
    refused = cluster.command("up", "-d", check=False)
    assert refused.returncode == 5
    assert b"is already in use by something that is no socket" in refused.stderr
    assert (tmp_path / "m.sock").read_text() == "not a socket"
    (tmp_path / "m.sock").unlink()
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(tmp_path / "m.sock"))
        old.listen()
        refused = cluster.command("up", "-d", check=False)
        assert refused.returncode == 5
        assert f"(pid {os.getpid()})" in refused.stderr.decode()
    cluster.up()
    with cluster.connect() as memory:
        assert memory.size == 1 << 20


def test_foreground_up_shows_what_happens_and_ctrl_c_stops_it(tmp_path, new_cluster, foreground):
    """A line a process, the URI, how to stop; SIGINT drains and exits 0."""
    cluster = new_cluster(tmp_path)
    process = foreground(cluster)
    lines = read_line(process, "to stop it")
    assert sum("ready" in line and ("server" in line or "logger" in line) for line in lines) == 6
    assert any("clients connect to  nbd://127.0.0.1:" in line for line in lines)
    cluster.remember()
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    assert "merged into" in rest
    assert process.wait(TIMEOUT) == 0
    assert cluster.left_behind() == []


@pytest.mark.parametrize("nohup", [False, True])
def test_a_terminal_that_closes_stops_it_but_not_with_nohup(tmp_path, new_cluster, start, nohup):
    """SIGHUP drains like SIGTERM; whoever has it ignored means it."""
    cluster = new_cluster(tmp_path)
    process = start(
        *["nohup"] * nohup, *memcluster_command("up"), cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    read_line(process, "to stop it")
    cluster.remember()
    os.killpg(process.pid, signal.SIGHUP)
    if nohup:
        assert cluster.status()["state"] == "running"
        os.killpg(process.pid, signal.SIGTERM)  # as timeout(1) does
    rest = process.stdout.read()
    assert "merged into" in rest
    assert not any(word in rest for word in ("died", "killed"))
    assert process.wait(TIMEOUT) == 0
    assert cluster.left_behind() == []


def test_a_second_ctrl_c_kills(tmp_path, new_cluster, foreground):
    """A request whose secondary hangs holds the stop up; the second SIGINT ends everything at once, with 130."""
    cluster = new_cluster(tmp_path, stop_timeout="1h", retry_timeout="1h")
    process = foreground(cluster)
    read_line(process, "to stop it")
    cluster.remember()
    with cluster.connect(reconnect=False) as memory:
        hold_up(cluster, memory)
        process.send_signal(signal.SIGINT)
        read_line(process, "stopping")
        process.send_signal(signal.SIGINT)
        assert "server0    killed by SIGKILL" in process.stdout.read()
    assert process.wait(TIMEOUT) == EXIT_INTERRUPTED
    assert cluster.left_behind() == []


def test_ctrl_c_while_up_loads_is_for_the_supervisor_alone(tmp_path, new_cluster, foreground):
    """A terminal's Ctrl-C reaches the fork server too, which could only show where in its loading it was."""
    cluster = new_cluster(tmp_path)
    process = foreground(cluster)
    deadline = time.monotonic() + TIMEOUT
    while not (found := [child for child in psutil.Process(process.pid).children() if loads_modules(child)]):
        assert time.monotonic() < deadline
    found[0].send_signal(signal.SIGINT)
    assert not any("Traceback" in line for line in read_line(process, "to stop it"))
    cluster.remember()
    assert found[0].is_running()
    process.send_signal(signal.SIGINT)
    assert process.wait(TIMEOUT) == 0


def loads_modules(process: psutil.Process) -> bool:
    """A fork server that has come so far that SIGINT does something else to it than to end it without a word."""
    if not any("forkserver" in word for word in process.cmdline()):
        return False
    words = [line.split() for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()]
    masks = [int(line[1], 16) for line in words if line[0] in ("SigBlk:", "SigIgn:", "SigCgt:")]
    return any(mask & 1 << signal.SIGINT - 1 for mask in masks)


def hold_up(cluster: Cluster, memory: memcluster.Memory) -> None:
    """Let a request be in flight at the primary which a hanging secondary does not answer; a stop would wake a paused
    one."""
    secondary = next(node for node in cluster.record.nodes if node.name == "server1")
    cluster.command("fault", "hang", "server1")
    assert not cluster.status()["nodes"][1]["ready"]  # it has begun
    memory.start_pread(1, secondary.range[0])
    # The loop is turned once more than the request needs: its answer to another request proves that it was read.
    assert memory.pread(1, 0) == b"\0"


def test_the_cluster_outlives_the_reader_of_its_output(tmp_path, new_cluster, foreground):
    """`memcluster up | head`: what happens later is told to nobody, and goes on happening."""
    cluster = new_cluster(tmp_path)
    process = foreground(cluster)
    read_line(process, "to stop it")
    cluster.remember()
    process.stdout.close()
    secondary = Identity.of(cluster.pid("server1"))
    secondary.signal(signal.SIGKILL)
    assert wait_gone([secondary], TIMEOUT)
    assert cluster.wait_until_running()["nodes"][1]["restarts"] == 1
    cluster.down()
    assert process.wait(TIMEOUT) == 0
    assert cluster.left_behind() == []


def test_a_death_by_a_signal_without_a_name_is_a_death_like_any(tmp_path, new_cluster, foreground):
    """Real-time signals have a number only, on the supervisor's output and in the log."""
    cluster = new_cluster(tmp_path)
    process = foreground(cluster)
    read_line(process, "to stop it")
    cluster.remember()
    number = signal.SIGRTMIN + 1
    secondary = Identity.of(cluster.pid("server1"))
    secondary.signal(number)
    assert wait_gone([secondary], TIMEOUT)
    assert cluster.wait_until_running()["nodes"][1]["restarts"] == 1
    assert f"killed by signal {number}" in cluster.command("logs").stdout.decode()
    cluster.down()
    assert f"killed by signal {number}" in process.stdout.read()


@pytest.mark.parametrize("where", [">&- 2>&-", ">/dev/full", "<&- >&-"])
def test_up_and_down_do_what_they_promise_wherever_their_output_goes(tmp_path, new_cluster, where):
    """Closed streams, whose numbers sockets would get, and a full disk: the cluster runs, then it is gone."""
    cluster = new_cluster(tmp_path)
    run("sh", "-c", f"{shlex.join(memcluster_command('up', '-d'))} {where}", cwd=tmp_path)
    cluster.remember()
    with cluster.connect() as memory:
        assert memory.pread(1, memory.size - 1) == b"\0"
    run("sh", "-c", f"{shlex.join(memcluster_command('down'))} {where}", cwd=tmp_path)
    assert cluster.left_behind() == []


def test_where_the_locale_has_no_such_signs_others_are_shown(tmp_path, new_cluster, foreground):
    """In the foreground and in the background, and in the log: it is said in the signs that there are. cluster.yaml is
    UTF-8 everywhere."""
    cluster = new_cluster(tmp_path)
    cluster.file.write_bytes(cluster.file.read_bytes() + "# größer\n".encode())
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    assert b"? server0    ready" in cluster.command("up", "-d", **ascii_only).stdout
    cluster.remember()
    with cluster.connect() as memory:
        memory.pwrite(b"x" * memory.size, 0)
    [request] = {entry["request"] for entry in cluster.logged_writes()}
    assert b"? " in cluster.command("logs", "--request", request, **ascii_only).stdout
    assert b"? server0    stopped" in cluster.command("down", **ascii_only).stdout
    process = foreground(cluster, **ascii_only)
    read_line(process, "to stop it")
    cluster.down()
    assert process.wait(TIMEOUT) == 0


def test_a_limit_that_is_reached_is_told_in_one_sentence(tmp_path, new_cluster):
    """Too few descriptors for a supervisor: no traceback, and nothing is left that `down` would not remove."""
    cluster = new_cluster(tmp_path)
    for descriptors in (8, 12):
        words = f"ulimit -n {descriptors}; exec {shlex.join(memcluster_command('up', '-d'))}"
        done = run("sh", "-c", words, cwd=tmp_path, check=False)
        assert done.returncode == 1
        [line] = done.stderr.decode().splitlines()
        assert line.startswith("memcluster: Too many open files")
    cluster.command("down", check=False)
    assert cluster.left_behind() == []


@pytest.mark.parametrize("keys", [
    {"memory": "64XB"}, {"servers": 0}, {"servers": 65}, {"topology": "ring"}, {"lisen": "x"},
    {"memory": "100TiB"}, {"servers": [{"memory": "1MiB"}, {"memory": "1KiB"}]}, {"layout": {"stripe": 3}},
])  # fmt: skip
def test_a_wrong_cluster_yaml_is_refused_with_its_place(tmp_path, new_cluster, keys):
    """Exit 2, file:line:column, no traceback, nothing started."""
    cluster = new_cluster(tmp_path, **keys)
    done = cluster.command("up", "-d", check=False)
    assert done.returncode == 2
    assert done.stderr.decode().startswith("cluster.yaml:")
    assert "Traceback" not in done.stderr.decode()
    assert cluster.left_behind() == []


def test_config_prints_a_file_that_means_the_same(tmp_path, new_cluster):
    """`memcluster config` fills in the defaults; its output is a cluster.yaml again."""
    cluster = new_cluster(tmp_path)
    printed = cluster.command("config").stdout
    (tmp_path / "again.yaml").write_bytes(printed)
    assert cluster.command("-f", "again.yaml", "config").stdout == printed
    assert yaml.safe_load(printed)["fan_out"] == "parallel"
    assert json.loads(cluster.command("config", "--json-schema").stdout)["title"] == "cluster.yaml"


def test_what_was_acknowledged_under_load_survives_the_stop(tmp_path, new_cluster, topology):
    """SIGTERM under load with `storage: DIR`: every write that was answered is in the files, and in the log."""
    cluster = new_cluster(tmp_path, storage="data", memory="4MiB", topology=topology)
    cluster.up()
    acknowledged = {}
    with cluster.connect(reconnect=False) as memory:
        waiting = []
        try:
            for number in range(1_000_000):
                offset = number * 4096 % memory.size
                waiting.append((offset, number, memory.start_pwrite(number.to_bytes(8, "little"), offset)))
                if len(waiting) == 64:
                    offset, value, future = waiting.pop(0)
                    future.result()
                    acknowledged[offset] = value
                if number == 2000:
                    cluster.record.supervisor.signal(signal.SIGTERM)
        except (memcluster.ShuttingDown, memcluster.Disconnected):
            pass
        for offset, value, future in waiting:
            try:
                future.result()
            except memcluster.ClusterError:
                continue
            acknowledged[offset] = value
    assert wait_gone([cluster.record.supervisor], TIMEOUT)  # clients are told long before the log is merged
    assert cluster.left_behind() == []
    cluster.up()
    with cluster.connect() as memory:
        for offset, value in acknowledged.items():
            # A later write to the same place that was not acknowledged may have been carried out.
            assert int.from_bytes(memory.pread(8, offset), "little") >= value
    assert sum(entry["error"] is None for entry in cluster.logged_writes()) >= len(acknowledged)


def test_new_requests_are_told_eshutdown_while_old_ones_are_answered(make_cluster, start):
    """A request in flight when the stop begins is answered; one sent afterwards gets ESHUTDOWN."""
    cluster = make_cluster(stop_timeout="30s")
    secondary = Identity.of(cluster.pid("server1"))
    with cluster.connect(reconnect=False) as memory:
        offset = cluster.status()["nodes"][1]["range"][0]
        memory.pwrite(b"x", offset)
        secondary.signal(signal.SIGSTOP)
        in_flight = memory.start_pread(1, offset)
        # The loop is turned once more than the request needs: its answer to another request proves that it was read.
        assert memory.pread(1, 0) == b"\0"
        down = start(*memcluster_command("down"), cwd=cluster.folder, stdout=subprocess.PIPE, text=True)
        refused = False
        while not refused:  # answered until the stop has reached the primary
            try:
                memory.pwrite(b"y", 0)
            except memcluster.ShuttingDown:
                refused = True
        secondary.signal(signal.SIGCONT)
        assert in_flight.result() == b"x"
        assert down.wait(TIMEOUT) == 0
    assert cluster.left_behind() == []


def test_draining_lets_present_clients_finish(make_cluster, start, topology):
    """down --drain: the present client goes on, a new one is refused, and the end comes when the first leaves;
    until then `up` does not say that it runs."""
    cluster = make_cluster(topology=topology)
    memory = cluster.connect()
    uri = cluster.uri
    down = start(*memcluster_command("down", "--drain"), cwd=cluster.folder, stdout=subprocess.PIPE, text=True)
    read_line(down, "stopping")
    memory.pwrite(b"still here", 5)
    assert memory.pread(10, 5) == b"still here"

    def come_and_go() -> None:
        while True:  # let in until the drain has reached the door
            memcluster.connect(uri, reconnect=False).close()

    with pytest.raises(memcluster.Refused, match="shutting down"):
        come_and_go()
    assert cluster.status()["state"] == "draining"
    again = cluster.command("up", "-d", check=False)
    assert (again.returncode, again.stdout) == (EXIT_IN_USE, b"")
    assert b"being started or stopped right now" in again.stderr
    memory.close()
    assert down.wait(TIMEOUT) == 0
    assert cluster.left_behind() == []


def test_a_paused_process_can_stop_in_time(make_cluster):
    """The stop wakes it: what waits for it is answered, and nobody is late."""
    cluster = make_cluster()
    with cluster.connect(reconnect=False) as memory:
        offset = cluster.status()["nodes"][1]["range"][0]
        Identity.of(cluster.pid("server1")).signal(signal.SIGSTOP)
        waiting = memory.start_pread(1, offset)
        assert memory.pread(1, 0) == b"\0"
        assert cluster.down().returncode == 0
        assert waiting.result() == b"\0"


def test_a_drain_with_a_timeout_ends_although_a_client_stays(make_cluster):
    """After its time a drain becomes a stop: the client is told, and nothing is killed."""
    cluster = make_cluster()
    with cluster.connect():
        done = cluster.down("--drain", "--timeout", "300ms")
    assert b"killed" not in done.stderr


def test_a_later_stop_has_its_own_patience(make_cluster, start):
    """A drain that would wait for ten minutes ends when somebody asks for less; nothing is killed for it."""
    cluster = make_cluster(stop_timeout="5m")
    with cluster.connect():
        words = memcluster_command("down", "--drain", "--timeout", "10m")
        first = start(*words, cwd=cluster.folder, stdout=subprocess.PIPE, text=True)
        read_line(first, "stopping")
        done = cluster.down("--drain", "--timeout", "300ms")
        assert b"killed" not in done.stderr
        assert first.wait(TIMEOUT) == 0
    assert cluster.left_behind() == []


def test_a_merged_log_that_cannot_be_written_is_told_and_the_stop_goes_on(make_cluster):
    """A folder lies where it is to be: `down` says so, waits for the end all the same, and it is no failure."""
    cluster = make_cluster()
    (cluster.folder / "logs" / f"{cluster.name}.log").mkdir()
    done = cluster.down()
    assert b"the merged log was not written" in done.stderr
    assert done.stdout.endswith(b"stopped\n")
    assert cluster.left_behind() == []


def test_a_process_that_is_late_is_named_and_killed(make_cluster):
    """A request whose secondary hangs holds the primary up: it is named, and `down` exits 124."""
    cluster = make_cluster()
    with cluster.connect(reconnect=False) as memory:
        hold_up(cluster, memory)
        done = cluster.down("--timeout", "500ms", check=False)
    assert done.returncode == 124
    assert b"server0" in done.stderr
    assert b"did not stop in time: killed" in done.stderr


@pytest.mark.parametrize("what", ["directory", "file"])
@pytest.mark.parametrize("words", [["up", "-d"], ["status"], ["down"], ["fault", "pause", "server1"], ["logs"]])
def test_a_run_directory_of_somebody_else_is_not_believed(tmp_path, what, words):
    """Anybody may make one in /dev/shm under our name: a sentence says whose it is, and nothing in it is touched."""
    uid = os.getuid() + 1
    name = f"{tmp_path.parent.name}-{tmp_path.name}"[-40:]  # another worker's tmp_path may have the same last part
    foreign = Path(f"/dev/shm/memcluster-{uid}-{name}")  # ours, for whom takes himself for another user
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump({"name": name, "memory": "1MiB"}))
    if what == "directory":
        foreign.mkdir()
        (foreign / "uri").write_text("nbd://127.0.0.1:1")
    else:
        foreign.touch()
    code = f"import os; os.getuid = lambda: {uid}; from {{}}.cli import main; main()"
    try:
        commands = [("launcher", words)] + ([("client", ["info"])] if words == ["status"] else [])
        for package, arguments in commands:
            refused = run(sys.executable, "-c", code.format(package), *arguments, cwd=tmp_path, check=False)
            assert refused.returncode == 1
            wanted = f"belongs to another user (uid {os.getuid()})" if what == "directory" else "is no directory"
            assert f"{foreign} {wanted}" in refused.stderr.decode()
            assert len(refused.stderr.splitlines()) == 1
        if what == "directory":
            assert [path.name for path in foreign.iterdir()] == ["uri"]
    finally:
        shutil.rmtree(foreign) if what == "directory" else foreign.unlink()


def test_the_client_limit_refuses_one_more_and_gives_slots_back(make_cluster, topology):
    """Client N+1 is told the limit; when one leaves, by whatever way, there is room again."""
    cluster = make_cluster(topology=topology, clients={"limit": 2})
    first, second = cluster.connect(), cluster.connect()
    with pytest.raises(memcluster.Refused, match=r"all 2 client slots are taken \(clients.limit: 2"):
        cluster.connect()
    first.close()
    with cluster.connect(timeout=10) as third:
        assert third.pread(1, 0) == b"\0"
    second.close()


def test_status_of_a_paused_node(make_cluster):
    """A node stopped by SIGSTOP is paused and the cluster degraded, exit code 4; after SIGCONT it is 0 again."""
    cluster = make_cluster()
    logger = Identity.of(cluster.pid("logger1"))
    logger.signal(signal.SIGSTOP)
    status = cluster.command("status", check=False)
    assert status.returncode == 4
    assert b" is degraded: " in status.stdout
    assert b"; logger1 is paused" in status.stdout
    [node] = [node for node in cluster.status()["nodes"] if node["name"] == "logger1"]
    assert node["state"] == "paused"
    assert not node["ready"]
    logger.signal(signal.SIGCONT)
    assert cluster.wait_until_running()
    assert cluster.command("status").returncode == 0
