"""The two forms of the data path and of the simulator, their source as it is and compiled: which one runs is known, and
no stale one does.

These hold in either form; `make test-compiled` runs them, and everything that starts a node, in the compiled one.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import pickle
import re
import subprocess
import sys
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader
from pathlib import Path

import pytest
from forms import NO_NODES, imports
from harness import ROOT, memclient_command, memcluster_command, run

from memcluster.node.layout import make_layout
from memcluster.node.native import LIBRARY, form
from memcluster.node.topology import load, names

COMPILED = form() == "compiled"
SUFFIX = EXTENSION_SUFFIXES[0]


def listed() -> list[str]:
    """The modules that setup.py compiles, by their place in the checkout."""
    spec = importlib.util.spec_from_file_location("setup_of_memcluster", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    return [f"{package}/{name}" for package, names in setup.MODULES.items() for name in names]


@pytest.mark.parametrize("name", listed())
def test_every_module_is_of_the_form_that_runs(name):
    module = importlib.import_module("memcluster." + name.replace("/", "."))
    assert isinstance(module.__loader__, ExtensionFileLoader) == COMPILED


@pytest.mark.parametrize("command", [memcluster_command, memclient_command])
def test_the_version_says_which_form_runs(command, tmp_path):
    said = run(*command("--version"), cwd=tmp_path).stdout.decode()
    assert re.fullmatch(rf"mem(cluster|client) \S+ \({form()}\)\n", said)


def test_only_what_meets_no_node_is_left_out_of_the_compiled_form():
    """Every name is that of a file; none of them imports what is compiled, but for arithmetic, the form of a record and
    that of a history, which have tests of their own. Whatever is added runs in both forms."""
    files = {path.stem: path for path in Path(__file__).parent.glob("test_*.py")}
    assert files.keys() > NO_NODES
    assert len(NO_NODES) < len(files) / 2
    apart = {"node/layout", "node/log/record", "simulator/history", "simulator/rules"}
    compiled = {"memcluster." + name.replace("/", ".") for name in listed() if name not in apart}
    for name in NO_NODES:
        assert not compiled & imports(files[name]), name


@pytest.mark.parametrize("name", names())
def test_a_role_is_open_to_classes_that_are_not_compiled(name):
    """So that a topology of one's own may derive from it. And what derives from an open class, is not open itself and
    is made by who is not compiled, is begun twice by mypyc (2.4)."""
    for role in load(name).roles.values():
        assert issubclass(type("Own", (role,), {}), role)


@pytest.mark.parametrize("name", listed())
def test_no_slice_has_a_bound_that_is_more_than_a_look(name):
    """mypyc 2.4 evaluates the bounds of most slices twice (findings/mypyc-slice-twice.sh)."""
    looks = {"len", "min", "max"}
    for slice_ in ast.walk(ast.parse((ROOT / f"{name}.py").read_text())):
        for call in ast.walk(slice_) if isinstance(slice_, ast.Slice) else ():
            assert not isinstance(call, ast.Call) or ast.unparse(call.func) in looks, f"line {call.lineno}"


def test_a_layout_travels_to_another_process():
    """By pickle, as part of what a node is told; what is compiled has no way of its own for that."""
    for layout in (make_layout([4096, 8192]), make_layout([4096, 8192], 512)):
        again = pickle.loads(pickle.dumps(layout))
        assert again == layout
        assert again.split(4000, 1000) == layout.split(4000, 1000)


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A checkout with something compiled in it, as far as the look at the files' times goes."""
    (tmp_path / "memcluster").mkdir()
    (tmp_path / "memcluster" / "__init__.py").touch()
    (tmp_path / "node" / "nbd").mkdir(parents=True)
    (tmp_path / "simulator").mkdir()
    for folder in ("node", "simulator"):
        (tmp_path / "memcluster" / folder).symlink_to(f"../{folder}")
        (tmp_path / folder / LIBRARY).touch()
    for name in ("node/__init__.py", "node/native.py", "simulator/__init__.py"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for name in ("node/nbd/server", "simulator/world"):
        (tmp_path / f"{name}.py").touch()
        (tmp_path / f"{name}{SUFFIX}").touch()
    for path in tmp_path.rglob("*"):
        os.utime(path, ns=(10**18, 10**18))
    return tmp_path


def use(checkout: Path) -> subprocess.CompletedProcess[str]:
    """Begin to use what is there."""
    words = [sys.executable, "-S", "-c", "import memcluster.simulator"]
    return subprocess.run(words, cwd=checkout, env={}, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("source", ["node/nbd/server.py", "simulator/world.py"])
def test_what_was_compiled_of_a_source_that_has_changed_since_is_refused(checkout, source):
    """And named; what is not compiled may change."""
    (checkout / "node" / "files.py").touch()
    assert use(checkout).returncode == 0
    (checkout / source).touch()
    done = use(checkout)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: {checkout}/memcluster/{source} has changed since it was compiled: `make compile`, or `make pure`"
    )


@pytest.mark.parametrize("source", ["node/nbd/server.py", "simulator/world.py"])
def test_make_is_rid_of_what_is_stale_and_keeps_what_is_not(checkout, source):
    (checkout / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    run("make", "fresh", cwd=checkout)
    assert len(list(checkout.rglob("*.so"))) == 4
    (checkout / source).touch()
    run("make", "fresh", cwd=checkout)
    assert not list(checkout.rglob("*.so"))


@pytest.mark.skipif(not COMPILED, reason="it is built by `make compile`")
def test_the_compiled_wheel_has_source_and_library_and_is_for_this_python_alone():
    """All of it inside the package; it was made by `make compile`, which is where this checkout has it from."""
    [path] = (ROOT / "build" / "compiled").glob("*.whl")
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert f"-{tag}-{tag}-linux" in path.name
    names = set(zipfile.ZipFile(path).namelist())
    assert {f"memcluster/{name}{end}" for name in listed() for end in (".py", SUFFIX)} <= names
    found = {name for name in names if name.endswith(".so")}
    assert {f"memcluster/node/{LIBRARY}", f"memcluster/simulator/{LIBRARY}"} <= found
    assert len(found) == len(listed()) + 2
