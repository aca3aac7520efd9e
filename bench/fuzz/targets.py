"""All targets, by name."""

from __future__ import annotations

from bench.fuzz import files, messages, sessions
from bench.fuzz.target import Target

TARGETS: dict[str, Target] = {target.name: target for target in (*sessions.TARGETS, *messages.TARGETS, *files.TARGETS)}
