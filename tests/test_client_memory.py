"""The memory: bytes by offset, slices, futures, what is where; at nbdkit and at servers that a test scripts."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from peers import Peer, nbdkit, opened, scripted, serving, wait_for_goodbye

import memcluster
from memcluster import ClusterError, DiscoverError, Extent, InvalidRequest, ReadOnly, Refused, ServerError, Timeout
from memcluster.node.nbd.wire import Command, CommandFlag, Error, TransmissionFlag

MIB = 1 << 20


@pytest.fixture
def memory():
    """A memory of 1 MiB at nbdkit."""
    with nbdkit("memory", "1M") as uri, memcluster.connect(uri) as memory:
        yield memory


# -- reading and writing -------------------------------------------------------------------------------------------


def test_what_is_written_is_read(memory):
    """pread, readinto and slices see what pwrite wrote, at its offset and nowhere else."""
    assert memory.pwrite(b"hello", 4094) == 5
    assert memory.pread(7, 4093) == b"\0hello\0"
    buffer = bytearray(b"\xff" * 9)
    assert memory.readinto(memoryview(buffer)[1:8], 4093) == 7
    assert buffer == b"\xff\0hello\0\xff"
    assert memory[4094:4099] == b"hello"
    assert memory[4094] == ord("h")


def test_a_memory_is_as_bytes_whatever_is_done_to_it(memory):
    """A thousand random operations, up to 40 of them in flight; a bytearray is the model."""
    chance = random.Random(7)
    model = bytearray(MIB)
    futures = []
    for step in range(1000):
        offset = chance.randrange(MIB)
        length = min(chance.choice([1, 100, 5000, 100_000]), MIB - offset)
        span = slice(offset, offset + length)
        match chance.randrange(6):
            case 0 | 1:
                data = chance.randbytes(length)
                model[span] = data
                futures.append((memory.start_pwrite(data, offset, fua=step % 7 == 0), length))
            case 2:
                model[span] = bytes(length)
                futures.append((memory.start_zero(length, offset, no_hole=step % 2 == 0), None))
            case 3:
                futures.append((memory.start_flush(), None))
            case _:
                futures.append((memory.start_pread(length, offset), bytes(model[span])))
        while len(futures) > 40 or (futures and step % 3):  # overlapping requests must not be in flight together
            future, expected = futures.pop(0)
            assert future.result() == expected
        while futures:
            future, expected = futures.pop(0)
            assert future.result() == expected
    assert memory[:] == model


def test_who_waits_for_ever_may_say_so(memory):
    """Infinity is a timeout: of the connection, and of one request."""
    with memcluster.connect(str(memory.target), timeout=float("inf")) as patient:
        assert patient.pread(1, 0) == b"\0"
        assert patient.start_pread(1, 0).result(float("inf")) == b"\0"


def test_many_futures_of_one_thread(memory):
    """Requests are begun before earlier ones are answered; each future has its own outcome."""
    writes = [memory.start_pwrite(bytes([index]) * 4096, index * 4096) for index in range(256)]
    assert [future.result() for future in writes] == [4096] * 256
    assert all(future.done for future in writes)
    buffers = [bytearray(4096) for _ in range(256)]
    reads = [memory.start_readinto(buffer, index * 4096) for index, buffer in enumerate(buffers)]
    assert [future.result() for future in reads] == [4096] * 256
    assert buffers == [bytes([index]) * 4096 for index in range(256)]


def test_nothing_can_be_read_and_written(memory):
    """Zero bytes anywhere up to the end."""
    assert memory.pread(0, MIB) == b""
    assert memory.pwrite(b"", MIB) == 0
    memory.zero(0, MIB)
    assert memory.extents(0, MIB) == []
    assert memory[5:5] == b""


def test_requests_longer_than_the_server_takes_are_cut():
    """A server of at most 64 KiB a request, which refuses longer ones, is written and read as any other."""
    options = ("blocksize-minimum=512", "blocksize-maximum=64K", "blocksize-error-policy=error")
    with (
        nbdkit("--filter=blocksize-policy", "memory", "1M", *options) as uri,
        memcluster.connect(uri) as memory,
    ):
        least, preferred, most = memory.block_sizes
        assert (least, most) == (512, 65536)
        assert least <= preferred <= most  # nbdkit's own, 4 KiB or 32 KiB by its version
        data = random.Random(7).randbytes(MIB - 1024)
        assert memory.pwrite(data, 512) == len(data)
        assert memory.pread(len(data), 512) == data
        buffer = bytearray(MIB)
        assert memory.readinto(buffer, 0) == MIB
        assert buffer == bytes(512) + data + bytes(512)


def test_an_error_in_one_part_of_a_cut_request_is_the_requests_error():
    """The parts that went well do not hide it."""

    @opened
    def script(peer: Peer) -> None:
        first, second = peer.take(2)
        peer.answer(second, error=Error.EIO, message="shard 1 is lost")
        peer.answer(first, bytes(first.length))
        wait_for_goodbye(peer)

    with scripted(script) as uri, memcluster.connect(uri) as memory:
        future = memory.start_pread(33 * MIB, 0)
        with pytest.raises(ServerError, match="shard 1 is lost") as lost:
            future.result()
        assert (lost.value.offset, lost.value.length) == (32 * MIB, MIB)


def test_a_future_can_be_waited_for_in_small_steps():
    """Timeout, as often as one likes, and the outcome in the end."""
    with scripted(serving(bytearray(b"abcd"))) as uri, memcluster.connect(uri) as memory:
        future = memory.start_pread(4, 0)
        while True:
            try:
                assert future.result(timeout=0) == b"abcd"
            except Timeout:
                continue
            break


# -- what servers can and cannot do --------------------------------------------------------------------------------


def test_flags_reach_the_server():
    """FUA and NO_HOLE are on the wire where they were asked for."""
    seen = []

    @opened
    def script(peer: Peer) -> None:
        for request in peer.serve():
            seen.append((request.command, request.flags))
            peer.answer(request)

    with scripted(script) as uri, memcluster.connect(uri) as memory:
        memory.pwrite(b"x", 0)
        memory.pwrite(b"x", 0, fua=True)
        memory.zero(8, 0)
        memory.zero(8, 0, no_hole=True, fua=True)
        memory.trim(8, 0)
        memory.flush()
    assert seen == [
        (Command.WRITE, 0),
        (Command.WRITE, CommandFlag.FUA),
        (Command.WRITE_ZEROES, 0),
        (Command.WRITE_ZEROES, CommandFlag.FUA | CommandFlag.NO_HOLE),
        (Command.TRIM, 0),
        (Command.FLUSH, 0),
    ]


def test_a_server_that_does_not_zero_is_sent_zeroes():
    """zero() works everywhere."""
    with (
        nbdkit("--filter=nozero", "memory", "4M", "zeromode=none") as uri,
        memcluster.connect(uri) as memory,
    ):
        memory.pwrite(b"\xff" * 3 * MIB, 0)
        memory.zero(2 * MIB + 5, 7)
        assert memory[:] == b"\xff" * 7 + bytes(2 * MIB + 5) + b"\xff" * (MIB - 12) + bytes(MIB)


def test_what_a_server_does_not_know_is_not_asked_of_it():
    """flush() and cache() promise nothing there and send nothing; trim() says so."""
    with scripted(opened(wait_for_goodbye), flags=TransmissionFlag.HAS_FLAGS) as uri, memcluster.connect(uri) as memory:
        memory.flush()
        memory.cache(100, 0)
        with pytest.raises(InvalidRequest, match="TRIM of 100 bytes at 8"):
            memory.trim(100, 8)


def test_a_read_only_memory_is_not_written_to():
    """ReadOnly for everything that writes; reading goes on."""
    with nbdkit("--readonly", "pattern", "1M") as uri, memcluster.connect(uri) as memory:
        assert memory.read_only
        for act in (lambda: memory.pwrite(b"x", 0), lambda: memory.zero(1, 0), lambda: memory.trim(1, 0)):
            with pytest.raises(ReadOnly):
                act()
        assert memory.pread(8, 8) == (8).to_bytes(8, "big")


def test_an_error_of_the_disk_is_the_servers():
    """ServerError, with what was asked for."""
    with (
        nbdkit("--filter=error", "memory", "1M", "error-pread=EIO", "error-pread-rate=1") as uri,
        memcluster.connect(uri) as memory,
    ):
        memory.pwrite(b"x", 0)
        with pytest.raises(ServerError, match="READ of 5 bytes at 7"):
            memory.pread(5, 7)


def test_servers_without_structured_replies_are_served():
    """Simple replies only: reads and errors work; all of the memory counts as data."""
    with nbdkit("--no-sr", "memory", "1M") as uri, memcluster.connect(uri) as memory:
        memory[100:105] = b"hello"
        assert memory[99:106] == b"\0hello\0"
        assert memory.extents(1000, 10) == [Extent(10, 1000, hole=False, zero=False)]


# -- what is where -------------------------------------------------------------------------------------------------


def test_extents_tell_data_from_holes(memory):
    """nbdkit's memory has pages of 32 KiB; neighbours of one kind are one extent; the range asked for is kept to."""
    memory.pwrite(b"x", 100_000)
    start, end = 100_000 // 32768 * 32768, (100_000 // 32768 + 1) * 32768
    assert memory.extents(MIB - 10, 10) == [
        Extent(10, start - 10, hole=True, zero=True),
        Extent(start, end - start, hole=False, zero=False),
        Extent(end, MIB - end, hole=True, zero=True),
    ]
    memory.trim(MIB, 0)
    assert memory.extents(MIB, 0) == [Extent(0, MIB, hole=True, zero=True)]


def test_extents_that_come_bit_by_bit_or_tell_too_much():
    """A server may answer in small pieces and beyond what was asked; the sum is what was asked for."""
    answers = [[(10, 0)], [(5, 0), (5, 3)], [(20, 3), (1000, 0)]]

    @opened
    def script(peer: Peer) -> None:
        for request, extents in zip(peer.serve(), answers, strict=False):
            peer.session.reply_extents(request, {1: extents})
            peer.send()
        wait_for_goodbye(peer)

    with scripted(script) as uri, memcluster.connect(uri) as memory:
        assert memory.extents(50, 100) == [
            Extent(100, 15, hole=False, zero=False),
            Extent(115, 25, hole=True, zero=True),
            Extent(140, 10, hole=False, zero=False),
        ]


# -- as a sequence of bytes ----------------------------------------------------------------------------------------

MODEL = bytes(range(1, 201))


@pytest.fixture(scope="module")
def small():
    """A memory of 200 bytes."""
    memory = bytearray(MODEL)
    with scripted(serving(memory), exports={"": 200}) as uri, memcluster.connect(uri) as small:
        yield small


@pytest.mark.parametrize("index", [0, 1, 199, -1, -200])
def test_an_index_is_a_byte(small, index):
    """As with bytes, from both ends."""
    assert small[index] == MODEL[index]
    small[index] = 7
    assert small[index] == 7
    small[index] = MODEL[index]


@pytest.mark.parametrize("index", [200, -201, 1 << 40])
def test_an_index_beyond_the_end_is_an_index_error(small, index):
    """As with bytes; nothing is sent."""
    with pytest.raises(IndexError):
        small[index]
    with pytest.raises(IndexError):
        small[index] = 1


@pytest.mark.parametrize(
    "part",
    [slice(None), slice(10, 20), slice(-5, None), slice(None, -5), slice(190, 1000), slice(300, 400), slice(20, 10),
     slice(0, 0), slice(-1000, 3)],
)  # fmt: skip
def test_a_slice_is_the_slice_of_bytes(small, part):
    """The ends are cut as those of bytes are; what is written must have the slice's length."""
    assert small[part] == MODEL[part]
    small[part] = MODEL[part]
    with pytest.raises(ValueError, match="do not fit"):
        small[part] = MODEL[part] + b"x"


def test_a_memory_is_gone_through_in_stretches(small, monkeypatch):
    """bytes(), iteration and `in` do not ask for each byte by itself, and there is a last one."""
    monkeypatch.setattr("memcluster.client.memory.STRETCH", 64)
    asked = []
    read = small.pread
    monkeypatch.setattr(small, "pread", lambda length, offset: asked.append((length, offset)) or read(length, offset))
    assert bytes(small) == MODEL
    assert bytes(small)[5:9] == MODEL[5:9]
    asked.clear()
    assert list(small) == list(MODEL)
    assert asked == [(64, 0), (64, 64), (64, 128), (8, 192)]
    assert MODEL[199] in small


def test_len_is_the_size(small):
    """len() and size agree."""
    assert len(small) == small.size == 200


@pytest.mark.parametrize(
    ("misuse", "error"),
    [
        (lambda memory: memory.pread(1, 200), IndexError),
        (lambda memory: memory.pread(201, 0), IndexError),
        (lambda memory: memory.pread(-1, 0), ValueError),
        (lambda memory: memory.pread(1, -1), ValueError),
        (lambda memory: memory.pread(1.5, 0), TypeError),
        (lambda memory: memory.pread(1, "0"), TypeError),
        (lambda memory: memory.pwrite(b"a", 1.0), TypeError),
        (lambda memory: memory.pwrite(b"ab", 199), IndexError),
        (lambda memory: memory.pwrite("text", 0), TypeError),
        (lambda memory: memory.readinto(b"constant", 0), TypeError),
        (lambda memory: memory.zero(1, 200), IndexError),
        (lambda memory: memory.extents(1, 200), IndexError),
        (lambda memory: memory.each_extent(1, 200), IndexError),
        (lambda memory: memory[::2], ValueError),
        (lambda memory: memory["x"], TypeError),
        (lambda memory: memory[1.5], TypeError),
        (lambda memory: memory.__setitem__(0, 256), ValueError),
        (lambda memory: memory.__setitem__(0, b"x"), TypeError),
        (lambda memory: memory.__setitem__(slice(0, 1), "x"), TypeError),
    ],
)
def test_misuse_is_pythons_own_error_and_sends_nothing(small, misuse, error):
    """IndexError, ValueError or TypeError, raised before a byte leaves; the memory is as it was."""
    with pytest.raises(error):
        misuse(small)
    assert ", 0 in flight" in repr(small)
    assert small[:] == MODEL


# -- opening -------------------------------------------------------------------------------------------------------


def test_the_uri_comes_from_the_environment(monkeypatch):
    """MEMCLUSTER_URI is used where no URI is given; `export` overrides the name in it."""
    with scripted(lambda peer: peer.handshake(), exports={"": 100, "map": 10}) as uri:
        monkeypatch.setenv("MEMCLUSTER_URI", uri)
        with memcluster.connect(export="map") as memory:
            assert memory.size == 10
            assert memory.description == "map memory"


def test_without_a_uri_and_a_cluster_there_is_nothing_to_connect_to(monkeypatch, tmp_path):
    """DiscoverError names the file that was looked for."""
    monkeypatch.delenv("MEMCLUSTER_URI", raising=False)
    monkeypatch.setenv("MEMCLUSTER_FILE", str(tmp_path / "cluster.yaml"))
    with pytest.raises(DiscoverError, match=r"cluster\.yaml"):
        memcluster.connect()


def test_the_map_of_the_cluster_is_read_from_its_export():
    """cluster_map() opens cluster.json on a connection of its own."""
    words = json.dumps({"cluster": "demo", "servers": []}).encode()
    serve = serving(bytearray(words))
    with scripted(serve, serve, exports={"": 100, "cluster.json": len(words)}) as uri:
        with memcluster.connect(uri) as memory:
            assert memory.size == 100
        assert memory.cluster_map() == {"cluster": "demo", "servers": []}


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b"\xff\xfe"])
def test_what_is_no_map_is_not_taken_for_one(content):
    """ClusterError if the export holds something else; some servers have one content under every name."""
    serve = serving(bytearray(content))
    with scripted(serve, serve, exports={"": 100, "cluster.json": len(content)}) as uri:
        with memcluster.connect(uri) as memory:
            pass
        with pytest.raises(ClusterError, match="no map"):
            memory.cluster_map()


def test_a_server_without_a_map_is_no_cluster():
    """Refused, which is a ClusterError, if there is no such export."""
    handshake = opened(lambda _: None)
    with scripted(handshake, handshake) as uri:
        with memcluster.connect(uri) as memory:
            pass
        with pytest.raises(Refused, match=r"cluster\.json"):
            memory.cluster_map()


def test_a_memory_shows_its_state(memory):
    """The repr tells size, address and connection."""
    assert "1048576 bytes" in repr(memory)
    assert "open, 0 in flight" in repr(memory)
    future = memory.start_pread(1, 0)
    assert repr(future) == "<Future under way, 1 of 1 parts missing>"
    future.result()
    assert repr(future) == "<Future done>"


# -- the documentation ---------------------------------------------------------------------------------------------


def test_the_examples_of_the_documentation_run(monkeypatch):
    """Each block of Python in docs/client.md, as it stands there."""
    text = (Path(__file__).parent.parent / "docs" / "client.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    with nbdkit("memory", "1M") as uri:
        monkeypatch.setenv("MEMCLUSTER_URI", uri)
        for block in blocks:
            with memcluster.connect() as memory:
                exec(block, {"memory": memory})
