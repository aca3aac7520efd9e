"""Two processes that move bytes over a link by Python's own sockets and do nothing else, with TLS and without: what is
left of a link for whoever has to seal and open what goes over it. `bench.between` runs them.

    python -m bench.bare receive ADDRESS FOLDER         prints its port, then MiB a second and µs of a processor a MiB
    python -m bench.bare send ADDRESS PORT FOLDER TIME  for so many seconds; prints µs of a processor a MiB

FOLDER has the certificates; it is empty where there is no TLS.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from memcluster.node.tls.context import client_context, server_context
from memcluster.node.tls.credentials import Credentials

if TYPE_CHECKING:
    from hostlab import Host

BLOCK = 1 << 20
SHARE = 1 << 16
"""Bytes that are sealed in one call."""


def receive(address: str, folder: str) -> None:
    """Till the other side ends."""
    with socket.create_server((address, 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        sock, _ = listener.accept()
    if folder:
        sock = server_context(Credentials(folder)).wrap_socket(sock, server_side=True)
    buffer = bytearray(BLOCK)
    received, used, began = sock.recv_into(buffer), time.process_time(), time.monotonic()
    first = received
    while count := sock.recv_into(buffer):
        received += count
    size = (received - first) / BLOCK
    print(size / (time.monotonic() - began), 1e6 * (time.process_time() - used) / size)


def send(address: str, port: str, folder: str, seconds: str) -> None:
    """Blocks, one after the other."""
    sock = socket.create_connection((address, int(port)))
    if folder:
        sock = client_context(folder, hostname=False).wrap_socket(sock)
    block = memoryview(bytes(BLOCK))
    sent, used, until = 0, time.process_time(), time.monotonic() + float(seconds)
    while time.monotonic() < until:
        for at in range(0, BLOCK, SHARE):
            sock.sendall(block[at : at + SHARE])
        sent += 1
    print(1e6 * (time.process_time() - used) / sent)
    sock.close()


def moved(sender: Host, receiver: Host, address: str, folder: str, seconds: float) -> tuple[float, float]:
    """MiB a second from one host to the other, and µs of a processor of both for a MiB."""
    python = (sys.executable, "-m", "bench.bare")
    words = receiver.words(*python, "receive", address, folder)
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        port = process.stdout.readline().decode().strip()
        sent = sender.run(*python, "send", address, port, folder, str(seconds))
        rate, used = map(float, process.stdout.read().split())
    return rate, used + float(sent.stdout)


if __name__ == "__main__":
    {"receive": receive, "send": send}[sys.argv[1]](*sys.argv[2:])
