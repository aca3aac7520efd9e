"""How a connection is begun, and made fit for requests and replies: small packets leave at once, and nothing is
paced on one host. It knows nothing of what travels on a socket.
"""

from __future__ import annotations

import errno
import socket
import struct

from memcluster.node.transport.address import Address
from memcluster.node.transport.system import System

LOST_AFTER = 60
"""Seconds after which the other side of a connection is taken for gone: it does not answer, or takes nothing."""
FAR_LOST_AFTER = 3
"""The same between two hosts of a cluster: after a cut of the link the kernel's own next attempt could be a minute
away, and a new connection is there at once."""
NEARBY = 200
"""Microseconds of a round trip through a switch or two, and between two network namespaces of one machine."""
_QUICKEST = struct.Struct("148xI")
"""tcpi_min_rtt in struct tcp_info."""


def options(lost_after: int) -> tuple[tuple[int, int], ...]:
    """Of TCP's."""
    return (
        (socket.TCP_NODELAY, 1),
        (socket.TCP_KEEPIDLE, max(1, lost_after // 2)),
        (socket.TCP_KEEPINTVL, max(1, lost_after // 6)),
        (socket.TCP_KEEPCNT, 3),
        (socket.TCP_USER_TIMEOUT, lost_after * 1000),
    )


NEAR, FAR = options(LOST_AFTER), options(FAR_LOST_AFTER)


def connecting(system: System, address: Address, *, far: bool = False) -> socket.socket:
    """A socket on its way to `address`; whether it arrives shows in what is sent or received there. One to another host
    of the cluster (`far`) gives up soon. Raises OSError."""
    sock = system.make_socket(address.family, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        if far:
            make_far(sock)
        sock.connect(address.sockaddr)
    except OSError as error:
        if error.errno != errno.EINPROGRESS:
            sock.close()
            raise
    return sock


def make_far(sock: socket.socket) -> None:
    """Its other side is on another host of the cluster."""
    _look_after(sock, FAR)


def _look_after(sock: socket.socket, bounds: tuple[tuple[int, int], ...]) -> None:
    for option, value in bounds:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def tune(sock: socket.socket, *, far: bool = False) -> None:
    """Prepare a connected socket; one that is not TCP's needs nothing. A side that vanished without a word, with its
    machine or its network, is noticed in LOST_AFTER seconds, or FAR_LOST_AFTER: a client would keep its place for ever.

    A system may pace what it sends (BBR). On one host, and between two of the cluster that are NEARBY, that spares no
    queue and costs a timer: with Reno, which every user may choose, replies of 1 MiB leave at 1.5 times the rate. Where
    the way is longer it is the system's to choose: with 1 ms BBR reads at 1.6 times the rate of Reno.
    """
    if sock.family == socket.AF_UNIX:
        return
    _look_after(sock, FAR if far else NEAR)
    try:
        if sock.getsockname()[0] == sock.getpeername()[0] or (far and 0 < round_trip(sock) < NEARBY):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
    except OSError:
        pass  # the other end is gone, and reading from it will say so; or this system has Reno not allowed


def round_trip(sock: socket.socket) -> int:
    """Microseconds, of the quickest so far; 0 where the system does not say. Raises OSError."""
    told = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _QUICKEST.size)
    return int(_QUICKEST.unpack(told)[0]) if len(told) == _QUICKEST.size else 0
