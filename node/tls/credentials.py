"""What a server proves itself with, and the names of the files, which are those of qemu, libnbd and nbdkit. Plain data:
whoever is told it need not load OpenSSL.
"""

from __future__ import annotations

from dataclasses import dataclass

CA, SERVER_CERTIFICATE, SERVER_KEY = "ca-cert.pem", "server-cert.pem", "server-key.pem"
CLIENT_CERTIFICATE, CLIENT_KEY = "client-cert.pem", "client-key.pem"


class BadCredentials(Exception):
    """Certificates or keys cannot be used; says which file, and why."""


@dataclass(frozen=True)
class Credentials:
    """A folder of certificates, or a file of shared keys. With `verify` a client must have a certificate that
    ca-cert.pem has signed."""

    certificates: str = ""
    psk: str = ""
    verify: bool = True
    required: bool = True
    """Nobody gets anything without TLS."""
