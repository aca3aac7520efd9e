"""The listening sockets: bound by the supervisor before anything is started, all of them or none."""

from __future__ import annotations

import errno
import grp
import ipaddress
import os
import socket
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from memcluster.launcher.reach import beyond, numbers
from memcluster.node.transport.address import Address

BACKLOG = 1024


class CannotListen(Exception):
    """An address is not to be had: it is not this machine's, may not be used, …; says why."""


class AddressTaken(CannotListen):
    """Somebody listens there already; says who."""


@dataclass(frozen=True)
class Access:
    """Who may connect: by its permissions, owner (root may choose one) and group to a unix socket; with `network` from
    other machines, too."""

    mode: int = 0o600
    group: str | None = None
    owner: int = -1
    network: bool = False


PRIVATE = Access()


Listeners = Sequence[socket.socket | None]
"""None for one that is on another host."""


def bind_all(wanted: Iterable[tuple[Address, Access] | None]) -> list[socket.socket | None]:
    """Listening sockets for the addresses, in order. Raises CannotListen, naming every one that is not to be had."""
    sockets: list[socket.socket | None] = []
    problems: list[CannotListen] = []
    for one in wanted:
        try:
            sockets.append(one and bind(*one))
        except CannotListen as error:
            problems.append(error)
    if problems:
        release_all(sockets)
        taken = any(isinstance(problem, AddressTaken) for problem in problems)
        raise (AddressTaken if taken else CannotListen)("\n".join(map(str, problems)))
    return sockets


def bind(address: Address, access: Access = PRIVATE) -> socket.socket:
    """A listening socket; nobody can connect before it is as `access` says. Raises CannotListen."""
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        if address.path:
            remove_stale(address.path)
            os.fchmod(sock.fileno(), 0o600)  # of which Linux makes the file's
            sock.bind(address.sockaddr)
            open_to(address.path, access)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address.sockaddr)
            if not access.network and beyond(bound_address(sock)):  # the name may be another's since it was checked
                raise CannotListen(f"{address} can be reached from other machines ({bound_address(sock)})")
        sock.listen(BACKLOG)
    except CannotListen:
        release(sock)
        raise
    except OSError as error:
        release(sock)
        if error.errno == errno.EADDRINUSE:
            raise AddressTaken(f"{address} is already in use{_holder(address)}") from error
        raise CannotListen(f"cannot listen on {address}: {error.strerror or error}") from error
    return sock


def open_to(path: str, access: Access) -> None:
    """Give our socket's file its group, then its permissions; of nothing that somebody has put in its place. Raises
    OSError."""
    file = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(file)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
            raise FileExistsError(errno.EEXIST, "somebody has put another file in its place")
        group = -1 if access.group is None else grp.getgrnam(access.group).gr_gid
        os.chown(f"/proc/self/fd/{file}", access.owner, group)
        os.chmod(f"/proc/self/fd/{file}", access.mode)
    finally:
        os.close(file)


def let_in(sock: socket.socket, access: Access) -> None:
    """Other permissions for a socket that is bound. Raises CannotListen."""
    if sock.family == socket.AF_UNIX:
        try:
            open_to(sock.getsockname(), access)
        except OSError as error:
            raise CannotListen(f"{sock.getsockname()}: {error.strerror}") from error


def bound_address(sock: socket.socket) -> Address:
    """Where a socket really listens: port 0 has become a number."""
    name = sock.getsockname()
    return Address(path=name) if sock.family == socket.AF_UNIX else Address(host=name[0], port=name[1])


def release_all(listeners: Listeners) -> None:
    """All that are here."""
    for sock in listeners:
        if sock is not None:
            release(sock)


def release(sock: socket.socket) -> None:
    """Close a listening socket for good, and remove its file."""
    path = sock.getsockname() if sock.family == socket.AF_UNIX else ""
    sock.close()
    if path:
        with suppress(FileNotFoundError, PermissionError):  # in a folder of root's, who has bound it, it stays
            os.unlink(path)


def remove_stale(path: str) -> None:
    """Remove a socket file on which nobody listens any more; anything else there stays."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            with suppress(PermissionError):
                os.unlink(path)
        except OSError:
            pass


def in_the_way(held: tuple[str, int], wanted: Address) -> bool:
    """Whether who listens at (host, port) keeps others from an address: 0.0.0.0 and :: are every address."""
    if held[1] != wanted.port:
        return False
    holder = ipaddress.ip_address(held[0])
    hosts = numbers(wanted)
    every = any(host.is_unspecified and host.version >= holder.version for host in hosts)  # :: is IPv4's, too
    return every or holder.is_unspecified or holder in hosts


def _holder(address: Address) -> str:
    """` by process 'python3' (pid 4711)`, as far as this user may see it; or what else is at the path."""
    import psutil

    try:
        if address.path and not stat.S_ISSOCK(os.lstat(address.path).st_mode):
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
