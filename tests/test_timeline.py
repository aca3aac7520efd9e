"""The log as a picture: `memcluster timeline` in a real browser, `memcluster logs --trace` as Perfetto reads it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bench.chromium import Chromium
from memcluster.client.identifiers import BLOCK
from memcluster.launcher.log.timeline import Timeline, make_page
from memcluster.launcher.log.trace import Tracks, write_trace
from memcluster.node.log.record import Event, Kind, Record, make_identifier
from memcluster.node.log.text import LogEntry
from memcluster.node.nbd.wire import Command, Error

pytestmark = pytest.mark.timeout(180)
START = 1_700_000_000 * 10**9
US = 1000


def request(number: int, *pieces: int, start: int = 0, client: int = 1, error: int = 0) -> list[LogEntry]:
    """A request of `number` that takes 100 µs, with pieces of 30 µs on these servers."""
    begin = START + (start or number * 150) * US
    identifier = make_identifier(0, 1, number)
    record = Record(
        begin, 100 * US, identifier, 4096, 512, client, Kind.REQUEST, Command.WRITE, 0, error, number
    )  # fmt: skip
    story = [LogEntry(0, record)]
    for place, server in enumerate(pieces):
        record = Record(
            begin + (20 + place) * US, 30 * US, identifier, 0, 256, 1, Kind.PIECE, Command.WRITE, 0, 0, number
        )
        story.append(LogEntry(server, record))
    return story


def event(server: int, kind: Event, start: int, value: int = 0, client: int = 0) -> LogEntry:
    value &= (1 << 64) - 1
    return LogEntry(server, Record(START + start * US, 0, 0, value, server, client, Kind.EVENT, kind, 0, 0, 1))


def test_a_client_that_keeps_its_connection_has_one_lane() -> None:
    """Its server begins another life, and goes on with it; another one's number of before is another client's now."""
    timeline = Timeline("demo", "primary-secondary")
    second = [event(0, Event.STARTED, 900), event(0, Event.CONNECTED, 910, value=1, client=1)]
    second += [event(0, Event.READY, 920), event(0, Event.CONNECTED, 930, client=2)]
    story = [event(0, Event.STARTED, 1), *request(1, client=1), *request(2, client=2), *second]
    for client in (1, 2):
        [entry] = request(7, start=1000 + client, client=client)
        later = entry.record._replace(identifier=make_identifier(0, 2, client))
        story.append(LogEntry(0, later))
    for entry in story:
        timeline.add(entry)
    lanes = [lane["name"] for lane in timeline.data()["lanes"] if lane["kind"] == "client"]
    assert lanes == ["client 1", "client 2", "client 2 of server0"]


class Browser:
    """Debian's chromium without a window."""

    def __init__(self, folder: Path, chromium: Chromium) -> None:
        self._path = folder / "shown.html"
        self.page = chromium.page()

    def open(
        self, page: str | Path, fragment: str = "", then: str = "", size: tuple[int, int] = (1400, 800)
    ) -> dict[str, str]:
        """What the page says of itself when it is drawn: the body's data attributes. `then` is run after that."""
        text = page.read_text() if isinstance(page, Path) else page
        self._path.write_text(text.replace("</body>", f"<script>{then}</script></body>"))
        self.page.resize(size)
        self.page.open(self._path.as_uri() + fragment)
        attributes = self.page.run(
            "Object.fromEntries([...document.body.attributes].map(one => [one.name, one.value]))"
        )
        return {name.removeprefix("data-"): value for name, value in attributes.items()}


@pytest.fixture
def browser(tmp_path: Path, chromium: Chromium) -> Iterator[Browser]:
    browser = Browser(tmp_path, chromium)
    yield browser
    browser.page.close()


def page(*entries: LogEntry) -> str:
    return make_page("demo", "primary-secondary", entries)


# -- the page ----------------------------------------------------------------------------------------------------


def test_the_page_has_a_bar_for_each_record_and_an_arrow_for_each_question(browser: Browser) -> None:
    """Two clients wait for three requests, which have four pieces, one of them on the server itself; and as many
    replies as orders."""
    story = [*request(1, 1, 2), *request(2, 1), *request(3, 0, client=2, error=Error.EIO)]
    said = browser.open(page(event(0, Event.READY, 1), *story))
    assert said["ready"] == "true"
    assert [said[name] for name in ("requests", "pieces", "waits", "bars", "events")] == ["3", "4", "3", "10", "1"]
    assert (said["arrows"], said["piece-arrows"]) == ("12", "3")
    assert (said["drawn-bars"], said["drawn-arrows"]) == ("10", "12")
    assert said["lanes"] == "5"  # two clients, three servers
    assert said["flows"] == "clients>server0:3 server0>server1:2 server0>server2:1"


def handed_over(number: int, answers: int, *servers: int) -> list[LogEntry]:
    """A request that server 0 took, one of these answered, and all of them had a piece of, one after another."""
    [(_, record), *pieces] = request(number, *servers)
    return [LogEntry(answers, record), *pieces]


@pytest.mark.parametrize(
    ("topology", "story", "shape", "flows"),
    [
        (
            "primary-secondary",
            request(1, 1, 2),
            "clients server0 server1+server2",
            "clients>server0:1 server0>server1:1 server0>server2:1",
        ),
        (
            "client-routed",
            [LogEntry(1, request(1)[0].record._replace(identifier=make_identifier(1, 1, 1))), *request(2)],
            "clients server0+server1",
            "clients>server0:1 clients>server1:1",
        ),
        (
            "dispatcher",
            [*handed_over(1, 2, 0, 1, 2), *handed_over(2, 1, 0, 1)],
            "clients server0 server1+server2",
            "clients>server0:2 server0>server1:2 server0>server2:1",
        ),
        (
            "chain",
            [*handed_over(1, 2, 0, 1, 2), *handed_over(2, 2, 0, 1, 2)],
            "clients server0 server1 server2",
            "clients>server0:2 server0>server1:2 server1>server2:2",
        ),
    ],
)
def test_the_shape_of_the_topology_is_seen(
    browser: Browser, topology: str, story: list[LogEntry], shape: str, flows: str
) -> None:
    """Clients to the left, and whoever is asked one step to the right, in the order in which a request gets there."""
    said = browser.open(make_page("demo", topology, story))
    assert (said["shape"], said["flows"]) == (shape, flows)


def test_ten_thousand_requests_are_drawn(browser: Browser) -> None:
    story = [entry for number in range(1, 10_001) for entry in request(number, 1, 2, client=number % 5 + 1)]
    said = browser.open(page(*story))
    assert (said["requests"], said["pieces"], said["bars"]) == ("10000", "20000", "40000")
    assert (said["drawn-bars"], said["drawn-arrows"]) == ("40000", "60000")


def test_the_page_of_a_cluster_that_was_idle_begins_with_what_happened_last(browser: Browser) -> None:
    """And the rest is there: a key away, and in the overview."""
    minutes = 60_000_000
    bursts = [
        [request(number, 1, start=number * 150 + at * minutes) for number in range(1 + 300 * at, 301 + 300 * at)]
        for at in (0, 5)
    ]
    then = """window.dispatchEvent(new KeyboardEvent("keydown", { key: "0" })); draw();"""
    story = [entry for burst in bursts for one in burst for entry in one]
    assert (browser.open(page(*story))["drawn-bars"], len(story)) == ("900", 1200)
    assert browser.open(page(*story), then=then)["drawn-bars"] == "1800"


def test_zoom_hover_and_click(browser: Browser) -> None:
    """The wheel narrows the view around the pointer, what the pointer is on is told, a click picks its story."""
    then = """
        const send = (name, options) =>
            canvas.dispatchEvent(new PointerEvent(name, { pointerId: 1, bubbles: true, ...options }));
        canvas.setPointerCapture = () => {};
        const bar = bars.find(one => one[KIND] === "request" && one[REQUEST] === "0.1.2");
        const at = () => ({ clientX: canvas.getBoundingClientRect().left + x(bar[START] + bar[SPAN] / 2),
                            clientY: canvas.getBoundingClientRect().top + y(bar) + 3 });
        send("pointermove", at());
        document.body.dataset.tip = tip.textContent;
        send("pointerdown", at()); send("pointerup", at());
        const before = view[1] - view[0];
        canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: -120, cancelable: true, ...at() }));
        const around = view[0] < bar[START] && view[1] > bar[START];
        document.body.dataset.narrower = String(view[1] - view[0] < before && around);
        zoomTo("0.1.2"); draw();
    """
    said = browser.open(page(*request(1, 1), *request(2, 1, 2), *request(30, 1)), then=then)
    assert said["tip"].startswith("WRITE 0.1.2, request\n0x1000 +512 bytes, 100 µs\n")
    assert "└ server1  +20 µs  30 µs\n└ server2  +21 µs  30 µs" in said["tip"]
    assert said["chosen"] == "0.1.2"
    assert said["narrower"] == "true"
    assert (said["drawn-bars"], said["drawn-arrows"]) == ("4", "6")


LOOKS = """
    new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done))).then(() => {
        const computed = selector => getComputedStyle(document.querySelector(selector));
        const pixel = (x, y) => [...paint.getImageData(x, y, 1, 1).data].slice(0, 3);
        return { paper: computed("body").backgroundColor, ink: computed("body").color, box: computed(".box rect").fill,
                 lane: pixel(width - 20, tops[0] + 6), footer: computed("footer").display !== "none",
                 legend: computed("#legend span:nth-last-child(3) i").backgroundColor };
    })
"""
"""Of the frame after the next one: the news that it is dark now comes with a frame."""


def test_the_page_is_dark_where_it_is_wished_and_white_on_paper(browser: Browser) -> None:
    """Its paper, its writing, and what is drawn on the canvas and in the picture, back from the pixels; on paper there
    are no buttons, whatever the screen was."""
    browser.open(page(*request(1, 1), *request(2, 1)))
    light = browser.page.run(LOOKS)
    browser.page.emulate(prefers_color_scheme="dark")
    dark = browser.page.run(LOOKS)
    browser.page.emulate("print", prefers_color_scheme="dark")
    paper = browser.page.run(LOOKS)
    assert (light["paper"], light["lane"], light["footer"]) == ("rgb(251, 251, 249)", [241, 242, 238], True)
    assert (dark["paper"], dark["lane"], dark["footer"]) == ("rgb(22, 25, 29)", [29, 33, 38], True)
    assert (paper["paper"], paper["lane"], paper["footer"]) == ("rgb(255, 255, 255)", [244, 244, 241], False)
    assert (light["box"], dark["box"], paper["box"]) == ("rgb(255, 255, 255)", "rgb(32, 37, 43)", "rgb(255, 255, 255)")
    assert sum(map(int, re.findall(r"\d+", dark["ink"]))) > 500 > sum(map(int, re.findall(r"\d+", paper["ink"])))
    assert (light["legend"], dark["legend"]) == ("rgb(230, 184, 178)", "rgb(92, 43, 41)")  # down


def test_the_page_needs_no_network() -> None:
    """Nothing is named that could be loaded, and the page forbids it to itself."""
    text = page(*request(1, 1))
    assert "default-src 'none'" in text
    assert set(re.findall(r"https?://[^\"' ]*", text)) == {"http://www.w3.org/2000/svg"}


def test_a_name_cannot_break_out_of_the_page(browser: Browser) -> None:
    name = "</script><script>document.body.dataset.hit=1</script>"
    said = browser.open(make_page(name, name, request(1)))
    assert "hit" not in said
    assert said["ready"] == "true"


def test_an_empty_log_makes_a_page(browser: Browser) -> None:
    assert browser.open(page())["bars"] == "0"


def test_a_process_is_down_between_its_death_and_its_next_start() -> None:
    """As planned where it had been told to stop: that is not red."""
    died = (event(1, Event.STARTED, 0), event(1, Event.DIED, 100, -9), event(1, Event.STARTED, 250))
    assert lane_of("server1", *died)["down"] == [[100, 250, False]]
    stopped = (event(0, Event.READY, 0), event(0, Event.STOPPED, 50), *request(1, 1))
    assert lane_of("server0", *stopped)["down"] == [[50, 250, True]]


def test_lanes_of_a_host_lie_together() -> None:
    """Those of the supervisor's own come first."""
    entries = [event(server, Event.STARTED, server) for server in range(4)]
    homes = {"server1": "host-c", "server2": "host-b", "server3": "host-c"}
    timeline = Timeline("demo", "primary-secondary", homes=homes)
    for entry in entries:
        timeline.add(entry)
    lanes = [(lane["host"], lane["name"]) for lane in timeline.data()["lanes"]]
    assert lanes == [("", "server0"), ("host-b", "server2"), ("host-c", "server1"), ("host-c", "server3")]


def lane_of(name: str, *entries: LogEntry) -> dict[str, Any]:
    [lane] = [lane for lane in data_of(*entries)["lanes"] if lane["name"] == name]
    found: dict[str, Any] = lane
    return found


def data_of(*entries: LogEntry) -> dict[str, Any]:
    timeline = Timeline("demo", "primary-secondary")
    for entry in entries:
        timeline.add(entry)
    return timeline.data()


@pytest.mark.parametrize(
    ("fault", "value", "end", "healed", "label"),
    [
        (Event.PAUSED, 200, Event.RESUMED, 0, "paused for 200 ms"),
        (Event.SLOWED, 50, Event.HEALED, 0, "slow by 50 ms"),
        (Event.PARTITIONED, 2, Event.HEALED, 2, "cut off from server2"),
        (Event.HANGING, 0, Event.DIED, -9, "hangs"),
        (Event.KILLED, 300, Event.READY, 0, "kept down for 300 ms"),
    ],
)
def test_a_fault_is_a_span_with_a_name(fault: Event, value: int, end: Event, healed: int, label: str) -> None:
    """From its beginning to its end, or to the end of the log."""
    begins, ends = event(1, fault, 100, value), event(1, end, 300, healed)
    assert lane_of("server1", event(1, Event.READY, 0), begins, ends)["faults"] == [[100, 300, label]]
    assert lane_of("server1", begins, *request(4, 1))["faults"] == [[0, 600, label]]


def test_lanes_of_eight_servers_and_many_clients_have_room_for_their_names(browser: Browser) -> None:
    """Each lane is as high as its name at least, all of them are above the strip below, also on a phone; a process
    that only lived, and carried nothing out, is folded."""
    story = [
        entry
        for number in range(1, 201)
        for entry in request(number, *range(1, 8), client=number % 12 + 1, start=number * 9)
    ]
    then = """
        const bottom = Math.max(...tops.map((top, index) => top + talls[index]));
        Object.assign(document.body.dataset, {
            least: String(Math.min(...talls)), fits: String(bottom <= height - OVERVIEW),
            folded: lanes.map((lane, index) => lane.rows ? "" : lane.name + talls[index]).join(""),
            wide: String(document.documentElement.scrollWidth <= innerWidth) });
    """
    for size in ((1400, 800), (390, 800)):
        said = browser.open(page(event(9, Event.READY, 1), *story), then=then, size=size)
        assert (said["lanes"], said["fits"], said["folded"], said["wide"]) == ("21", "true", "server915", "true")
        assert float(said["least"]) >= 15


def test_labels_do_not_overlap_and_trouble_has_its_own(browser: Browser) -> None:
    """With eight servers, also on a phone: no name of an event stands on another or sticks out; a death between two
    other events is named, and so is what stands at the right edge."""
    events = [event(server, Event.STARTED, server) for server in range(8)]
    events += [event(server, Event.READY, 20 + server) for server in range(8)]
    events += [event(0, Event.CONNECTED, 40 * number, client=number) for number in range(1, 30)]
    events += [event(3, Event.DIED, 600, -9), event(3, Event.STARTED, 610), event(3, Event.READY, 620)]
    events += [event(5, Event.LEFT, 1000), event(6, Event.DIED, 1200, -9)]
    story = [entry for number in range(1, 8) for entry in request(number, *range(1, 8))]
    then = """
        const named = labels.map(([lane, ...rest]) => [lanes[lane].name, ...rest]);
        Object.assign(document.body.dataset, { labels: JSON.stringify(named), from: `${GUTTER}`, to: `${width}` });
    """
    for size in ((1400, 800), (390, 800)):
        said = browser.open(page(*sorted([*events, *story], key=lambda one: one.record.start)), then=then, size=size)
        labels = json.loads(said["labels"])
        assert all(float(said["from"]) <= left < right <= float(said["to"]) for _, left, right, _ in labels)
        for lane in range(8):
            places = sorted((left, right) for name, left, right, _ in labels if name == f"server{lane}")
            assert all(one[1] < other[0] for one, other in pairwise(places)), places
        named = {(name, text.split()[0]) for name, _, _, text in labels}
        assert {("server3", "died"), ("server6", "died"), ("server5", "left"), ("server0", "connected")} <= named


def test_a_keyboard_and_a_finger_are_enough(browser: Browser) -> None:
    """From request to request, closer, and from the time of day to that since the beginning; two fingers zoom."""
    then = """
        const press = key => window.dispatchEvent(new KeyboardEvent("keydown", { key, cancelable: true }));
        press("ArrowDown"); press("ArrowDown");
        const said = document.getElementById("said").textContent, second = chosen;
        press("ArrowUp");
        Object.assign(document.body.dataset, { second, first: chosen, said });
        press("t"); document.body.dataset.clock = document.getElementById("clock").textContent;
        press("Enter"); document.body.dataset.close = String(view[1] - view[0] < 300);
        press("0"); document.getElementById("in").click();
        document.body.dataset.button = String(view[1] - view[0] < END - BEGIN);
        press("0");
        const touch = (name, id, place) => canvas.dispatchEvent(
            new PointerEvent(name, { pointerId: id, clientX: place, clientY: 200, bubbles: true }));
        canvas.setPointerCapture = () => {};
        touch("pointerdown", 1, 500); touch("pointerdown", 2, 600); touch("pointermove", 2, 900);
        document.body.dataset.pinch = String(view[1] - view[0] < (END - BEGIN) / 2);
        press("Escape");
    """
    said = browser.open(page(*request(1, 1), *request(2, 1, 2), *request(30, 1)), then=then)
    assert (said["first"], said["second"], said["chosen"]) == ("0.1.1", "0.1.2", "")
    assert said["said"].startswith("WRITE 0.1.2, ")
    assert (said["clock"], said["close"], said["button"], said["pinch"]) == ("relative", "true", "true", "true")


ARROWS_AS_DRAWN = """
    look(BEGIN, END); draw();
    const laneAt = level => lanes[tops.findIndex((top, index) => level >= top && level <= top + talls[index])].name;
    const ns = place => Math.round(time(place) * 1000);
    document.body.dataset.arrowsDrawn = JSON.stringify(
        drawn.map(one => [laneAt(one[6]), ns(one[5]), laneAt(one[8]), ns(one[7]), one[4]]));
"""
Arrow = tuple[str, int, str, int, int]


def expected_arrows(topology: str, lines: list[dict[str, Any]]) -> list[Arrow]:
    """What must be drawn: (from, leaves, to, arrives, reply), from the lines of the log."""
    found: list[Arrow] = []
    pieces: dict[str, list[dict[str, Any]]] = {}
    ends = {id(line): line["time_ns"] + round(line["duration_us"] * 1000) for line in lines}
    for line in lines:
        if line["kind"] == "piece":
            pieces.setdefault(line["request"], []).append(line)
    for line in (line for line in lines if line["kind"] == "request"):
        taker = f"server{line['request'].split('.')[0]}" if topology != "client-routed" else line["node"]
        begin, end = line["time_ns"], ends[id(line)]
        mine = sorted(pieces.get(line["request"], []), key=lambda one: one["node"])
        others = [piece for piece in mine if piece["node"] != taker]
        found.append(("client", begin, taker, begin, 0))
        found.append((line["node"], end, "client", end, 1))
        last = max(others, key=lambda one: ends[id(one)], default=None)
        for place, piece in enumerate(others):
            start, done = piece["time_ns"], ends[id(piece)]
            if topology == "primary-secondary":
                found.append((taker, begin, piece["node"], start, 0))
                found.append((piece["node"], done, taker, end if piece is last else done, 1))
                continue
            asker = others[place - 1]["node"] if topology == "chain" and place else taker
            assert piece["travelled_us"] is not None
            found.append((asker, start - round(piece["travelled_us"] * 1000), piece["node"], start, 0))
            if topology == "dispatcher" and line["operation"] == "READ" and piece["node"] != line["node"]:
                found.append((piece["node"], done, "client", done, 1))
    return found


def test_a_client_that_routes_has_one_lane(make_cluster: Callable) -> None:
    """Though each server has a number of its own for it; and every other client has another."""
    cluster = make_cluster(topology="client-routed", layout={"stripe": "4KiB"})
    with cluster.connect() as one, cluster.connect() as other:
        for number in range(30):
            (one, other)[number % 2].pwrite(bytes(4096), number // 2 * 4096)
    cluster.command("timeline", "-o", "out.html", "--op", "write")
    data = re.search(r"const DATA = (\{.*\});", (cluster.folder / "out.html").read_text())
    assert data is not None
    assert [lane["kind"] for lane in json.loads(data[1])["lanes"]].count("client") == 2


@pytest.mark.parametrize("told", [True, False])
def test_a_client_that_routes_has_its_own_lane_though_a_server_counts_anew(told: bool) -> None:
    """After a restart a server's first client has the number of another one from before; the restart need not be among
    what is drawn."""
    timeline = Timeline("demo", "client-routed")

    def write(server: int, client: int, block: int, start: int) -> None:
        identifier, begin = make_identifier(0, 1, block * BLOCK), START + start * US
        record = Record(begin, US, identifier, 0, 512, client, Kind.REQUEST, Command.WRITE, 0, 0, 1)
        timeline.add(LogEntry(server, record))

    for server, client in ((0, 5), (1, 1)):
        write(server, client, 1, 0)
    if told:
        timeline.add(event(1, Event.STARTED, 10))
    for server, client in ((0, 6), (1, 1)):
        write(server, client, 2, 20)
    found = timeline.data()
    names = [lane["name"] for lane in found["lanes"]]
    assert [names[bar[0]] for bar in found["bars"] if bar[4] == "wait"] == ["client 5"] * 2 + ["client 6"] * 2


def test_each_arrow_is_where_and_when_the_log_says(make_cluster: Callable, browser: Browser, topology: str) -> None:
    """By numbers, back from the pixels: who asks, who is asked, who answers, when it leaves and when it arrives. No
    arrow goes back in time, no piece begins before its order comes, and no answer is given before there is one."""
    cluster = make_cluster(topology=topology, layout={"stripe": "4KiB"})
    with cluster.connect() as memory:
        for number in range(10):
            memory.pwrite(bytes(16384), number * 8192)
            memory.pread(9000, number * 8192)
            memory.pread(100, number * 8192)
    shown = cluster.command("logs", "--json", "--op", "read", "--op", "write").stdout.splitlines()
    lines = [line for line in map(json.loads, shown) if line["kind"] != "map" and "PROBE" not in line["flags"]]
    path = cluster.folder / "out.html"
    cluster.command("timeline", "-o", str(path), "--op", "write", "--op", "read")
    said = browser.open(path, then=ARROWS_AS_DRAWN)
    begin = int(re.findall(r'"begin":"(\d+)"', path.read_text())[0])
    drawn = [
        ("client" if tail.startswith("client") else tail, leaves + begin,
         "client" if head.startswith("client") else head, arrives + begin, reply)
        for tail, leaves, head, arrives, reply in json.loads(said["arrows-drawn"])
    ]  # fmt: skip
    assert sorted(drawn) == sorted(expected_arrows(topology, lines))
    assert all(leaves <= arrives for _, leaves, _, arrives, _ in drawn)
    assert len(drawn) >= 60


def test_timeline_of_a_cluster(make_cluster: Callable, browser: Browser) -> None:
    """What the page draws is what the log holds, with a server killed in between."""
    cluster = make_cluster(layout={"stripe": "4KiB"})
    with cluster.connect() as memory:
        for number in range(20):
            memory.pwrite(bytes(16384), number * 8192)
        cluster.command("fault", "kill", "server1")
        for number in range(20):
            memory.pread(16384, number * 8192)
    cluster.remember()
    path = cluster.folder / "out.html"
    done = cluster.command("timeline", "-o", str(path), "--op", "write", "--op", "read", "--op", "died")
    assert b"open it in a browser" in done.stdout
    lines = map(json.loads, cluster.command("logs", "--json").stdout.splitlines())
    kinds = Counter(
        line["kind"]
        for line in lines
        if line["operation"] in ("WRITE", "READ", "died") and "PROBE" not in line.get("flags", ())
    )
    said = browser.open(path)
    assert [int(said[name]) for name in ("requests", "pieces", "events")] == [
        kinds["request"],
        kinds["piece"],
        kinds["event"],
    ]
    assert kinds["request"] >= 40
    assert said["drawn-bars"] == said["bars"]


@pytest.mark.parametrize(
    ("kind", "flows"),
    [
        ("dispatcher", "clients>server0:8 server0>server1:8 server0>server2:8 server0>server3:8"),
        ("chain", "clients>server0:8 server0>server1:8 server1>server2:8"),
    ],
)
def test_the_shape_of_a_cluster_whose_servers_answer_for_one_another(
    make_cluster: Callable, browser: Browser, kind: str, flows: str
) -> None:
    cluster = make_cluster(topology=kind)
    with cluster.connect() as memory:
        for _ in range(8):
            memory.pwrite(bytes(memory.size), 0)
    path = cluster.folder / "out.html"
    cluster.command("timeline", "-o", str(path), "--op", "write")
    assert browser.open(path)["flows"] == flows


# -- the trace ---------------------------------------------------------------------------------------------------


def test_a_trace_has_spans_arrows_and_names(tmp_path: Path) -> None:
    """Every arrow starts in the span of its request and ends in that of its piece; a track holds one at a time."""
    path = tmp_path / "trace.json"
    story = [*request(1, 1, 2), *request(2, 1, start=160), event(1, Event.DIED, 300, -9)]
    assert write_trace(path, story) == 6
    trace = json.loads(path.read_text())["traceEvents"]
    spans = [one for one in trace if one["ph"] == "X"]
    assert Counter(one["cat"] for one in spans) == {"request": 2, "piece": 3, "wait": 2}
    starts, ends = ({one["id"]: one for one in trace if one["ph"] == phase} for phase in "sf")
    assert len(starts) == len(ends) == 3
    assert starts.keys() == ends.keys()
    for arrow in (*starts.values(), *ends.values()):
        there = [one for one in spans if (one["pid"], one["tid"]) == (arrow["pid"], arrow["tid"])]
        assert any(one["ts"] <= arrow["ts"] <= one["ts"] + one["dur"] for one in there)
    tracks: dict[tuple[int, int], float] = {}
    for one in spans:
        assert one["ts"] >= tracks.get((one["pid"], one["tid"]), 0)
        tracks[one["pid"], one["tid"]] = one["ts"] + one["dur"]
    names = {one["args"]["name"] for one in trace if one["name"] == "process_name"}
    assert names == {"server0", "server1", "server2", "client 1"}
    [died] = [one for one in trace if one["ph"] == "i"]
    assert died["name"] == "died killed by SIGKILL"


def test_what_overlaps_goes_to_another_track() -> None:
    tracks = Tracks()
    assert [tracks.place(*span) for span in ((0, 10), (5, 7), (7, 9), (9, 30), (10, 12))] == [0, 1, 1, 1, 0]


def test_an_empty_trace_is_json(tmp_path: Path) -> None:
    assert write_trace(tmp_path / "trace.json", []) == 0
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"] == []


def test_trace_of_a_cluster(make_cluster: Callable) -> None:
    cluster = make_cluster()
    with cluster.connect() as memory:
        memory.pwrite(bytes(1 << 20), 0)
    done = cluster.command("logs", "--trace", "out.json", "--op", "write")
    trace = json.loads((cluster.folder / "out.json").read_text())["traceEvents"]
    assert {one["cat"] for one in trace if one["ph"] == "X"} == {"request", "piece", "wait"}
    assert str(sum(one["ph"] == "X" and one["cat"] != "wait" for one in trace)) in done.stdout.decode()
    assert cluster.command("logs", "--trace", "out.json", "-f", check=False).returncode == 2
