"""Where a server listens, as text and as the socket module wants it. No I/O.

Text: `127.0.0.1:10809`, `[::1]:10809`, `unix:/path/to/socket`. URIs follow the NBD project's doc/uri.md.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from urllib.parse import quote


@dataclass(frozen=True)
class Address:
    """Either a `host` and a `port`, or the `path` of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises ValueError with a sentence."""
        if text.startswith("unix:"):
            path = text.removeprefix("unix:")
            if not path:
                raise ValueError(f"{text!r} names no socket; write unix:PATH")
            return cls(path=path)
        host, colon, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError(f"{text!r}: write an IPv6 address in brackets, [::1]:10809")
        if not colon or not host:
            raise ValueError(f"{text!r} is not an address; write HOST:PORT, [::1]:PORT or unix:PATH")
        if not (port.isascii() and port.isdigit() and int(port) <= 65535):
            raise ValueError(f"{text!r}: the port must be a number from 0 to 65535")
        return cls(host, int(port))

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def family(self) -> socket.AddressFamily:
        if self.path:
            return socket.AF_UNIX
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    @property
    def sockaddr(self) -> str | tuple[str, int]:
        """What bind and connect take."""
        return self.path or (self.host, self.port)

    def uri(self, export: str = "") -> str:
        """The NBD URI of an export there."""
        name = quote(export)
        if self.path:
            return f"nbd+unix:///{name}?socket={quote(self.path)}"
        return f"nbd://{self}/{name}" if name else f"nbd://{self}"
