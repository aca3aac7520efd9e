"""NBD URIs, as the NBD project's doc/uri.md defines them, without vsock; of TLS with the parameters of libnbd, too."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

DEFAULT_PORT = 10809
SCHEMES = "nbd", "nbds", "nbd+unix", "nbds+unix"
WORDS = "nbd://HOST:PORT, nbd+unix:///?socket=PATH, or nbds for TLS"
TLS_PARAMETERS = "tls-certificates", "tls-psk-file", "tls-username", "tls-hostname", "tls-verify-peer", "tls-type"
_TRUTH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Security:
    """TLS, and how both sides prove who they are: by the `certificates` of a folder (by default those that this system
    trusts), or by the key of `username` in a file. `hostname` stands in the server's certificate if not the host."""

    certificates: str = ""
    psk_file: str = ""
    username: str = ""
    hostname: str = ""
    verify: bool = True

    def parameters(self) -> list[tuple[str, str]]:
        """As they stand in a URI, but for the user's name."""
        found = {
            "tls-certificates": self.certificates,
            "tls-psk-file": self.psk_file,
            "tls-hostname": self.hostname,
            "tls-verify-peer": "" if self.verify else "0",
        }
        return [(key, value) for key, value in found.items() if value]


@dataclass(frozen=True)
class Target:
    """An export at a TCP address (`host`, `port`) or on a unix socket (`path`)."""

    host: str = ""
    port: int = DEFAULT_PORT
    path: str = ""
    export: str = ""
    tls: Security | None = None

    def __str__(self) -> str:
        name = quote(self.export)
        parameters = [("socket", self.path)] if self.path else []
        user, scheme = "", "nbd"
        if self.tls is not None:
            parameters += self.tls.parameters()
            user, scheme = quote(self.tls.username, safe=""), "nbds"
        user += "@" if user else ""
        if self.path:
            place = f"{scheme}+unix://{user}/{name}"
        else:
            host = f"[{self.host}]" if ":" in self.host else self.host
            place = f"{scheme}://{user}{host}:{self.port}" + (f"/{name}" if name else "")
        return place + ("?" if parameters else "") + "&".join(f"{key}={quote(value)}" for key, value in parameters)


def parse_uri(uri: str) -> Target:
    """The target of `nbd://host[:port]/export` or `nbd+unix:///export?socket=PATH`, or the same with nbds. Raises
    ValueError."""
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{uri!r} is not an NBD URI: {error}") from error
    if parts.scheme not in SCHEMES:
        raise ValueError(f"{uri!r} is not an NBD URI; write {WORDS}")
    export = unquote(parts.path.removeprefix("/"))
    pairs = [pair.partition("=") for pair in parts.query.split("&") if pair]
    parameters = [(key, unquote(value)) for key, _, value in pairs if value]  # a + is a +, unlike in a form
    secure = parts.scheme.startswith("nbds")
    security = _security(uri, dict(parameters), unquote(parts.username or "")) if secure else None
    if not secure and (known := [key for key, _ in parameters if key.startswith("tls-")]):
        raise ValueError(f"{uri!r} has {known[0]}, which nothing but nbds:// takes")
    sockets = [value for key, value in parameters if key == "socket"]
    if not parts.scheme.endswith("+unix"):
        if sockets:
            raise ValueError(f"{uri!r} names a socket; write {parts.scheme}+unix:///?socket=PATH")
        return Target(parts.hostname or "localhost", DEFAULT_PORT if port is None else port, "", export, security)
    if len(sockets) != 1:
        raise ValueError(f"{uri!r} names no socket; write {parts.scheme}:///?socket=PATH")
    return Target(path=sockets[0], export=export, tls=security)


def _security(uri: str, parameters: dict[str, str], user: str) -> Security:
    """What the parameters say of TLS. Raises ValueError."""
    for key in parameters:
        if key.startswith("tls-") and key not in TLS_PARAMETERS:
            raise ValueError(f"{uri!r} has {key}; there are {', '.join(TLS_PARAMETERS)}")
    verify = _TRUTH.get(parameters.get("tls-verify-peer", "1").lower())
    if verify is None:
        raise ValueError(f"{uri!r}: tls-verify-peer is 0 or 1")
    kind = parameters.get("tls-type", "")
    if kind not in ("", "x509", "psk") or (kind == "psk") > ("tls-psk-file" in parameters):
        raise ValueError(f"{uri!r}: tls-type is x509, or psk with a tls-psk-file")
    return Security(
        parameters.get("tls-certificates", ""),
        parameters.get("tls-psk-file", "") if kind != "x509" else "",
        parameters.get("tls-username", "") or user,
        parameters.get("tls-hostname", ""),
        verify,
    )
