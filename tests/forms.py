"""What `make test-compiled` leaves out: the tests whose subject is no node, and so the same in both forms, and those
that plant a fault in a function, which no compiled caller would meet."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from memcluster.node.native import form

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
