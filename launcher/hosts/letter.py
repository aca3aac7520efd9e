"""What a guardian is told before it can ask: whom it serves, where its supervisor is, and how they know each other.

It holds the run's secret, so it goes by the environment or by standard input, and never in arguments, which everybody
on a host may read.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

SUPERVISOR = "supervisor"
"""What a guardian means when it connects."""
VARIABLE = "MEMCLUSTER_GUARDIAN"
"""The environment variable with the letter; without it the letter is the first line of standard input."""
MOST = 1 << 16
"""Bytes of a letter."""
KEYS = "keys.psk"
"""The name of a file of shared keys, among the files of the doors."""


@dataclass(frozen=True)
class Letter:
    """`host` is the name that cluster.yaml has for the guardian's, and "" in one for all hosts, which go by their own
    names; `lease` in seconds."""

    cluster: str
    host: str
    supervisor: str
    """Its address; in a letter for all hosts with a name, at which it is to be expected."""
    secret: str = field(repr=False)
    """In hexadecimal digits."""
    lease: float
    topology: str
    certificates: dict[str, str] = field(repr=False)
    """Files by name, to know other hosts by; none where nothing is encrypted."""
    doors: dict[str, str] = field(default_factory=dict, repr=False)
    """Files by name, by which servers there let clients in over TLS."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def write_certificates(folder: Path, files: dict[str, str]) -> str:
    """Where OpenSSL and the nodes can read them: into a folder that is this user's alone. Returns it, or "" if there
    are none."""
    if not files:
        return ""
    folder.mkdir(mode=0o700, exist_ok=True)
    for name, text in files.items():
        path = folder / name
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
    return str(folder)


class NoLetter(Exception):
    """A guardian was started by somebody who has nothing to tell it."""


def read_letter() -> tuple[Letter, bool]:
    """Ours, and whether it is one for all hosts. Raises NoLetter."""
    letter = parse_letter(
        os.environ.pop(VARIABLE, "") or sys.stdin.buffer.readline(MOST).decode(errors="replace")
    )
    return (letter, False) if letter.host else (replace(letter, host=socket.gethostname()), True)


def parse_letter(text: str) -> Letter:
    """Raises NoLetter."""
    try:
        return Letter(**json.loads(text))
    except (ValueError, TypeError):
        raise NoLetter(
            "a guardian is started by `memcluster up` on the hosts that cluster.yaml names, and told what to do"
        ) from None
