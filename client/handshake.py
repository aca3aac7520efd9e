"""The way to a connection: the connecting, then the handshake up to an export, or one that only asks about it.

What is done with the connection is not its affair: see connection.py and router.py.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

from memcluster.client.errors import ConnectionProblem, Disconnected, Refused, Timeout
from memcluster.client.uri import Target
from memcluster.node.nbd import errors as nbd
from memcluster.node.nbd.client import ClientSession
from memcluster.node.nbd.wire import Option

if TYPE_CHECKING:
    from memcluster.node.tls.secured import Secured  # else it would load OpenSSL

Carrier: TypeAlias = "socket.socket | Secured"
"""What bytes go through: a socket, or TLS on it. It does not block."""
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


def is_part(contexts: Sequence[str]) -> bool:
    """The export is one server's part of a memory."""
    return any(context.startswith(PART) for context in contexts)


class Handshake:
    """A connection to be: `step` goes on with the handshake, and nothing waits but the connecting itself, `seconds` at
    most. Raises Refused, Disconnected, Timeout, and is closed then."""

    def __init__(self, target: Target, seconds: float, goal: Option = Option.GO, namespace: str = "") -> None:
        self.target = target
        self.session = ClientSession(target.export, goal=goal, namespace=namespace, tls=target.tls is not None)
        self._secured: Secured | None = None
        try:
            self.sock: Carrier = _connect(target, time.monotonic() + seconds)
        except TimeoutError as error:
            raise Timeout(target, "connection", max(0.0, seconds)) from error
        except OSError as error:
            raise Disconnected(target, f"cannot connect: {error.strerror or error}") from error

    def step(self) -> bool:
        """Send and receive what can be without waiting; whether the handshake is done."""
        session = self.session
        try:
            while not (session.ready or session.finished):
                self._say()
                try:
                    if session.securing:
                        self._start_tls()
                        continue
                    count = self.sock.recv_into(session.receive_buffer())
                except BlockingIOError:
                    return False
                if count:
                    session.received(count)
                else:
                    session.receive_eof()
            if session.finished:
                self._say()
        except nbd.Refused as error:
            self.sock.close()
            raise Refused(self.target, error) from error
        except Disconnected:
            self.sock.close()
            raise
        except OSError as error:
            self.sock.close()
            raise Disconnected(self.target, error.strerror or str(error)) from error
        except nbd.ProtocolError as error:
            self.sock.close()
            raise Disconnected(self.target, str(error)) from error
        return True

    def _start_tls(self) -> None:
        """Shake hands. Raises BlockingIOError when the other side has to say something first."""
        if self._secured is None:
            from memcluster.client.secure import secure  # late: it loads OpenSSL

            assert isinstance(self.sock, socket.socket)
            self.sock = self._secured = secure(self.sock, self.target)
        while not self._secured.shake_hands():
            if not self._secured.receive():
                raise Disconnected(self.target, "the server hung up in the handshake of TLS")
        self.session.secured()

    def _say(self) -> None:
        """A handshake is a few hundred bytes: a socket always takes them."""
        if self.session.outgoing:
            self.sock.sendall(b"".join(self.session.outgoing))
            self.session.outgoing.clear()


class Return:
    """A lost connection on its way back: tried at once, then after pauses that grow. Nothing waits but the connecting
    itself, PATIENCE at most."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.begun = time.monotonic()
        self.reason = "it does not answer"
        self._handshake: Handshake | None = None
        self._due = 0.0
        self._pause = FIRST_PAUSE

    def step(self) -> Handshake | None:
        """Go on; the handshake when it is done. Raises ConnectionProblem, and tries again later."""
        try:
            if self._handshake is None:
                if time.monotonic() < self._due:
                    return None
                self._handshake = Handshake(self.target, PATIENCE)
            return self._handshake if self._handshake.step() else None
        except ConnectionProblem as error:
            self._handshake = None
            if not isinstance(error, Timeout):  # that time is up explains less than what was before
                self.reason = error.reason
            self._due = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            raise

    def interest(self) -> tuple[dict[int, int], float]:
        """What the next step waits for: a descriptor, or a time."""
        if self._handshake is None:
            return {}, self._due
        return {self._handshake.sock.fileno(): select.POLLIN}, float("inf")

    def wait(self, deadline: float) -> bool:
        """Until there may be something to step for; false if time is up."""
        descriptors, due = self.interest()
        poll = select.poll()
        for descriptor, mask in descriptors.items():
            poll.register(descriptor, mask)
        poll.poll(max(0.0, min(due, deadline) - time.monotonic()) * 1000)
        return time.monotonic() < deadline

    def close(self) -> None:
        if self._handshake is not None:
            self._handshake.sock.close()


def open_session(
    target: Target, deadline: float, goal: Option = Option.GO, namespace: str = ""
) -> tuple[Carrier, ClientSession]:
    """A connected, non-blocking socket and its session, the handshake behind it."""
    seconds = deadline - time.monotonic()
    handshake = Handshake(target, seconds, goal, namespace)
    poll = select.poll()
    poll.register(handshake.sock, select.POLLIN)
    try:
        while not handshake.step():
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise Timeout(target, "end of the handshake", seconds)
    except BaseException:
        handshake.sock.close()
        raise
    return handshake.sock, handshake.session


def list_exports(target: Target, timeout: float = 30.0) -> list[tuple[str, str]]:
    """(name, description) of what a server offers. Raises Refused, Disconnected, Timeout."""
    sock, session = open_session(target, time.monotonic() + timeout, Option.LIST)
    sock.close()
    return session.exports


def offered_contexts(target: Target, namespace: str, timeout: float) -> list[str]:
    """The metadata contexts of a namespace that an export has. Raises Refused, Disconnected, Timeout."""
    sock, session = open_session(target, time.monotonic() + timeout, Option.INFO, namespace)
    sock.close()
    return session.offered


def _connect(target: Target, deadline: float) -> socket.socket:
    sock = _connected(target, deadline)
    sock.setblocking(False)
    return sock


def _connected(target: Target, deadline: float) -> socket.socket:
    if not target.path:
        host = target.host.encode() if target.host.isascii() else target.host  # what is no text needs no IDNA loaded
        sock = socket.create_connection((host, target.port), _remaining(deadline))  # type: ignore[arg-type]
        if sock.getsockname() == sock.getpeername():  # nobody listens, and the system has chosen that very port for us
            sock.close()
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if sock.getsockname()[0] == sock.getpeername()[0]:  # on one host nothing needs pacing (node/transport/tcp.py)
            with suppress(OSError):  # this system has Reno not allowed
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in ELSEWHERE:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
        return sock
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(_remaining(deadline))
        while True:
            try:
                sock.connect(target.path)
                return sock
            except BlockingIOError as error:  # the backlog is full; a TCP socket would wait
                if not pause_until(FIRST_PAUSE, deadline):
                    raise TimeoutError from error
    except BaseException:
        sock.close()
        raise


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining


def pause_until(seconds: float, deadline: float) -> bool:
    """Wait, but not beyond the deadline; false if that has passed."""
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        return False
    select.poll().poll(min(seconds, remaining) * 1000)
    return True
