"""The compiled form of the data path, and of the simulator: which form runs, and words for the compiler.

mypyc can compile the modules that setup.py lists, from the same source; then an extension module stands beside each of
them and is imported in its place. Words for it are what it makes of a class or of a number: where the source runs as it
is, they change nothing.
"""

from __future__ import annotations

import os
from importlib.machinery import EXTENSION_SUFFIXES
from typing import TYPE_CHECKING

__all__ = ["FOLDER", "LIBRARY", "form", "i64", "mypyc_attr", "refuse_stale"]

if TYPE_CHECKING:
    from mypy_extensions import i64, mypyc_attr
else:
    i64 = int

    def mypyc_attr(**_said):
        return lambda decorated: decorated


FOLDER = os.path.dirname(__file__)
LIBRARY = f"compiled__mypyc{EXTENSION_SUFFIXES[0]}"
"""What is compiled of a folder, all of it."""


def form() -> str:
    """In words for people."""
    return "compiled" if os.path.exists(f"{FOLDER}/{LIBRARY}") else "pure Python"


def refuse_stale(folder: str) -> None:
    """In a checkout what was compiled of a folder must not run in the place of a source that has changed since. (In an
    installed package it cannot have changed, and the files' times tell when they were installed.) Raises ImportError.
    """
    library = f"{folder}/{LIBRARY}"
    if not (os.path.islink(folder) and os.path.exists(library)):
        return
    compiled = os.stat(library).st_mtime_ns
    for place, _, names in os.walk(folder + "/"):
        for name in names:
            source = f"{os.path.join(place, name.partition('.')[0])}.py"
            known = name.endswith(EXTENSION_SUFFIXES[0]) and os.path.exists(source)
            if known and os.stat(source).st_mtime_ns > compiled:
                raise ImportError(f"{source} has changed since it was compiled: `make compile`, or `make pure`")
