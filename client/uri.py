"""NBD URIs, as the NBD project's doc/uri.md defines them, without TLS and vsock."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

DEFAULT_PORT = 10809


@dataclass(frozen=True)
class Target:
    """An export at a TCP address (`host`, `port`) or on a unix socket (`path`)."""

    host: str = ""
    port: int = DEFAULT_PORT
    path: str = ""
    export: str = ""

    def __str__(self) -> str:
        name = quote(self.export)
        if self.path:
            return f"nbd+unix:///{name}?socket={quote(self.path)}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"nbd://{host}:{self.port}/{name}" if name else f"nbd://{host}:{self.port}"


def parse_uri(uri: str) -> Target:
    """The target of `nbd://host[:port]/export` or `nbd+unix:///export?socket=PATH`. Raises ValueError."""
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{uri!r} is not an NBD URI: {error}") from error
    export = unquote(parts.path.removeprefix("/"))
    pairs = [pair.partition("=") for pair in parts.query.split("&") if pair]
    sockets = [unquote(value) for key, _, value in pairs if key == "socket" and value]  # a + is a +, unlike in a form
    if parts.scheme == "nbd":
        if sockets:
            raise ValueError(f"{uri!r} names a socket; write nbd+unix:///?socket=PATH")
        return Target(parts.hostname or "localhost", DEFAULT_PORT if port is None else port, export=export)
    if parts.scheme == "nbd+unix":
        if len(sockets) != 1:
            raise ValueError(f"{uri!r} names no socket; write nbd+unix:///?socket=PATH")
        return Target(path=sockets[0], export=export)
    raise ValueError(f"{uri!r} is not an NBD URI; write nbd://HOST:PORT or nbd+unix:///?socket=PATH")
