"""A lab of hosts: namespaces of this machine, each with a network, a host name, processes, a /dev/shm and an sshd of
its own. The first has a bridge to which the others are linked, and is where commands are run. It takes root.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from harness import ROOT, TIMEOUT, environment, need, run, status_when

from memcluster.client.discover import run_directory
from memcluster.launcher.run.control import NoAnswer, ask
from memcluster.launcher.run.identity import Identity
from memcluster.launcher.run.leftovers import wait_gone

INIT = """
hostname {name}
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir /run/sshd
ip link set lo up
echo up
while :; do sleep 3600 & wait $!; done
"""
"""The first process of a host: it waits for whoever is left to it."""
SSHD = """
HostKey {key}
AuthorizedKeysFile {key}.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
MaxStartups 100
"""
SSH = """#!/bin/sh
exec {ssh} -i {key} -oStrictHostKeyChecking=no -oUserKnownHostsFile=/dev/null -oLogLevel=ERROR "$@"
"""


class Host:
    """One of the lab's: `run` runs a command there."""

    def __init__(self, name: str, address: str, clock: int = 0) -> None:
        self.name = name
        self.address = address
        # With a clock of its own the monotonic clock is ahead by so many seconds, as another machine's is.
        time_of_its_own = ["--time", f"--monotonic={clock}", f"--boottime={clock}"] if clock else []
        words = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--uts", "--ipc", "--pid"]
        words += [*time_of_its_own, "--fork", "--kill-child", "--mount-proc"]
        script = INIT.format(name=name)
        self._init = subprocess.Popen([*words, "sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True)
        assert self._init.stdout is not None
        assert self._init.stdout.readline() == b"up\n"
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text().split()
        self.pid = int(children[0])
        self._names = os.readlink(f"/proc/{self.pid}/ns/uts")
        self._depth = len(_pids(self.pid)) - 1
        self._sshd: subprocess.Popen[bytes] | None = None

    def words(self, *command: str) -> list[str]:
        """The command as it is run from outside."""
        return ["nsenter", "--target", str(self.pid), "--all", "--", *map(str, command)]

    def run(self, *command: str | Path, check: bool = True, timeout: float = TIMEOUT, **variables: str):
        return run(*self.words(*map(str, command)), check=check, timeout=timeout, **variables)

    def start_sshd(self, folder: Path) -> None:
        """And wait until it listens."""
        words = self.words(need("sshd", "openssh-server"), "-D", "-f", str(folder / "sshd_config"))
        self._sshd = subprocess.Popen(words, stderr=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + TIMEOUT
        while not self.run("ss", "-Htln", "sport = 22").stdout:
            assert time.monotonic() < deadline, "sshd does not listen"

    def stop_sshd(self) -> None:
        """The daemon, and those of its processes that serve somebody."""
        self.run("pkill", "-KILL", "-x", "sshd", check=False)
        if self._sshd is not None:
            self._sshd.wait()

    def ours(self) -> dict[int, str]:
        """Processes of memcluster there, by pid, as they call themselves."""
        return {pid: words for _, pid, words in self._ours()}

    def wait_until_empty(self, deadline: float) -> None:
        """No process of memcluster is left there."""
        while found := self._ours():
            left = [identity for pid, _, _ in found if (identity := Identity.of(pid))]
            assert wait_gone(left, max(0.0, deadline - time.monotonic())), (self.name, found)

    def _ours(self) -> list[tuple[int, int, str]]:
        """Each with its pid here and there."""
        found = []
        for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
            with suppress(OSError):
                if os.readlink(f"/proc/{pid}/ns/uts") != self._names:
                    continue
                words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                if "memcluster" in words and len(pids := _pids(pid)) > self._depth:  # else it is only on its way there
                    found.append((pid, pids[self._depth], words))
        return found

    def left(self) -> list[str]:
        """What is in /dev/shm."""
        return self.run("ls", "/dev/shm").stdout.decode().split()

    def cut(self, cut: bool) -> None:
        """The link to the others."""
        self.run("ip", "link", "set", "eth0", "down" if cut else "up")

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._init.pid, signal.SIGKILL)  # the kernel ends all that is in the namespace with its first
        os.kill(self.pid, signal.SIGKILL) if Path(f"/proc/{self.pid}").exists() else None
        self._init.wait()
        if self._sshd is not None:
            self._sshd.kill()
            self._sshd.wait()
        assert self._init.stdout is not None
        self._init.stdout.close()


def _pids(pid: int) -> list[int]:
    """Those of a process, in this namespace and in each within it that has the process."""
    found = re.search(r"^NSpid:(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return [int(word) for word in found[1].split()] if found else []


class Lab:
    """`here` is where commands are run, `hosts` are the others by name."""

    engine = "ssh"
    needs = (("sshd", "openssh-server"), ("ssh", "openssh-client"))
    """Commands, and the Debian packages that have them."""
    home = "host-a"
    names: tuple[str, ...] = ("host-b", "host-c")

    def __init__(self, folder: Path, names: tuple[str, ...] = (), clock: int = 0) -> None:
        self.folder = folder
        self.file = folder / "cluster.yaml"
        self.here = Host(self.home, "10.9.0.1")
        self.hosts: dict[str, Host] = {}
        try:
            self.here.run("ip", "link", "add", "br0", "type", "bridge")
            self.here.run("ip", "addr", "add", "10.9.0.1/24", "dev", "br0")
            self.here.run("ip", "link", "set", "br0", "up")
            for number, name in enumerate(names or self.names, start=2):
                host = self.hosts[name] = Host(name, f"10.9.0.{number}", clock * (number - 1))
                self.here.run("ip", "link", "add", f"to-{number}", "type", "veth", "peer", "name", f"p{number}")
                nsenter = ["nsenter", "--target", str(self.here.pid), "--net", "--"]
                run(*nsenter, "ip", "link", "set", f"p{number}", "netns", str(host.pid), "name", "eth0")
                self.here.run("ip", "link", "set", f"to-{number}", "master", "br0", "up")
                host.run("ip", "addr", "add", f"{host.address}/24", "dev", "eth0")
                host.run("ip", "link", "set", "eth0", "up")
            self.start_engine()
        except BaseException:
            self.end()
            raise

    def start_engine(self) -> None:
        """On all hosts; nothing of it outlives them."""
        folder = self.folder
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key")
        (folder / "sshd_config").write_text(SSHD.format(key=folder / "key"))
        (folder / "bin").mkdir()
        (folder / "bin" / "ssh").write_text(SSH.format(ssh=need("ssh", "openssh-client"), key=folder / "key"))
        (folder / "bin" / "ssh").chmod(0o755)
        for host in self.hosts.values():
            host.start_sshd(folder)

    def describe(self, **keys: object) -> None:
        """Write cluster.yaml, in JSON, which YAML knows."""
        python = shlex.quote(sys.executable)
        document = {
            "name": "lab",
            "memory": "3MiB",
            "servers": 3,
            "listen": "127.0.0.1:0",
            "hosts": [{"name": host.name, "address": host.address} for host in self.hosts.values()],
            "engine": {self.engine: {"command": f"env PYTHONPATH={shlex.quote(str(ROOT))} {python} -P -m memcluster"}},
            "host_lease": "20s",
            **keys,
        }
        self.file.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))

    def command(self, *words: str, check: bool = True, timeout: float = TIMEOUT):
        """`memcluster WORDS`."""
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        command = [sys.executable, "-P", "-m", "memcluster", "-f", str(self.file), *words]
        return self.here.run("env", f"PATH={path}", *command, check=check, timeout=timeout)

    def memclient(self, *words: str, check: bool = True, timeout: float = TIMEOUT, host: Host | None = None):
        """`memclient WORDS`, where commands are run or on another host; there nobody finds the cluster by its file."""
        words = words if host else ("-f", str(self.file), *words)
        command = [sys.executable, "-P", "-m", "memcluster.client.cli", *words]
        return (host or self.here).run(*command, check=check, timeout=timeout)

    @property
    def control(self) -> Path:
        """The supervisor's socket, as it is reached from outside."""
        return Path(f"/proc/{self.here.pid}/root{run_directory('lab')}/control")

    def status(self) -> dict:
        """What the supervisor says, or the command that finds none; {"state": "none"} if that has nothing to say."""
        with suppress(NoAnswer):
            return ask(self.control, {"do": "status"}, TIMEOUT)
        said = self.command("status", "--json", check=False).stdout
        return json.loads(said) if said else {"state": "none", "nodes": []}

    def wait_for(self, fact) -> dict:
        """The status as soon as this is true of it."""
        return status_when(fact, self.status, self.control)

    def wait_until_running(self) -> dict:
        return self.wait_for(lambda status: status["state"] == "running")

    def wait_until_empty(self, *hosts: Host) -> None:
        """No process of ours is left there."""
        deadline = time.monotonic() + TIMEOUT
        for host in hosts or (self.here, *self.hosts.values()):
            host.wait_until_empty(deadline)

    def end(self) -> None:
        for host in (self.here, *self.hosts.values()):
            host.end()


@functools.cache
def why_not(kind: type[Lab]) -> str:
    """What keeps such a lab from being made here; "" if nothing does."""
    if os.geteuid():
        return "a lab of hosts is made by root alone"
    for command, package in (*kind.needs, ("ip", "iproute2")):
        if shutil.which(command) is None:
            return f"{command} is missing: install the Debian package {package}"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "mount", "-t", "tmpfs", "tmpfs", "/run"],
        capture_output=True,
        check=False,
        env=environment(),
    )
    return f"namespaces are not allowed here: {tried.stderr.decode().strip()}" if tried.returncode else ""


@contextmanager
def lab(folder: Path, kind: type[Lab] = Lab, **options) -> Iterator[Lab]:
    """Skips the test where there can be none."""
    if reason := why_not(kind):
        if os.environ.get("MEMCLUSTER_REQUIRE_CLIENTS") and "missing" in reason:
            pytest.fail(reason)
        pytest.skip(reason)
    made = kind(folder, **options)
    try:
        yield made
    finally:
        made.end()


# -- what tests do with one -------------------------------------------------------------------------------------------

LOAD = """
import sys, memcluster
uri, size = sys.argv[1], int(sys.argv[2])
written, number = {}, 0
with memcluster.connect(uri, timeout=300) as memory:
    print("begun", flush=True)
    import select
    while not select.select([sys.stdin], [], [], 0)[0]:
        number += 1
        offset = number * 65_521 * 8 % (size - 8)
        memory[offset : offset + 8] = number.to_bytes(8, "big")
        for near in range(offset - 7, offset + 8):
            written.pop(near, None)
        written[offset] = number
    found = memory[0:size]
wrong = [offset for offset, each in written.items() if found[offset : offset + 8] != each.to_bytes(8, "big")]
print(f"{number} written, {len(wrong)} wrong", flush=True)
"""
"""Writes all over the memory, each when the one before was acknowledged, until it is enough; then reads all of it."""


def up(lab: Lab, **keys: object) -> dict:
    lab.describe(**keys)
    lab.command("up", "-d")
    return lab.wait_until_running()


def pids(status: dict) -> dict[str, int]:
    return {node["name"]: node["pid"] for node in status["nodes"]}


def guardian(host: Host) -> int:
    [pid] = [pid for pid, words in host.ours().items() if words.endswith(": guardian")]
    return pid


@contextmanager
def load(lab: Lab, status: dict) -> Iterator[None]:
    """Every write that was acknowledged meanwhile is there afterwards, and there were some."""
    words = [sys.executable, "-P", "-c", LOAD, status["uri"], str(status["memory"])]
    writer = subprocess.Popen(
        lab.here.words(*words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"begun\n"
        yield
        said, errors = writer.communicate(b"enough\n", timeout=60)
    finally:
        writer.kill()
        writer.communicate()
    found = re.fullmatch(rb"(\d+) written, 0 wrong\n", said)
    assert found, (said, errors)
    assert int(found[1]) > 1
