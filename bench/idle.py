"""What a client that does nothing, and a shard beyond its own bytes, cost a server in memory."""

from __future__ import annotations

import resource
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

from bench.processes import Service, fill
from memcluster.client.uri import parse_uri
from memcluster.node.nbd.client import ClientSession

Start = Callable[[], AbstractContextManager[Service]]
PATIENCE = 10.0
"""Seconds that a server may take to let one client in."""
WARM = 16
"""Clients that come and go first, so that what a server makes once is not counted."""


def per_client(start: Start, clients: int) -> float:
    """Bytes by which a fresh server grows with each of so many idle clients; fewer, if it does not take them all."""
    _allow_descriptors(clients + 256)
    with start() as service:
        with ExitStack() as stack:
            _connect(service, WARM, stack)
        before = _resident(service.pid)
        with ExitStack() as stack:
            connected = _connect(service, clients, stack)
            return (_resident(service.pid) - before) / max(1, connected)


def taken(start: Start, clients: int) -> int:
    """How many of so many idle clients a server takes."""
    _allow_descriptors(clients + 256)
    with start() as service, ExitStack() as stack:
        return _connect(service, clients, stack)


def beyond_shard(start_large: Start, large: int, start_small: Start, small: int) -> float:
    """Bytes that a server with a full memory of `large` bytes takes beyond these, page tables included, and beyond
    what one with next to none takes."""
    sizes = []
    for start, size in ((start_large, large), (start_small, small)):
        with start() as service:
            fill(service, size)
            sizes.append(_resident(service.pid) + _field(service.pid, "VmPTE") - size)
    return max(float(sizes[0] - sizes[1]), 1.0)


def _connect(service: Service, clients: int, stack: ExitStack) -> int:
    """Open so many connections up to the transmission phase; returns at how many the server gave up."""
    target = parse_uri(service.uri)
    scratch = memoryview(bytearray(1 << 16))
    for number in range(clients):
        try:
            sock = stack.enter_context(socket.create_connection((target.host, target.port), PATIENCE))
            session = ClientSession(target.export, scratch=scratch)
            while not session.ready:
                if session.outgoing:
                    sock.sendall(b"".join(session.outgoing))
                    session.outgoing.clear()
                count = sock.recv_into(session.receive_buffer())
                if not count:
                    return number
                session.received(count)
        except OSError:
            return number
    return clients


def _resident(pid: int) -> int:
    return _field(pid, "VmRSS")


def _field(pid: int, name: str) -> int:
    """Bytes in a field of /proc/PID/status (proc(5))."""
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) << 10
    raise ValueError(f"/proc/{pid}/status has no {name}")


def _allow_descriptors(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
