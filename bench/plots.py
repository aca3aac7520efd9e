"""The pictures that the documents show, drawn from the results."""

from __future__ import annotations

from pathlib import Path

from bench import svg
from bench.cases import in_order
from bench.results import Results
from memcluster.client.units import format_size

BEYOND = 20.0
"""A ratio from which on, either way, a row is left to the table: it would squeeze all others together."""


def draw(results: Results, folder: Path) -> list[Path]:
    """Write one SVG a curve, and one for the ratios of all cases; returns what was written."""
    pictures = {}
    rows = [
        svg.Ratio(
            f"{case['title'].replace('`', '')}, vs {case['peer'].partition(',')[0]}",
            case["ratio_median"],
            case["ratio_min"],
            case["ratio_max"],
            case["target"],
        )
        for case in in_order(results.get("cases", {}))
        if case["ratio_min"] > 1 / BEYOND and case["ratio_max"] < BEYOND
    ]
    if rows:
        pictures["ratios"] = svg.ratios("memcluster's figure over its peer's", rows)
    for name, curve in results.get("curves", {}).items():
        pictures[name] = svg.lines(
            curve["title"],
            curve["series"],
            curve["x_label"],
            curve["y_label"],
            (lambda x: format_size(int(x))) if curve["x_is_size"] else (lambda x: f"{x:g}"),
            log_y=curve["log_y"],
        )
    written = []
    for name, picture in pictures.items():
        path = folder / f"performance-{name}.svg"
        path.write_text(picture)
        written.append(path)
    return written
