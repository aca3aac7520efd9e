"""The small C programs beside this file, compiled when they are needed, into a folder that goes away."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from bench.processes import need, run


@functools.cache
def compiled(source: str) -> str:
    """The path of the program made from a C file of this folder. Raises Missing, Failed."""
    program = _folder() / Path(source).stem
    run(need("cc"), "-O2", "-o", str(program), str(Path(__file__).parent / source))
    return str(program)


@functools.cache
def _folder() -> Path:
    folder = tempfile.mkdtemp(prefix="memcluster-bench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
