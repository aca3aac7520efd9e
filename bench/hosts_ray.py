"""A cluster over hosts that Ray runs commands on, while parts of Ray and of ours die and the link is cut: the table of
docs/hosts.md. About five minutes, as root, with the extras `test` and `ray`.

    python -m bench.hosts_ray
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from hostlab import Host, Lab, guardian, lab, load, pids, up

COMMAND = Path(sys.executable).parent / "ray"
OPTIONS = ("--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats")
PORT = 6379
HEAD_IS_MISSED = 75
"""Seconds, longer than Ray's own patience."""


class RayLab(Lab):
    """Its head is where commands are run; on every host /tmp/ray is the host's own."""

    engine = "ray"
    needs = ()

    def start_engine(self) -> None:
        Path("/tmp/ray").mkdir(exist_ok=True)
        for host in (self.here, *self.hosts.values()):
            host.run("mount", "-t", "tmpfs", "tmpfs", "/tmp/ray")
        self.start_head()
        for host in self.hosts.values():
            self.join(host)

    def start_head(self) -> None:
        words = (f"--node-ip-address={self.here.address}", f"--port={PORT}", "--include-dashboard=false")
        self.here.run(COMMAND, "start", "--head", *words, *OPTIONS)

    def join(self, host: Host) -> None:
        words = (f"--address={self.here.address}:{PORT}", f"--node-ip-address={host.address}")
        host.run(str(COMMAND), "start", *words, *OPTIONS)

    def serves(self, host: Host) -> bool:
        """Ray's daemon is there."""
        return not host.run("pgrep", "-x", "raylet", check=False).returncode


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, lab(Path(folder), kind=RayLab) as labs:
        assert isinstance(labs, RayLab)
        began = time.monotonic()
        status = up(labs, host_lease="120s", retry_timeout="240s")
        print(f"up: {time.monotonic() - began:.1f} s", flush=True)
        host = labs.hosts["host-b"]
        with load(labs, status):
            report("a node is killed", labs, lambda: kill(host, pids(labs.status())["server1"]))
            report("the guardian is killed", labs, lambda: kill(host, guardian(host)))
            report("the link is cut for 10 s", labs, lambda: cut(host, 10, 0))
            report("raylet is killed, 10 s later", labs, lambda: kill_raylet(host), ends=False)
            report("… a new raylet, and the guardian is killed", labs, lambda: back(labs, host))
            report("the link is cut for 28 s", labs, lambda: cut(host, 28, 10), ends=False)
            report("… a new raylet, and the guardian is killed", labs, lambda: back(labs, host))
            report(f"the head is killed, {HEAD_IS_MISSED} s later", labs, lambda: kill_head(labs), ends=False)
            report("… a new head and raylets, and the guardian is killed", labs, lambda: new_head(labs, host))
        print("every write that was acknowledged is there", flush=True)
        labs.command("down")
        left = {each.name: (each.ours(), files(each)) for each in (labs.here, *labs.hosts.values())}
        print("left:", {name: found for name, found in left.items() if any(found)} or "nothing")


def files(host: Host) -> list[bytes]:
    """In its /dev/shm."""
    return host.run("find", "/dev/shm", "-mindepth", "1").stdout.split()


def report(what: str, labs: RayLab, do: Callable[[], object], *, ends: bool = True) -> None:
    """Do it, and say what has become of the guardian, of Ray's daemon there, and, if it `ends`, how soon all ran."""
    host = labs.hosts["host-b"]
    before = guardians(host)
    do()
    began = time.monotonic()
    took = ""
    if ends:
        labs.wait_until_running()
        took = f", all ready after {time.monotonic() - began:.1f} s"
    after = guardians(host)
    guard = "lived on" if after == before else "was run again" if after else "is gone"
    print(f"{what}: the guardian {guard}, raylet there: {labs.serves(host)}{took}", flush=True)


def guardians(host: Host) -> list[int]:
    """One, or none."""
    return [pid for pid, words in host.ours().items() if words.endswith(": guardian")]


def kill(host: Host, pid: int) -> None:
    """And wait until its going has been noticed: the status knows no more of it."""
    host.run("kill", "-KILL", str(pid))
    while pid in host.ours():
        time.sleep(0.05)
    time.sleep(1)


def kill_raylet(host: Host) -> None:
    host.run("pkill", "-KILL", "-x", "raylet")
    time.sleep(10)


def cut(host: Host, seconds: float, later: float) -> None:
    host.cut(True)
    time.sleep(seconds)
    host.cut(False)
    time.sleep(later)


def back(labs: RayLab, host: Host) -> None:
    """What a host's owner does for Ray, if it has to be done."""
    if not labs.serves(host):
        labs.join(host)
    for pid in guardians(host):
        kill(host, pid)


def kill_head(labs: RayLab) -> None:
    labs.here.run("pkill", "-KILL", "-x", "gcs_server")
    time.sleep(HEAD_IS_MISSED)


def new_head(labs: RayLab, host: Host) -> None:
    for each in (labs.here, *labs.hosts.values()):
        each.run(COMMAND, "stop", "--force", check=False)
    labs.start_head()
    for each in labs.hosts.values():
        labs.join(each)
    for pid in guardians(host):
        kill(host, pid)


if __name__ == "__main__":
    main()
