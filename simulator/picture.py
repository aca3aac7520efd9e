"""A scenario that was carried out, as a picture: a line for each process, time downwards, an arrow for each message.

Each thing that happens has a row of its own, so the distance between rows says nothing about time; the clock at the
left does. The same run is the same text, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterable
from xml.sax.saxutils import escape

from memcluster.simulator.messages import Message
from memcluster.simulator.play import Mark, Played

LEFT, TOP, LANE, ROW, BOTTOM = 84, 92, 190, 24, 22
STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #24292f; }
text { paint-order: stroke; stroke: #ffffff; stroke-width: 3px; } .title { font-size: 15px; font-weight: 600; }
.name { font-weight: 600; } .back { fill: #ffffff; } .clock { fill: #6e7781; font-size: 11px; }
.life { stroke: #8c959f; } .gone { stroke: #d0d7de; stroke-dasharray: 3 4; } .fault { fill: #bc4c00; }
.arrow { stroke-width: 1.5; fill: none; } .cross { stroke: #bc4c00; stroke-width: 2.5; }
.request { stroke: #0969da; } .order { stroke: #8250df; } .answer, .done { stroke: #1a7f37; }
.head.request { fill: #0969da; } .head.order { fill: #8250df; } .head.answer, .head.done { fill: #1a7f37; }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3; stroke: #0d1117; }
.back { fill: #0d1117; } .clock { fill: #8b949e; }
.life { stroke: #6e7681; } .gone { stroke: #30363d; } .fault { fill: #f0883e; } .cross { stroke: #f0883e; } }
</style>"""


def draw(played: Played) -> str:
    """An SVG."""
    return _Picture(played).text()


class _Picture:
    def __init__(self, played: Played) -> None:
        self.played = played
        self.marks = [mark for mark in played.marks if mark.time >= played.began]
        self.messages = [message for message in played.messages if message.sent >= played.began]
        shape = played.scenario.shape
        count = len(shape.sizes) + (shape.topology == "dispatcher")
        self.names = [f"client{index}" for index in range(played.scenario.clients)]
        self.names += [f"server{index}" for index in range(count)]
        self.names += sorted({mark.process for mark in self.marks} - set(self.names))
        self.rows = self._rows()
        self.width = LEFT + LANE * len(self.names) + 40
        self.height = TOP + ROW * (1 + max(self.rows.values(), default=0)) + BOTTOM + 16

    def _rows(self) -> dict[tuple[int, int], int]:
        """Of each thing (its time, its number) the row. What comes at once has the row of its sending."""
        things: list[tuple[int, int, int]] = []  # time, number; -1: a mark, 0: sent, 1: received
        for number, mark in enumerate(self.marks):
            things.append((mark.time, -1 - number, -1))
        for number, message in enumerate(self.messages):
            things.append((message.sent, 2 * number, 0))
            if message.received >= 0:
                things.append((message.received, 2 * number + 1, 1))
        rows: dict[tuple[int, int], int] = {}
        row, last = -1, (0, 0, 0)
        for thing in sorted(things, key=lambda one: one[0]):
            if not (thing[2] == 1 and last[2] == 0 and last[1] + 1 == thing[1]):
                row += 1
            rows[thing[0], thing[1]] = row
            last = thing
        return rows

    # -- places ------------------------------------------------------------------------------------------------------

    def x(self, name: str) -> int:
        return LEFT + LANE // 2 + LANE * self.names.index(name)

    def y(self, time: int, number: int) -> int:
        return TOP + ROW * self.rows[time, number] + ROW // 2

    # -- parts -------------------------------------------------------------------------------------------------------

    def text(self) -> str:
        scenario = self.played.scenario
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" role="img">',
            f"<title>{escape(scenario.title)}</title>", STYLE,
            f'<rect class="back" width="{self.width}" height="{self.height}"/>',
            f'<text class="title" x="16" y="26">{escape(scenario.title)}</text>',
            f'<text class="clock" x="16" y="46">{escape(self._shape())}</text>',
        ]  # fmt: skip
        for name in self.names:
            parts += self._life(name)
        parts += self._clock()
        for number, message in enumerate(self.messages):
            parts += self._arrow(number, message)
        for number, mark in enumerate(self.marks):
            parts += self._mark(number, mark)
        return "\n".join([*parts, "</svg>", ""])

    def _shape(self) -> str:
        shape = self.played.scenario.shape
        layout = f"stripes of {shape.stripe} bytes" if shape.stripe else "one range a server"
        return f"{shape.topology}, {layout}, {shape.fan_out} fan-out; times in virtual ms"

    def _life(self, name: str) -> Iterable[str]:
        x, bottom = self.x(name), self.height - BOTTOM
        yield f'<text class="name" x="{x}" y="{TOP - 12}" text-anchor="middle">{name}</text>'
        at, gone = TOP, False
        for number, mark in enumerate(self.marks):
            if mark.process == name and (mark.over or mark.back):
                y = self.y(mark.time, -1 - number)
                yield f'<path class="{"gone" if gone else "life"}" d="M{x} {at}V{y}"/>'
                at, gone = y, mark.over
        yield f'<path class="{"gone" if gone else "life"}" d="M{x} {at}V{bottom}"/>'

    def _clock(self) -> Iterable[str]:
        told: dict[int, int] = {}
        for (time, _), row in self.rows.items():
            told.setdefault(row, time)
        for row, time in sorted(told.items()):
            moment = (time - self.played.began) / 1e6
            y = TOP + ROW * row + ROW // 2 + 4
            yield f'<text class="clock" x="{LEFT - 20}" y="{y}" text-anchor="end">{moment:.3f}</text>'

    def _arrow(self, number: int, message: Message) -> Iterable[str]:
        y = self.y(message.sent, 2 * number)
        start = self.x(message.sender)
        if message.received < 0:  # to nobody
            end, below = start + LANE // 3, y
            yield f'<path class="arrow {message.kind}" d="M{start} {y}H{end}"/>'
            yield _cross(end, y)
        else:
            end, below = self.x(message.receiver), self.y(message.received, 2 * number + 1)
            way = -6 if end > start else 6
            yield f'<path class="arrow {message.kind}" d="M{start} {y}L{end} {below}"/>'
            yield f'<path class="head {message.kind}" d="M{end} {below}l{way} -4v8z"/>'
        words = escape(message.words)
        anchor, middle = "middle", (start + end) // 2
        if abs(end - start) > LANE:  # beside its beginning, not across other lines
            anchor, middle = ("start", start + 12) if end > start else ("end", start - 12)
        slope = (below - y) * (middle - start) // (end - start)
        yield f'<text x="{middle}" y="{y + slope - 5}" text-anchor="{anchor}">{words}</text>'

    def _mark(self, number: int, mark: Mark) -> Iterable[str]:
        x, y = self.x(mark.process), self.y(mark.time, -1 - number)
        if mark.over:
            yield _cross(x, y)
        else:
            yield f'<circle class="fault" cx="{x}" cy="{y}" r="3.5"/>'
        yield f'<text class="fault" x="{x + 9}" y="{y + 4}">{escape(mark.words)}</text>'


def _cross(x: int, y: int) -> str:
    return f'<path class="cross" d="M{x - 6} {y - 6}l12 12m0 -12l-12 12"/>'

