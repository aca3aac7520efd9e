"""Many short runs, one seed each, over the topologies and layouts; what they found, as one table."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.chaos.subject import ROOT, environment
from memcluster.node import topology as topologies

LAYOUTS = ("linear", "stripe")
LIMIT = 300.0
"""Seconds after which a run that does not end is a finding."""


@dataclass
class Row:
    """What the runs of one topology and layout found together."""

    seeds: list[int] = field(default_factory=list)
    requests: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)


def options(seed: int, links: str | None = None, *, hosts: bool = False) -> list[str]:
    """The words of a seed's run: eight seeds that follow each other have all topologies and layouts, and the rest goes
    its own way; with `links`, all the topologies that have a choice there, and with `hosts` those that need not be on
    one. Only long zeroing needs much memory."""
    shares = {name: topologies.load(name).shares for name in topologies.names()}
    names = [name for name, may in shares.items() if may or links is None]
    if hosts:  # which share no memory either
        names, links = [name for name in names if not topologies.load(name).hands_over], "copy"
    topology = names[seed % len(names)]
    rng = random.Random(f"sweep {seed}")
    return [
        "--seed", str(seed),
        "--topology", topology,
        "--layout", LAYOUTS[seed // len(names) % len(LAYOUTS)],
        "--fan-out", rng.choice(("parallel", "serial")),
        "--storage", rng.choice(("memory", "memory", "directory")),
        "--memory", rng.choice(("48", "96", "768")),
        "--logs", rng.choice(("all", "age", "small")),
        "--links", links or rng.choice(("copy", "shared") if shares[topology] else ("copy",)),
    ]  # fmt: skip


def sweep(
    seeds: Iterable[int],
    words: list[str],
    jobs: int,
    tell: Callable[[str], object],
    links: str | None = None,
    *,
    hosts: bool = False,
) -> dict[str, Row]:
    """The rows by topology, layout and links; what a run that finds something says is told at once."""
    rows: dict[str, Row] = defaultdict(Row)
    with tempfile.TemporaryDirectory(prefix="memcluster-sweep-") as folder, ThreadPoolExecutor(jobs) as pool:

        def one(seed: int) -> tuple[int, dict[str, Any], str]:
            return seed, *_run(options(seed, links, hosts=hosts) + words, Path(folder) / f"{seed}.json")

        for seed, figures, said in pool.map(one, seeds):
            chosen = options(seed, links, hosts=hosts)
            of = dict(zip(chosen[::2], chosen[1::2], strict=True))
            shared = ", shared" if of["--links"] == "shared" else ""
            row = rows[f"{of['--topology']}, {of['--layout']}{shared}"]
            row.seeds.append(seed)
            row.requests += figures["requests"]
            row.faults.update(figures["faults"])
            row.found.update(figures["found"])
            found = {name: count for name, count in figures["found"].items() if count}
            tell(f"seed {seed}: {figures['requests']} requests, {found or 'nothing'}")
            if found:
                tell(said)
    return dict(sorted(rows.items()))


def _run(words: list[str], path: Path) -> tuple[dict[str, Any], str]:
    command = [sys.executable, "-m", "bench.chaos", *words, "--figures", str(path)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=LIMIT, check=False, env=environment())
    except subprocess.TimeoutExpired:
        return {"requests": 0, "faults": {}, "found": {"other": 1}}, f"no end in {LIMIT:g} s: {' '.join(words)}"
    said = (done.stdout + done.stderr).decode(errors="replace")
    if not path.exists():
        return {"requests": 0, "faults": {}, "found": {"other": 1}}, said
    return json.loads(path.read_text()), said


def table(rows: dict[str, Row]) -> list[str]:
    """In Markdown: a line a row, and their sum."""
    total = Row()
    for row in rows.values():
        total.seeds += row.seeds
        total.requests += row.requests
        total.faults += row.faults
        total.found.update(row.found)
    kinds = list(total.found)
    lines = [["topology, layout", "seeds", "requests", "faults", *kinds]]
    for name, row in (*rows.items(), ("all", total)):
        counts = [str(row.found[kind]) for kind in kinds]
        lines.append([name, str(len(row.seeds)), f"{row.requests:,}", f"{row.faults.total():,}", *counts])
    lines.insert(1, ["---", *["---:"] * (len(lines[0]) - 1)])
    faults = ", ".join(f"{count} {name}" for name, count in total.faults.most_common())
    return [*(f"| {' | '.join(cells)} |" for cells in lines), "", f"The faults: {faults}."]
