"""ssh as an engine: one client of it a host, which lasts as long as the command there. No engine in its own right, for
it knows nothing of a host's death; but what everybody has.

It asks nobody for a password, and goes by the user's own configuration: keys, ports, users and jump hosts are there.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO

from memcluster.launcher.hosts.engine import Ended, EngineError, Host
from memcluster.launcher.run.identity import signal_name
from memcluster.node.nbd.printable import printable
from memcluster.node.transport.loop import READ, Loop
from memcluster.node.zygote import PR_SET_PDEATHSIG

OPTIONS = ("BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=3")
NOT_FOUND = 127
"""What a shell ends with that does not find the command."""
_prctl = ctypes.CDLL(None).prctl
"""Looked up now: a process that has just been forked is not to load anything."""


class SSH:
    """See engine.Engine."""

    def __init__(self, loop: Loop, ended: Ended) -> None:
        self._loop = loop
        self._ended = ended
        self._clients: dict[str, _Client] = {}
        self._commands: dict[str, tuple[list[str], bytes]] = {}
        if shutil.which("ssh") is None:
            raise EngineError("there is no ssh here: install an OpenSSH client")

    def start(self, host: Host, argv: Sequence[str], env: Mapping[str, str]) -> None:
        """The first word is the shell's to read, so that it may be ~/venv/bin/memcluster."""
        command, *rest = argv
        words = ["ssh", "-T", *(f"-o{option}" for option in OPTIONS)]
        if host.address:
            words.append(f"-oHostName={host.address}")
        told = "".join(f"{value}\n" for value in env.values()).encode()
        self._commands[host.name] = [*words, "--", host.name, f"exec {command} {shlex.join(rest)}"], told
        self.again(host)

    def again(self, host: Host) -> None:
        if earlier := self._clients.pop(host.name, None):
            earlier.end()
        words, told = self._commands[host.name]
        self._clients[host.name] = _Client(self._loop, words, told, lambda how: self._gone(host, how))

    def stop(self) -> None:
        for client in self._clients.values():
            client.end()
        self._clients.clear()

    def _gone(self, host: Host, how: str) -> None:
        self._clients.pop(host.name).end()
        self._ended(host.name, how)


class _Client:
    """One ssh."""

    def __init__(self, loop: Loop, words: Sequence[str], told: bytes, gone: Callable[[str], None]) -> None:
        self._loop = loop
        self._gone = gone
        self._errors: IO[bytes] = open(os.memfd_create("ssh's errors"), "r+b")  # noqa: SIM115 - as long as the client
        starter = os.getpid()

        def end_with_starter() -> None:
            _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != starter:
                os._exit(1)

        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,  # a Ctrl-C is for the supervisor
            preexec_fn=end_with_starter,  # noqa: PLW1509 - one call of the system, and no lock
        )
        self._pidfd: int | None = os.pidfd_open(self._process.pid)
        loop.watch(self._pidfd, READ, lambda _: self._over())
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(told)

    def end(self) -> None:
        """Be rid of it. The command on the host may live on."""
        if self._pidfd is not None:
            self._loop.unwatch(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
            self._process.kill()
            self._process.wait()
            self._errors.close()

    def _over(self) -> None:
        status = self._process.wait()
        self._errors.seek(0)
        said = [line for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        how = f"killed by {signal_name(-status)}" if status < 0 else f"ended with status {status}"
        self._gone(f"ssh {how}" + (f": {printable(said[-1])}" if said else ""))
