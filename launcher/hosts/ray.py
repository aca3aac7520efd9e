"""Ray as an engine: a task for each host, pinned to it, which a driver in a process of its own submits (raydriver.py).

The driver is run again when it dies, as it does some time after Ray's head has. Guardians live on then.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Any

from memcluster.launcher.clusterfile.settings import EngineConfig
from memcluster.launcher.hosts.engine import Ended, EngineError, Host, Letters
from memcluster.launcher.hosts.letter import VARIABLE, Letter
from memcluster.launcher.hosts.programs import last_line, shell_line
from memcluster.node.nbd.printable import printable
from memcluster.node.transport.loop import READ, Loop


class Ray:
    """See engine.Engine."""

    letter: Letter | None = None

    def __init__(self, loop: Loop, config: EngineConfig, ended: Ended) -> None:
        if importlib.util.find_spec("ray") is None:
            raise EngineError("there is no Ray here: pip install 'memcluster[ray]'")
        self._loop = loop
        self._ended = ended
        self._address = [config.at] if config.at else []
        self._orders: dict[str, dict[str, Any]] = {}
        self._running: set[str] = set()
        self._driver: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] = open(os.memfd_create("errors"), "r+b")  # noqa: SIM115 - as long as this engine
        self._heard = b""

    def start(self, hosts: Sequence[Host], argv: Sequence[str], letters: Letters) -> None:
        words = ["/bin/sh", "-c", shell_line(argv)]
        self._start_driver()  # which takes longer to load Ray than the letters to be written
        for host in hosts:
            env = {VARIABLE: letters(host.name)}
            self._orders[host.name] = {"host": host.name, "at": host.name, "words": words, "env": env}
            self.again(host)

    def again(self, host: Host) -> None:
        driver = self._driver or self._start_driver()
        assert driver.stdin is not None
        self._running.add(host.name)
        with suppress(BrokenPipeError):  # it is dead, which the end of its output tells
            driver.stdin.write(json.dumps(self._orders[host.name]).encode() + b"\n")
            driver.stdin.flush()

    def stop(self) -> None:
        if self._driver is not None:
            self._end_driver(self._driver)
        self._errors.close()

    def _start_driver(self) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-P", "-m", "memcluster.launcher.hosts.raydriver", *self._address]
        self._errors.truncate(0)
        driver = self._driver = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # a Ctrl-C is for the supervisor
        )
        assert driver.stdout is not None
        self._heard = b""
        self._loop.watch(driver.stdout.fileno(), READ, lambda _: self._hear(driver))
        return driver

    def _end_driver(self, driver: subprocess.Popen[bytes]) -> None:
        assert driver.stdin is not None
        assert driver.stdout is not None
        self._driver = None
        self._loop.unwatch(driver.stdout.fileno())
        driver.kill()
        driver.wait()
        with suppress(BrokenPipeError):
            driver.stdin.close()
        driver.stdout.close()

    def _hear(self, driver: subprocess.Popen[bytes]) -> None:
        assert driver.stdout is not None
        data = os.read(driver.stdout.fileno(), 1 << 16)
        *lines, self._heard = (self._heard + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            self._running.discard(said["host"])
            self._ended(said["host"], printable(said["ended"]))
        if not data:
            self._end_driver(driver)
            how = "Ray's driver ended" + last_line(self._errors)
            running, self._running = self._running, set()
            for host in running:
                self._ended(host, how)
