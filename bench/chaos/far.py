"""Other hosts for a run: namespaces of this machine, as the tests have them (tests/hostlab.py). The run itself takes
place on the first of them, from where nobody gets into the others; who has made them stays outside, and runs there what
he is asked to run.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Client, Listener
from pathlib import Path
from threading import Lock, Thread

ROOT = Path(__file__).parent.parent.parent
CLOCK = 3600
"""Seconds that the clock of each host is ahead of the one before."""
HERE = "10.9.0.1"
"""The address of the host where the run takes place."""
PATIENCE = 30.0
SIGNAL = '[ "$(sed "s/.*) //" /proc/$1/stat | cut -d" " -f20)" = "$2" ] && kill -"$3" "$1"'
"""For a shell: a signal to a process by its pid and its start time."""
SHOW = "ps -eo stat=,args= | grep -v '^Z' | grep -F \"memcluster $1\" | grep -v grep; ls /dev/shm"
"""What processes of a cluster there are, and what lies in /dev/shm."""


def names(count: int) -> list[str]:
    return [f"host-{chr(ord('b') + number)}" for number in range(count)]


def run_in_lab(count: int, words: list[str]) -> int:
    """`python -m bench.chaos WORDS` where there are so many other hosts; its exit code."""
    sys.path.append(str(ROOT / "tests"))
    from hostlab import Lab, why_not

    if reason := why_not(Lab):
        raise SystemExit(f"no hosts: {reason}")
    with tempfile.TemporaryDirectory(prefix="memcluster-lab-") as folder:
        listener = Listener(f"{folder}/relay")
        lab = Lab(Path(folder), names=tuple(names(count)), clock=CLOCK)
        try:
            Thread(target=_serve, args=(listener, lab.hosts), daemon=True).start()
            path = f"PATH={folder}/bin:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
            command = lab.here.words("env", path, sys.executable, "-m", "bench.chaos", *words, "--lab", folder)
            return subprocess.run(command, cwd=ROOT, check=False).returncode
        finally:
            lab.end()
            listener.close()


def _serve(listener: Listener, hosts: dict[str, object]) -> None:
    """Whoever comes, until he is gone."""
    with suppress(OSError), listener.accept() as asked, suppress(EOFError):
        while True:
            host, words = asked.recv()
            done = hosts[host].run(*words, check=False, timeout=PATIENCE)  # type: ignore[attr-defined]
            asked.send((done.returncode, done.stdout))


class Far:
    """The other hosts, as a run has them."""

    def __init__(self, folder: Path, count: int) -> None:
        self.hosts = names(count)
        self._relay = Client(str(folder / "relay"))
        self._lock = Lock()

    def address(self, host: str) -> str:
        return f"10.9.0.{2 + self.hosts.index(host)}"

    def run(self, host: str, *words: str) -> tuple[int, bytes]:
        """A command there: its exit code, and what it printed."""
        with self._lock:
            self._relay.send((host, words))
            code, said = self._relay.recv()
            return code, said

    def cut(self, host: str, cut: bool) -> None:
        """The link to the others."""
        self.run(host, "ip", "link", "set", "eth0", "down" if cut else "up")

    def guardian(self, host: str, cluster: str) -> int:
        """Its pid; 0 if there is none."""
        code, said = self.run(host, "pgrep", "-f", "-x", f"memcluster {cluster}@{host}: guardian")
        return 0 if code else int(said.split()[0])

    def left(self, host: str, cluster: str) -> list[str]:
        """Processes of the cluster, and files."""
        return [f"{host}: {line}" for line in self.run(host, "sh", "-c", SHOW, "sh", cluster)[1].decode().splitlines()]


@dataclass(frozen=True)
class FarProcess:
    """In the place of an Identity."""

    far: Far
    host: str
    pid: int
    start: int

    def signal(self, number: int) -> bool:
        """False if it is gone."""
        words = ("sh", "-c", SIGNAL, "sh", str(self.pid), str(self.start), str(int(number)))
        return self.far.run(self.host, *words)[0] == 0
