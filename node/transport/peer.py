"""Who is at the other side of a connection, and whether it is still there. Its end comes behind what it has sent, of
which a part may wait in its own system; and one that is closed looks like one that only sends no more. Within one host
the kernel knows: it is asked for the other side's socket (sock_diag(7)), which is nobody's when all who had it are
gone.
"""

from __future__ import annotations

import ipaddress
import select
import socket
from struct import Struct

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
REQUEST = 1  # NLM_F_REQUEST
ANY = 0xFFFFFFFF
"""All states, and no cookie."""
_HEAD = Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_WANTED = Struct("=BBBxI")  # struct inet_diag_req_v2 up to the id: family, protocol, extensions, states
_PORTS = Struct(">HH")
_FOUND = Struct("=16x4x48x16xI")  # the head; then struct inet_diag_msg up to the inode: 0 if it is nobody's
_REST = Struct("=III")  # of the id: interface, cookie
_OVER = select.POLLHUP | select.POLLERR


def origin(sock: socket.socket) -> str:
    """The machine at the other side, by its address: "" for this one, by loopback or a unix socket. Of IPv6 the first
    64 bits: whoever has those chooses the others."""
    if sock.family == socket.AF_UNIX:
        return ""
    try:
        host = ipaddress.ip_address(sock.getpeername()[0])
    except (OSError, ValueError):
        return ""  # it has gone already
    if isinstance(host, ipaddress.IPv6Address):
        if host.ipv4_mapped is None:
            return "" if host.is_loopback else str(ipaddress.ip_network((int(host) >> 64 << 64, 64)))
        host = host.ipv4_mapped
    return "" if host.is_loopback else str(host)


def is_gone(sock: socket.socket) -> bool:
    """Nobody is at the other side any more, whatever is still to be read from there. Of one on another host only the
    end that has come here counts, and one that only sends no more is taken for gone."""
    look = select.poll()
    look.register(sock, select.POLLRDHUP | select.POLLIN)
    found = look.poll(0)
    if not found:
        return False  # nothing is to be read, not even an end
    mask = found[0][1]
    if mask & _OVER or sock.family == socket.AF_UNIX:
        return bool(mask & _OVER)
    held = _is_held(sock)
    return bool(mask & select.POLLRDHUP) if held is None else not held


def _is_held(sock: socket.socket) -> bool | None:
    """Somebody has the other side's socket; None if that cannot be known here."""
    try:  # a descriptor only for as long as it asks: that is seldom
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as diag:
            diag.setblocking(False)
            diag.send(_question(sock))
            answer = diag.recv(1024)  # it is there when the question has been taken
    except OSError:
        return None
    if len(answer) < _FOUND.size:
        return None  # an error: the other side is not here
    (inode,) = _FOUND.unpack_from(answer)
    return bool(inode)


def _question(sock: socket.socket) -> bytes:
    """The other side's socket is wanted: its place comes first."""
    family = sock.family
    (theirs, port), (ours, our_port) = sock.getpeername()[:2], sock.getsockname()[:2]
    places = b"".join(socket.inet_pton(family, host.partition("%")[0]).ljust(16, b"\0") for host in (theirs, ours))
    wanted = _WANTED.pack(family, socket.IPPROTO_TCP, 0, ANY) + _PORTS.pack(port, our_port) + places
    wanted += _REST.pack(0, ANY, ANY)  # any interface, no cookie
    return _HEAD.pack(_HEAD.size + len(wanted), SOCK_DIAG_BY_FAMILY, REQUEST, 0, 0) + wanted
