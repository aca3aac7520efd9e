"""Text that others have sent, for people's eyes: on a terminal, in a file that ends up there, on a page. What would
move the cursor, begin another line, or turn the direction of writing stands as its escape."""

from __future__ import annotations

from typing import Any


def printable(text: str) -> str:
    """The text in one line, of characters that can be seen, and of spaces."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def shown(value: object) -> str:
    """A value as a sentence can have it, however long or deep it is."""
    if isinstance(value, list | tuple | dict):
        return f"a {type(value).__name__} of {len(value)}"
    try:
        return printable(repr(value)[:60])
    except ValueError:  # a number of more digits than Python writes
        return "a number beyond all measure"


def printable_lines(text: str) -> str:
    """The same of text in lines, which are ended by \\n alone."""
    return "\n".join(map(printable, text.split("\n")))


def printable_all(value: Any) -> Any:
    """Plain data with every text in it printable, those that are keys, too."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable_all(key): printable_all(one) for key, one in value.items()}
    return [printable_all(one) for one in value] if isinstance(value, list | tuple) else value
