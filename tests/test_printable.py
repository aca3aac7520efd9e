"""node/nbd/printable.py and who uses it: what strangers say comes before people's eyes as text that can be seen; and
maps and files that cannot be right give a sentence."""

from __future__ import annotations

import json
import socketserver
import struct
import threading
from typing import Any

import pytest
from harness import memclient_command, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peers import FLAGS, Peer, opened, scripted, serving

from memcluster.client.cluster_map import parse_document, parse_map
from memcluster.client.errors import ClusterError
from memcluster.client.uri import Target
from memcluster.launcher.log.timeline import make_page
from memcluster.launcher.output import happening_line
from memcluster.launcher.run.claiming import claim_memory
from memcluster.launcher.run.memory import MemoryMismatch
from memcluster.launcher.statusview import status_table
from memcluster.node.cluster_map import ClusterMap, ServerEntry
from memcluster.node.log.record import RECORD, RECORD_SIZE, Event, Record
from memcluster.node.log.segments import LogReader
from memcluster.node.log.text import LogEntry, format_text
from memcluster.node.log.writer import GIVEN, LogWriter
from memcluster.node.nbd import wire
from memcluster.node.nbd.client import ClientSession
from memcluster.node.nbd.errors import NBDError, Refused
from memcluster.node.nbd.negotiation import Export
from memcluster.node.nbd.printable import printable, printable_all
from memcluster.node.nbd.wire import Error, Option, Rep

HOSTILE = "\x1b]0;title\x07\x1b[2Jsafe\r\nmemclient: done \u202egnp.exe\u2028\x9b31m\u2066"
SHOWN = r"\x1b]0;title\x07\x1b[2Jsafe\r\nmemclient: done \u202egnp.exe\u2028\x9b31m\u2066"
ENTRY = Target("203.0.113.9", 10809)
SMALL = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(st.text())
def test_whatever_is_said_can_be_seen_in_one_line(text):
    """What could be seen before is as it was; to do it twice changes nothing."""
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    if text.isprintable():
        assert shown == text


def test_a_terminal_is_told_nothing_by_a_text():
    """Escapes, other lines, and marks that turn the direction of writing stand as their names."""
    assert printable(HOSTILE) == SHOWN
    assert printable_all({"a\n": [HOSTILE, (1, None)]}) == {r"a\n": [SHOWN, [1, None]]}


# -- a server ------------------------------------------------------------------------------------------------------


def said(*words: str, uri: str, check: bool = True) -> tuple[list[str], list[str]]:
    """What memclient writes, in lines as a terminal has them: nothing that it could take for more than text."""
    done = run(*memclient_command("--uri", uri, "--timeout", "10s", *words), check=check)
    lines = done.stdout.decode().split("\n"), done.stderr.decode().split("\n")
    assert all(line.isprintable() for stream in lines for line in stream), lines
    return lines


def hostile_map() -> bytes:
    server = {"name": HOSTILE, "role": HOSTILE, "address": f"unix:{HOSTILE}", "memory": 100, "range": [0, 100]}
    return json.dumps({"cluster": HOSTILE, "topology": HOSTILE, "fan_out": HOSTILE, "memory": 100,
                       "layout": {"kind": HOSTILE}, "servers": [server]}).encode()  # fmt: skip


def test_what_a_server_says_of_itself_is_shown_as_text(monkeypatch):
    """Its description, its exports and its map."""
    words = hostile_map()
    sizes = {"": 100, "cluster.json": len(words), HOSTILE: 100}
    names = [Export(name, size, FLAGS, HOSTILE) for name, size in sizes.items()]
    monkeypatch.setattr(Peer, "names", lambda _: names)
    script = serving(bytearray(words))

    class Handler(socketserver.BaseRequestHandler):  # `info` has three connections at a time
        def handle(self) -> None:
            script(Peer(self.request, sizes, FLAGS))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            out, err = said("info", uri=f"nbd://127.0.0.1:{server.server_address[1]}")
        finally:
            server.shutdown()
            thread.join()
    assert err == [""]
    assert len(out) == 7  # the uri, the description, exports, requests, the cluster, its server, and the end
    assert sum(line.count(SHOWN) for line in out) == 9


def test_what_a_server_says_when_it_refuses_is_shown_as_text(monkeypatch):
    """In one line that is memclient's."""
    monkeypatch.setattr(Peer, "refusal", Refused(Rep.ERR_POLICY, HOSTILE))
    with scripted(opened(lambda _: None)) as uri:
        out, err = said("read", "0", "1", uri=uri, check=False)
    assert (len(err), out) == (2, [""])
    assert SHOWN in err[0]


def test_what_a_server_says_of_an_error_is_shown_as_text():
    """With a reply to a request."""
    def refuse(peer: Peer) -> None:
        for request in peer.serve():
            peer.answer(request, error=Error.EIO, message=HOSTILE)

    with scripted(opened(refuse)) as uri:
        out, err = said("read", "0", "1", uri=uri, check=False)
    assert (len(err), out) == (2, [""])
    assert SHOWN in err[0]


@given(
    st.binary(max_size=100),
    st.sampled_from([Rep.ERR_POLICY, Rep.ERR_UNKNOWN, Rep.ACK, 0x80000099, 7]),
    st.sampled_from([Option.STARTTLS, Option.STRUCTURED_REPLY]),
)
def test_no_handshake_makes_an_error_that_cannot_be_shown(data, kind, first):
    """Whatever a server answers to the first option, and says with it."""
    session = ClientSession("", tls=first == Option.STARTTLS)
    reply = wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, first, kind, len(data)) + data
    told = ""
    try:
        for part in (wire.GREETING.pack(wire.NBDMAGIC, wire.IHAVEOPT, 3), reply, data):
            session.receive_buffer()[: len(part)] = part
            session.received(len(part))
    except NBDError as error:
        told = str(error)
    assert told.isprintable()


# -- maps ------------------------------------------------------------------------------------------------------------


def a_map(**changes: Any) -> dict[str, Any]:
    servers = tuple(ServerEntry(f"10.0.0.{index}:10809", "", 4096, "server") for index in range(1, 3))
    return json.loads(ClusterMap("demo", "client-routed", "parallel", 0, servers).to_json()) | changes


def with_server(**changes: Any) -> dict[str, Any]:
    document = a_map()
    document["servers"][1] |= changes
    return document


WRONG = [
    (a_map(servers=7), "its servers are 7"),
    (a_map(servers=[7]), "its servers are a list of 1"),
    (a_map(servers=[{}] * 1001), "its servers are a list of 1001"),
    (a_map(layout=[]), "its layout is a list of 0"),
    (a_map(layout={"stripe": 513}), "stripes of 513 bytes are no power of two"),
    (a_map(layout={"stripe": -512}), "stripe is -512"),
    (a_map(layout={"stripe": True}), "stripe is True"),
    (a_map(cluster="x" * 301), f"cluster is '{'x' * 59}"),
    (a_map(memory=1), "its servers have 8192 bytes, and all of it is 1"),
    (a_map(memory=1e9), "memory is 1000000000.0"),
    (with_server(memory=-1), "server 1's memory is -1"),
    (with_server(memory="4096"), "server 1's memory is '4096'"),
    (with_server(memory=1 << 70), "server 1's memory is 1180591620717411303424"),
    (with_server(address="nowhere"), "'nowhere' is no address"),
    (with_server(address="h:0"), "'h:0' is no address"),
    (with_server(address="h:65536"), "'h:65536' is no address"),
    (with_server(address="unix:"), "'unix:' is no address"),
    (with_server(address=HOSTILE), r"'\x1b]0;title\x07\x1b[2Jsafe\r\nmemclient"),
    (with_server(name=[]), "server 1's name is a list of 0"),
    (with_server(range=[0]), "server 1's range is a list of 1"),
    (with_server(range=[0, "x"]), "server 1's range is 'x'"),
]


@pytest.mark.parametrize(("document", "why"), WRONG, ids=[why[:40] for _, why in WRONG])
def test_a_map_that_cannot_be_right_gives_a_sentence(document, why):
    """That says which server's map it is, and what of it."""
    with pytest.raises(ClusterError) as told:
        parse_document(json.dumps(document).encode(), ENTRY)
    assert str(told.value).startswith(f"{ENTRY} serves a map that cannot be right: {why}")
    assert str(told.value).isprintable()


@pytest.mark.parametrize("content", [b"[" * 100_000, b"{" * 3, b"\xff", b"1" * 10_000, b'"servers"', b""])
def test_what_is_no_map_gives_a_sentence(content):
    """However deep it is."""
    with pytest.raises(ClusterError, match="serves no map of a cluster"):
        parse_document(content, ENTRY)


@pytest.mark.parametrize(("address", "why"), [
    ("unix:/run/secret.sock", "a server of another machine is not at nbd+unix:///?socket=/run/secret.sock"),
    ("0.0.0.0:10809", "0.0.0.0 is no place to connect to"),
    ("[::]:10809", ":: is no place to connect to"),
])  # fmt: skip
def test_nobody_routes_to_where_no_server_can_be(address, why):
    """A server elsewhere cannot send its clients to sockets of their own machine."""
    with pytest.raises(ClusterError) as told:
        parse_map(json.dumps(with_server(address=address)).encode(), ENTRY)
    assert why in str(told.value)


@pytest.mark.parametrize("entry", [Target("127.0.0.1"), Target("localhost"), Target("::1"), Target(path="/s")])
def test_a_cluster_of_this_machine_may_name_its_sockets(entry):
    """And both layouts are read."""
    found = parse_map(json.dumps(with_server(address="unix:/s1") | {"layout": {"stripe": 512}}).encode(), entry)
    assert found.servers == (Target("10.0.0.1", 10809), Target(path="/s1"))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
PLACES = st.sampled_from(["cluster", "topology", "fan_out", "memory", "layout", "servers"])
OF_SERVERS = st.sampled_from(["name", "role", "address", "memory", "range"])


@given(PLACES, OF_SERVERS, PLAIN, PLAIN, st.booleans())
def test_a_map_is_believed_or_gives_a_sentence(key, of_server, value, another, drop):
    """Whatever stands in the place of something, and whatever is missing: nothing else is raised."""
    document = with_server(**{of_server: another})
    document[key] = value
    if drop:
        del document[key]
    for parse in (parse_document, parse_map):
        told = ""
        try:
            parse(json.dumps(document).encode(), ENTRY)
        except ClusterError as error:
            told = str(error)
        assert told.isprintable()


# -- files of a cluster's own --------------------------------------------------------------------------------------


@SMALL
@given(PLAIN.map(json.dumps) | st.text())
def test_a_damaged_memory_json_gives_a_sentence(tmp_path, content):
    """And the shards beside it are not touched."""
    (tmp_path / "memory.json").write_text(content, errors="replace")
    with pytest.raises(MemoryMismatch) as told:
        claim_memory(tmp_path, "demo", [4096], 0)
    assert str(told.value).isprintable()
    assert not (tmp_path / "shard0").exists()


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"shards": 5}', '{"shards": [{}]}', '{"cluster": "\\u001b[2J\\n", "shards": []}']
)
def test_up_says_what_is_wrong_with_a_memory_json(new_cluster, tmp_path, content):
    """In a line, and nothing is started."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "memory.json").write_text(content)
    refused = new_cluster(tmp_path, storage="data").command("up", "-d", check=False)
    assert refused.returncode == 1
    [line] = refused.stderr.decode().splitlines()
    assert line.startswith("memcluster: ")
    assert line.isprintable()
    assert "put back what belongs there, or choose another directory" in line


@SMALL
@given(st.binary(max_size=24))
def test_a_damaged_given_file_is_told_in_the_log(tmp_path_factory, content):
    """And the log goes on, without a number that was used before."""
    folder = tmp_path_factory.mktemp("log")
    first = LogWriter(folder, 0, 1 << 20)
    first.event(Event.READY, 0)
    first.close()
    (folder / GIVEN).write_bytes(content)
    log = LogWriter(folder, 0, 1 << 20)
    log.event(Event.READY, 0)
    log.close()
    block = None
    records = []
    reader = LogReader(folder)
    while (block := reader.read()) is not None:
        slots = [block.data[at : at + RECORD_SIZE] for at in range(0, len(block.data), RECORD_SIZE)]
        records += [Record._make(RECORD.unpack(slot)) for slot in slots]
    reader.close()
    numbers = [record.sequence for record in records]
    assert numbers == sorted(set(numbers))
    given, incarnation = struct.unpack("<QQ", content.ljust(16, b"\0")[:16])
    impossible = given - 1 >= 1 << 48 or incarnation > 0xFFFF
    assert any(record.operation == Event.LOG_DAMAGED for record in records) is impossible


@given(st.binary(min_size=RECORD_SIZE, max_size=RECORD_SIZE), st.integers(0, 63))
def test_no_record_makes_a_line_that_cannot_be_shown(data, server):
    """Whatever lies in a slot."""
    assert format_text(LogEntry(server, Record._make(RECORD.unpack(data)))).isprintable()


def test_a_page_has_no_code_of_a_log():
    """A name can end no script, and begin none."""
    name = "</script><script>alert(1)</script><!--" + HOSTILE
    page = make_page(name, name, [])
    assert "alert(1)</script>" not in page
    assert "<!--\\x1b" not in page
    assert "\\u202e" not in page.replace("\\\\u202e", "")


# -- what processes tell -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", ["ready", "exited", "died", "failed", "gave-up", "collected", "leftover", "lost"])
def test_what_a_node_tells_is_shown_as_text(event):
    """Reasons and names are others' words."""
    happening = {"event": event, "name": HOSTILE, "text": HOSTILE, "error": HOSTILE, "collected": 0, "path": HOSTILE}
    line = happening_line(happening, "memcluster down")
    assert SHOWN in line
    assert line.isprintable()


def test_the_status_is_shown_as_text():
    """Of the table every line, and the verdict."""
    node = {"name": HOSTILE, "role": HOSTILE, "state": "ready", "ready": False, "pid": 1, "address": HOSTILE,
            "range": None, "memory": 0, "uptime_s": 1, "restarts": 0, "clients": 0, "requests": 0, "rss_bytes": 0,
            "cpu_percent": 0.0, "reason": HOSTILE}  # fmt: skip
    status = {"cluster": HOSTILE, "state": "running", "uri": HOSTILE, "topology": "chain", "memory": 0, "stripe": 0,
              "file": "/f", "exposed": [HOSTILE], "nodes": [node]}  # fmt: skip
    lines = status_table(status).split("\n")
    assert len(lines) == 4
    assert all(line.isprintable() for line in lines)
