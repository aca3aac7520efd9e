"""`memcluster certificates`: a certificate authority to throw away, and with it the files of both sides, for people who
try TLS. Who has an authority of their own uses that, and needs none of this.

`cryptography` makes them: the openssl program would be asked in five steps, with files between them and words to parse.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from memcluster.client.console import Failure
from memcluster.node.tls.credentials import CA, CLIENT_CERTIFICATE, CLIENT_KEY, SERVER_CERTIFICATE, SERVER_KEY

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

LOCAL = "localhost", "127.0.0.1", "::1"
EARLIER = timedelta(hours=1)
"""Clocks differ."""
HOSTS_EARLIER = timedelta(days=1)
"""Of hosts they may differ more."""
FOR_A_RUN = 3650
"""Days that what is made for one run is good for."""
FILES = CA, SERVER_CERTIFICATE, SERVER_KEY, CLIENT_CERTIFICATE, CLIENT_KEY


def make(folder: Path, hosts: Sequence[str] = (), days: int = 30, begin: datetime | None = None) -> list[Path]:
    """Write the five files; the authority's own key is forgotten. The server's certificate is for this machine, as it
    calls itself, and the other `hosts`. No file is overwritten. Raises Failure."""
    begin = begin or datetime.now(UTC) - EARLIER
    contents = _contents("memcluster's throw-away authority", [*LOCAL, os.uname().nodename, *hosts], begin, days)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if found := [name for name in contents if os.path.lexists(folder / name)]:
            raise Failure(f"{folder / found[0]} is there already: remove it, or name another folder")
        for name, data in contents.items():
            mode = 0o600 if name in (SERVER_KEY, CLIENT_KEY) else 0o644
            with open(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(data)
    except OSError as error:
        raise Failure(f"{error.filename or folder}: {error.strerror}") from error
    return [folder / name for name in contents]


def for_clients(folder: Path, hosts: Sequence[str]) -> None:
    """Have the five files there for servers of a run on these hosts. Those of an earlier run whose memory is still
    there stay, if they are good for all of them: its clients come back. Raises Failure, OSError."""
    if not _is_for(folder, hosts):
        for file in FILES:
            (folder / file).unlink(missing_ok=True)
        make(folder, hosts, FOR_A_RUN, datetime.now(UTC) - HOSTS_EARLIER)


def _is_for(folder: Path, hosts: Sequence[str]) -> bool:
    if not all((folder / file).exists() for file in FILES):
        return False
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate((folder / SERVER_CERTIFICATE).read_bytes())
    there = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return all(_name(host) in there for host in hosts)


def between_hosts() -> dict[str, str]:
    """What the hosts of a run know one another by: the same files, of an authority that has signed nothing else. Which
    host it is that shows them the proof of the run's secret says (node/transport/proof.py). Raises Failure."""
    contents = _contents("a run of memcluster", LOCAL, datetime.now(UTC) - HOSTS_EARLIER, FOR_A_RUN)
    return {name: data.decode() for name, data in contents.items()}


def _contents(authority_name: str, hosts: Sequence[str], begin: datetime, days: int) -> dict[str, bytes]:
    """The files by their names. Raises Failure."""
    try:
        from cryptography import x509
    except ImportError:
        raise Failure("this needs the package cryptography: pip install 'memcluster[tls]'") from None
    span = begin, begin + timedelta(days=days)
    try:
        names = [_name(host) for host in dict.fromkeys(hosts)]
    except ValueError as error:
        raise Failure(f"a host is a name or an address: {error}") from error
    authority_key, authority = _certificate(authority_name, span)
    issuer = authority.subject, authority_key
    server_key, server = _certificate(
        "memcluster", span, issuer, x509.SubjectAlternativeName(names), purpose="SERVER_AUTH"
    )
    client_key, client = _certificate("memclient", span, issuer, purpose="CLIENT_AUTH")
    return {
        CA: _pem(authority),
        SERVER_CERTIFICATE: _pem(server),
        SERVER_KEY: _key(server_key),
        CLIENT_CERTIFICATE: _pem(client),
        CLIENT_KEY: _key(client_key),
    }


def _name(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _certificate(
    name: str,
    span: tuple[datetime, datetime],
    issuer: tuple[x509.Name, EllipticCurvePrivateKey] | None = None,
    *extensions: x509.ExtensionType,
    purpose: str = "",
) -> tuple[EllipticCurvePrivateKey, x509.Certificate]:
    """A key and its certificate: an authority's, signed by itself, without an `issuer`."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    by, by_key = issuer or (subject, key)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(span[0])
        .not_valid_after(span[1])
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(by_key.public_key()), critical=False
        )
        .add_extension(
            x509.KeyUsage(
                digital_signature=issuer is not None,
                key_cert_sign=issuer is None,
                crl_sign=issuer is None,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if purpose:
        usage = x509.ExtendedKeyUsage([getattr(ExtendedKeyUsageOID, purpose)])
        builder = builder.add_extension(usage, critical=False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return key, builder.sign(by_key, hashes.SHA256())


def _pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _key(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
