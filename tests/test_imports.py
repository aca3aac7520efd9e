"""Who may import whom: the table of the architecture, read from the code's own imports."""

from __future__ import annotations

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from forms import imports
from harness import run

import memcluster

ROOT = Path(__file__).parent.parent
PACKAGES = ("launcher", "node", "client", "simulator")
FILES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
WITH_IO = {"asyncio", "multiprocessing", "os", "select", "selectors", "signal", "socket", "subprocess", "time"}
PURE = [
    *(f"node/nbd/{name}.py" for name in ("wire", "negotiation", "server", "opening", "client", "replies")),
    *(f"node/nbd/{name}.py" for name in ("errors", "printable", "zeroes")),
    "node/layout.py",
    *(f"node/log/{name}.py" for name in ("record", "merge", "filter", "tally")),
    *(f"node/{name}.py" for name in ("serving/budget", "serving/clearing", "serving/slots")),
    *(f"node/{name}.py" for name in ("transport/frames", "transport/proof", "handover/messages")),
    *(f"node/tls/{name}.py" for name in ("layer", "credentials")),
    *(f"launcher/supervision/{name}.py" for name in ("actions", "lifecycle", "nodelife")),
]
CODEC = ("node.nbd", "node.layout", "node.tls", "node.native")
DIRECTIONS: dict[str, dict[str, set[str]]] = {
    "node": {
        "native": set(),
        "layout": set(),
        "nbd": set(),
        "cluster_map": {"layout"},
        "spec": {"cluster_map", "log", "tls", "transport"},
        "tls": {"nbd"},
        "topology": set(),
        "files": set(),
        "privileges": {"files"},
        "transport": {"nbd", "tls"},
        "log": {"files", "layout", "nbd"},
        "logger": {"files", "log", "nbd", "spec", "topology", "transport"},
        "serving": {"files", "layout", "log", "nbd", "spec", "tls", "transport"},
        "forwarding": {"files", "layout", "log", "nbd", "serving", "transport"},
        "handover": {"layout", "log", "nbd", "serving", "spec", "transport"},
        "topologies": {"forwarding", "handover", "layout", "log", "nbd", "serving", "spec", "topology", "transport"},
        "node": {"logger", "spec", "topology", "transport"},
        "process": {"files", "node", "privileges", "spec", "transport", "zygote"},
        "zygote": {"files", "privileges", "process"},  # in a function, when it has been started
    },
    "launcher": {
        "reach": set(),
        "clusterfile": {"reach"},
        "hosts": {"certificates", "clusterfile", "reach", "run", "supervision"},
        "run": set(),
        "speech": set(),
        "supervision": {"clusterfile", "reach", "run", "speech"},
        "privileges": set(),
        "checked": {"clusterfile", "privileges", "run"},
        "output": set(),
        "table": set(),
        "log": {"checked", "completing", "output", "run", "table"},
        "live": {"checked", "fault", "log", "reach", "run", "status", "statusview"},
    },
}
"""What each part, a folder or a file, may import of the others beside it. The commands of the launcher may know all."""


def ours(path: Path) -> set[str]:
    """What it imports of memcluster, as names inside the package; nothing of ours has a bare everyday name."""
    found = imports(path)
    assert not {name for name in found if name.split(".")[0] in PACKAGES}, f"{path} imports a bare everyday name"
    if "memcluster.__version__" in found:  # which is all that the public face has for those behind it
        found -= {"memcluster", "memcluster.__version__"}
    inside = {name.split(".")[1] for name in found if name.startswith("memcluster.")}
    assert inside <= {*PACKAGES}, f"{path} imports {inside} of the public face"
    return {name.removeprefix("memcluster.") for name in found if name.split(".")[0] == "memcluster"}


def module(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=module)
def test_a_module_imports_only_what_its_place_allows(path):
    """node knows neither launcher nor client; client only the codec and the layout; topologies not one another. The
    simulator knows nodes, clients, the supervisor's policy and how YAML is read; nobody knows it but its command."""
    name = module(path)
    for other in ours(path):
        top = other.split(".")[0]
        if name.startswith("node/"):
            assert top == "node", f"{name} imports {other}"
        if name.startswith("client/"):
            assert top == "client" or other == "node" or other.startswith(CODEC), f"{name} imports {other}"
        if name.startswith("launcher/"):
            assert top != "memcluster"
            assert not other.startswith("node.topologies"), f"{name} looks inside a topology: {other}"
            assert top != "simulator" or name == "launcher/simulatecommand.py", f"{name} imports {other}"
        if name.startswith("simulator/"):
            policy = tuple(f"launcher.supervision.{part}" for part in ("actions", "lifecycle", "nodelife"))
            pure = other.startswith((*policy, "launcher.clusterfile.positions"))
            assert top in ("simulator", "node", "client") or pure, f"{name} imports {other}"
            assert not other.startswith("node.topologies"), f"{name} looks inside a topology: {other}"
        if name.startswith("node/"):
            assert not other.startswith("node.topologies"), f"{name} knows a topology: {other}"


@pytest.mark.parametrize(("top", "part"), [(top, part) for top, parts in DIRECTIONS.items() for part in parts])
def test_parts_know_one_another_in_one_direction(top, part):
    """The table of directions, row by row."""
    inside = [path for path in FILES if path.is_relative_to(ROOT / top / part) or path == ROOT / top / f"{part}.py"]
    names = {name for path in inside for name in ours(path)}
    known = {name.split(".")[1] for name in names if name.startswith(f"{top}.")}
    assert known - {part, "native"} == DIRECTIONS[top][part]  # words for the compiler are for every part


def test_every_part_has_its_row():
    """All that node has, and every folder of the launcher."""
    for top, parts in DIRECTIONS.items():
        found = {path.stem for path in (ROOT / top).iterdir() if path.name[:2] != "__" and path.suffix != ".so"}
        folders = {path.name for path in (ROOT / top).iterdir() if path.is_dir() and path.name != "__pycache__"}
        assert set(parts) >= (found if top == "node" else folders)


def test_the_table_of_directions_has_no_circle():
    for parts in DIRECTIONS.values():
        TopologicalSorter({part: others for part, others in parts.items() if part != "zygote"}).prepare()


@pytest.mark.parametrize("name", PURE)
def test_what_is_pure_does_no_io(name):
    """No sockets, no processes, no time."""
    tops = {found.split(".")[0] for found in imports(ROOT / name)}
    assert not tops & WITH_IO, tops & WITH_IO


def test_the_public_face_only_re_exports():
    """memcluster/__init__.py has what it promises, imports none of it by being imported, and defines nothing else."""
    face = ROOT / "memcluster" / "__init__.py"
    nodes = ast.walk(ast.parse(face.read_text()))
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert names == {"__getattr__", "__dir__"}
    assert {getattr(memcluster, name).__name__ for name in memcluster.__all__} == set(memcluster.__all__)
    code = "import sys; before = set(sys.modules); import memcluster; print(set(sys.modules) - before)"
    loaded = run(sys.executable, "-c", code)
    assert loaded.stdout.decode().strip() == "{'memcluster'}"


@pytest.mark.parametrize("path", FILES, ids=module)
def test_every_module_says_what_it_is(path):
    """A docstring at the top of each file that has code."""
    text = path.read_text()
    assert not text.strip() or ast.get_docstring(ast.parse(text)), path
