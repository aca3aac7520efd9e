"""Certificates of tests, in folders: right ones, and others that are wrong in one way each."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from memcluster.launcher.certificates import LOCAL, _certificate, _key, _name, _pem, make

Span = tuple[datetime, datetime]
LONG_AGO = datetime.now(UTC) - timedelta(days=9)
OVER: Span = (LONG_AGO, LONG_AGO + timedelta(days=1))
NOW: Span = (LONG_AGO, LONG_AGO + timedelta(days=99))
CA, SERVER, CLIENT = ("ca-cert.pem",), ("server-cert.pem", "server-key.pem"), ("client-cert.pem", "client-key.pem")


class Authority:
    """One that signs what it is told to."""

    def __init__(self) -> None:
        self._key, self._certificate = _certificate("an authority of tests", NOW)

    def folder(self, path: Path, *, names: Sequence[str] = LOCAL, server: Span = NOW, client: Span = NOW) -> Path:
        """A folder with a server's certificate for these names and a client's, each good for its span."""
        issuer = self._certificate.subject, self._key
        alternatives = x509.SubjectAlternativeName([_name(name) for name in names])
        server_key, server_certificate = _certificate("a server", server, issuer, alternatives, purpose="SERVER_AUTH")
        client_key, client_certificate = _certificate("a client", client, issuer, purpose="CLIENT_AUTH")
        path.mkdir()
        for name, content in {
            "ca-cert.pem": _pem(self._certificate),
            "server-cert.pem": _pem(server_certificate),
            "server-key.pem": _key(server_key),
            "client-cert.pem": _pem(client_certificate),
            "client-key.pem": _key(client_key),
        }.items():
            (path / name).write_bytes(content)
        return path


def folders(parent: Path) -> dict[str, Path]:
    """What clients of a server that has `right` may come with, by what is the matter with it; and what other servers of
    the same authority have."""
    authority, right, other, old = Authority(), parent / "right", parent / "other", parent / "old"
    authority.folder(right)
    make(other)
    make(old, days=1, begin=LONG_AGO)
    expired = authority.folder(parent / "expired", client=OVER)
    outdated = authority.folder(parent / "outdated-server", server=OVER)
    stranger = mixed(parent / "stranger", {right: CA, other: CLIENT})
    with (stranger / CA[0]).open("ab") as file:  # it trusts both: qemu comes with nothing that it would not trust
        file.write((other / CA[0]).read_bytes())
    return {
        "right": right,
        "other": other,
        "old": old,
        "no certificate": mixed(parent / "bare", {right: CA}),
        "a stranger's certificate": stranger,
        "an expired certificate": mixed(parent / "late", {right: CA, expired: CLIENT}),
        "another key": mixed(parent / "keyless", {right: (*CA, *CLIENT[:1]), other: CLIENT[1:]}),
        "misnamed server": authority.folder(parent / "misnamed", names=["nas.example"]),
        "outdated server": mixed(parent / "outdated", {outdated: SERVER}),
    }


def mixed(folder: Path, parts: dict[Path, tuple[str, ...]]) -> Path:
    """A folder with files out of others."""
    folder.mkdir()
    for source, names in parts.items():
        for name in names:
            shutil.copy(source / name, folder / name)
    return folder
