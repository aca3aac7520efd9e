"""What it costs to be known before one is served: connections opened one after another to a loop that asks nothing,
to one that looks at who the kernel says it is (SO_PEERCRED, unix sockets only), and to one that wants a proof
(node/transport/proof.py).

`python -m bench.openings` prints a table. The three take turns, for a shared machine changes its speed within seconds.
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

from bench.report import Rows, markdown
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
@click.option("--rounds", type=click.IntRange(2), default=2000, show_default=True)
def main(rounds: int) -> None:
    """Measure what it costs to be known."""
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
    click.echo(markdown(rows), nl=False)


if __name__ == "__main__":
    main()
