"""Plants faults in copies of the code, and runs seeds there with a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.mutations.faults import Planted
from bench.mutations.marks import MARKS

PARTS = ("client", "launcher", "node", "simulator")
A_SEED = 120
"""Seconds until a seed counts as one that hangs."""
RUN = """
import builtins, json, signal, sys
from collections import defaultdict
from pathlib import Path
import memcluster
from memcluster.simulator.many import run_seed
from memcluster.simulator.plan import Wish, make_plan

place, topologies, seeds, to_the_end, patience = json.loads(sys.argv[1])
assert Path(memcluster.__file__).is_relative_to(place), "the code that runs is not the copy"

class Hangs(BaseException):
    pass

def hang(*_):
    raise Hangs

def reached(name, whether=True):
    if whether and (not marks[name] or marks[name][-1] != seed):
        marks[name].append(seed)

marks = defaultdict(list)
builtins.REACHED = reached
signal.signal(signal.SIGALRM, hang)
found, ran = [], 0
for seed in seeds:
    if topologies and make_plan(seed, Wish()).shape.topology not in topologies:
        continue
    ran += 1
    signal.alarm(patience)
    try:
        broken = run_seed(seed, Wish()).broken
    except Hangs:
        broken = ["hangs: "]
    signal.alarm(0)
    if broken:
        found.append([seed, sorted({sentence.partition(":")[0] for sentence in broken})])
        if not to_the_end:
            break
print(json.dumps({"found": found, "ran": ran, "marks": marks}))
"""


class Unplantable(Exception):
    """The text that a fault changes is not there, or more than once."""


class Hunt(NamedTuple):
    """What seeds have shown: the one that found the fault (0: none) and the rules it broke; how many ran."""

    seed: int
    rules: list[str]
    ran: int


def replaced(name: str, file: str, text: str, changes: Sequence[tuple[str, str]]) -> str:
    """The text with something else in it. Raises Unplantable."""
    for old, new in changes:
        if text.count(old) != 1:
            raise Unplantable(f"{name}: its text is {text.count(old)} times in {file}:\n{old}")
        text = text.replace(old, new)
    try:
        compile(text, file, "exec")
    except SyntaxError as error:
        raise Unplantable(f"{name}: {error}") from None
    return text


def patched(root: Path, fault: Planted) -> dict[str, str]:
    """The text of the file in which the fault is, with it. Raises Unplantable."""
    return {fault.file: replaced(fault.name, fault.file, (root / fault.file).read_text(), fault.changes)}


def marked(root: Path, faults: Sequence[Planted]) -> dict[str, str]:
    """The texts of the files in which these are, without them, but with their marks. Raises Unplantable."""
    texts: dict[str, str] = {}
    for fault in faults:
        text = texts.get(fault.file) or (root / fault.file).read_text()
        texts[fault.file] = replaced(f"the mark of {fault.name}", fault.file, text, [MARKS[fault.name]])
    return texts


def hunt(root: Path, fault: Planted, seeds: Sequence[int]) -> Hunt:
    """Run those of the seeds in whose topology the fault's code runs, until one finds it."""
    told = _run(root, patched(root, fault), fault.topologies, seeds, to_the_end=False)
    seed, rules = told["found"][0] if told["found"] else (0, [])
    return Hunt(seed, rules, told["ran"])


def reach(root: Path, faults: Sequence[Planted], seeds: Sequence[int]) -> dict[str, list[int]]:
    """Which of the seeds get to where each of these would matter; and, under "", which break a rule without any."""
    told = _run(root, marked(root, faults), (), seeds, to_the_end=True)
    return {**{fault.name: [] for fault in faults}, **told["marks"], "": [seed for seed, _ in told["found"]]}


def _run(
    root: Path, texts: dict[str, str], topologies: Sequence[str], seeds: Sequence[int], *, to_the_end: bool
) -> Any:
    with tempfile.TemporaryDirectory(prefix="memcluster-mutation-") as folder:
        package = Path(folder) / "memcluster"
        package.mkdir()
        for path in (root / "memcluster").glob("*.py"):
            shutil.copy(path, package)
        for part in PARTS:
            shutil.copytree(root / part, package / part, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        for file, text in texts.items():
            (package / file).write_text(text)
        wanted = json.dumps([folder, topologies, list(seeds), to_the_end, A_SEED])
        environment = os.environ | {"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        words = [sys.executable, "-P", "-c", RUN, wanted]
        told = subprocess.run(words, env=environment, cwd=folder, stdout=subprocess.PIPE, check=True).stdout
    return json.loads(told)
