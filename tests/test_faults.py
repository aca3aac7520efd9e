"""`memcluster fault`: each fault does what it says, shows, and heals; and a hang is found with its evidence."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from types import SimpleNamespace

import pytest
from harness import TIMEOUT, Cluster, named

import memcluster
from memcluster.client.console import EXIT_DEGRADED
from memcluster.launcher.run.identity import Identity
from memcluster.launcher.run.leftovers import wait_gone
from memcluster.launcher.supervision.faults import Faults
from memcluster.launcher.supervision.heartbeats import Heartbeats, period
from memcluster.launcher.supervision.orders import Fault
from memcluster.node.transport.address import Address
from memcluster.node.transport.loop import Loop


def node(cluster: Cluster, name: str) -> dict:
    return named(cluster.status(), name)


def wait_for(cluster: Cluster, name: str, **wanted) -> dict:
    """The node's status as soon as it is as wanted."""
    return named(cluster.wait_for(lambda status: wanted.items() <= named(status, name).items()), name)


def offset_of(cluster: Cluster, name: str) -> int:
    return node(cluster, name)["range"][0]


def test_a_paused_node_is_paused_and_goes_on_after_its_time(make_cluster):
    """The request waits for the pause to end, and no longer."""
    cluster = make_cluster()
    offset = offset_of(cluster, "server1")
    with cluster.connect(reconnect=False) as memory:
        started = time.monotonic()
        assert b"pause: server1 for 1 s" in cluster.command("fault", "pause", "server1", "--for", "1s").stdout
        assert memory.pread(1, offset) == b"\0"
        assert 1 <= time.monotonic() - started < 10
    assert wait_for(cluster, "server1", state="ready")["restarts"] == 0


def test_resume_ends_a_pause(make_cluster):
    """Without --for it lasts until resume."""
    cluster = make_cluster()
    for target, names in (("logger", ("logger0", "logger1", "logger2")), ("server1", ("server1",))):
        cluster.command("fault", "pause", target)
        for name in names:
            assert node(cluster, name)["state"] == "paused"
        cluster.command("fault", "resume", target)
        for name in names:
            assert node(cluster, name)["state"] == "ready"


def test_a_pause_is_ended_although_nobody_has_seen_it_begin():
    """A signal takes its time, on a busy processor and on another host: until the node has been seen to stand still,
    that it runs says nothing."""
    signals: list[int] = []
    child = SimpleNamespace(stopped=False, signal=signals.append)
    cluster = SimpleNamespace(
        makeup=SimpleNamespace(roles={"server0": "primary"}),
        child=lambda _name: child,
        note=lambda *_event: None,
        release=lambda _name: None,
    )
    faults = Faults(cluster)
    faults.apply(Fault("pause", ["server0"]))
    assert [fault["kind"] for fault in faults.in_force()] == ["pause"]
    faults.apply(Fault("resume", ["server0"]))
    assert (signals, faults.in_force()) == ([signal.SIGSTOP, signal.SIGCONT], [])

    faults.apply(Fault("pause", ["server0"]))
    child.stopped = True
    assert len(faults.in_force()) == 1
    child.stopped = False  # somebody else has let it go on
    assert faults.in_force() == []


def test_the_owner_of_a_byte_can_be_killed_and_kept_down(make_cluster):
    """owner:OFFSET finds the server; with --for it is not restarted before its time, and no client sees more than a
    pause."""
    cluster = make_cluster()
    victim = Identity.of(cluster.pid("server2"))
    offset = offset_of(cluster, "server2") + 5
    with cluster.connect(reconnect=False) as memory:
        memory.pwrite(b"kept", offset)
        started = time.monotonic()
        done = cluster.command("fault", "kill", f"owner:{offset:#x}", "--for", "1s")
        assert b"kill: server2" in done.stdout
        assert wait_gone([victim], TIMEOUT)
        assert memory.pread(4, offset) == b"kept"
        assert time.monotonic() - started >= 1
    assert wait_for(cluster, "server2", state="ready")["restarts"] == 1
    cluster.remember()


@pytest.mark.parametrize("words", [["pause", "server1", "--delay", "5ms"], ["resume", "server1", "--for", "5s"]])
def test_an_option_that_means_nothing_for_a_fault_is_refused(tmp_path, new_cluster, words):
    """Exit 2, before anything is asked of a cluster."""
    refused = new_cluster(tmp_path).command("fault", *words, check=False)
    assert refused.returncode == 2
    assert words[2] in refused.stderr.decode()


def test_a_slow_node_answers_late(make_cluster):
    """Each reply waits for the delay, until the fault is over; what it answers is right."""
    cluster = make_cluster()
    offset = offset_of(cluster, "server1")
    with cluster.connect() as memory:
        cluster.command("fault", "slow", "server1", "--delay", "300ms")
        started = time.monotonic()
        assert memory.pread(1, offset) == b"\0"
        assert time.monotonic() - started >= 0.3
        cluster.command("fault", "resume", "server1")
        assert memory.pread(1, offset) == b"\0"


def test_a_fault_heals_after_its_time_and_the_others_last(make_cluster):
    """The end of a pause is not the end of what else is wrong with the node."""
    cluster = make_cluster()
    offset = offset_of(cluster, "server1")
    cluster.command("fault", "slow", "server1", "--delay", "300ms")
    cluster.command("fault", "pause", "server1", "--for", "300ms")
    with cluster.connect() as memory:
        memory.pread(1, offset)  # it goes on
        started = time.monotonic()
        memory.pread(1, offset)
        assert time.monotonic() - started >= 0.3


def test_resume_lets_a_node_come_back_that_is_kept_down(make_cluster):
    """It ends every fault of the target, this one too."""
    cluster = make_cluster()
    cluster.command("fault", "kill", "server1", "--for", "1h")
    wait_for(cluster, "server1", state="restarting")
    assert cluster.command("status", check=False).returncode == EXIT_DEGRADED
    done = cluster.command("fault", "pause", "server", check=False)
    assert done.returncode == 1
    assert b"server1 is not alive" in done.stderr
    assert node(cluster, "server0")["state"] == "ready"  # all of them or none
    cluster.command("fault", "resume", "server1")
    wait_for(cluster, "server1", state="ready", restarts=1)
    cluster.remember()


def test_a_partition_holds_requests_up_until_it_heals(make_cluster):
    """The link is cut: the piece waits; the rest of the memory is served; then everything is answered."""
    cluster = make_cluster()
    offset = offset_of(cluster, "server1")
    with cluster.connect(reconnect=False) as memory:
        cluster.command("fault", "partition", "server0", "server1")
        waiting = memory.start_pwrite(b"late", offset)
        assert memory.pread(1, 0) == b"\0"
        assert memory.pread(1, offset_of(cluster, "server2")) == b"\0"
        assert not waiting.done
        cluster.command("fault", "resume", "server1")
        waiting.result()
        assert memory.pread(4, offset) == b"late"


def test_a_partition_outlasts_a_restart_and_heals_after_its_time(make_cluster):
    """A primary that is killed during the partition is told of it again; --for ends it."""
    cluster = make_cluster()
    offset = offset_of(cluster, "server1")
    cluster.command("fault", "partition", "server0", "server1", "--for", "2s")
    cluster.command("fault", "kill", "server0")
    with cluster.connect() as memory:
        assert memory.pread(1, offset) == b"\0"
    wait_for(cluster, "server0", state="ready")
    cluster.remember()


def test_a_partitioned_logger_is_named_and_comes_back(make_cluster):
    """The log says whose share is missing; after the partition nothing is."""
    cluster = make_cluster()
    cluster.command("fault", "partition", "logger0", "logger1")
    assert b"logger1 is missing" in cluster.command("logs").stderr
    cluster.command("fault", "resume", "logger1")
    assert cluster.command("logs").stderr == b""


@pytest.mark.parametrize("name", ["server0", "server1", "logger1"])
def test_resume_brings_back_a_node_that_has_failed(make_cluster, name):
    """Until then nobody who connects to it waits for it; afterwards it serves the same memory."""
    cluster = make_cluster(restart={"deaths": 1}, retry_timeout="500ms")
    offset = offset_of(cluster, "server1")
    with cluster.connect() as memory:
        memory.pwrite(b"kept", offset)
    address = Address.parse(node(cluster, name)["address"])
    cluster.command("fault", "kill", name)
    found = wait_for(cluster, name, state="failed")
    assert "died 1 times in 60 s, last: killed by SIGKILL" in found["reason"]
    assert cluster.command("status", check=False).returncode == EXIT_DEGRADED
    with socket.create_connection(address.sockaddr, TIMEOUT) as sock:
        assert sock.recv(1) == b""
    if name == "server1":
        with cluster.connect() as memory, pytest.raises(memcluster.ServerError, match="retry_timeout"):
            memory.pread(4, offset)
    cluster.command("fault", "resume", name)
    wait_for(cluster, name, state="ready", restarts=1)
    with cluster.connect() as memory:
        assert memory.pread(4, offset) == b"kept"
    cluster.remember()


def test_a_hung_node_shows_where_it_stands_and_is_restarted(make_cluster):
    """A loop that does not turn is found by its heartbeat; the reason names function and line; the traceback is in
    its output; clients see a pause."""
    cluster = make_cluster(hang_timeout="1s")
    offset = offset_of(cluster, "server1")
    with cluster.connect(reconnect=False) as memory:
        memory.pwrite(b"kept", offset)
        cluster.command("fault", "hang", "server1")
        assert memory.pread(4, offset) == b"kept"
    found = wait_for(cluster, "server1", state="ready", restarts=1)
    assert found["pid"]
    output = (cluster.folder / "logs" / cluster.name / "server1.out").read_text()
    assert "most recent call first" in output
    assert "_fault" in output
    supervisor = (cluster.folder / "logs" / cluster.name / "supervisor.out").read_text()
    assert supervisor == ""
    log = cluster.command("logs", "--errors").stdout.decode()
    assert "• hanging" in log
    assert "• hung" in log
    cluster.remember()


@pytest.mark.parametrize("hang_timeout", [0.1, 0.5, 1.0, 10.0, 3600.0])
def test_two_beats_may_be_lost_before_a_node_is_taken_for_hung(hang_timeout):
    """The supervisor looks as often as the node beats, and may do so just before a beat comes."""
    assert period(hang_timeout) * 4 <= hang_timeout
    assert period(hang_timeout) <= 0.5


def test_a_node_stopped_by_a_signal_is_not_taken_for_hung(make_cluster):
    """SIGSTOP for longer than hang_timeout: paused, and the same process goes on afterwards."""
    cluster = make_cluster(hang_timeout="1s")
    paused = Identity.of(cluster.pid("server1"))
    offset = offset_of(cluster, "server1")
    with cluster.connect(reconnect=False) as memory:
        cluster.command("fault", "pause", "server1", "--for", "3s")
        assert memory.pread(1, offset) == b"\0"  # answered only after the pause
    assert paused.alive
    assert wait_for(cluster, "server1", state="ready")["restarts"] == 0


class Sleeper(SimpleNamespace):
    """As much of a child as heartbeats look at."""

    @property
    def stopped(self) -> bool:
        return self.identity.stopped


def test_a_node_that_goes_on_has_time_to_beat_at_whatever_look():
    """SIGCONT comes in the very moment of a look, before the node could beat: that look blames nobody, though the
    pause was longer than hang_timeout. A node for each look at which it could be, and none of them ever beats."""
    loop = Loop()
    stopped = [subprocess.Popen(["sleep", "3600"]) for _ in range(9)]
    blamed: dict[int, int] = {}

    def make_heartbeats(look: int, process: subprocess.Popen[bytes]) -> Heartbeats:
        identity = Identity.of(process.pid)
        child = Sleeper(pid=process.pid, identity=identity, spec=SimpleNamespace(name=str(look)))
        looks = 0

        def children():  # is asked at the beginning of each look
            nonlocal looks
            looks += 1
            if looks == look:
                process.send_signal(signal.SIGCONT)
                while identity.stopped:
                    pass
            return [child] if look not in blamed else []

        def hung(name: str, how: str) -> None:
            blamed[look] = looks
            if len(blamed) == len(stopped):
                loop.stop()

        return Heartbeats(loop, 1.0, children, hung)

    try:
        for look, process in enumerate(stopped, 1):
            process.send_signal(signal.SIGSTOP)
            make_heartbeats(look, process).start()
        loop.after(TIMEOUT, loop.stop)
        loop.run()
    finally:
        for process in stopped:
            process.kill()
            process.wait()
        loop.close()
    assert sorted(blamed) == list(range(1, 10))  # it is hung, and was found to be, but later
    assert all(found > look for look, found in blamed.items()), blamed


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["pause", "server9"], "is no node here; say one of server0"),
        (["pause", "owner:1GiB"], "is beyond the memory"),
        (["pause", "owner:x"], "is not a size"),
        (["partition", "server1", "server2"], "there is no link between server1 and server2"),
        (["partition", "server0", "logger1"], "there is no link"),
        (["kill", "host:host-b"], "'host:host-b' is no other host; there are none"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(make_cluster, words, sentence):
    """One sentence that says what would."""
    done = make_cluster().command("fault", *words, check=False)
    assert done.returncode == 1
    assert sentence in done.stderr.decode()


def test_a_fault_needs_a_cluster(tmp_path, new_cluster):
    """Exit 3 when nothing runs."""
    assert new_cluster(tmp_path).command("fault", "pause", "server0", check=False).returncode == 3


def test_memcluster_client_survives_the_death_of_the_primary(make_cluster):
    """The socket never closes: the client connects again and repeats what was in flight."""
    cluster = make_cluster()
    with cluster.connect() as memory:
        for number in range(3):
            futures = [memory.start_pwrite(bytes([number, index]), 2 * index) for index in range(100)]
            Identity.of(cluster.pid("server0")).signal(signal.SIGKILL)
            for future in futures:
                future.result()
            assert memory.pread(200, 0) == b"".join(bytes([number, index]) for index in range(100))
            wait_for(cluster, "server0", state="ready", restarts=number + 1)
        assert memory.reconnections >= 3
    cluster.remember()


def test_standard_clients_can_connect_at_once_after_the_primary_died(make_cluster):
    """Who connects while the primary is restarted waits in the backlog and is served."""
    cluster = make_cluster()
    Identity.of(cluster.pid("server0")).signal(signal.SIGKILL)
    with memcluster.connect(cluster.uri, reconnect=False) as memory:
        assert memory.pread(1, 0) == b"\0"
    wait_for(cluster, "server0", state="ready")
    cluster.remember()


def test_faults_in_force_are_visible(make_cluster):
    """`status` names each in STATE and in its last line, with the time left; `fault list` and --json have them; resume
    all ends them."""
    cluster = make_cluster()
    cluster.command("fault", "slow", "server1", "--delay", "1ms")
    cluster.command("fault", "partition", "server0", "server2", "--for", "500s")
    cluster.command("fault", "pause", "logger1")
    slow, cut, paused = cluster.status()["faults"]
    assert slow == {"kind": "slow", "nodes": ["server1"], "left_s": None, "delay_s": 0.001}
    assert (cut["kind"], cut["nodes"]) == ("partition", ["server0", "server2"])
    assert 0 < cut["left_s"] <= 500
    assert (paused["kind"], paused["nodes"]) == ("pause", ["logger1"])
    lines = cluster.command("status", check=False).stdout.decode().splitlines()
    states = {words[0]: " ".join(words) for words in map(str.split, lines[1:-1])}
    assert "ready, slow" in states["server1"]
    assert "ready, cut from server0 8m" in states["server2"]
    assert "paused" in states["logger1"]
    assert "with 3 faults on purpose" in lines[-1]
    assert "server1 is slow (1 ms a reply, until it is resumed)" in lines[-1]
    assert "`memcluster fault resume all`" in lines[-1]
    assert len(cluster.command("fault", "list").stdout.splitlines()) == 3
    cluster.command("fault", "resume", "all")
    assert cluster.status()["faults"] == []
    assert cluster.command("fault", "list").stdout == b"no fault is in force\n"
    assert b"on purpose" not in cluster.command("status").stdout


def test_what_was_done_alike_to_many_is_one_sentence(make_cluster):
    """And nobody is said to be paused twice."""
    cluster = make_cluster()
    cluster.command("fault", "slow", "server", "--delay", "1ms")
    cluster.command("fault", "pause", "logger1")
    sentences = [
        "server0, server1 and server2 are slow (1 ms a reply, until it is resumed)",
        "logger1 is paused (until it is resumed)",
    ]
    assert cluster.command("fault", "list").stdout.decode().splitlines() == sentences
    last = cluster.command("status", check=False).stdout.decode().splitlines()[-1]
    assert "with 4 faults on purpose" in last
    assert all(sentence in last for sentence in sentences)
    assert last.count("logger1 is paused") == 1


def test_a_fault_of_a_process_is_over_with_it(make_cluster):
    """Who was paused or kept down is a new process afterwards: nothing is told of the old one."""
    cluster = make_cluster()
    cluster.command("fault", "pause", "server1", "--for", "500s")
    cluster.command("fault", "kill", "server1")
    wait_for(cluster, "server1", state="ready")
    assert cluster.status()["faults"] == []
    cluster.command("fault", "kill", "server2", "--for", "500s")
    [down] = cluster.status()["faults"]
    assert (down["kind"], down["nodes"]) == ("kill", ["server2"])
    cluster.command("fault", "resume", "server2")
    assert wait_for(cluster, "server2", state="ready")
    assert cluster.status()["faults"] == []


def test_hints_name_every_target(make_cluster):
    cluster = make_cluster()
    said = cluster.command("fault", "pause", "nobody", check=False).stderr.decode()
    words = "server2, logger0, logger1, logger2, primary, secondary, logger, server, all or owner:OFFSET"
    assert f"say one of server0, server1, {words}" in said
    assert b"server, logger, all, owner:OFFSET or host:NAME" in cluster.command("fault", "pause", check=False).stderr
