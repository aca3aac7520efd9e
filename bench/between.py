"""What a link between two hosts costs: a secondary on another host beside the same on one host with TCP links, in
alternating pairs, with TLS and without, by congestion control and by the delay of the link. Beside the rates, which a
busy machine changes, stands the time of a processor that both servers needed for a request.

    python -m bench.between [--delay MS]... [--control NAME]... [--runtime TIME] [--pairs N]

At the end stands what TLS leaves of a link to two processes that do nothing else (`bench.bare`).

Takes root and the test extra: the hosts are those of the tests' lab. With a delay the link is `delay.c`, in user space,
which moves a few hundred MB a second at most: what is compared there is the controls with one another.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from bench.netns import slow
from memcluster.launcher.certificates import between_hosts
from memcluster.launcher.hosts.letter import write_certificates

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from hostlab import Lab, lab

from bench.bare import moved

CONTROLS = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
CONTROL = "/proc/sys/net/ipv4/tcp_congestion_control"
LOADS: dict[str, tuple[str, ...]] = {
    "4 KiB reads": ("--block", "4KiB", "--depth", "32"),
    "4 KiB writes": ("--write", "--block", "4KiB", "--depth", "32"),
    "1 MiB reads": ("--block", "1MiB", "--depth", "8"),
    "1 MiB writes": ("--write", "--block", "1MiB", "--depth", "8"),
}
MEMORY = "128MiB"
REGION = ("--offset", "0", "--length", "64MiB")
"""All of the secondary's part."""
ALONE = 1.0
"""Seconds of what bare processes move."""
TICKS = os.sysconf("SC_CLK_TCK")
HERE, THERE = "10.8.0.1", "10.8.0.2"
"""The ends of a slow link."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.between", description=__doc__)
    parser.add_argument("--delay", type=float, action="append", help="ms each way; 0 is veth")
    parser.add_argument("--control", action="append", help="congestion controls; all that may be chosen")
    parser.add_argument("--load", action="append", choices=list(LOADS))
    parser.add_argument("--runtime", default="500ms")
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    words = ("--runtime", options.runtime, "--pairs", str(options.pairs))
    loads = options.load or list(LOADS)
    print("a secondary on another host : the same on one host, the median ratio of the rates (least to most), and in")
    print("the servers' time of a processor for a request (µs of the first : µs of the second)")
    print(f"| link | control | | {' | '.join(loads)} |\n|{'---|' * (3 + len(loads))}")
    for delay in options.delay or [0.0]:
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            made = stack.enter_context(lab(Path(folder), names=("host-b",)))
            if delay:
                stack.enter_context(delayed(made, delay))
            near = stack.enter_context(cluster(made, "near", hosts=None, engine=None, host_lease=None))
            for control in options.control or CONTROLS.read_text().split():
                for host in (made.here, *made.hosts.values()):
                    host.run("sh", "-c", f"echo {control} > {CONTROL}")
                for encrypted in (False, True):
                    link = THERE if delay else made.hosts["host-b"].address
                    at = [{"name": "host-b", "address": link}]
                    with cluster(made, "far", hosts=at, host_encryption=encrypted) as far:
                        cells = [compared(made, far, near, *LOADS[load], *words) for load in loads]
                    where, how = f"{delay:g} ms" if delay else "veth", "TLS" if encrypted else "plain"
                    print(f"| {where} | {control} | {how} | {' | '.join(cells)} |", flush=True)
            print(f"{delay:g} ms: {alone(made, link, options.pairs)}", flush=True)


class Pair:
    """A cluster of two servers; `uri` is that of the secondary's part."""

    def __init__(self, made: Lab, status: dict[str, Any]) -> None:
        self.uri = f"{status['uri']}/server1"
        hosts = {host.name: host for host in (made.here, *made.hosts.values())}
        servers = [node for node in status["nodes"] if node["name"].startswith("server")]
        self._servers = [(hosts[node.get("host", "host-a")], node["pid"]) for node in servers]

    def ticks(self) -> int:
        """Of a processor, that both servers have had."""
        found = 0
        for host, pid in self._servers:
            fields = host.run("cat", f"/proc/{pid}/stat").stdout.decode().rpartition(")")[2].split()
            found += int(fields[11]) + int(fields[12])
        return found


@contextmanager
def cluster(made: Lab, name: str, **keys: Any) -> Iterator[Pair]:
    """`down` afterwards."""
    folder = made.folder / name
    folder.mkdir(exist_ok=True)
    made.file = folder / "cluster.yaml"
    made.describe(name=name, servers=2, memory=MEMORY, **keys)
    made.command("up", "-d")
    try:
        yield Pair(made, made.status())
    finally:
        made.file = folder / "cluster.yaml"
        made.command("down")


def compared(made: Lab, far: Pair, near: Pair, *words: str) -> str:
    """A cell of the table."""
    command = ["-P", "-m", "memcluster.client.cli", "--uri", far.uri, "bench", "--against", near.uri, "--json"]
    before = far.ticks(), near.ticks()
    told = json.loads(made.here.run(sys.executable, *command, *words, *REGION).stdout)
    ticks = far.ticks() - before[0], near.ticks() - before[1]
    kind = "write" if "--write" in words else "read"
    requests = told[kind]["requests"], told["against"][kind]["requests"]
    ours, theirs = (1e6 * count / TICKS / most for count, most in zip(ticks, requests, strict=True))
    ratio = told["ratio"][kind]
    spread = f"{ratio['least']:.2f}–{ratio['greatest']:.2f}"
    return f"{ratio['median']:.2f} ({spread}), {ours / theirs:.2f} ({ours:,.0f} : {theirs:,.0f})"


def alone(made: Lab, address: str, pairs: int) -> str:
    """TLS beside none, of processes that do nothing else."""
    far = made.hosts["host-b"]
    folder = write_certificates(made.folder / "bare", between_hosts())
    plain, sealed = [], []
    for _ in range(pairs):
        plain.append(moved(made.here, far, address, "", ALONE))
        sealed.append(moved(made.here, far, address, folder, ALONE))
    rate = median(ours[0] / theirs[0] for ours, theirs in zip(sealed, plain, strict=True))
    used = [median(each[1] for each in side) for side in (sealed, plain)]
    return f"two bare processes have {rate:.2f} of their rate with TLS, for {used[0]:,.0f} : {used[1]:,.0f} µs a MiB"


@contextmanager
def delayed(made: Lab, milliseconds: float) -> Iterator[None]:
    """A second link between the two hosts, slow."""
    ends = {HERE: made.here, THERE: made.hosts["host-b"]}
    with slow([f"/proc/{host.pid}/ns/net" for host in ends.values()], milliseconds / 1000):
        for address, host in ends.items():
            host.run("ip", "addr", "add", f"{address}/30", "dev", "slow")
            host.run("ip", "link", "set", "slow", "up")
        yield


if __name__ == "__main__":
    main()
