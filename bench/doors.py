"""What it costs that the cluster's own know each other, by either of two ways: a proof on TCP
(node/transport/proof.py), or unix sockets, of which the kernel says who is at the other side (SO_PEERCRED).

`python -m bench.doors` prints two tables: what it takes to open a connection, and what the requests of clients cost
when the links from the primary to the secondaries are of the one kind or the other. All take turns, for a shared
machine changes its speed within seconds.
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import struct
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from time import perf_counter_ns

import click

from bench.cluster import cluster
from bench.fio import KIB, LOADS, measure
from bench.peers import MEMORY
from bench.report import Rows, markdown, number
from memcluster.launcher.log.reader import introduce
from memcluster.node.transport.introduction import Doorkeeper
from memcluster.node.transport.listener import Listener
from memcluster.node.transport.loop import Loop
from memcluster.node.transport.proof import SECRET_SIZE, Pass, Who

SECRET = os.urandom(SECRET_SIZE)
KEY = Pass(SECRET, Who.SERVER, "server1")
CREDENTIALS = struct.Struct("3i")
Accepted = Callable[[socket.socket], None]


def greet(sock: socket.socket) -> None:
    """Whoever is let in hears a byte."""
    sock.sendall(b"!")
    sock.close()


def greet_own(sock: socket.socket) -> None:
    _, user, _ = CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
    if user in (0, os.geteuid()):
        greet(sock)


def greet_known(loop: Loop) -> Accepted:
    door = Doorkeeper(loop, SECRET, KEY.node, [Who.SERVER], lambda sock, _: greet(sock), lambda _: None)
    return door.take


def serve(listener: socket.socket, make: Callable[[Loop], Accepted]) -> int:
    """The pid of a process that serves there."""
    pid = os.fork()
    if not pid:
        loop = Loop()
        Listener(loop, listener, make(loop)).start()
        loop.run()
    return pid


def open_one(listener: socket.socket, *, proves: bool) -> float:
    """Microseconds from the connection to the byte."""
    began = perf_counter_ns()
    with socket.socket(listener.family) as sock:
        sock.connect(listener.getsockname())
        if proves:
            introduce(sock, KEY)
        assert sock.recv(1) == b"!"
    return (perf_counter_ns() - began) / 1000


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(2), default=2000, show_default=True, help="Of openings.")
@click.option("--pairs", type=click.IntRange(2), default=16, show_default=True, help="Of each load.")
@click.option("--runtime", type=click.FloatRange(0.001), default=0.5, show_default=True, help="Seconds of each load.")
def main(rounds: int, pairs: int, runtime: float) -> None:
    """Measure what it costs to be known."""
    click.echo(markdown(openings(rounds)))
    click.echo(markdown(links(pairs, runtime)), nl=False)


def openings(rounds: int) -> Rows:
    """Until whoever has connected is let in."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        tcp, proof = (stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2))
        unix, credentials = (stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2))
        for number, sock in enumerate((unix, credentials)):
            sock.bind(f"{folder}/{number}")
            sock.listen()
        kinds: list[tuple[str, socket.socket, Callable[[Loop], Accepted]]] = [
            ("TCP, nothing asked", tcp, lambda _: greet),
            ("unix, nothing asked", unix, lambda _: greet),
            ("unix, SO_PEERCRED", credentials, lambda _: greet_own),
            ("TCP, proof by HMAC", proof, greet_known),
        ]
        for _, listener, make in kinds:
            pid = serve(listener, make)
            stack.callback(os.waitpid, pid, 0)
            stack.callback(os.kill, pid, signal.SIGKILL)
        found: dict[str, list[float]] = {title: [] for title, _, _ in kinds}
        for _ in range(rounds):
            for title, listener, _ in kinds:
                found[title].append(open_one(listener, proves=listener is proof))
    rows: Rows = [("opening", "median, µs:", "quartiles, µs:")]
    for title, times in found.items():
        low, middle, high = statistics.quantiles(times, n=4)
        rows.append((title, f"{middle:.0f}", f"{low:.0f}–{high:.0f}"))
    return rows


def links(pairs: int, runtime: float) -> Rows:
    """The same cluster twice, with links of either kind; clients come on TCP to both."""
    count = 4
    shards = [{"memory": MEMORY // count} for _ in range(count)]
    on_unix = [shards[0], *({**shard, "listen": f"unix:server{n}.sock"} for n, shard in enumerate(shards[1:], 1))]
    rows: Rows = [("load", "unit", "links on TCP:", "links on unix:", "unix over TCP:", "quartiles:")]
    with cluster(servers=shards) as tcp, cluster(servers=on_unix) as unix:
        for title, load in LOADS.items():
            small = load.block == 4 * KIB
            found: tuple[list[float], list[float]] = ([], [])
            for _ in range(pairs):
                for service, figures in zip((tcp, unix), found, strict=True):
                    taken = measure(service.uri, load, runtime)
                    figures.append(taken.iops if small else taken.bytes_per_second / 1e9)
            ratios = [other / one for one, other in zip(*found, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            medians = map(number, map(statistics.median, found))
            rows.append((title, "IOPS" if small else "GB/s", *medians, f"{middle:.2f}×", f"{low:.2f}–{high:.2f}"))
    return rows


if __name__ == "__main__":
    main()
