"""What both the supervisor and those who wait for it reckon with; by itself, as the lifecycle takes 6 ms to load."""

from __future__ import annotations

LAST_STAGES = 3.0
"""Seconds the stages after a missed deadline still have, so that the log is written even then."""
HOSTS_LEAVE = 15.0
"""Seconds that other hosts have to leave when they are told to: one that has to be run again for that takes a while."""
