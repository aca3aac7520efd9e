"""A table of text that fits its reader: columns are taken in by importance for as long as there is room. No colours
are counted as width, and none are shown where nobody has a terminal."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Collection, Sequence

import click

from memcluster.node.nbd.printable import printable

INDENT = "  "


def width_of(wide: bool = False) -> int:
    """Columns of text that the terminal has; 0 where a table may have all of its own: with `--wide`, and in a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() and not wide else 0


def table(
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[str] = (),
    importance: Sequence[str] = (),
    width: int = 0,
    paint: Callable[[str, str], str] = lambda _title, cell: cell,
) -> list[str]:
    """The lines of a table whose first row has the titles; numbers, named by `right`, stand to the right. With `width`
    the columns that `importance` names come in as they fit, the first first; those that it does not name always."""
    rows = [[printable(cell) for cell in row] for row in rows]
    columns = list(zip(*rows, strict=True))
    sizes = [max(map(len, column)) for column in columns]
    taken = [index for index, column in enumerate(columns) if not width or column[0] not in importance]
    titles = list(rows[0])
    for title in importance if width else ():
        if title in titles:
            more = [*taken, titles.index(title)]
            if sum(sizes[index] for index in more) + len(INDENT) * (len(more) - 1) <= width:
                taken = more
    lines = []
    for number, row in enumerate(rows):
        cells = []
        for index in sorted(taken):
            cell = row[index].rjust(sizes[index]) if titles[index] in right else row[index].ljust(sizes[index])
            cells.append(paint(titles[index], cell) if number else cell)
        lines.append(INDENT.join(cells).rstrip())
    return lines


def folded(text: str, width: int) -> str:
    """A sentence in lines of so many columns; no word is cut, for it may be an address."""
    if not width:
        return text
    lines = textwrap.wrap(text, width, subsequent_indent=INDENT, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)


def coloured(text: str, colour: str) -> str:
    """For a terminal; `click.echo` leaves the colour out elsewhere."""
    return text if os.environ.get("NO_COLOR") or not sys.stdout.isatty() else click.style(text, fg=colour)
