"""Certificates and keys, made into what a connection is secured with.

Only TLS 1.3, which has neither renegotiation nor compression, and whose ciphers are all sound; every client with GnuTLS
3.6.5 or OpenSSL 1.1.1 speaks it. No tickets: a resumed session would save a client 1 ms, and cost a key to be kept.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from memcluster.node.tls.credentials import (
    CA,
    CLIENT_CERTIFICATE,
    CLIENT_KEY,
    SERVER_CERTIFICATE,
    SERVER_KEY,
    BadCredentials,
    Credentials,
)
from memcluster.node.tls.layer import Layer, TLSError, explain

HAS_PSK = hasattr(ssl.SSLContext, "set_psk_server_callback")
"""Keys shared beforehand: Python 3.13 and later."""
NO_PSK = "keys shared beforehand (PSK) need Python 3.13 or later"
MAX_PSK_FILE = 1 << 20


def server_context(credentials: Credentials) -> ssl.SSLContext:
    """What a server secures connections with. Raises BadCredentials."""
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0
    if credentials.certificates:
        folder = Path(credentials.certificates)
        _load_pair(context, folder / SERVER_CERTIFICATE, folder / SERVER_KEY)
        if credentials.verify:
            _load_authorities(context, folder / CA)
            context.verify_mode = ssl.CERT_REQUIRED
    if credentials.psk:
        keys = read_keys(Path(credentials.psk))
        _need_psk()
        nobodys = os.urandom(32)  # who is not in the file fails as one who has another key: no name is given away
        context.set_psk_server_callback(lambda name: keys.get(name or "", nobodys))  # type: ignore[attr-defined,unused-ignore]
    return context


def client_context(
    certificates: str = "", *, psk: str = "", username: str = "", verify: bool = True, hostname: bool = True
) -> ssl.SSLContext:
    """What a client secures a connection with. The server's certificate is held against ca-cert.pem of the folder, or
    against those that this system trusts, and its name against the one that was asked for, if `hostname`. Raises
    BadCredentials."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = verify and hostname and not psk
    context.verify_mode = ssl.CERT_REQUIRED if verify or psk else ssl.CERT_NONE
    if psk:  # a server that proves itself with a certificate instead is trusted by nobody here
        _need_psk()
        keys = read_keys(Path(psk))
        if username not in keys:
            raise BadCredentials(f"{psk} has no key of {username!r}: name one before the host, nbds://NAME@HOST")
        context.set_psk_client_callback(lambda _: (username, keys[username]))  # type: ignore[attr-defined,unused-ignore]
        return context
    if not certificates:
        context.load_default_certs()
        return context
    folder = Path(certificates)
    if verify or (folder / CA).exists():
        _load_authorities(context, folder / CA)
    if (folder / CLIENT_CERTIFICATE).exists():
        _load_pair(context, folder / CLIENT_CERTIFICATE, folder / CLIENT_KEY)
    return context


def check(credentials: Credentials) -> None:
    """That a client which has the same folder would accept the server, by shaking hands in memory. Raises
    BadCredentials."""
    server_context(credentials)
    if not credentials.certificates or not (Path(credentials.certificates) / CA).exists():
        return
    unverified = Credentials(credentials.certificates, verify=False)
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    _load_authorities(context, Path(credentials.certificates) / CA)
    server, client = Layer(server_context(unverified), server=True), Layer(context, server=False)
    try:
        client.shake_hands()
        server.received(client.unsent())
        server.shake_hands()
        client.received(server.unsent())
        client.shake_hands()
    except TLSError as error:
        cause = error.__cause__
        words = cause.verify_message if isinstance(cause, ssl.SSLCertVerificationError) else error.message
        path = Path(credentials.certificates) / SERVER_CERTIFICATE
        raise BadCredentials(f"{path}: no client that trusts {CA} would accept it: {words}") from error


def read_keys(path: Path) -> dict[str, bytes]:
    """Of a file with NAME:HEXADECIMAL a line, as psktool and nbdkit write them. Raises BadCredentials."""
    with _reading(path):
        text = path.read_bytes()[: MAX_PSK_FILE + 1].decode()
    if len(text) > MAX_PSK_FILE:
        raise BadCredentials(f"{path} is too long for a file of keys")
    keys = {}
    for number, line in enumerate(text.splitlines(), start=1):
        name, colon, key = line.rpartition(":")
        if not line.strip() or line.startswith("#"):
            continue
        try:
            keys[name] = bytes.fromhex(key)
        except ValueError:
            colon = ""
        if not colon or not name or not keys[name]:
            raise BadCredentials(f"{path}:{number}: a line is NAME:KEY, the key in hexadecimal digits")
    if not keys:
        raise BadCredentials(f"{path} has no keys")
    return keys


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _need_psk() -> None:
    if not HAS_PSK:
        raise BadCredentials(NO_PSK)


def _load_pair(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    for path in (certificate, key):
        with _reading(path), path.open("rb"):
            pass
    try:
        context.load_cert_chain(certificate, key, password=_no_password(key))
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise BadCredentials(f"{key} is not the key of {certificate}") from error
        if error.reason in ("NO_START_LINE", "PEM_LIB") or not error.reason:
            raise BadCredentials(f"{certificate} or {key} is not a certificate and a key in PEM form") from error
        raise BadCredentials(f"{certificate}, {key}: {explain(error)}") from error
    except ValueError as error:
        raise BadCredentials(str(error)) from error


def _no_password(key: Path) -> Callable[[], str]:
    def ask() -> str:
        raise ValueError(f"{key} has a password, which nobody is there to type: remove it (openssl pkey)")

    return ask


def _load_authorities(context: ssl.SSLContext, path: Path) -> None:
    with _reading(path), path.open("rb"):
        pass
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise BadCredentials(f"{path} is not a certificate in PEM form") from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What cannot be read is told as a sentence."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise BadCredentials(f"{path} is not text") from error
    except OSError as error:
        raise BadCredentials(f"{path}: {error.strerror}") from error
