"""Strangers who stall, never read, or come by the thousand take no more time and memory than they are given."""

from __future__ import annotations

import random
import socket
import struct
import time
from contextlib import ExitStack

import psutil
import pytest
from harness import TIMEOUT
from strangers import BORDER, DISC, FLAGS, GO, LIST, SIZE, Stranger, World, option, request

from memcluster.node.nbd import wire
from memcluster.node.nbd.negotiation import MAX_SKIP
from memcluster.node.nbd.wire import Chunk, Command, Option
from memcluster.node.serving.connection import ROOM
from memcluster.node.serving.server import CLIENTS_MEMORY


def test_who_stalls_in_the_handshake_is_cut_off(tmp_path, new_cluster):
    """At handshake_timeout, wherever it stopped; a client that has opened its export may be idle for ever."""
    cluster = new_cluster(tmp_path, clients={"handshake_timeout": "2s"})
    cluster.up()
    world = World(cluster)
    stalls = [b"", FLAGS[:3], FLAGS, FLAGS + LIST, FLAGS + GO[:-1], FLAGS + option(4711, length=60_000) + b"x" * 9]
    stalls.append(FLAGS + option(Option.INFO, length=MAX_SKIP))
    descriptors = world.server0.num_fds()
    before = world.bad_input
    with ExitStack() as stack:
        strangers = [stack.enter_context(world.stranger()) for _ in stalls]
        for stranger, words in zip(strangers, stalls, strict=True):
            stranger.send(words)
        for stranger in strangers:
            stranger.until_closed()
    assert world.bad_input == before + len(stalls)
    assert world.witness[0:1] == b"\0"  # idle since before the first of them
    deadline = time.monotonic() + TIMEOUT
    while world.server0.num_fds() != descriptors:
        assert time.monotonic() < deadline
    world.witness.close()


def fill(stranger: Stranger, words: bytes, world: World) -> int:
    """Send the same request until the server takes no more of them; returns how many whole ones it was sent."""
    stranger.sock.setblocking(False)
    sent, stuck = 0, 0
    while stuck < 20:
        try:
            sent += stranger.sock.send((words * 100)[sent % len(words) :])
            stuck = 0
        except BlockingIOError:
            stuck += 1
            world.works()  # the server turns its loop a few times, and is not kept from it
        assert sent < 50_000_000, "the server takes requests without end"
    stranger.sock.settimeout(TIMEOUT)
    return sent // len(words)


@pytest.mark.parametrize(
    "offset",
    [100_000, 100_000 + BORDER, 2 * BORDER - 2048],
    ids=["own shard", "a secondary's", "over a border"],
)
def test_who_never_reads_is_held_up_and_nobody_else(world, offset):
    """The server takes no more of its requests, its memory stays bounded, another client works; when it reads at
    last, every request that was held up is answered in full, and those behind it are taken up."""
    world.witness[:] = held = random.Random(5).randbytes(SIZE)
    before = world.server0.memory_info().rss
    with world.stranger() as stranger:
        stranger.negotiate()
        length = 4096
        count = fill(stranger, request(Command.READ, offset, length), world)
        assert count * length > ROOM + 1000, "not enough to hold anybody up"
        grown = world.server0.memory_info().rss - before
        assert grown < ROOM + (32 << 20), f"{grown >> 20} MiB more"
        head = wire.CHUNK_DATA.pack(wire.CHUNK_MAGIC, 1, Chunk.OFFSET_DATA, 7, length + 8, offset)
        reply = head + held[offset : offset + length]
        for _ in range(min(count, ROOM // length + 2000)):
            assert stranger.take(len(reply)) == reply


def test_many_who_hold_all_there_is_leave_room_for_others(world):
    """Requests in flight to a server that stands still take up all that clients may; others still write large
    payloads, come and go."""
    payload = random.Random(6).randbytes(3 << 19)
    server1 = psutil.Process(world.cluster.pid("server1"))
    server1.suspend()
    try:
        with ExitStack() as stack:
            for _ in range(2 + CLIENTS_MEMORY // ROOM):
                stranger = stack.enter_context(world.stranger())
                stranger.negotiate()
                stranger.send(request(Command.READ, BORDER, 1 << 20) * (2 * ROOM >> 20))
            for _ in range(200):  # each takes a turn of the loop, in which the strangers' requests are begun
                world.witness.pread(1, 0)
            for offset in (0, 100_001):
                world.witness.pwrite(payload, offset)
                assert world.witness.pread(len(payload), offset) == payload
            with world.stranger() as leaver:
                leaver.negotiate()
                leaver.send(request(Command.WRITE, 0, BORDER, payload=payload))
            with world.stranger() as late:
                late.negotiate()
                late.send(request(Command.WRITE, 0, len(payload), payload=payload) + DISC)
                assert late.reply() == (0, 7)
    finally:
        server1.resume()
    world.works()


def test_who_leaves_without_the_replies_takes_them_along(world):
    """What was being put together for clients that are gone is forgotten at once, not when Python looks for garbage."""
    before = world.memory()[0]
    for _ in range(60):
        with world.stranger() as stranger:
            stranger.negotiate()
            stranger.send(request(Command.READ, BORDER // 2, 4 << 20) * 2)
            stranger.take(1000)
    deadline = time.monotonic() + TIMEOUT
    while world.held()[0][0] > 1:
        assert time.monotonic() < deadline
    world.works()
    assert world.memory()[0] - before < 32 << 20


def test_many_who_never_read_from_secondaries(world):
    """Ten at a time, some in the middle of a payload, gone without a word: the memory they held is given back."""
    before = world.server0.memory_info().rss
    with ExitStack() as stack:
        for number in range(10):
            stranger = stack.enter_context(world.stranger())
            stranger.negotiate(structured=bool(number % 2))
            if number % 5 == 4:
                stranger.send(request(Command.WRITE, 0, 4 << 20, payload=b"x" * (1 << 20)))
            else:
                stranger.send(request(Command.READ, BORDER, 2 * BORDER) * 4)
        world.works()
        assert world.server0.memory_info().rss - before < CLIENTS_MEMORY
    world.works()


def test_thousands_who_connect_and_leave(world):
    """Port probes: a close, a close with bytes unread, a reset: none of them is bad input, none leaves a trace."""
    before = world.bad_input
    for number in range(3000):
        with world.stranger() as stranger:
            if number % 3 == 1:
                stranger.send(FLAGS)
            elif number % 3 == 2:
                stranger.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if number % 500 == 0:
            world.works()
    world.works()
    assert world.bad_input == before
