"""How a connection is made fit for requests and replies: small packets leave at once, and nothing is paced on one host.

It is given a connected socket and knows nothing of what travels on it.
"""

from __future__ import annotations

import socket


def tune(sock: socket.socket) -> None:
    """Prepare a connected socket; one that is not TCP's needs nothing.

    A system may pace what it sends (BBR). Between processes of one host that spares no queue and costs a timer: with
    Reno, which every user may choose, replies of 1 MiB leave at 1.5 times the rate.
    """
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        on_one_host = sock.getsockname()[0] == sock.getpeername()[0]
    except OSError:
        return  # the other end is gone, and reading from it will say so
    if on_one_host:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
