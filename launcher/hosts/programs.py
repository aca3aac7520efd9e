"""Programs of others that each run a command on a host and last as long as it: what ssh and srun have in common.

One a host. When this process dies the kernel kills those that nobody would miss; the others live as long as their
commands, which the lease ends.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO

from memcluster.launcher.hosts.engine import Ended, Host
from memcluster.launcher.hosts.letter import Letter
from memcluster.launcher.run.identity import signal_name
from memcluster.node.nbd.printable import printable
from memcluster.node.transport.loop import READ, Loop
from memcluster.node.zygote import PR_SET_PDEATHSIG

_prctl = ctypes.CDLL(None).prctl
"""Looked up now: a process that has just been forked is not to load anything."""


def shell_line(argv: Sequence[str]) -> str:
    """For the shell of a host. The first word is as cluster.yaml has it, so that it may be ~/venv/bin/memcluster."""
    command, *rest = argv
    return f"exec {command} {shlex.join(rest)}"


def last_line(errors: IO[bytes]) -> str:
    """What a program that has ended said at last, behind a colon; "" if it said nothing."""
    errors.seek(0)
    said = [line for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
    return f": {printable(said[-1])}" if said else ""


@dataclass(frozen=True)
class Program:
    """What is run: its words, and what its environment has beside ours."""

    words: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    has_to_clean_up: bool = False
    """It is asked to end by a SIGTERM, and takes its time; otherwise it is killed."""


class Programs:
    """Most of engine.Engine; `start` is for those to add who know the words."""

    letter: Letter | None = None

    def __init__(self, loop: Loop, ended: Ended) -> None:
        self._loop = loop
        self._ended = ended
        self._programs: dict[str, Program] = {}
        self._told: dict[str, bytes] = {}
        self._running: dict[str, _Running] = {}

    def run(self, host: str, program: Program) -> None:
        """For the first time; `tell` has to follow."""
        self._programs[host] = program
        self._run(host)

    def tell(self, host: str, words: bytes) -> None:
        """All that its standard input has, each time that it is run."""
        self._told[host] = words
        self._running[host].tell(words)

    def again(self, host: Host) -> None:
        self._run(host.name)
        self.tell(host.name, self._told[host.name])

    def stop(self) -> None:
        for running in self._running.values():
            running.end()
        self._running.clear()

    def _run(self, host: str) -> None:
        if earlier := self._running.pop(host, None):
            earlier.end()
        self._running[host] = _Running(self._loop, self._programs[host], lambda how: self._gone(host, how))

    def _gone(self, host: str, how: str) -> None:
        self._running.pop(host).end()
        self._ended(host, how)


class _Running:
    """One of them."""

    def __init__(self, loop: Loop, program: Program, gone: Callable[[str], None]) -> None:
        self._loop = loop
        self._program = program
        self._gone = gone
        self._errors: IO[bytes] = open(os.memfd_create("errors"), "r+b")  # noqa: SIM115 - as long as the program
        starter = os.getpid()
        stays = program.has_to_clean_up

        def end_with_starter() -> None:
            _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != starter:
                os._exit(1)

        self._process = subprocess.Popen(
            program.words,
            env={**os.environ, **program.env},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,  # a Ctrl-C is for the supervisor
            preexec_fn=None if stays else end_with_starter,  # noqa: PLW1509 - one call of the system, and no lock
        )
        self._pidfd: int | None = os.pidfd_open(self._process.pid)
        loop.watch(self._pidfd, READ, lambda _: self._over())

    def tell(self, words: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(words)

    def end(self) -> None:
        """Be rid of it. The command on the host may live on."""
        if self._pidfd is not None:
            self._loop.unwatch(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
            if self._program.has_to_clean_up:
                self._process.terminate()
            else:
                self._process.kill()
                self._process.wait()
            assert self._process.stdin is not None
            self._process.stdin.close()  # of who has not been told anything
            self._errors.close()

    def _over(self) -> None:
        status = self._process.wait()
        how = f"killed by {signal_name(-status)}" if status < 0 else f"ended with status {status}"
        self._gone(f"{self._program.words[0]} {how}" + last_line(self._errors))
