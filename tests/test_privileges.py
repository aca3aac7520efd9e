"""What the processes of a cluster may do beyond their user's rights, as the kernel shows it in /proc/PID/status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from harness import ROOT, TIMEOUT, Cluster, environment, memclient_command, memcluster_command, run, status_when

import memcluster
from memcluster.launcher.run.directory import RunRecord
from memcluster.launcher.run.identity import Identity
from memcluster.launcher.run.leftovers import wait_gone

ANOTHER = 65534
CAP_DAC_READ_SEARCH = 1 << 2
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to lose")


def seen(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def capabilities(pid: int) -> dict[str, int]:
    return {key: int(value, 16) for key, value in seen(pid).items() if key.startswith("Cap")}


def test_no_process_of_a_cluster_gains_privileges_by_what_it_executes(make_cluster, topology):
    """The nodes, the fork server, and a node that was started again; and nodes have no capability at all."""
    cluster = make_cluster(topology=topology)
    cluster.command("fault", "kill", "server0")
    cluster.wait_until_running()
    record = cluster.record
    pids = [node.pid for node in record.nodes]
    assert {seen(pid)["NoNewPrivs"] for pid in (*pids, *(helper.pid for helper in record.helpers))} == {"1"}
    ignored = {} if os.geteuid() == 0 else {"CapBnd": 0}  # which is nobody else's to change, and means nothing then
    assert not any(any((capabilities(pid) | ignored).values()) for pid in pids)
    cluster.memclient("write", "0", "bytes")
    assert cluster.memclient("read", "0", "5").stdout == b"bytes"


@needs_root
def test_a_cluster_of_root_in_another_users_home_gets_to_its_own_folders(new_cluster, tmp_path):
    """By the one capability that it takes, which no file can be changed with."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    os.chown(home, ANOTHER, ANOTHER)
    cluster = new_cluster(home, storage="data")
    cluster.up()
    pid = cluster.pid("server0")
    assert capabilities(pid) | {"CapEff": 0, "CapPrm": 0} == dict.fromkeys(capabilities(pid), 0)
    assert (capabilities(pid)["CapEff"], capabilities(pid)["CapPrm"]) == (CAP_DAC_READ_SEARCH,) * 2
    cluster.memclient("write", "0", "bytes")
    cluster.command("fault", "kill", "server0")
    cluster.wait_until_running()
    assert cluster.memclient("read", "0", "5").stdout == b"bytes"
    assert "merged into" in cluster.down().stdout.decode()


# -- user: in cluster.yaml -------------------------------------------------------------------------------------------


class Opened:
    """A mount namespace in which every user gets to this interpreter and this code, wherever they lie: what is between
    is covered by a folder that has nothing else."""

    SCRIPT = """
    stage=$(mktemp -d) && mount -t tmpfs tmpfs "$stage" || exit 1
    n=0; for path; do n=$((n + 1)); mkdir "$stage/$n" && mount --bind "$path" "$stage/$n" || exit 1; done
    for closed in $CLOSED; do mount -t tmpfs -o mode=755 tmpfs "$closed" || exit 1; done
    n=0; for path; do n=$((n + 1)); mkdir -p "$path" && mount --bind "$stage/$n" "$path" || exit 1; done
    umount -R "$stage" && rmdir "$stage" && echo ready && exec cat
    """

    def __init__(self) -> None:
        paths = {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), ROOT.resolve()}
        closed = {top for path in paths for top in path.parents if not top.stat().st_mode & 1 and top != Path("/")}
        tops = {top for top in closed if not closed & set(top.parents)}
        hidden = [str(path) for path in sorted(paths) if tops & set(path.parents)]
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", self.SCRIPT, "sh", *hidden],
            env={**os.environ, "CLOSED": " ".join(map(str, tops))},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._holder.stdout is not None
        assert self._holder.stderr is not None
        if self._holder.stdout.readline() != "ready\n":
            pytest.skip(f"mount namespaces are not allowed here: {self._holder.stderr.read()}")

    def run(self, *command: str, cwd: Path, **options) -> subprocess.CompletedProcess[bytes]:
        enter = "nsenter", "--target", str(self._holder.pid), "--mount"
        return run(*enter, "sh", "-c", 'cd "$0" && exec "$@"', cwd, *command, **options)

    def start(self, *command: str, cwd: Path) -> subprocess.Popen[str]:
        words = "nsenter", "--target", str(self._holder.pid), "--mount", "sh", "-c", 'cd "$0" && exec "$@"', str(cwd)
        return subprocess.Popen(
            [*words, *command], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def close(self) -> None:
        self._holder.communicate("")


@pytest.fixture(scope="module")
def opened():
    made = Opened()
    yield made
    made.close()


@pytest.fixture
def open_folder():
    """One that every user gets to, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="memcluster-test-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


USER = str(ANOTHER)


class Theirs(Cluster):
    """A cluster that root has started for another user: what is of the run lies where that user's lies."""

    def __init__(self, opened: Opened, folder: Path, **keys) -> None:
        super().__init__(folder, user=f"{USER}:{USER}", **keys)
        self.directory = Path(f"/dev/shm/memcluster-{USER}-{self.name}")
        self.opened = opened

    def command(self, *words: str, check: bool = True, timeout: float = TIMEOUT, **environment: str):
        command = memcluster_command(*words)
        return self.opened.run(*command, cwd=self.folder, check=check, timeout=timeout, **environment)

    def memclient(self, *words: str, check: bool = True, stdin: bytes | None = None):
        return self.opened.run(*memclient_command(*words), cwd=self.folder, check=check, stdin=stdin)

    def wait_for(self, fact: Callable[[dict], object]) -> dict:
        """Asked by a command: who looks at another user's run directory becomes that user."""
        return status_when(fact, self.status, self.directory / "control")

    @property
    def record(self) -> RunRecord:
        return RunRecord.from_json((self.directory / "state.json").read_text())

    def everything(self) -> list[int]:
        record = self.record
        return [record.supervisor.pid, *(one.pid for one in record.helpers), *(node.pid for node in record.nodes)]


@pytest.fixture
def theirs(opened, open_folder):
    made = []

    def make(**keys) -> Theirs:
        made.append(Theirs(opened, open_folder, **keys))
        return made[-1]

    yield make
    problems = []
    for cluster in made:
        cluster.command("down", check=False)
        problems += cluster.left_behind()
    assert not problems, problems


def owners(folder: Path) -> set[int]:
    return {path.lstat().st_uid for path in (folder, *folder.rglob("*"))}


@needs_root
def test_a_cluster_of_root_runs_as_the_user_that_it_is_told(theirs, topology):
    """Every process, for good, without a capability; what it makes is that user's; it restarts, logs, and goes; and
    root's commands find it."""
    cluster = theirs(topology=topology, storage="data")
    (cluster.folder / "data").mkdir()
    os.chown(cluster.folder / "data", ANOTHER, ANOTHER)
    cluster.up()
    for pid in cluster.everything():
        status = seen(pid)
        assert (status["Uid"].split(), status["Gid"].split(), status["Groups"]) == ([USER] * 4, [USER] * 4, USER)
        assert not capabilities(pid)["CapPrm"]
    cluster.memclient("write", "0", "before")
    cluster.command("fault", "kill", "server0")
    assert cluster.wait_until_running()["supervisor"] == cluster.record.supervisor.pid
    assert cluster.memclient("read", "0", "6").stdout == b"before"
    os.kill(cluster.record.helpers[0].pid, signal.SIGKILL)  # the next fork server is that user's, too
    wait_gone([cluster.record.helpers[0]], 10)
    cluster.wait_until_running()
    assert {seen(pid)["Uid"].split()[0] for pid in cluster.everything()} == {USER}
    assert b"WRITE" in cluster.command("logs").stdout
    assert b"runs as cluster.yaml says" in cluster.command("diff").stdout
    for folder in ("logs", "data"):
        assert owners(cluster.folder / folder) == {ANOTHER}
    cluster.remember()
    assert b"merged into" in cluster.command("down").stdout
    assert (cluster.folder / "logs" / f"{cluster.name}.log").stat().st_uid == ANOTHER


@needs_root
def test_root_binds_what_only_root_may_and_hands_it_over(theirs):
    """A port below 1024 in a place of its own, and a unix socket in a folder of root's; the next start takes it."""
    cluster = theirs(listen="unix:private/s", servers=1)
    (cluster.folder / "private").mkdir(mode=0o755)
    for _ in range(2):
        cluster.up()
        found = (cluster.folder / "private" / "s").lstat()
        assert (found.st_uid, found.st_mode & 0o777) == (ANOTHER, 0o600)
        assert cluster.memclient("read", "0", "1").stdout == b"\0"
        cluster.command("down")
    (cluster.folder / "private" / "s").unlink()
    script = (
        "ip link set lo up && $memcluster up -d --set listen=127.0.0.1:809 && $memclient read 0 1 && $memcluster down"
    )
    words = {"memcluster": " ".join(memcluster_command()), "memclient": " ".join(memclient_command())}
    said = cluster.opened.run("unshare", "--net", "sh", "-c", script, cwd=cluster.folder, **words).stdout
    assert b"nbd://127.0.0.1:809" in said


@needs_root
def test_what_that_user_wrote_down_leads_root_to_no_signal(theirs, start):
    """A record that names a process of root's: `down` is that user's doing, and may not touch it."""
    cluster = theirs(servers=1)
    cluster.up()
    victim = start("sleep", "1000")
    identity = Identity.of(victim.pid)
    assert identity is not None
    record = cluster.record
    cluster.remember()
    record.supervisor.signal(signal.SIGKILL)
    wait_gone([record.supervisor, *(node.identity for node in record.nodes)], 10)
    forged = replace(record, helpers=(identity,))
    (cluster.directory / "state.json").write_text(forged.to_json())
    cluster.command("down", check=False)
    assert victim.poll() is None
    (cluster.directory / "state.json").unlink(missing_ok=True)


@needs_root
def test_who_cannot_be_that_user_says_so(theirs, open_folder):
    """Another user than root; and a program that would have to change itself."""
    cluster = theirs(servers=1)
    other = cluster.opened.run(
        "setpriv", "--reuid", "65533", "--clear-groups", *memcluster_command("up", "-d"), cwd=open_folder, check=False
    )
    assert other.returncode == 1
    assert "only root can run a cluster as user 65534:65534; this is uid 65533" in other.stderr.decode()
    with pytest.raises(memcluster.LaunchError, match="a program stays who it is"):
        memcluster.Cluster(cluster.file)


@needs_root
def test_a_cluster_yaml_that_only_root_reads_will_do(theirs):
    """It is read as root, for a second `up`, too."""
    cluster = theirs(servers=1)
    cluster.file.chmod(0o600)
    process = cluster.opened.start(*memcluster_command("up"), cwd=cluster.folder)
    try:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("ready in "):
            assert process.poll() is None
        assert b"already running" in cluster.command("up").stdout
        cluster.remember()
        cluster.command("down")
    finally:
        process.terminate()
        process.communicate(timeout=TIMEOUT)


@needs_root
def test_folders_of_root_are_not_given_away(theirs):
    """A user's cluster does not get one that is root's already."""
    cluster = theirs(servers=1)
    (cluster.folder / "logs").mkdir()
    refused = cluster.command("up", "-d", check=False)
    assert refused.returncode == 1
    assert "logs: belongs to another user (uid 0); choose a folder of 65534:65534's own" in refused.stderr.decode()
    (cluster.folder / "logs").rmdir()


@needs_root
def test_keys_that_only_root_reads_are_told_of(theirs):
    """Servers that are started again read them as that user; when he may, TLS works, after a restart, too."""
    cluster = theirs(servers=1, tls={"certificates": "certificates"})
    cluster.opened.run(*memcluster_command("certificates"), cwd=cluster.folder)
    key = cluster.folder / "certificates" / "server-key.pem"
    refused = cluster.command("up", "-d", check=False)
    assert refused.returncode == 1
    assert f"server-cert.pem cannot be read by user {USER}:{USER}" in refused.stderr.decode()
    for path in (key.parent, *key.parent.iterdir()):
        os.chown(path, ANOTHER, ANOTHER)
    cluster.up()
    cluster.command("fault", "kill", "server0")
    cluster.wait_until_running()
    assert cluster.memclient("read", "0", "1").stdout == b"\0"
