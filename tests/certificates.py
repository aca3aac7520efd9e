"""Certificates of tests, in a folder: right ones, and others that are wrong in one way each."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

from memcluster.launcher.certificates import make

LONG_AGO = datetime.now(UTC) - timedelta(days=9)
CA, SERVER, CLIENT = ("ca-cert.pem",), ("server-cert.pem", "server-key.pem"), ("client-cert.pem", "client-key.pem")


def folders(parent: Path) -> dict[str, Path]:
    """What clients of a server that has `right` may come with, by what is the matter with it."""
    right, other, old = parent / "right", parent / "other", parent / "old"
    make(right)
    make(other)
    make(old, days=1, begin=LONG_AGO)
    return {
        "right": right,
        "other": other,
        "old": old,
        "another authority": mixed(parent / "mistrusts", {right: CLIENT, other: CA}),
        "no certificate": mixed(parent / "bare", {right: CA}),
        "a stranger's certificate": mixed(parent / "stranger", {right: CA, other: CLIENT}),
    }


def mixed(folder: Path, parts: dict[Path, tuple[str, ...]]) -> Path:
    """A folder with files out of others."""
    folder.mkdir()
    for source, names in parts.items():
        for name in names:
            shutil.copy(source / name, folder / name)
    return folder
