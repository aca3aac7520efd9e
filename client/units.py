"""Sizes and time spans as people write them."""

from __future__ import annotations

import re

_BINARY = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"(?:(0x[0-9a-f]+)|([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?b)?)", re.IGNORECASE)
_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|)")
_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
LONGEST_WAIT = 500 * 3600.0
"""Seconds; poll counts milliseconds in 31 bits, which is 596 h."""
MOST_SECONDS = 1e9
"""About 30 years: in nanoseconds it still is a record's 64-bit number."""


def parse_size(text: str) -> int:
    """Bytes of `4096`, `0x1000`, `64KiB`, `1.5G`: all units are powers of 1024. Raises ValueError with a sentence."""
    match = _SIZE.fullmatch(text.strip())
    if match:
        hexadecimal, number, unit, _ = match.groups()
        if hexadecimal:
            return int(hexadecimal, 16)
        whole, _, part = number.partition(".")
        scale: int = 10 ** len(part)
        size, rest = divmod(int(whole + part) * _BINARY[unit.lower()], scale)
        if not rest:
            return size
    raise ValueError(f"{text!r} is not a size; write 4096, 0x1000, 64KiB or 1GiB")


def format_size(size: int) -> str:
    """The shortest text that `parse_size` turns into `size` again: 64MiB, 1000."""
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def parse_duration(text: str) -> float:
    """Seconds of `10`, `500ms`, `10s`, `2m`, `1h`. Raises ValueError with a sentence."""
    match = _SPAN.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a time span; write 500ms, 10s, 2m or 1h")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds >= MOST_SECONDS:
        raise ValueError(f"{text!r} is longer than anything lasts; write 500ms, 10s, 2m or 1h")
    return seconds


def format_duration(seconds: float) -> str:
    """Text that `parse_duration` turns into `seconds` again."""
    return f"{seconds * 1000:g}ms" if 0 < seconds < 1 else f"{seconds:.10g}s"
