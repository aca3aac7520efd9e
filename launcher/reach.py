"""Who reaches an address: the processes of this machine alone, or other machines, too."""

from __future__ import annotations

import ipaddress
import socket

from memcluster.node.transport.address import Address

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def numbers(address: Address) -> list[IPAddress]:
    """What the host of an address stands for now; nothing for a unix socket, and for a name that nobody knows."""
    if address.path:
        return []
    try:
        found = socket.getaddrinfo(address.host, None, address.family, socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [_number(str(sockaddr[0])) for *_, sockaddr in found]


def beyond(address: Address) -> list[IPAddress]:
    """Those of its numbers at which other machines reach it: all but loopback's."""
    return [number for number in numbers(address) if not number.is_loopback]


def is_wildcard(address: Address) -> bool:
    """It is every address of this machine, and so none to connect to."""
    return any(number.is_unspecified for number in numbers(address))


def way_to(number: str) -> str:
    """The address of this machine at which one that is reached by this number reaches it. Raises OSError."""
    there = Address(number, 9)  # of a datagram that is never sent
    with socket.socket(there.family, socket.SOCK_DGRAM) as probe:
        probe.connect(there.sockaddr)
        return str(probe.getsockname()[0])


def _number(text: str) -> IPAddress:
    number = ipaddress.ip_address(text)
    return number.ipv4_mapped or number if isinstance(number, ipaddress.IPv6Address) else number
