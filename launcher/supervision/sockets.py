"""The listening sockets: bound by the supervisor before anything is started, all of them or none."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from collections.abc import Sequence

from memcluster.node.transport.address import Address

BACKLOG = 1024


class CannotListen(Exception):
    """An address is not to be had: it is not this machine's, may not be used, …; says why."""


class AddressTaken(CannotListen):
    """Somebody listens there already; says who."""


def bind_all(addresses: Sequence[Address]) -> list[socket.socket]:
    """Listening sockets for the addresses, in order. Raises CannotListen, naming every one that is not to be had."""
    sockets: list[socket.socket] = []
    problems: list[CannotListen] = []
    for address in addresses:
        try:
            sockets.append(bind(address))
        except CannotListen as error:
            problems.append(error)
    if problems:
        for sock in sockets:
            release(sock)
        taken = any(isinstance(problem, AddressTaken) for problem in problems)
        raise (AddressTaken if taken else CannotListen)("\n".join(map(str, problems)))
    return sockets


def bind(address: Address) -> socket.socket:
    """A listening socket. Raises CannotListen."""
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        if address.path:
            remove_stale(address.path)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address.sockaddr)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressTaken(f"{address} is already in use{_holder(address)}") from error
        raise CannotListen(f"cannot listen on {address}: {error.strerror or error}") from error
    return sock


def bound_address(sock: socket.socket) -> Address:
    """Where a socket really listens: port 0 has become a number."""
    name = sock.getsockname()
    return Address(path=name) if sock.family == socket.AF_UNIX else Address(host=name[0], port=name[1])


def release(sock: socket.socket) -> None:
    """Close a listening socket for good, and remove its file."""
    path = sock.getsockname() if sock.family == socket.AF_UNIX else ""
    sock.close()
    if path:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass


def remove_stale(path: str) -> None:
    """Remove a socket file on which nobody listens any more; anything else there stays."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            pass


def in_the_way(held: tuple[str, int], wanted: Address) -> bool:
    """Whether who listens at (host, port) keeps others from an address: 0.0.0.0 and :: are every address."""
    if held[1] != wanted.port:
        return False
    holder = ipaddress.ip_address(held[0])
    found = socket.getaddrinfo(wanted.host, None, wanted.family, socket.SOCK_STREAM)
    hosts = {ipaddress.ip_address(sockaddr[0]) for *_, sockaddr in found}
    every = any(host.is_unspecified and host.version >= holder.version for host in hosts)  # :: is IPv4's, too
    return every or holder.is_unspecified or holder in hosts


def _holder(address: Address) -> str:
    """` by process 'python3' (pid 4711)`, as far as this user may see it; or what else is at the path."""
    import psutil

    try:
        if address.path and not stat.S_ISSOCK(os.stat(address.path).st_mode):
            return " by something that is no socket"
        for found in psutil.net_connections(kind="unix" if address.path else "tcp"):
            if address.path:
                holds = str(found.laddr) == address.path
            else:
                listens = found.status == psutil.CONN_LISTEN
                holds = bool(listens and found.laddr and in_the_way((found.laddr.ip, found.laddr.port), address))
            if holds and found.pid:
                return f" by process {psutil.Process(found.pid).name()!r} (pid {found.pid})"
    except (psutil.Error, OSError):
        pass
    return ""
