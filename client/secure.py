"""TLS on a client's socket, as its URI wants it."""

from __future__ import annotations

import getpass
import socket

from memcluster.client.errors import Disconnected
from memcluster.client.uri import Target
from memcluster.node.tls.context import client_context
from memcluster.node.tls.credentials import BadCredentials
from memcluster.node.tls.layer import Layer, TLSError
from memcluster.node.tls.secured import Secured


def secure(sock: socket.socket, target: Target) -> Secured:
    """The socket with TLS on it; hands are still to be shaken. Files are read anew each time: certificates are renewed.
    A unix socket has no name that the server's certificate could be held against, unless the URI gives one. Raises
    Disconnected."""
    security = target.tls
    assert security is not None
    hostname = security.hostname or target.host
    try:
        context = client_context(
            security.certificates,
            psk=security.psk_file,
            username=security.username or (getpass.getuser() if security.psk_file else ""),
            verify=security.verify,
            hostname=bool(hostname),
        )
    except BadCredentials as error:
        raise Disconnected(target, str(error)) from error
    return Secured(sock, Layer(context, server=False, hostname=hostname or None))


def shake_hands(secured: Secured, target: Target) -> None:
    """Raises BlockingIOError when the other side has to say something first, TLSError, Disconnected."""
    try:
        while not secured.shake_hands():
            if not secured.receive():
                raise Disconnected(target, "the server hung up in the handshake of TLS")
    except TLSError as error:
        if error.untrusted and target.tls is not None and not target.tls.certificates:
            hint = "?tls-certificates=DIR in the URI names a folder with the ca-cert.pem to trust"
            raise Disconnected(target, f"{error.message}; {hint}") from error
        raise
