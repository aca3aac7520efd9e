"""How a connection is begun, and made fit for requests and replies: small packets leave at once, and nothing is
paced on one host. It knows nothing of what travels on a socket.
"""

from __future__ import annotations

import errno
import select
import socket

from memcluster.node.transport.address import Address


def connecting(address: Address) -> socket.socket:
    """A socket on its way to `address`; whether it arrives shows in what is sent or received there. Raises OSError."""
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        sock.connect(address.sockaddr)
    except OSError as error:
        if error.errno != errno.EINPROGRESS:
            sock.close()
            raise
    return sock


def ended(sock: socket.socket) -> bool:
    """The other side has closed the connection, or its half of it, whatever is still to be read."""
    look = select.poll()
    look.register(sock, select.POLLRDHUP)
    return bool(look.poll(0))


def tune(sock: socket.socket) -> None:
    """Prepare a connected socket; one that is not TCP's needs nothing.

    A system may pace what it sends (BBR). Between processes of one host that spares no queue and costs a timer: with
    Reno, which every user may choose, replies of 1 MiB leave at 1.5 times the rate.
    """
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        if sock.getsockname()[0] == sock.getpeername()[0]:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
    except OSError:
        pass  # the other end is gone, and reading from it will say so; or this system has Reno not allowed
