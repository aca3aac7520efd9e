"""The figures of docs/topologies.md: `make compare` runs `memcluster compare` and puts tables and a picture there.

The figures stay in results/topologies.json. What the page says about them in words is for people to hold against them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from bench.machine import facts
from bench.processes import ROOT
from bench.report import Rows, markdown, number
from memcluster.launcher import comparison
from memcluster.launcher.compare import Options, compare
from memcluster.launcher.output import format_bytes
from memcluster.node.topology import names

DOCUMENT = ROOT / "docs" / "topologies.md"
PICTURE = ROOT / "docs" / "topologies.svg"
RESULTS = ROOT / "bench" / "results" / "topologies.json"
_PLACE = re.compile(r"(<!-- compare: (?P<name>[a-z]+) -->\n).*?(<!-- compare end -->)", re.DOTALL)

Results = dict[str, Any]


def speed(results: Results) -> Rows:
    """What the client sees."""
    kinds = [found["workload"] for found in results["cases"][0]["workloads"]]
    heads = [f"{kind}, {'MB/s' if kind.startswith('1MiB') else 'a second'}:" for kind in kinds]
    rows: Rows = [("", *(text for head in heads for text in (head, "p50, p99 ms:")))]
    for case in results["cases"]:
        cells: list[str] = []
        for found in case["workloads"]:
            large = found["workload"].startswith("1MiB")
            cells.append(number(found["bytes_per_second"] / 1e6 if large else found["iops"]))
            cells.append(", ".join(f"{found['latency_us'][part] / 1000:.2f}" for part in ("p50", "p99")))
        rows.append((comparison.case_name(case), *cells))
    return rows


def _work(index: int, results: Results) -> Rows:
    """What the processes do for one request of a workload."""
    rows: Rows = [
        ("", "through server 0:", "through all:", "messages:", "CPU of server 0, µs:", "of all the others, µs:")
    ]
    for case in results["cases"]:
        first, *others = case["workloads"][index]["processes"]
        rows.append(
            (
                comparison.case_name(case),
                format_bytes(round(_bytes([first]))),
                format_bytes(round(_bytes([first, *others]))),
                f"{sum(process['messages_in'] + process['messages_out'] for process in (first, *others)):.1f}",
                number(first["cpu_us"]),
                number(sum(process["cpu_us"] for process in others)),
            )
        )
    return rows


def _bytes(processes: Sequence[dict[str, Any]]) -> float:
    return float(sum(process["received"] + process["sent"] for process in processes))


def machine(results: Results) -> str:
    """A sentence on what the figures depend on."""
    found = results["machine"]
    return (
        f"Measured on {found['date']}: {found['processors']} processors ({found['processor']}), "
        f"Linux {found['kernel']}, {found['python']}, memcluster {found['memcluster']}, {found['measured']}. "
        f"The load average before it began was {found['load_average'][0]:g}.\n"
    )


def write_document(results: Results, path: Path = DOCUMENT) -> None:
    """Put the tables between the markers."""
    tables = {
        "machine": machine(results),
        "speed": markdown(speed(results)),
        "small": markdown(_work(0, results)),
        "large": markdown(_work(3, results)),
    }
    path.write_text(_PLACE.sub(lambda place: f"{place[1]}{tables[place['name']]}{place[3]}", path.read_text()))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--for", "seconds", type=click.FloatRange(0.1), default=5.0, show_default=True, help="Seconds a load.")
@click.option("--again", is_flag=True, help="Measure nothing: put the last figures into the page again.")
def main(seconds: float, again: bool) -> None:
    """Measure the topologies and write the tables and the picture of docs/topologies.md."""
    if not again:
        about = facts(f"{seconds:g} s a load") | {"date": datetime.now(UTC).date().isoformat()}
        cases = compare(Options(names(), seconds=seconds), lambda text: click.echo(text, err=True))
        RESULTS.write_text(json.dumps({"machine": about, "cases": cases}, indent=1) + "\n")
    results = json.loads(RESULTS.read_text())
    write_document(results)
    PICTURE.write_text(comparison.picture(results["cases"]))
    for written in (DOCUMENT, PICTURE):
        click.echo(f"wrote {written.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
