"""The way to a connection: the connecting, then the handshake up to an export, or one that only asks about it.

What is done with the connection is not its affair: see connection.py and router.py. Nothing here waits, but for the
address of a host that has a name.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

from memcluster.client.errors import ConnectionProblem, Disconnected, Refused, Timeout
from memcluster.client.system import KERNEL, Errand, Interest, Place, Steps, System, finish
from memcluster.client.uri import Target
from memcluster.node.nbd import errors as nbd
from memcluster.node.nbd.client import ClientSession
from memcluster.node.nbd.wire import Buffer, Option

if TYPE_CHECKING:
    from memcluster.node.tls.secured import Secured  # else it would load OpenSSL

Carrier: TypeAlias = "socket.socket | Secured"
"""What bytes go through: a socket, or TLS on it. It does not block."""
Opened: TypeAlias = tuple[Carrier, ClientSession]
"""A connected socket and its session, the handshake behind it."""
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.5
"""Seconds between two attempts to connect; each pause is twice the one before."""
NAMESPACE = "x-memcluster:"
PART = f"{NAMESPACE}part/"
"""Begins the context by which a server tells that it has a part of a memory."""
PATIENCE = 2.0
"""Seconds that all wait while one server lets itself be connected to, or tells the map; then they go on without it."""
LOST_AFTER = 3
"""Seconds after which a machine that does not answer is taken for gone. After a cut of the link the kernel's own next
attempt could be a minute away, and a new connection is there at once; what was in flight is repeated on it."""
ELSEWHERE = (
    (socket.TCP_KEEPIDLE, 1),
    (socket.TCP_KEEPINTVL, 1),
    (socket.TCP_KEEPCNT, LOST_AFTER),
    (socket.TCP_USER_TIMEOUT, LOST_AFTER * 1000),
)
IOV_MAX = 1024
"""Buffers in one sendmsg, at most (Linux)."""


def is_part(contexts: Sequence[str]) -> bool:
    """The export is one server's part of a memory."""
    return any(context.startswith(PART) for context in contexts)


def opening(
    system: System,
    target: Target,
    seconds: float,
    goal: Option = Option.GO,
    namespace: str = "",
    *,
    patient: bool = False,
) -> Steps[Opened]:
    """Connect within so many seconds, and within them shake hands, or, if `patient`, in whatever time that takes. The
    server is asked for metadata contexts of `namespace`. Raises Refused, Disconnected, Timeout."""
    deadline = system.monotonic() + seconds
    try:
        sock = yield from _connecting(system, target, deadline)
    except TimeoutError as error:
        raise Timeout(target, "connection", max(0.0, seconds)) from error
    except OSError as error:
        raise Disconnected(target, f"cannot connect: {error.strerror or error}") from error
    session = ClientSession(target.export, goal=goal, namespace=namespace, tls=target.tls is not None)
    done = False
    try:
        carrier = yield from _shaking_hands(system, sock, session, target, float("inf") if patient else deadline)
        done = True
        return carrier, session
    except _TimeIsUp as error:
        raise Timeout(target, "end of the handshake", seconds) from error
    except ConnectionProblem:
        raise
    except nbd.Refused as error:
        raise Refused(target, error) from error
    except OSError as error:
        raise Disconnected(target, error.strerror or str(error)) from error
    except nbd.ProtocolError as error:
        raise Disconnected(target, str(error)) from error
    finally:
        if not done:
            sock.close()


def offering(system: System, target: Target, seconds: float) -> Steps[list[str]]:
    """The metadata contexts of NAMESPACE that an export has. Raises Refused, Disconnected, Timeout."""
    carrier, session = yield from opening(system, target, seconds, Option.INFO, NAMESPACE)
    carrier.close()
    return session.offered


def list_exports(target: Target, timeout: float = 30.0) -> list[tuple[str, str]]:
    """(name, description) of what a server offers. Raises Refused, Disconnected, Timeout."""
    carrier, session = finish(KERNEL, opening(KERNEL, target, timeout, Option.LIST))
    carrier.close()
    return session.exports


class Return:
    """A lost connection on its way back: tried at once, then after pauses that grow."""

    def __init__(self, system: System, target: Target) -> None:
        self.target = target
        self.begun = system.monotonic()
        self.reason = "it does not answer"
        self._system = system
        self._errand: Errand[Opened] | None = None
        self._due = 0.0
        self._pause = FIRST_PAUSE

    def step(self) -> Opened | None:
        """Go on; what has been opened when it is. Raises ConnectionProblem, and tries again later."""
        if self._errand is None:
            if self._system.monotonic() < self._due:
                return None
            self._errand = Errand(opening(self._system, self.target, PATIENCE, patient=True))
        try:
            return self._errand.result if self._errand.step() else None
        except ConnectionProblem as error:
            self._errand = None
            if not isinstance(error, Timeout):  # that time is up explains less than what was before
                self.reason = error.reason
            self._due = self._system.monotonic() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            raise

    @property
    def interest(self) -> Interest:
        """What the next step waits for."""
        return ({}, self._due) if self._errand is None else self._errand.interest

    def close(self) -> None:
        if self._errand is not None:
            self._errand.close()


def push(carrier: Carrier, outgoing: list[Buffer]) -> None:
    """Send as much as is taken. Raises OSError."""
    while outgoing:
        try:
            sent = carrier.sendmsg(outgoing[:IOV_MAX])
        except (BlockingIOError, InterruptedError):
            return
        whole = 0
        for buffer in outgoing:
            if sent < len(buffer):
                break
            sent -= len(buffer)
            whole += 1
        del outgoing[:whole]
        if sent:
            outgoing[0] = memoryview(outgoing[0])[sent:]


# -- steps -----------------------------------------------------------------------------------------------------------


class _TimeIsUp(Exception):
    """Of the handshake."""


def _shaking_hands(
    system: System, sock: socket.socket, session: ClientSession, target: Target, deadline: float
) -> Steps[Carrier]:
    """Raises _TimeIsUp, OSError, Disconnected, and the session's errors."""
    carrier: Carrier = sock
    secured: Secured | None = None
    while not (session.ready or session.finished):
        push(carrier, session.outgoing)
        try:
            if session.securing:
                if secured is None:
                    from memcluster.client.secure import secure, shake_hands  # late: it loads OpenSSL

                    carrier = secured = secure(sock, target)
                shake_hands(secured, target)
                session.secured()
                continue
            count = carrier.recv_into(session.receive_buffer())
        except BlockingIOError:
            if system.monotonic() >= deadline:
                raise _TimeIsUp from None
            mask = select.POLLIN | (select.POLLOUT if session.outgoing else 0)
            yield {carrier.fileno(): mask}, deadline
            continue
        if count:
            session.received(count)
        else:
            session.receive_eof()
    if session.finished:
        push(carrier, session.outgoing)
    return carrier


def _connecting(system: System, target: Target, deadline: float) -> Steps[socket.socket]:
    """To one of the host's addresses; each has its share of the time. Raises OSError."""
    places: list[Place] = [(socket.AF_UNIX, target.path)] if target.path else system.find(target.host, target.port)
    problem = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    for tried, place in enumerate(places):
        now = system.monotonic()
        try:
            return (yield from _connecting_to(system, place, now + (deadline - now) / (len(places) - tried)))
        except OSError as error:
            problem = error
    raise problem


def _connecting_to(system: System, place: Place, deadline: float) -> Steps[socket.socket]:
    """Raises OSError; TimeoutError when time is up."""
    family, address = place
    sock = system.make_socket(family, socket.SOCK_STREAM)
    done = False
    try:
        sock.setblocking(False)
        while not _is_connected(sock, address):
            now = system.monotonic()
            if now >= deadline:
                raise TimeoutError
            if family == socket.AF_UNIX:  # the backlog is full; a TCP socket would wait
                yield {}, min(now + FIRST_PAUSE, deadline)
            else:
                yield {sock.fileno(): select.POLLOUT}, deadline
        if family != socket.AF_UNIX:
            _tune(sock)
        done = True
        return sock
    finally:
        if not done:
            sock.close()


def _is_connected(sock: socket.socket, address: object) -> bool:
    """Connect, or go on with it; whether that is done. Raises OSError."""
    number = sock.connect_ex(address)  # type: ignore[arg-type]
    if number in (0, errno.EISCONN):
        return True
    if number in (errno.EINPROGRESS, errno.EALREADY, errno.EAGAIN, errno.EINTR):
        return False
    raise OSError(number, os.strerror(number))


def throw_away(carrier: Carrier) -> None:
    """Close a connection on which something waits for its answer. What of that has not left this system yet is not to
    come to another machine when others have written there since. (On one host a server asks the kernel.)"""
    secured: Any = carrier
    sock: socket.socket = getattr(secured, "sock", secured)
    with suppress(OSError):  # the other side is gone
        if sock.family != socket.AF_UNIX and sock.getsockname()[0] != sock.getpeername()[0]:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    carrier.close()


def _tune(sock: socket.socket) -> None:
    """Raises OSError."""
    try:
        here, there = sock.getsockname(), sock.getpeername()
    except OSError:
        return  # the other side is gone, and reading from it will say so
    if here == there:  # nobody listens, and the system has chosen that very port for us
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if here[0] == there[0]:  # on one host nothing needs pacing (node/transport/tcp.py)
        with suppress(OSError):  # this system has Reno not allowed
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
    else:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in ELSEWHERE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
