"""How the log reads, and what `memcluster logs` says when it cannot be read."""

import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from harness import SECRET
from hypothesis import given
from hypothesis import strategies as st
from strangers import admit

from memcluster.launcher.log.reader import LogsError, parse_since, read_log, render, tree
from memcluster.node.log.record import LOGGER, RECORD, REPEATED, Event, Kind, Reason, Record, make_identifier
from memcluster.node.log.text import LogEntry, format_json, format_text
from memcluster.node.nbd.wire import Command, CommandFlag, Error
from memcluster.node.transport.frames import Frame
from memcluster.node.transport.proof import ProofError

START = 1_700_000_000_123_456_789
REQUEST = LogEntry(
    0, Record(START, 132_000, make_identifier(0, 1, 17), 4096, 4096, 3, Kind.REQUEST, Command.WRITE, 0, 0, 5)
)
PIECE = LogEntry(
    1,
    Record(
        START + 1000, 52_000, make_identifier(0, 1, 17), 0, 512, 0, Kind.PIECE, Command.WRITE, CommandFlag.FUA, 28, 2
    ),
)


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


# -- lines -------------------------------------------------------------------------------------------------------


def test_a_line_of_text() -> None:
    assert format_text(REQUEST) == (
        "22:13:20.123456 server0  0.1.17      client 3  WRITE        0x00001000 +4096    ok 0.132 ms"
    )
    assert format_text(PIECE) == (
        "22:13:20.123457 server1  └ 0.1.17              WRITE        0x00000000 +512     ENOSPC 0.052 ms FUA"
    )


def test_the_date_comes_first_where_it_is_wanted() -> None:
    assert format_text(REQUEST, date=True) == "2023-11-14 " + format_text(REQUEST)


def test_a_line_fits_the_terminal() -> None:
    """Where there is no room for columns it goes without; only what has no room then either is cut off."""
    assert format_text(PIECE, width=200) == format_text(PIECE)
    close = "22:13:20.123457 server1 └ 0.1.17 WRITE 0x00000000 +512 ENOSPC 0.052 ms FUA"
    assert format_text(PIECE, width=80) == close
    assert format_text(PIECE, width=40) == close[:40]
    coloured = format_text(PIECE, colour=True, width=40)
    assert re.sub("\x1b\\[[0-9]*m", "", coloured) == close[:40]


def test_colours_tell_servers_apart() -> None:
    colours = [format_text(LogEntry(server, REQUEST.record), colour=True)[:5] for server in range(8)]
    assert len(set(colours)) == 8
    assert format_text(REQUEST, colour=True).endswith("\x1b[0m")


def test_a_line_of_json() -> None:
    assert json.loads(format_json(PIECE)) == {
        "time": "2023-11-14T22:13:20.123457789Z",
        "time_ns": START + 1000,
        "node": "server1",
        "request": "0.1.17",
        "kind": "piece",
        "operation": "WRITE",
        "flags": ["FUA"],
        "offset": 0,
        "length": 512,
        "client": None,
        "travelled_us": None,
        "error": "ENOSPC",
        "duration_us": 52.0,
        "sequence": 2,
    }
    handed_on = PIECE._replace(record=PIECE.record._replace(client=1500))
    assert json.loads(format_json(handed_on))["travelled_us"] == 1.5
    assert json.loads(format_json(REQUEST))["client"] == 3
    assert json.loads(format_json(REQUEST))["error"] is None


@given(
    st.integers(0, 1023),
    st.builds(
        Record,
        start=st.integers(0, 4_000_000_000 * 10**9),
        duration=st.integers(0, (1 << 64) - 1),
        identifier=st.integers(0, (1 << 64) - 1),
        offset=st.integers(0, (1 << 64) - 1),
        length=st.integers(0, (1 << 32) - 1),
        client=st.integers(0, (1 << 32) - 1),
        kind=st.integers(0, 255),
        operation=st.integers(0, 255),
        flags=st.integers(0, 65535),
        error=st.integers(0, 65535),
        sequence=st.integers(0, (1 << 64) - 1),
    ),
)
def test_any_record_makes_one_line(server: int, record: Record) -> None:
    """Numbers without a name, of a later version perhaps, are shown as numbers."""
    entry = LogEntry(server, record)
    assert "\n" not in format_text(entry, date=True)
    found = json.loads(format_json(entry))
    assert found["time_ns"] == record.start
    assert found["node"] == entry.node == f"server{server}"
    assert found["sequence"] == record.sequence


@pytest.mark.parametrize("command", Command)
def test_operations_have_names(command: Command) -> None:
    entry = LogEntry(0, REQUEST.record._replace(operation=command))
    assert f" {command.name} " in format_text(entry)
    assert json.loads(format_json(entry))["operation"] == command.name


@pytest.mark.parametrize("error", [error for error in Error if error])
def test_errors_have_names(error: Error) -> None:
    entry = LogEntry(0, REQUEST.record._replace(error=error))
    assert f" {error.name} " in format_text(entry)
    assert json.loads(format_json(entry))["error"] == error.name


def test_flags_have_names_and_the_unknown_a_number() -> None:
    flags = CommandFlag.FUA | CommandFlag.NO_HOLE | 1 << 9
    entry = LogEntry(0, REQUEST.record._replace(flags=flags))
    assert format_text(entry).endswith(" FUA NO_HOLE 0x200")
    assert json.loads(format_json(entry))["flags"] == ["FUA", "NO_HOLE", "0x200"]


def event(kind: Event, value: int = 0, subject: int = 1, client: int = 0) -> LogEntry:
    value &= (1 << 64) - 1
    return LogEntry(1, Record(START, 0, 0, value, subject, client, Kind.EVENT, kind, 0, 0, 9))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (event(Event.READY), "• ready"),
        (event(Event.STARTED, 3), "• started     incarnation 3"),
        (event(Event.DIED, -9), "• died        killed by SIGKILL"),
        (event(Event.DIED, -200), "• died        killed by signal 200"),
        (event(Event.DIED, 1), "• died        exited with status 1"),
        (event(Event.DIED, -15, LOGGER + 1), "• died        logger1: killed by SIGTERM"),
        (event(Event.RESTARTED, 2), "• restarted   2 times so far"),
        (event(Event.CONNECTED, client=4), "• connected   client 4"),
        (event(Event.REFUSED, Reason.SLOTS, client=4), "• refused     client 4: all slots are taken"),
        (event(Event.REFUSED, 99, client=4), "• refused     client 4"),
        (event(Event.PAUSED, 500), "• paused      for 500 ms"),
        (event(Event.SLOWED, 20), "• slowed      by 20 ms"),
        (event(Event.PARTITIONED, 2), "• partitioned from server2"),
        (event(Event.PARTITIONED, 2, LOGGER), "• partitioned logger0: from logger2"),
        (event(Event.HEALED, 2), "• healed      the link to server2"),
        (event(Event.LOG_STOPPED, 12), "• log_stopped 12 records lost"),
    ],
)
def test_a_line_of_an_event(entry: LogEntry, words: str) -> None:
    assert format_text(entry) == f"22:13:20.123456 server1  {words}"
    assert format_text(entry, width=30) == re.sub("  +", " ", f"22:13:20.123456 server1  {words}")[:30].rstrip()


def test_a_line_of_json_of_an_event() -> None:
    assert json.loads(format_json(event(Event.DIED, -9, LOGGER + 2))) == {
        "time": "2023-11-14T22:13:20.123456789Z",
        "time_ns": START,
        "node": "server1",
        "request": None,
        "kind": "event",
        "operation": "died",
        "about": "logger2",
        "client": None,
        "value": -9,
        "error": None,
        "sequence": 9,
    }


def test_a_read_of_the_map_says_so() -> None:
    entry = LogEntry(0, REQUEST.record._replace(kind=Kind.MAP, operation=Command.READ))
    assert format_text(entry).endswith(" cluster.json")
    assert json.loads(format_json(entry))["kind"] == "map"


def test_a_piece_that_was_sent_again_says_so() -> None:
    entry = LogEntry(1, PIECE.record._replace(flags=REPEATED | CommandFlag.FUA))
    assert json.loads(format_json(entry))["flags"] == ["FUA", "REPEATED"]


def test_a_tree() -> None:
    """A bar for each part, where it began and how long it took."""
    lines = tree([REQUEST, PIECE]).splitlines()
    assert lines == [
        f"server0    ▕{'█' * 32}▏+0.000 ms    client 3  WRITE        0x00001000 +4096    ok 0.132 ms",
        f"└ server1  ▕{'█' * 13}{' ' * 19}▏+0.001 ms              WRITE        0x00000000 +512     ENOSPC 0.052 ms FUA",
    ]
    assert tree([REQUEST, PIECE], width=80).splitlines() == [
        "server0    ▕█████████▏+0.000 ms    client 3 WRITE 0x00001000 +4096 ok 0.132 ms",
        "└ server1  ▕████     ▏+0.001 ms    WRITE 0x00000000 +512 ENOSPC 0.052 ms FUA",
    ]


def test_render() -> None:
    batches = [[REQUEST, PIECE], [REQUEST]]
    assert list(render(batches)) == [
        f"{format_text(REQUEST)}\n{format_text(PIECE)}\n",
        f"{format_text(REQUEST)}\n",
    ]
    lines = "".join(render(batches, as_json=True)).splitlines()
    assert [json.loads(line)["node"] for line in lines] == ["server0", "server1", "server0"]


# -- since -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("5m", 300), ("1.5h", 5400), ("2d", 172800), ("250ms", 0.25), (" 0s ", 0)]
)
def test_since_ago(text: str, seconds: float) -> None:
    """A time before now, whoever's clock says what that is; never 0, which is any time."""
    assert parse_since(text) == min(-1, -int(seconds * 10**9))


@pytest.mark.parametrize(
    "text", ["2023-11-14T22:13:20.5", "2023-11-14 22:13:20.5", "2023-11-14T22:13:20.5Z", "2023-11-14T23:13:20.5+01:00"]
)
def test_since_a_time(text: str) -> None:
    """Local time (here UTC) if it has no zone."""
    assert parse_since(text) == 1_700_000_000_500_000_000


def test_since_a_local_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC-1")
    time.tzset()
    assert parse_since("2023-11-14T23:13:20") == 1_700_000_000 * 10**9


@pytest.mark.parametrize("text", ["", "yesterday", "5", "5 m", "-5m", "m", "2023-13-01", "5m 3s"])
def test_since_what_it_cannot_be(text: str) -> None:
    with pytest.raises(ValueError, match="is neither a time ago, such as 30s"):
        parse_since(text)


# -- what answers ------------------------------------------------------------------------------------------------

Serve = Callable[[bytes], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A function that makes a server which answers the first query with these bytes and hangs up."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def make(answer: bytes) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def once() -> None:
            sock, _ = listener.accept()
            with sock, suppress(ProofError):
                admit(sock, "logger0")
                sock.recv(1 << 16)
                sock.sendall(answer)

        threads.append(threading.Thread(target=once, daemon=True))
        threads[-1].start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield make
    for thread in threads:
        thread.join(10)
    for listener in listeners:
        listener.close()


def body(*entries: LogEntry) -> bytes:
    slots = b"".join(RECORD.pack(*entry.record) for entry in entries)
    return slots + b"".join(entry.server.to_bytes(2, "little") for entry in entries)


END = Frame({"end": True, "missing": [], "gaps": []}).encode()


def test_entries_come_with_their_servers(serve: Serve) -> None:
    frames = Frame({"records": 2}, body(REQUEST, PIECE)).encode() + Frame({"records": 1}, body(PIECE)).encode() + END
    assert list(read_log(serve(frames), SECRET)) == [REQUEST, PIECE, PIECE]


def test_what_is_not_there_is_told(serve: Serve) -> None:
    gaps = [{"node": "server1", "after": 0, "records": 2}, {"node": "server1", "after": 9, "records": 3}]
    end = {"end": True, "missing": ["logger2"], "trouble": {"logger2": "does not answer"}, "gaps": gaps}
    told: list[str] = []
    assert list(read_log(serve(Frame(end).encode()), SECRET, told=told.append)) == []
    assert told == [
        "logger2 is missing (does not answer); the log is without its share",
        "5 records of server1 are not there: no longer kept, damaged, or never written",
    ]


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b"", "ended in the middle of the log"),
        (Frame({"records": 1}, body(PIECE)).encode(), "ended in the middle of the log"),
        (
            Frame({"error": "logger0 answers 16 queries already"}).encode(),
            "logger0: logger0 answers 16 queries already",
        ),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "what answers at .* is not logger0: a frame of "),
        (Frame({"records": 2}, body(PIECE)).encode(), "is not logger0: the records are not of the size"),
        (Frame({"records": None}, b"").encode(), "is not logger0: the records are not of the size"),
    ],
)
def test_an_answer_that_is_none_gets_a_sentence(serve: Serve, answer: bytes, sentence: str) -> None:
    with pytest.raises(LogsError, match=sentence):
        list(read_log(serve(answer), SECRET))


def test_whoever_does_not_know_the_secret_is_not_logger0(serve: Serve) -> None:
    """It is told nothing of what was to be asked, and what it says is not shown."""
    sentence = "hung up before it was known|does not know this run's secret"
    with pytest.raises(LogsError, match=sentence):
        list(read_log(serve(END), bytes(32)))


def test_silence_gets_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(LogsError, match=f"logger0 at {address} is silent for 0.05 s"):
            list(read_log(address, SECRET, timeout=0.05))


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("nowhere", "is not an address"),
        (f"unix:{os.path.join('no', 'such', 'socket')}", "cannot be reached: No such file"),
    ],
)
def test_an_address_that_leads_nowhere_gets_a_sentence(address: str, sentence: str) -> None:
    with pytest.raises(LogsError, match=sentence):
        list(read_log(address, SECRET))
