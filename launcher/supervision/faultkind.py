"""What can be broken on purpose, for those who ask for it and those who do it."""

from __future__ import annotations

from typing import Literal

FaultKind = Literal["pause", "resume", "kill", "slow", "hang", "partition"]
