"""The live page of `memcluster watch --web`, in a real browser, of clusters that run."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import psutil
import pytest
from harness import memcluster_command, run

from bench.chromium import Chromium, Page
from memcluster.launcher.live.feed import Feed
from memcluster.launcher.live.recent import GLANCE, Recent
from memcluster.node.log.record import Kind, Record, make_identifier
from memcluster.node.log.text import LogEntry
from memcluster.node.nbd.wire import Command

pytestmark = pytest.mark.timeout(180)
RUNNING = "document.body.dataset.state === 'running'"
TREE = """
    [...document.querySelectorAll(".story")].map(story => ({ head: story.querySelector(".head").innerText,
        rows: [...story.querySelectorAll(".row")].map(row => row.firstChild.textContent) }))
"""


class Watch:
    """`memcluster watch --web` of a cluster."""

    def __init__(self, start: Callable, cluster, *words: str) -> None:
        command = memcluster_command("watch", "--web", *words)
        self.process = start(*command, cwd=cluster.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.address = self.process.stdout.readline().split()[-1]
        self.host = urlsplit(self.address).netloc
        self.query = "?" + urlsplit(self.address).query

    def ask(
        self, path: str, query: str | None = None, method: str = "GET", body: str | None = None, **headers: str
    ) -> tuple[int, str]:
        """As any program might; status and body."""
        connection = http.client.HTTPConnection(self.host, timeout=30)
        try:
            words = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path + (self.query if query is None else query), body, words)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()


@pytest.fixture
def watch(start: Callable) -> Callable[..., Watch]:
    return lambda cluster, *words: Watch(start, cluster, *words)


@pytest.fixture
def page(chromium: Chromium) -> Iterator[Page]:
    page = chromium.page()
    yield page
    page.close()


EXPECTED = {
    "primary-secondary": (
        "primary secondary secondary",
        "clients>server0 server0>server1 server0>server2",
        "clients>server0@0 server0>server1@1 server0>server2@1 server1>server0@2 server2>server0@2 server0>clients@3",
    ),
    "client-routed": ("server server server", "clients>server0 clients>server1 clients>server2", ""),
    "dispatcher": (
        "dispatcher secondary secondary secondary",
        "clients>server0 server0>server1 server0>server2 server0>server3"
        " server1>clients server2>clients server3>clients",
        "clients>server0@0 server0>server1@1 server0>server2@1 server0>server3@1",
    ),
    "chain": (
        "head middle tail",
        "clients>server0 server0>server1 server1>clients server1>server2 server2>clients",
        "clients>server0@0 server0>server1@1 server1>server2@2 server2>clients@3",
    ),
}
"""The roles, the ways in the picture, and the steps of a write to all servers (of client-routed in the test)."""


def test_the_picture_and_the_last_request_are_true(make_cluster, watch, page, topology) -> None:
    """Roles and ways are those of the topology. The tree has the pieces that the log has of this request, the slow
    motion takes its messages in their order, and those that are under way at once together."""
    cluster = make_cluster(topology=topology, layout={"stripe": "4KiB"})
    page.open(watch(cluster).address)
    page.until(RUNNING)
    with cluster.connect() as memory:
        memory.pwrite(bytes(12288), 0)
    page.until("document.body.dataset.played")
    said = page.run("({ ...document.body.dataset })")
    roles = page.run("[...document.querySelectorAll('.box .role')].map(one => one.textContent.split(',')[0]).join(' ')")
    lines = map(json.loads, cluster.command("logs", "--json", "--op", "write").stdout.splitlines())
    logged = [line["node"] for line in lines if line["request"] == said["chosen"]]
    [story] = page.run(TREE)
    assert [name.strip("├└ ") for name in story["rows"]] == (
        logged if topology in ("primary-secondary", "client-routed") else ["server0", *logged[1:]]
    )
    assert "WRITE" in story["head"]
    assert "0x0 +" in story["head"]
    expected_roles, ways, steps = EXPECTED[topology]
    assert (roles, said["ways"]) == (expected_roles, ways)
    assert set(steps.split()) <= set(said["steps"].split())
    if topology == "client-routed":
        ways = [(f"clients>server{server}@0", f"server{server}>clients@1") for server in range(3)]
        assert sorted(said["steps"].split()) == sorted(way for both in ways for way in both)
    assert not page.errors


def test_a_fault_is_set_by_a_click_seen_in_status_and_healed(make_cluster, watch, page) -> None:
    """With the mouse; then again with nothing but the keyboard."""
    cluster = make_cluster()
    page.open(watch(cluster).address)
    page.until(RUNNING)
    page.click("[data-name=server1]")
    page.run("document.getElementById('span').value = ''")
    page.click("[data-kind=slow]")
    page.until("document.querySelector('[data-name=server1]').classList.contains('broken')")
    [fault] = cluster.status()["faults"]
    assert (fault["kind"], fault["nodes"], fault["left_s"]) == ("slow", ["server1"], None)
    assert page.run("document.querySelector('[data-name=server1] .state').textContent") == "ready, slow"
    assert "with 1 fault on purpose" in page.run("document.getElementById('verdict').textContent")
    page.click("#heal")
    page.until("document.body.dataset.faults === '0'")
    assert cluster.status()["faults"] == []

    page.run("document.querySelector('[data-name=logger2]').focus()")
    page.press("Enter")
    page.until("document.getElementById('node').open")
    page.run("document.querySelector('[data-kind=pause]').focus()")
    page.press("Enter")
    page.until("document.querySelector('[data-name=logger2]').classList.contains('broken')")
    assert [fault["nodes"] for fault in cluster.status()["faults"]] == [["logger2"]]
    page.press("h")
    page.until("document.body.dataset.faults === '0'")
    assert cluster.status()["faults"] == []
    assert not page.errors


def test_nobody_without_the_token_is_let_in(make_cluster, watch) -> None:
    """Nor a page of another site that a browser shows at the same time, nor one that has this address by a name of its
    own. Nothing of the cluster is told, and nothing is done."""
    cluster = make_cluster()
    watched = watch(cluster)
    order = json.dumps({"kind": "pause", "targets": ["server1"], "seconds": 5})
    for query in ("", "?token=", f"{watched.query[:-1]}", f"?token={'%C3%A9' * 32}"):
        for method, path in (("GET", "/"), ("GET", "/events"), ("POST", "/fault"), ("GET", "/other")):
            status, text = watched.ask(path, query, method, order)
            assert status == 403
            assert cluster.name not in text
    assert watched.ask("/fault", None, "POST", order, Origin="http://elsewhere.example")[0] == 403
    assert watched.ask("/fault", None, "POST", order, Origin="null")[0] == 403
    assert watched.ask("/", Host="elsewhere.example:80")[0] == 403
    assert watched.ask("/fault", None, "GET")[0] == 405
    assert cluster.status()["faults"] == []
    assert watched.ask("/", Host=f"localhost:{watched.host.rpartition(':')[2]}")[0] == 200
    assert watched.ask("/fault", None, "POST", order, Origin=f"http://{watched.host}") == (200, '{"done":["server1"]}')
    assert len(cluster.status()["faults"]) == 1


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("", 400, "no fault is asked for so"),
        ('{"kind": "pause", "targets": "server1"}', 400, "targets"),
        ('{"kind": "pause", "targets": ["server1"], "seconds": -1}', 400, "seconds"),
        ('{"kind": "explode", "targets": ["server1"]}', 400, "there is no fault 'explode'"),
        ('{"kind": "pause", "targets": ["server9"]}', 409, "server9"),
        ("[" * 5000, 400, "more than 4096 bytes"),
    ],
)
def test_what_cannot_be_asked_for_gets_a_sentence(standing_watch, body, status, words) -> None:
    found, text = standing_watch.ask("/fault", None, "POST", body)
    assert found == status
    assert words in json.loads(text)["error"]


@pytest.fixture(scope="module")
def standing_watch(standing) -> Iterator[Watch]:
    """One page for all that is asked of it."""
    from harness import commands

    with commands() as start:
        yield Watch(start, standing.cluster)


def test_a_browser_that_goes_away_leaves_nothing(make_cluster, watch, page) -> None:
    """Another one sees that it is alone; when all are gone nobody asks the cluster any more, and Ctrl-C ends it."""
    cluster = make_cluster()
    watched = watch(cluster)
    page.open(watched.address)
    page.until("document.body.dataset.watchers === '1'")
    streams = [http.client.HTTPConnection(watched.host, timeout=30) for _ in range(3)]
    for stream in streams:
        stream.request("GET", "/events" + watched.query)
        assert stream.getresponse().readline().startswith(b"data: {")
    page.until("document.body.dataset.watchers === '4'")
    for stream in streams:
        stream.close()
    page.until("document.body.dataset.watchers === '1'")
    page.open("about:blank")
    assert watched.ask("/fault", None, "POST", "")[0] == 400  # it still serves
    watched.process.send_signal(signal.SIGINT)
    _, said = watched.process.communicate(timeout=30)
    assert (watched.process.returncode, said.strip()) == (130, "")


def test_nobody_is_asked_anything_when_nobody_watches() -> None:
    """The cluster is looked at while there is a watcher; a slow one gets the newest message alone."""
    looks = itertools.count(1)

    async def check() -> None:
        feed = Feed(lambda: {"look": next(looks)})
        slow, quick = feed.messages(), feed.messages()
        assert json.loads(await anext(slow)) == {"look": 1, "watchers": 1}
        newest = [json.loads(await anext(quick)) for _ in range(3)][-1]
        assert newest["watchers"] == 2
        assert json.loads(await anext(slow)) == newest
        for one in (slow, quick):
            await one.aclose()
        assert feed.watchers == 0
        left = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait_for(asyncio.gather(*left), 30)

    asyncio.run(check())


def test_it_says_that_the_cluster_has_gone_and_goes_on_when_it_is_back(make_cluster, watch, page) -> None:
    cluster = make_cluster()
    page.open(watch(cluster).address)
    page.until(RUNNING)
    cluster.down()
    page.until("document.body.dataset.state === 'stopped'")
    told = page.run("document.getElementById('verdict').textContent")
    assert told.startswith(f"{cluster.name} is stopped; `memcluster")
    assert page.run("document.getElementById('shape').classList.contains('over')")
    cluster.up()
    page.until(RUNNING)
    with cluster.connect() as memory:
        memory.pwrite(b"again", 0)
    page.until("document.querySelector('.story')")
    assert not page.errors


def test_it_says_that_watch_has_ended(make_cluster, watch, page) -> None:
    watched = watch(make_cluster())
    page.open(watched.address)
    page.until(RUNNING)
    watched.process.send_signal(signal.SIGTERM)
    page.until("document.getElementById('verdict').textContent.includes('does not answer')")


def test_names_cannot_break_out_of_the_page(make_cluster, watch, page) -> None:
    """Whatever text comes to the page from a cluster, a log or the supervisor is shown as it is."""
    page.open(watch(make_cluster()).address)
    page.until(RUNNING)
    hostile = "</script><img src=x onerror=document.body.dataset.hit=1>"
    page.run(
        f"""source.close(); before = null;
        const hostile = {json.dumps(hostile)};
        Object.assign(now, {{ cluster: hostile, topology: hostile, verdict: hostile, trouble: hostile }});
        for (const node of now.nodes) Object.assign(node, {{ words: hostile, address: hostile }});
        now.nodes[1].role = hostile;
        now.log = {{ begin: "0", end: 9, lanes: [{{ name: hostile, kind: "client", rows: 1, down: [], faults: [] }}],
            bars: ["wait", "request"].map(kind => [0, 0, 1, 2, kind, hostile, hostile, hostile, 0, 0]),
            arrows: [], marks: [[0, 1, hostile, hostile, true]] }};
        showAll(); choose(hostile); openNode("server1");"""
    )
    shown = page.run("document.body.innerText")
    assert shown.count(hostile) >= 8
    assert page.run("document.images.length") == 0
    assert "hit" not in page.run("({ ...document.body.dataset })")
    assert not page.errors


def test_it_is_dark_calm_and_narrow_where_that_is_wished(make_cluster, watch, page) -> None:
    """A phone has the servers below one another and nothing beside the screen; who wishes no motion gets the numbers of
    the steps at once."""
    cluster = make_cluster(topology="chain", layout={"stripe": "4KiB"})
    page.emulate(prefers_color_scheme="dark", prefers_reduced_motion="reduce")
    page.resize((390, 844))
    page.open(watch(cluster).address)
    page.until(RUNNING)
    with cluster.connect() as memory:
        memory.pread(12288, 0)
    page.until("document.body.dataset.steps")
    assert page.run("[...document.querySelectorAll('.step text')].map(text => text.textContent).join()") == "1,2,3,4"
    assert page.run("[document.querySelectorAll('.dot').length, document.body.dataset.motion].join()") == "0,false"
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    tops = page.run("['clients', 'server0', 'server1', 'server2'].map(name =>"
                    " document.querySelector(`[data-name=${name}]`).getBoundingClientRect().top)")  # fmt: skip
    assert tops == sorted(tops)
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(22, 25, 29)"
    assert page.run("getComputedStyle(document.querySelector('.box rect')).fill") == "rgb(32, 37, 43)"


# -- the command -------------------------------------------------------------------------------------------------


def test_an_address_that_others_reach_is_refused_unless_it_is_asked_for(make_cluster, watch) -> None:
    cluster = make_cluster()
    refused = cluster.command("watch", "--web", "0.0.0.0:0", check=False)
    assert refused.returncode == 2
    assert b"can be reached by other machines" in refused.stderr
    assert re.match(r"http://127\.0\.0\.1:\d+/\?token=", watch(cluster, "0.0.0.0:0", "--insecure-network").address)


def test_what_cannot_be_is_told_in_a_sentence(make_cluster, watch, tmp_path) -> None:
    cluster = make_cluster()
    taken = watch(cluster).host
    done = cluster.command("watch", "--web", taken, check=False)
    assert (done.returncode, done.stderr.decode()) == (
        5, f"memcluster: the page cannot be served at {taken}: Address already in use\n",
    )  # fmt: skip
    assert b"say --web" in cluster.command("watch", check=False).stderr
    missing = "import sys; sys.modules['uvicorn'] = None; from memcluster.launcher.cli import main; main()"
    done = run(sys.executable, "-c", missing, "watch", "--web", cwd=cluster.folder, check=False)
    assert (done.returncode, done.stderr.decode()) == (
        1, "memcluster: the page needs uvicorn: pip install 'memcluster[web]' has it\n",
    )  # fmt: skip
    cluster.down()
    done = cluster.command("watch", "--web", check=False)
    assert done.returncode == 3
    assert b"is not running" in done.stderr


def test_no_node_has_loaded_what_serves_the_page(make_cluster) -> None:
    """Neither a node nor its supervisor."""
    cluster = make_cluster()
    for identity in (cluster.record.supervisor, *(node.identity for node in cluster.record.nodes)):
        maps = " ".join(one.path for one in psutil.Process(identity.pid).memory_maps())
        assert "_ssl" not in maps  # uvicorn's and starlette's are Python alone; asyncio loads this one


# -- glances -----------------------------------------------------------------------------------------------------


def story(number: int, start: int) -> list[LogEntry]:
    """A read of server 0 with a piece on server 1: 100 ns, in the log at its end."""
    identifier = make_identifier(0, 1, number)
    kinds = ((0, Kind.REQUEST, start, 100), (1, Kind.PIECE, start + 20, 30))
    return [
        LogEntry(server, Record(begin, span, identifier, 0, 512, 1, kind, Command.READ, 0, 0, number))
        for server, kind, begin, span in kinds
    ]


def names(recent: Recent) -> list[str]:
    return [bar[7] for bar in recent.data()["bars"] if bar[4] == "request"]


def test_a_request_is_shown_when_all_of_it_has_come() -> None:
    """One that ended while the loggers were asked may lack what another logger had not yet told: it waits."""
    recent = Recent("demo", "primary-secondary", "parallel")
    ends = {"server0": 2, "server1": 1}
    after = recent.asked(ends)
    assert after == {"server0": 0, "server1": 0}
    (first, first_piece), (second, second_piece) = story(1, 1000), story(2, 2000)
    recent.take([first, first_piece, second], after, 1500)
    assert names(recent) == ["0.1.1"]
    assert recent.asked(ends) == {}
    after = recent.asked({"server0": 2, "server1": 2})
    assert after == {"server0": 2, "server1": 1}
    recent.take([second_piece], after, 3000)
    assert names(recent) == ["0.1.1", "0.1.2"]


def test_of_a_busy_log_only_whole_requests_are_shown() -> None:
    """What began before the end of what was passed over may lack pieces."""
    recent = Recent("demo", "primary-secondary", "parallel")
    after = recent.asked({"server0": 1000, "server1": 1000})
    assert after == {"server0": 1000 - GLANCE, "server1": 1000 - GLANCE}
    entries = [entry for number in range(990, 1001) for entry in story(number, number * 50)]
    recent.take(entries[2:], after, 10**9)  # 991 is the first; 992 began before its end
    assert names(recent) == [f"0.1.{number}" for number in range(993, 1001)]
