"""What end-to-end tests stand on: a cluster in a folder of its own, the commands as subprocesses, and the real clients.

Nothing here sleeps: commands return when what they promise is true, and processes are waited for with pidfds.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
import yaml
from preloaded import Preloaded, shape

import memcluster
from memcluster.client.discover import run_directory
from memcluster.launcher.log.reader import introduce
from memcluster.launcher.run.control import NoAnswer, connect
from memcluster.launcher.run.directory import RunDirectory, RunRecord
from memcluster.launcher.run.identity import Identity
from memcluster.launcher.run.leftovers import wait_gone
from memcluster.launcher.status import read_status
from memcluster.node.transport.proof import Pass, Who

ROOT = Path(__file__).parent.parent
TIMEOUT = 60.0
LOOK_AGAIN = 0.03
SECRET = b"the secret of a run, in 32 bytes"
"""Of nodes that a test makes itself."""
PRELOADED = Preloaded()
_numbers = itertools.count()


def environment(**more: str) -> dict[str, str]:
    """For commands of this checkout's code, wherever they run."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


@contextmanager
def no_descriptors() -> Iterator[None]:
    """This process may open nothing meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def run(*command: str | os.PathLike[str], cwd: Path | None = None, check: bool = True, stdin: bytes | None = None,
        timeout: float = TIMEOUT, **variables: str) -> subprocess.CompletedProcess[bytes]:  # fmt: skip
    """Run a command and return what it printed; with `check`, a failure shows both of its outputs."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        timeout=timeout,
        check=False,
        env=environment(**variables),
    )
    if check:
        assert done.returncode == 0, (command, done.returncode, done.stdout.decode(), done.stderr.decode())
    return done


def memcluster_command(*words: str) -> list[str]:
    return [sys.executable, "-m", "memcluster", *words]


def memclient_command(*words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "memcluster.client.cli", *words]


def run_loaded(name: str, *words: str | os.PathLike[str], cwd: Path, check: bool = True, timeout: float = TIMEOUT,
               **variables: str) -> subprocess.CompletedProcess[bytes]:  # fmt: skip
    """As `run`, of `memcluster` or `memclient`, by a process that has loaded them: see preloaded.py."""
    known = environment(**variables)
    command = [name, *map(str, words)]
    if shape(variables) or not PRELOADED.takes(known):
        executed = memcluster_command if name == "memcluster" else memclient_command
        return run(*executed(*command[1:]), cwd=cwd, check=check, timeout=timeout, **variables)
    code, out, err = PRELOADED.run(command, cwd, known, timeout)
    if check:
        assert code == 0, (command, code, out.decode(), err.decode())
    return subprocess.CompletedProcess(command, code, out, err)


def need(command: str, package: str) -> str:
    """The path of a real client; the test is skipped where it is missing, but in CI that is a failure."""
    path = shutil.which(command)
    if path is None:
        message = f"{command} is missing: install the Debian package {package}"
        if os.environ.get("MEMCLUSTER_REQUIRE_CLIENTS"):
            pytest.fail(message)
        pytest.skip(message)
    return path


def run_in_small_room(folder: Path, script: str, **words: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell script that mounts a small tmpfs of its own; the commands are there as $memcluster and $memclient.
    The test is skipped where nobody may mount: that is tried first, so that nothing the script says is taken for it."""
    tried = run("unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", folder, check=False)
    if tried.returncode:
        pytest.skip("mounting a small tmpfs is not allowed here: " + tried.stderr.decode().strip())
    words |= {"memcluster": " ".join(memcluster_command()), "memclient": " ".join(memclient_command())}
    return run("unshare", "--mount", "sh", "-c", script, cwd=folder, **words)


def status_when(fact: Callable[[dict], object], status: Callable[[], dict], control: Path) -> dict:
    """The first status of a cluster of which the fact is true; `control` is its supervisor's socket."""
    deadline = time.monotonic() + TIMEOUT
    looks = _looks(control)
    while not fact(found := status()):
        assert time.monotonic() < deadline, found
        next(looks)
    return found


def named(status: dict, name: str) -> dict:
    """What a status says of this node."""
    [found] = [found for found in status["nodes"] if found["name"] == name]
    return found


def _looks(control: Path) -> Iterator[None]:
    """Returns for a look whenever the supervisor tells something, and now and then: it does not tell all."""
    while True:
        with suppress(NoAnswer), closing(connect(control)) as stream:
            stream.send({"do": "watch"})
            there = True
            while there:
                with suppress(NoAnswer):
                    there = next(stream.frames(time.monotonic() + LOOK_AGAIN), None) is not None
                yield
        yield


class Cluster:
    """A cluster of a test: port 0, a name of its own, small memory. Made by `clusters`, which ends it."""

    def __init__(self, folder: Path, **keys) -> None:
        self.folder = folder
        self.name = keys.pop("name", f"t{os.getpid()}-{next(_numbers)}")
        self.file = folder / "cluster.yaml"
        self.keys = {"name": self.name, "memory": "1MiB", "servers": 3, "listen": "127.0.0.1:0", **keys}
        self.file.write_text(yaml.safe_dump(self.keys))
        self.directory = run_directory(self.name)
        self._seen: dict[int, Identity] = {}

    def command(self, *words: str, check: bool = True, timeout: float = TIMEOUT, **environment: str):
        """`memcluster WORDS` in the cluster's folder."""
        return run_loaded("memcluster", *words, cwd=self.folder, check=check, timeout=timeout, **environment)

    def memclient(self, *words: str, check: bool = True, stdin: bytes | None = None):
        """`memclient WORDS` in the cluster's folder."""
        if stdin is not None:
            return run(*memclient_command(*words), cwd=self.folder, check=check, stdin=stdin)
        return run_loaded("memclient", *words, cwd=self.folder, check=check)

    def up(self) -> None:
        self.command("up", "-d")
        self.remember()

    def remember(self) -> None:
        """Note who runs now, so that `end` can prove that they are gone."""
        self._note(self.record)

    def _note(self, record: RunRecord) -> None:
        for identity in (record.supervisor, *record.helpers, *(node.identity for node in record.nodes)):
            self._seen[identity.pid] = identity

    @property
    def record(self) -> RunRecord:
        record = RunDirectory(self.name).record()
        assert record is not None, "no record of a running cluster"
        return record

    @property
    def uri(self) -> str:
        return (self.directory / "uri").read_text().strip()

    def pid(self, name: str) -> int:
        return next(node.pid for node in self.record.nodes if node.name == name)

    def status(self) -> dict:
        return json.loads(self.command("status", "--json", check=False).stdout)

    def wait_for(self, fact: Callable[[dict], object]) -> dict:
        """The status as soon as this is true of it."""
        return status_when(fact, lambda: read_status(self.file), self.directory / "control")

    def wait_until_running(self) -> dict:
        return self.wait_for(lambda status: status["state"] == "running")

    def logged_writes(self) -> list[dict]:
        """The clients' writes in the merged log, of all runs."""
        entries = map(json.loads, self.command("logs", "--json", "--all-runs").stdout.splitlines())
        return [entry for entry in entries if entry["operation"] == "WRITE" and entry["kind"] == "request"]

    def introduce(self, sock: socket.socket, node: str, who: Who = Who.SERVER) -> None:
        """Say at a node's door that one is of this cluster, as who can read its secret may."""
        introduce(sock, Pass(RunDirectory(self.name).secret(), who, node))

    def connect(self, **options):
        return memcluster.connect(self.uri, **options)

    def down(self, *words: str, check: bool = True):
        self.remember()
        return self.command("down", *words, check=check)

    def end(self) -> list[str]:
        """Stop the cluster if it still runs, in whatever state it is; returns what it has left behind."""
        record = RunDirectory(self.name).record()
        if record is not None:
            self._note(record)
            self.command("down", "--timeout", "10s", check=False)
        problems = self.left_behind()
        for identity in (*self._seen.values(), *self.processes()):
            identity.signal(signal.SIGKILL)
        shutil.rmtree(self.directory, ignore_errors=True)
        return problems

    def processes(self) -> list[Identity]:
        """Everything that says by its title that it is of this cluster, or works in its folder, recorded or not."""
        title, folder, found = f"memcluster {self.name}:".encode(), str(self.folder), []
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            with suppress(OSError):
                if os.readlink(f"/proc/{pid}/cwd") == folder or title in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(Identity.of(int(pid)))
        return [identity for identity in found if identity is not None and identity.alive]

    def left_behind(self, seconds: float = 5.0) -> list[str]:
        """Processes and files of this cluster that are still there."""
        problems = []
        if not wait_gone([*self._seen.values(), *self.processes()], seconds):
            problems += [f"process {identity}" for identity in self._seen.values() if identity.alive]
        problems += [f"process {identity} of which nothing was known" for identity in self.processes()]
        if self.directory.exists():
            problems.append(f"{self.directory}: {sorted(entry.name for entry in self.directory.iterdir())}")
        path = str(self.keys["listen"]).partition("unix:")[2]
        if path and (self.folder / path).exists():
            problems.append(f"socket {path}")
        return problems


@contextmanager
def clusters() -> Iterator[Callable[..., Cluster]]:
    """Makes clusters, as Cluster does, which are ended however the test ends, and must leave nothing."""
    made: list[Cluster] = []

    def new(folder: Path, **keys) -> Cluster:
        made.append(Cluster(folder, **keys))
        return made[-1]

    try:
        yield new
    finally:
        problems = [problem for cluster in reversed(made) for problem in cluster.end()]
    assert not problems, problems


@contextmanager
def commands() -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts commands of this checkout's code, as Popen does; those that still run when the test ends are killed."""
    started: list[subprocess.Popen] = []

    def start(*command: str | os.PathLike[str], env: dict[str, str] | None = None, **options) -> subprocess.Popen:
        started.append(subprocess.Popen(command, env=environment(**(env or {})), **options))
        return started[-1]

    try:
        yield start
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait(TIMEOUT)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
