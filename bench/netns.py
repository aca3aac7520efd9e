"""Two network namespaces with a slow link between them, for as long as a measurement lasts. Needs root and iproute2."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bench.native import compiled
from bench.processes import Failed, need, run

SERVER, CLIENT = "10.213.0.1", "10.213.0.2"


@dataclass(frozen=True)
class Link:
    """What goes before a command so that it runs at one of the ends."""

    server: tuple[str, ...]
    client: tuple[str, ...]


@contextmanager
def slow(files: Sequence[str], delay: float, loss: float = 0.0) -> Iterator[None]:
    """A device `slow` in each of two namespaces, told by their files, and the link between them. Raises Failed."""
    words = [compiled("delay.c"), *files, str(round(delay * 1e6)), str(round(loss * 10_000))]
    # Leaving closes its stdin, which ends it, and waits for it.
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise Failed("no link between two network namespaces: it takes root and /dev/net/tun")
        yield


@contextmanager
def link(delay: float, loss: float = 0.0) -> Iterator[Link]:
    """A link on which every packet takes `delay` seconds, and the share `loss` of them is lost, each way.

    Raises Failed where this is not allowed, Missing.
    """
    ip, enter = need("ip"), need("nsenter")
    names = [f"memcluster-bench-{os.getpid()}-{end}" for end in ("server", "client")]
    with ExitStack() as stack:
        for name in names:
            run(ip, "netns", "add", name)
            stack.callback(run, ip, "netns", "delete", name)
        files = [f"/run/netns/{name}" for name in names]
        stack.enter_context(slow(files, delay, loss))
        for name, address in zip(names, (SERVER, CLIENT), strict=True):
            run(ip, "-n", name, "address", "add", f"{address}/30", "dev", "slow")
            for device in ("lo", "slow"):
                run(ip, "-n", name, "link", "set", "dev", device, "up")
        server, client = ((enter, f"--net={file}") for file in files)
        yield Link(server, client)
