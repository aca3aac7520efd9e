"""Plants one fault in a copy of the code, and hunts for it there with a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.mutations.faults import Planted

PARTS = ("client", "launcher", "node", "simulator")
A_SEED = 120
"""Seconds until a seed counts as one that hangs."""
HUNT = """
import json, signal, sys
from pathlib import Path
import memcluster
from memcluster.simulator.many import run_seed
from memcluster.simulator.plan import Wish, make_plan

place, topologies, within, patience = json.loads(sys.argv[1])
assert Path(memcluster.__file__).is_relative_to(place), "the code that runs is not the copy"

class Hangs(BaseException):
    pass

def hang(*_):
    raise Hangs

signal.signal(signal.SIGALRM, hang)
for seed in range(1, within + 1):
    if topologies and make_plan(seed, Wish()).shape.topology not in topologies:
        continue
    signal.alarm(patience)
    try:
        broken = run_seed(seed, Wish()).broken
    except Hangs:
        broken = ["hangs: "]
    if broken:
        print(json.dumps([seed, sorted({sentence.partition(":")[0] for sentence in broken})]))
        break
"""


class Unplantable(Exception):
    """The text that a fault changes is not there, or more than once."""


def patched(root: Path, fault: Planted) -> str:
    """The text of the file in which the fault is, with it. Raises Unplantable."""
    text = (root / fault.file).read_text()
    for old, new in fault.changes:
        if text.count(old) != 1:
            raise Unplantable(f"{fault.name}: its text is {text.count(old)} times in {fault.file}:\n{old}")
        text = text.replace(old, new)
    try:
        compile(text, fault.file, "exec")
    except SyntaxError as error:
        raise Unplantable(f"{fault.name}: {error}") from None
    return text


def hunt(root: Path, fault: Planted, within: int) -> tuple[int, list[str]] | None:
    """The seed that finds the fault, and the rules it breaks; None if none of the first so many does."""
    with tempfile.TemporaryDirectory(prefix="memcluster-mutation-") as folder:
        package = Path(folder) / "memcluster"
        package.mkdir()
        for path in (root / "memcluster").glob("*.py"):
            shutil.copy(path, package)
        for part in PARTS:
            shutil.copytree(root / part, package / part, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        (package / fault.file).write_text(patched(root, fault))
        wanted = json.dumps([folder, fault.topologies, within, A_SEED])
        environment = os.environ | {"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        words = [sys.executable, "-P", "-c", HUNT, wanted]
        told = subprocess.run(words, env=environment, cwd=folder, stdout=subprocess.PIPE, check=True).stdout
    if not told:
        return None
    seed, rules = json.loads(told)
    return seed, rules
