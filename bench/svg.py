"""Charts as SVG text: lines over a logarithmic axis, and ratios with their spread. Knows nothing of what they show.

The colours follow the reader's light or dark theme; every series has a mark of its own shape, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 74, 28, 66, 52
ROW = 26
NAMES, NUMBERS = 384, 116
"""Pixels for the names and the numbers of a chart of ratios."""
COLOURS = 5
_LIGHT = ("#0969da", "#bc4c00", "#8250df", "#1a7f37", "#6e7781")
_DARK = ("#58a6ff", "#f0883e", "#bc8cff", "#3fb950", "#8b949e")


def _theme(ink: str, faint: str, back: str, colours: Iterable[str]) -> str:
    return f"text {{ fill: {ink}; }} .back {{ fill: {back}; }} .grid {{ stroke: {faint}; }} " + (
        f".axis, .target {{ stroke: {ink}; }} "
        + " ".join(f".f{n} {{ fill: {c}; }} .s{n} {{ stroke: {c}; }}" for n, c in enumerate(colours))
    )


STYLE = f"""\
<style>
text {{ font: 13px system-ui, sans-serif; }} .title {{ font-weight: 600; font-size: 15px; }}
.target {{ stroke-width: 2; }} .line {{ fill: none; stroke-width: 2; }}
.spread {{ stroke-width: 5; stroke-opacity: 0.4; stroke-linecap: round; }}
{_theme("#24292f", "#d0d7de", "#ffffff", _LIGHT)}
@media (prefers-color-scheme: dark) {{ {_theme("#e6edf3", "#30363d", "#0d1117", _DARK)} }}
</style>"""

Point = tuple[float, float]


@dataclass(frozen=True)
class Ratio:
    """A row of a chart of ratios."""

    name: str
    median: float
    least: float
    greatest: float
    target: float


def lines(
    title: str,
    series: Mapping[str, Sequence[Point]],
    x_label: str,
    y_label: str,
    x_text: Callable[[float], str] = lambda x: f"{x:g}",
    *,
    log_y: bool = False,
) -> str:
    """A chart of lines; x is logarithmic, y too if asked for, else from 0 on."""
    xs = sorted({x for points in series.values() for x, _ in points})
    ys = [y for points in series.values() for _, y in points]
    across = _log_scale(xs[0], max(xs[-1], xs[0] * 1.01), LEFT, WIDTH - RIGHT)
    if log_y:
        ticks = _decades(min(ys), max(ys))
        up = _log_scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
    else:
        ticks = _round_steps(max(ys))
        up = _linear_scale(ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = [_text(LEFT, 22, title, "title")]
    for y in ticks:
        parts += [_line(LEFT, up(y), WIDTH - RIGHT, up(y), "grid"), _text(LEFT - 8, up(y) + 4, _short(y), anchor="end")]
    for x in _apart(xs, across):
        parts.append(_text(across(x), HEIGHT - BOTTOM + 18, x_text(x), anchor="middle"))
    parts.append(_line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "axis"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x_label, anchor="middle"))
    parts.append(
        f'<text transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    at = float(LEFT)
    for number, (name, points) in enumerate(series.items()):
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
        parts.append(f'<polyline class="line s{number % COLOURS}" points="{path}"/>')
        parts += [_mark(number, across(x), up(y)) for x, y in points]
        parts += [_mark(number, at + 5, 44), _text(at + 16, 48, name)]
        at += 34 + 7.2 * len(name)
    return _picture(HEIGHT, parts)


def ratios(title: str, rows: Sequence[Ratio]) -> str:
    """A chart with a row a ratio: its median, its spread as a bar, its target as a stroke; 1 is the peer."""
    height = TOP + ROW * len(rows) + 40
    reach = [value for row in rows for value in (row.least, row.greatest, row.target)]
    least, greatest = min(0.5, *reach) / 1.1, max(2.0, *reach) * 1.1
    across = _log_scale(least, greatest, NAMES, WIDTH - NUMBERS)
    bottom = TOP + ROW * len(rows)
    parts = [
        _text(16, 22, title, "title"),
        _text(16, 44, "dot: median of the pairs; bar: least to greatest; stroke: what is to be reached"),
    ]
    for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10):
        if least <= tick <= greatest:
            x = across(tick)
            parts.append(_line(x, TOP, x, bottom, "axis" if tick == 1 else "grid"))
            parts.append(_text(x, bottom + 18, f"{tick:g}×", anchor="middle"))
    for number, row in enumerate(rows):
        y = TOP + ROW * (number + 0.5)
        colour = 3 if row.median >= row.target else 1
        parts += [
            _text(16, y + 4, row.name),
            _line(across(row.least), y, across(row.greatest), y, f"spread s{colour}"),
            f'<circle class="f{colour}" cx="{across(row.median):.1f}" cy="{y:.1f}" r="5"/>',
            _line(across(row.target), y - 9, across(row.target), y + 9, "target"),
            _text(WIDTH - RIGHT, y + 4, f"{row.median:.2f}×  ({row.target:g}×)", anchor="end"),
        ]
    return _picture(height, parts)


# -- scales ------------------------------------------------------------------------------------------------------


def _log_scale(least: float, greatest: float, start: float, end: float) -> Callable[[float], float]:
    span = math.log(greatest / least)
    return lambda value: start + (end - start) * math.log(max(value, least) / least) / span


def _linear_scale(greatest: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (end - start) * value / greatest


def _round_steps(greatest: float) -> list[float]:
    """0 and up to five round numbers, the last of which is not below `greatest`."""
    unit = 10 ** math.floor(math.log10(max(greatest, 1e-9) / 5))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor * 5 >= greatest)
    return [step * number for number in range(math.ceil(greatest / step) + 1)]


def _decades(least: float, greatest: float) -> list[float]:
    first, last = math.floor(math.log10(max(least, 1e-9))), math.ceil(math.log10(max(greatest, 1e-9)))
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]


def _apart(xs: Iterable[float], across: Callable[[float], float], room: float = 46) -> list[float]:
    """Those that can be labelled without overlap."""
    shown: list[float] = []
    for x in xs:
        if not shown or across(x) - across(shown[-1]) >= room:
            shown.append(x)
    return shown


def _short(value: float) -> str:
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"


# -- shapes ------------------------------------------------------------------------------------------------------


def _mark(number: int, x: float, y: float) -> str:
    fill = f'class="f{number % COLOURS}"'
    match number % 4:
        case 0:
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {fill}/>'
        case 1:
            return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" {fill}/>'
        case 2:
            return f'<path d="M{x:.1f} {y - 5:.1f}l5 9h-10z" {fill}/>'
        case _:
            return f'<path d="M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z" {fill}/>'


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    attributes = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor != "start" else "")
    return f'<text x="{x:.1f}" y="{y:.1f}"{attributes}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _picture(height: float, parts: Iterable[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img">'
    back = '<rect width="100%" height="100%" class="back"/>'
    return "\n".join([head, STYLE, back, *parts, "</svg>", ""])
