"""What a 4 KiB request costs in instructions: a count that is the same on a busy machine as on a quiet one.

`python -m bench.instructions [--against FOLDER]`: all servers of a topology and a scripted client run in one process
under valgrind (callgrind), which counts what is done outside the kernel. Beside it the same of the checkout in FOLDER,
such as one that `make compile` has made. A checkout is measured with its own .venv and its own tests/nodes.py.
"""

from __future__ import annotations

import re
import tempfile
from itertools import product
from pathlib import Path

import click

from bench.processes import ROOT, need, run
from bench.report import Rows, markdown

SCRIPT = Path(__file__).with_name("scripted.py")
TOPOLOGIES = (
    ("primary-secondary", "copy"),
    ("primary-secondary", "shared"),
    ("dispatcher", "copy"),
    ("chain", "copy"),
    ("client-routed", "copy"),
)
"""And the kind of its links."""
REQUESTS = 320
"""Of each case."""
MARK = "getppid"
"""What the script calls before and behind what is counted."""
_TOTAL = re.compile(r"^totals: (\d+)$", re.MULTILINE)

Case = tuple[str, str, str, int]
"""Topology, links, command, requests in flight."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--against", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Another checkout.")
@click.option("--only", default="", help="The cases in whose name this stands.")
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), help="A folder for callgrind's profiles.")
def main(against: Path | None, only: str, keep: Path | None) -> None:
    """Count the instructions of a 4 KiB request, by topology and requests in flight."""
    cases = [
        (topology, links, command, depth)
        for (topology, links), depth, command in product(TOPOLOGIES, (32, 1), ("READ", "WRITE"))
        if only in _name((topology, links, command, depth))
    ]
    roots = [ROOT] if against is None else [ROOT, against.resolve()]
    counts = [_count(root, cases, None if keep is None else keep / root.name) for root in roots]
    rows: Rows = [("case", "this:", "that:", "of this:") if against else ("case", "instructions:")]
    for case, *found in zip(cases, *counts, strict=True):
        share = (f"{found[-1] / found[0]:.2f}",) if against else ()
        rows.append((_name(case), *(f"{count:,}" for count in found), *share))
    click.echo(markdown(rows), nl=False)


def _name(case: Case) -> str:
    topology, links, command, depth = case
    return f"{topology}{', shared links' * (links == 'shared')}, {command.lower()}s, depth {depth}"


def _count(root: Path, cases: list[Case], keep: Path | None) -> list[int]:
    """Instructions of one request in each case. The profile of case N, beginning with 0, is numbered 2 N + 2."""
    with tempfile.TemporaryDirectory(prefix="memcluster-bench-") as folder:
        out = Path(folder if keep is None else keep)
        out.mkdir(parents=True, exist_ok=True)
        words = [",".join(map(str, (*case, REQUESTS // case[3]))) for case in cases]
        run(
            "env", "PYTHONHASHSEED=0",
            need("valgrind"), "--tool=callgrind", f"--callgrind-out-file={out}/profile", f"--dump-before={MARK}",
            str(root / ".venv" / "bin" / "python"), str(SCRIPT), *words,
            timeout=3600, root=root,
        )  # fmt: skip
        return [_total(out / f"profile.{2 * number + 2}") // REQUESTS for number in range(len(cases))]


def _total(profile: Path) -> int:
    found = _TOTAL.search(profile.read_text())
    assert found is not None, f"{profile} has no total"
    return int(found[1])


if __name__ == "__main__":
    main(prog_name="python -m bench.instructions")
