"""The results as tables: on the terminal, and in the documents between markers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.cases import in_order
from bench.processes import ROOT
from bench.results import Results

DOCUMENTS = tuple(ROOT / "docs" / f"{name}.md" for name in ("performance", "performance-notes", "why-tcp"))
_PLACE = re.compile(r"(<!-- bench: (?P<name>[a-z-]+) -->\n).*?(<!-- bench end -->)", re.DOTALL)

Rows = list[Sequence[str]]
"""The first is the heading; a heading that ends in `:` is for numbers, which stand to the right."""


def number(value: float) -> str:
    """Three digits that count, and separators."""
    if abs(value) >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def cases(results: Results) -> Rows:
    """Every case beside its peer."""
    rows: Rows = [("case", "peer", "unit", "memcluster:", "peer:", "ratio:", "of the pairs:", "target:", "met")]
    rows += [
        (
            case["title"],
            case["peer"],
            case["unit"],
            number(case["memcluster_median"]),
            number(case["peer_median"]),
            f"{_ratio(case['ratio_median'])}×",
            f"{_ratio(case['ratio_min'])}–{_ratio(case['ratio_max'])}",
            f"{case['target']:g}×",
            "yes" if case["met"] else "no",
        )
        for case in in_order(results.get("cases", {}))
    ]
    return rows


def limits(results: Results) -> Rows:
    """Each case that moves bytes, beside a server in C under the same load and beside programs that only move them."""
    rows: Rows = [("case", "unit", "memcluster:", "C server:", "reached:", "bare sockets:", "reached:")]
    for case in in_order(results.get("cases", {})):
        limit = case.get("limit")
        if limit and not any(row[0] == case["title"] for row in rows):
            ours, server = case["memcluster_median"], ("", "")
            if "ceiling_median" in case:
                server = number(case["ceiling_median"]), f"{case['ceiling_reached']:.0%}"
            rows.append((case["title"], case["unit"], number(ours), *server, number(limit), f"{ours / limit:.0%}"))
    for block, speed in results.get("limits", {}).get("memcpy", {}).items():
        if block != "taken":
            rows.append((f"memcpy, {int(block) >> 10} KiB at a time", "GB/s", "", "", "", number(speed / 1e9), ""))
    return rows


def machine(results: Results) -> Rows:
    """Where it was measured."""
    facts = results.get("machine", {})
    return [("", "")] + [(key.replace("_", " "), str(value)) for key, value in facts.items()]


def figures(section: str) -> Any:
    """A table of a section whose entries have `columns` and `rows` of their own."""

    def table(results: Results) -> Rows:
        found = results.get(section, {})
        columns: Rows = [next((entry["columns"] for entry in found.values()), ("",))]
        return columns + [
            [value if isinstance(value, str) else number(value) for value in row]
            for entry in found.values()
            for row in entry["rows"]
        ]

    return table


TABLES = {
    "cases": cases,
    "limits": limits,
    "machine": machine,
    "transports": figures("transports"),
    "link": figures("link"),
    "datagrams": figures("datagrams"),
    "profiles": figures("profiles"),
    "kinds": figures("kinds"),
    "calls": figures("calls"),
    "functions": figures("functions"),
}
"""By the name that a marker in a document gives: `<!-- bench: cases -->`."""


def show(results: Results, console: Console, names: Iterable[str]) -> None:
    """The tables on a terminal."""
    for name in names:
        heading, *rows = TABLES[name](results)
        if not rows:
            continue
        table = Table(title=name, title_justify="left")
        for column in heading:
            table.add_column(column.removesuffix(":"), justify="right" if column.endswith(":") else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)


def write_documents(results: Results, paths: Iterable[Path] = DOCUMENTS) -> list[Path]:
    """Put the tables between the markers of the documents; returns what was changed."""
    changed = []
    for path in paths:
        if not path.exists():
            continue
        before = path.read_text()
        after = _PLACE.sub(lambda place: f"{place[1]}{markdown(TABLES[place['name']](results))}{place[3]}", before)
        if after != before:
            path.write_text(after)
            changed.append(path)
    return changed


def markers(text: str) -> list[str]:
    """The names of the tables that a document has a place for."""
    return [place["name"] for place in _PLACE.finditer(text)]


def markdown(rows: Rows) -> str:
    """A table; nothing for one without rows."""
    if len(rows) < 2:
        return ""
    heading = rows[0]
    rule = ["---:" if column.endswith(":") else "---" for column in heading]
    lines = [[column.removesuffix(":") for column in heading], rule, *rows[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"
