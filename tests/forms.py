"""What `make test-compiled` leaves out: the tests whose subject is no node, and so the same in both forms, and those
that plant a fault in a function, which no compiled caller would meet."""

from __future__ import annotations

import ast
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from memcluster.node.native import form

ROOT = Path(__file__).parent.parent

planted = pytest.mark.skipif(form() == "compiled", reason="faults are planted in the source")
"""Such a test proves that a fault would be found, by whoever looks for them in either form."""

NO_NODES = frozenset(
    f"test_{name}"
    for name in (
        # commands, files and pages
        "background", "changed", "compare", "config", "console", "files", "habits", "init", "live", "manual", "plain",
        "rundir", "terminal", "timeline", "tutorial", "units",
        # what starts, watches and ends the nodes
        "kill_sweep", "lifecycle", "privileges", "sockets", "supervision", "surroundings",
        # what stands around all of it
        "bench", "chaos", "harness", "imports", "pytest_plugin", "python_cluster", "python_docs", "wheel",
        # parts of a node that are not compiled
        "admission", "frames", "peer", "pool", "slots",
    )
)  # fmt: skip

OUTSIDE = frozenset({"test_real_clients", "test_tls", "test_hostile_tls"})
"""What others, or TLS, do with servers: belongs to the short part, although its code comes to no compiled module."""


def imports(path: Path) -> set[str]:
    """The dotted names that a file imports, wherever in it: the modules, and what it takes from them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def compiled() -> set[str]:
    """The modules that are compiled here."""
    suffix = EXTENSION_SUFFIXES[0]
    beside = [
        path.relative_to(ROOT) for folder in ("node", "simulator") for path in (ROOT / folder).rglob(f"*{suffix}")
    ]
    return {"memcluster." + ".".join(path.parts).removesuffix(suffix) for path in beside}


def left_out(file: Path, part: str) -> bool:
    """Whether a file of tests is none of the part `nodes`, what may meet a compiled module, or `path`: what imports
    one, and what is OUTSIDE."""
    if part not in ("nodes", "path") or not file.stem.startswith("test_"):
        return False
    return file.stem in NO_NODES or (part == "path" and file.stem not in OUTSIDE and not imports(file) & compiled())
