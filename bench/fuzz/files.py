"""Files that others may have written or damaged: the map of a cluster (which a server says), the segments of a log, and
what lies in a run directory, beside a log and beside shards."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from bench.fuzz.target import CUT, ROOM, Target, joined
from memcluster.client.cluster_map import MAX_MEMORY, parse_document, parse_map
from memcluster.client.discover import _record
from memcluster.client.errors import ClusterError
from memcluster.client.uri import Target as Place
from memcluster.launcher.log.kept import KeptLog
from memcluster.launcher.run.claiming import claim_memory
from memcluster.launcher.run.directory import NodeRecord, RunDirectory, RunRecord
from memcluster.launcher.run.identity import Identity
from memcluster.launcher.run.maps import map_path, read_map
from memcluster.launcher.run.memory import MemoryMismatch
from memcluster.node.cluster_map import ClusterMap, ServerEntry
from memcluster.node.log.record import RECORD, RECORD_SIZE, Kind
from memcluster.node.log.segments import HEADER, HEADER_SIZE, MAGIC, VERSION, LogReader
from memcluster.node.log.text import format_json, format_text
from memcluster.node.log.writer import GIVEN, LogWriter
from memcluster.node.tls.context import read_keys
from memcluster.node.tls.credentials import BadCredentials


class Room:
    """A folder in memory, and what is written there again and again."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="memcluster-fuzz-", dir=os.environ.get(ROOM, "/dev/shm")))
        atexit.register(self.remove)
        self.logs = self.folder / "logs"
        server = self.logs / "server0"
        server.mkdir(parents=True)
        self.segments = [server / f"{number:06d}.seg" for number in (1, 2)]
        self.run = RunDirectory(f"fuzz-{os.getpid()}")
        self.run.state = self.folder / "state.json"
        self.data = self.folder / "data"
        self.data.mkdir()
        self.log = self.folder / "log"
        self.keys = self.folder / "keys.psk"

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@cache
def room() -> Room:
    """Made when it is needed: whoever only loads this leaves nothing."""
    return Room()


# -- maps ----------------------------------------------------------------------------------------------------------

ENTRIES = (Place("203.0.113.9", 10809), Place("127.0.0.1", 10809), Place(path="/run/memory.sock"))


def read_a_map(data: bytes) -> None:
    """The first byte says where it was found. It is believed and then leads somewhere, or gives a sentence."""
    entry, content = ENTRIES[(data[0] if data else 0) % len(ENTRIES)], data[1:]
    try:
        parse_document(content, entry)
        found = parse_map(content, entry)
    except ClusterError as error:
        assert str(error).isprintable()
        assert len(str(error)) <= 2000
        return
    size = found.layout.size
    assert 0 <= size <= MAX_MEMORY
    assert len(found.servers) == len(found.document["servers"])
    for place in found.servers:
        assert bool(place.path) != bool(place.host and 0 < place.port < 1 << 16)
        assert not place.path or entry.path or entry.host.startswith("127."), "led to a socket of one's own"
    if size:
        for offset in {0, size // 2, size - 1}:
            length = min(1 << 16, size - offset)
            pieces = list(found.layout.split(offset, length))
            assert sum(piece.length for piece in pieces) == length
            for piece in pieces:
                assert (
                    0
                    <= piece.offset
                    <= piece.offset + piece.length
                    <= found.document["servers"][piece.server]["memory"]
                )


# -- segments ------------------------------------------------------------------------------------------------------


def _write(path: Path, content: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(file, content)
    os.close(file)


def read_a_log(data: bytes) -> None:
    """Two segments, and before them a byte that says whether `memcluster logs` reads them, too: what can be read of
    them is given in order, none twice, and nothing that is not there."""
    contents = data[1:].split(CUT, 1)
    for path, content in zip(room().segments, contents, strict=False):
        _write(path, content)
    if len(contents) < 2:
        _write(room().segments[1], b"")
    there = sum(max(0, len(content) - HEADER_SIZE) // RECORD_SIZE for content in contents)
    reader = LogReader(room().logs / "server0")
    numbers: list[int] = []
    while (block := reader.read()) is not None:
        assert block.data
        assert not len(block.data) % RECORD_SIZE
        numbers += range(block.first, block.last + 1)
    reader.close()
    assert numbers == sorted(set(numbers))
    assert len(numbers) <= there
    if data[:1] < b"\xe0":
        return
    kept = KeptLog(room().logs)
    found = [entry for batch in kept.read_batches(0) for entry in batch]
    assert len(found) <= there
    for entry in found:
        assert format_text(entry, date=True).isprintable()
        json.loads(format_json(entry))
    kept.tallies(0, 0)


# -- files of a run ------------------------------------------------------------------------------------------------

WANTED = ("demo", [4096, 4096], 0)
FILES = ("state.json", "memory.json", "run-000001.json", "keys.psk", GIVEN)


def read_a_file(data: bytes) -> None:
    """The first byte says which. It is what it should be to the last value, or it is none, or gives a sentence."""
    name, content = FILES[(data[0] if data else 0) % len(FILES)], data[1:]
    READERS[name](content)


def _state(content: bytes) -> None:
    room().run.state.write_bytes(content)
    record = room().run.record()
    _record(room().folder)
    if record is None:
        return
    again = RunRecord.from_json(record.to_json())
    assert again == record
    assert record.logger0.name == "logger0"
    for one in (record.supervisor, *record.helpers, *(node.identity for node in record.nodes)):
        assert type(one.pid) is type(one.start) is int
        assert 0 < one.pid < 1 << 31, "a signal would go elsewhere"
    for node in record.nodes:
        assert all(isinstance(text, str) for text in (node.name, node.role, node.address))
        assert type(node.memory) is int
        assert node.range is None or len(node.range) == 2
    assert float(record.stop_timeout) >= 0
    assert all(isinstance(text, str) for text in (record.cluster, record.file, record.topology, record.uri))


def _memory(content: bytes) -> None:
    (room().data / "memory.json").write_bytes(content)
    cluster, sizes, stripe = WANTED
    try:
        claim_memory(room().data, cluster, sizes, stripe)
    except MemoryMismatch as error:
        assert str(error).isprintable()
        assert len(str(error)) <= 3000
    else:
        raise AssertionError("shards that are not there were believed")
    assert [path.name for path in room().data.iterdir()] == ["memory.json"], "something was made beside it"


def _map(content: bytes) -> None:
    map_path(room().folder, 1).write_bytes(content)
    found = read_map(room().folder, 1)
    if found is not None:
        assert found.memory == found.layout.size >= 0
        assert all(type(server.memory) is int and server.memory >= 0 for server in found.servers)
        assert all(isinstance(server.address, str) and isinstance(server.role, str) for server in found.servers)
        if found.memory:
            length = min(4096, found.memory)
            assert sum(piece.length for piece in found.layout.split(0, length)) == length


def _psk(content: bytes) -> None:
    room().keys.write_bytes(content)
    try:
        keys = read_keys(room().keys)
    except BadCredentials as error:
        assert len(str(error)) <= 300
    else:
        assert keys
        assert all(name and key for name, key in keys.items())


def _given(content: bytes) -> None:
    room().log.mkdir(exist_ok=True)
    (room().log / GIVEN).write_bytes(content)
    log = LogWriter(room().log, 0, 1 << 14)
    assert log.error is None
    first = log.sequence
    log.append(1, 1, 1, 0, 0, 1, Kind.REQUEST, 0, 0, 0)
    assert log.sequence == first + 1 < 1 << 63
    log.close()
    for path in room().log.iterdir():
        path.unlink()


READERS = dict(zip(FILES, (_state, _memory, _map, _psk, _given), strict=True))


# -- seeds ---------------------------------------------------------------------------------------------------------


def _a_map(stripe: int = 0) -> bytes:
    entries = tuple(ServerEntry(f"10.0.0.{index}:10809", "", 8192, "server") for index in (1, 2))
    return ClusterMap("demo", "client-routed", "parallel", stripe, entries).to_json()


def _a_state() -> bytes:
    nodes = tuple(
        NodeRecord(name, role, 9, 8, "127.0.0.1:1", (0, 9) if role == "primary" else None, 9)
        for name, role in (("server0", "primary"), ("logger0", "logger"))
    )
    identity = Identity(5, 6)
    record = RunRecord("demo", "/f", "chain", 9, "nbd://h:1", 10.0, 1, identity, (identity,), nodes)
    return record.to_json().encode()


def a_segment(first: int, count: int, incarnation: int = 1, run: int = 1) -> bytes:
    head = HEADER.pack(MAGIC, VERSION, 0, incarnation, first, 10**18, run, count, b"demo")
    slots = [
        RECORD.pack(10**18 + number, 1000, 1 << 34 | number, 512 * number, 512, 1, kind, number % 7, 0x8000, 0, number)
        for number, kind in zip(
            range(first, first + count), [Kind.REQUEST, Kind.PIECE, Kind.EVENT] * count, strict=False
        )
    ]
    return head + b"".join(slots)


def _seeds() -> list[bytes]:
    memory = json.dumps({"cluster": "demo", "shards": [4096, 4096], "stripe": 0}).encode()
    contents = (_a_state(), memory, _a_map(), b"# ours\nalice:00ff\n", (5).to_bytes(8, "little") * 2)
    return [bytes([index]) + content for index, content in enumerate(contents)]


_words = [
    f'"{name}"'.encode() for name in ("servers", "memory", "layout", "stripe", "address", "range", "unix:/a", "shards")
]
_values = [b"[" * 500, b'{"a":' * 500, b"1e999", b"NaN", b"-1", b"null", b"true", b'"\\u202e"', b"9" * 30, b"9" * 5000]
TARGETS = (
    Target(
        "maps",
        "cluster.json, as some server has it",
        read_a_map,
        [bytes([which]) + _a_map(stripe) for which, stripe in ((0, 0), (1, 4096), (2, 0))],
        [*_words, *_values],
        share=32,
    ),
    Target(
        "segments",
        "the segments of a log",
        read_a_log,
        [
            mode + seed
            for mode in (b"\0", b"\xff")
            for seed in (
                a_segment(1, 6),
                joined(a_segment(1, 4), a_segment(5, 3)),
                joined(a_segment(9, 2), a_segment(3, 2, 2, 2)),
            )
        ],
        [CUT, MAGIC, a_segment(1, 0), a_segment(7, 0)],
        share=1,
    ),
    Target(
        "run-files",
        "state.json, memory.json, the maps beside a log, given, files of keys",
        read_a_file,
        _seeds(),
        [*_words, *_values],
        share=2,
    ),
)
