"""Processes that a measurement starts: each is ended, by its own handle, when the measurement is over.

A server gets its listening socket ready made (systemd's socket activation), so that it can have port 0, and clients
may connect before it has come up: they wait in the backlog.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import memcluster

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "cc": "gcc",
    "fio": "fio",
    "honcho": "honcho (pip install honcho)",
    "ip": "iproute2",
    "nbdkit": "nbdkit",
    "nsenter": "util-linux",
    "perf": "linux-perf",
    "py-spy": "py-spy (pip install py-spy)",
    "qemu-nbd": "qemu-utils",
    "setpriv": "util-linux",
    "strace": "strace",
    "unshare": "util-linux",
    "valgrind": "valgrind",
}
"""What provides a command, for people; Debian's name where nothing else is said."""
SYSTEMD_FIRST = 3
"""The descriptor at which an activated server finds its socket (sd_listen_fds(3))."""
_ACTIVATE = (
    f"import os, sys; os.dup2(int(sys.argv[1]), {SYSTEMD_FIRST}); "
    "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid())); os.execvp(sys.argv[2], sys.argv[2:])"
)
FILL = memoryview(os.urandom(1 << 20))


class Missing(Exception):
    """A measurement needs a command that is not there; names its package."""

    def __init__(self, command: str) -> None:
        self.command = command
        super().__init__(f"{command} is missing: install {PACKAGES.get(command, command)}")


class Failed(Exception):
    """A command that a measurement needs has failed; says what it said."""


@dataclass(frozen=True)
class Service:
    """A memory that can be measured: where clients connect, and the process that they talk to."""

    uri: str
    pid: int


def need(command: str) -> str:
    """The path of a command: of this Python's environment first. Raises Missing."""
    path = shutil.which(command, path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}")
    if path is None:
        raise Missing(command)
    return path


def run(*command: str, cwd: str | Path | None = None, timeout: float = 120.0, root: Path = ROOT) -> str:
    """What a command printed on stdout; a Python imports the packages of the checkout at `root`. Raises Failed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, timeout=timeout, check=False, env=environment(root))
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise Failed(f"{' '.join(command)}: exit {done.returncode}: {said}")
    return done.stdout.decode()


def environment(root: Path = ROOT) -> dict[str, str]:
    """For a Python that has a checkout's packages."""
    return {**os.environ, "PYTHONPATH": str(root)}


@contextmanager
def running(
    command: Sequence[str],
    *,
    cwd: str | Path | None = None,
    pass_fds: Sequence[int] = (),
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process for as long as the block lasts."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        pass_fds=pass_fds,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env=environment(),
    )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL for one that does not heed it."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout:
        process.stdout.close()


@contextmanager
def activated(*command: str, unix: bool = False) -> Iterator[Service]:
    """An NBD server that is given its listening socket, as a service."""
    with tempfile.TemporaryDirectory(prefix="memcluster-bench-") as folder:
        if unix:
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(f"{folder}/socket")
            uri = f"nbd+unix:///?socket={folder}/socket"
        else:
            sock = socket.socket()
            sock.bind(("127.0.0.1", 0))
            uri = f"nbd://127.0.0.1:{sock.getsockname()[1]}"
        with sock, open(f"{folder}/stderr", "w+b") as said:
            sock.listen(1024)
            shim = [sys.executable, "-c", _ACTIVATE, str(sock.fileno()), need(command[0]), *command[1:]]
            with running(shim, pass_fds=[sock.fileno()], stderr=said) as process:
                sock.close()  # so that nobody waits for ever in the backlog of a server that failed
                try:
                    yield Service(uri, process.pid)
                except Exception as error:
                    if process.poll() is None:
                        raise
                    said.seek(0)
                    words = said.read().decode(errors="replace").strip()
                    raise Failed(f"{command[0]} ended with {process.returncode}: {words}") from error


def fill(service: Service, size: int) -> None:
    """Write every byte of the memory, so that no measurement reads holes."""
    with memcluster.connect(service.uri) as memory:
        writes = [memory.start_pwrite(FILL[: size - start], start) for start in range(0, size, len(FILL))]
        for write in writes:
            write.result()
