"""The memory in an event loop: the same calls awaited, many at once, cancelled at any time, and whatever dies."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import threading

import pytest
from harness import Cluster
from peers import Peer, opened, refusing, scripted, serving, wait_for_goodbye

import memcluster
from memcluster.client.connection import MAX_IN_FLIGHT
from memcluster.client.pending import REQUEST_COST
from memcluster.launcher.run.identity import Identity
from memcluster.node.nbd.wire import Command, Error, Rep

SIZE = 1 << 20


@pytest.fixture
def cluster(make_cluster, topology) -> Cluster:
    return make_cluster(topology=topology, restart={"deaths": 100})


def test_every_call_does_what_memory_does(cluster):
    """Both see the same bytes, facts, holes and errors, in every topology."""
    data = random.Random(1).randbytes(SIZE)

    async def main() -> None:
        async with memcluster.aconnect(cluster.uri) as memory:
            assert await memory.pwrite(data, 0) == SIZE
            assert await memory.pread(SIZE, 0) == data
            buffer = bytearray(1000)
            assert await memory.readinto(buffer, SIZE // 3 - 500) == 1000
            assert buffer == data[SIZE // 3 - 500 : SIZE // 3 + 500]
            await memory.zero(8192, 4096)
            await memory.trim(8192, SIZE // 2)
            await memory.cache(10, 10)
            await memory.flush()
            assert await memory.pwrite(memoryview(b"durable"), SIZE - 7, fua=True) == 7
            assert await memory.pread(0, SIZE) == b""
            with cluster.connect() as other:
                for fact in ("size", "flags", "read_only", "description", "block_sizes", "target", "reconnections"):
                    assert getattr(memory, fact) == getattr(other, fact)
                assert await memory.extents(SIZE, 0) == other.extents(SIZE, 0)
                assert [each async for each in memory.each_extent(5000, 3000)] == other.extents(5000, 3000)
                assert await memory.cluster_map() == other.cluster_map()
                assert await memory.exports() == other.exports()
                assert other[SIZE // 2 : SIZE // 2 + 8192] + other[4096:12288] == bytes(16384)
                assert other[-7:] == b"durable"
            with pytest.raises(IndexError, match="beyond the memory"):
                await memory.pread(1, SIZE)
            with pytest.raises(IndexError, match="beyond the memory"):
                await memory.extents(1, SIZE)
            with pytest.raises(IndexError, match="beyond the memory"):
                memory.each_extent(1, SIZE)
            with pytest.raises(ValueError, match="negative"):
                await memory.pwrite(b"", -1)
            with pytest.raises(TypeError, match="cannot be read into"):
                await memory.readinto(memoryview(b"fixed"), 0)
        assert "closed" in repr(memory) or "Router" in repr(memory)

    asyncio.run(main())


def test_hundreds_at_once_while_servers_are_killed(cluster):
    """Tasks write and read their own places while each server in turn is killed: all come to their end, and what was
    acknowledged is there."""

    async def task(memory: memcluster.AsyncMemory, number: int, gone: asyncio.Semaphore) -> None:
        for turn in range(4):
            content = (number << 8 | turn).to_bytes(4, "big") * 250
            assert await memory.pwrite(content, number * 3000) == 1000
            gone.release()
            assert await memory.pread(1000, number * 3000) == content

    async def main() -> None:
        servers = [node["name"] for node in cluster.status()["nodes"] if node["role"] != "logger"]
        gone = asyncio.Semaphore(0)
        async with memcluster.aconnect(cluster.uri) as memory:
            tasks = [asyncio.create_task(task(memory, number, gone)) for number in range(300)]
            for name in servers:
                for _ in range(200):
                    await gone.acquire()
                Identity.of(cluster.pid(name)).signal(signal.SIGKILL)
                await asyncio.to_thread(cluster.wait_until_running)
            await asyncio.gather(*tasks)
            assert memory.reconnections >= 1
        with cluster.connect() as other:
            for number in range(300):
                assert other[number * 3000 : number * 3000 + 1000] == (number << 8 | 3).to_bytes(4, "big") * 250

    asyncio.run(main())


def test_cancelled_in_masses(cluster):
    """Half of the tasks are cancelled at any moment: the others get what is theirs, and the connection is one and the
    same to the end."""
    chance = random.Random(2)
    data = chance.randbytes(SIZE)

    async def main() -> None:
        async with memcluster.aconnect(cluster.uri) as memory:
            await memory.pwrite(data, 0)
            for _ in range(20):
                places = [chance.randrange(SIZE - 5000) for _ in range(100)]
                tasks = [asyncio.create_task(memory.pread(chance.randrange(1, 5000), place)) for place in places]
                for _ in range(chance.randrange(3)):
                    await asyncio.sleep(0)
                for task in tasks[::2]:
                    task.cancel()
                found = await asyncio.gather(*tasks, return_exceptions=True)
                for place, content in zip(places[1::2], found[1::2], strict=True):
                    assert content == data[place : place + len(content)]
                assert all(isinstance(each, bytes | asyncio.CancelledError) for each in found)
            assert memory.reconnections == 0
            assert await memory.pread(SIZE, 0) == data

    asyncio.run(main())


def test_what_is_begun_together_is_in_flight_together():
    """A hundred reads are with the server before it answers any; answered backwards, each gets its own bytes."""

    @opened
    def script(peer: Peer) -> None:
        for request in reversed(peer.take(100)):
            peer.answer(request, request.offset.to_bytes(4, "big"))
        wait_for_goodbye(peer)

    async def main(uri: str) -> None:
        async with memcluster.aconnect(uri) as memory:
            found = await asyncio.gather(*(memory.pread(4, offset) for offset in range(100)))
            assert found == [offset.to_bytes(4, "big") for offset in range(100)]

    with scripted(script) as uri:
        asyncio.run(main(uri))


def test_extents_come_one_by_one():
    """One is there as soon as it ends, and the server is asked for no more than that takes; neighbours of one kind are
    one, in whatever answers they come."""
    answers = [[(10, 0)], [(5, 0), (5, 3)], [(20, 3), (1000, 0)]]
    asked: list[tuple[int, int]] = []

    @opened
    def script(peer: Peer) -> None:
        for request, extents in zip(peer.serve(), answers, strict=False):
            asked.append((request.offset, request.length))
            peer.session.reply_extents(request, {1: extents})
            peer.send()
        wait_for_goodbye(peer)

    async def main(uri: str) -> None:
        async with memcluster.aconnect(uri) as memory:
            found = memory.each_extent(50, 100)
            assert await anext(found) == memcluster.Extent(100, 15, hole=False, zero=False)
            assert asked == [(100, 50), (110, 40)]
            assert [each async for each in found] == [
                memcluster.Extent(115, 25, hole=True, zero=True),
                memcluster.Extent(140, 10, hole=False, zero=False),
            ]

    with scripted(script) as uri:
        asyncio.run(main(uri))


def test_a_late_reply_to_a_cancelled_request_is_dropped():
    """It touches neither the buffer of the task that is gone nor the requests of others. What a cancelled write sent is
    what it was given, whatever became of its buffer."""
    sent: list[bytes] = []
    begun, gone = threading.Event(), threading.Event()

    @opened
    def script(peer: Peer) -> None:
        read, write = peer.take(2)
        begun.set()
        assert gone.wait(30)
        sent.append(bytes(write.payload or b""))
        peer.answer(read, b"late")
        peer.answer(write)
        [request] = peer.take(1)
        peer.answer(request, b"mine")
        wait_for_goodbye(peer)

    async def main(uri: str) -> None:
        async with memcluster.aconnect(uri) as memory:
            place, data = bytearray(4), bytearray(b"data")
            tasks = [asyncio.create_task(memory.readinto(place, 0)), asyncio.create_task(memory.pwrite(data, 8))]
            await asyncio.to_thread(begun.wait, 30)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            data[:] = b"else"
            gone.set()
            assert await memory.pread(4, 100) == b"mine"
            assert place == bytes(4)
            assert [task.cancelled() for task in tasks] == [True, True]

    with scripted(script) as uri:
        asyncio.run(main(uri))
    assert sent == [b"data"]


def test_an_answer_that_does_not_come():
    """It is a Timeout for that task alone, and the connection is used on."""

    @opened
    def script(peer: Peer) -> None:
        silent, loud = peer.take(2)
        peer.answer(loud, b"loud")
        [request] = peer.take(1)
        peer.answer(silent, b"late")
        peer.answer(request, b"more")
        wait_for_goodbye(peer)

    async def main(uri: str) -> None:
        async with memcluster.aconnect(uri, timeout=0.2) as memory:
            silent, loud = await asyncio.gather(memory.pread(4, 0), memory.pread(4, 4), return_exceptions=True)
            assert isinstance(silent, memcluster.Timeout)
            assert "no answer in 0.2 s" in str(silent)
            assert loud == b"loud"
            assert await memory.pread(4, 8) == b"more"

    with scripted(script) as uri:
        asyncio.run(main(uri))


def test_the_loop_turns_while_a_connection_is_made_again():
    """A server that lets nobody in for a while: other tasks go on, what is begun meanwhile waits, and all of it is sent
    when it does."""
    may_answer = threading.Event()

    @opened
    def lost(peer: Peer) -> None:
        peer.take(1)

    def back(peer: Peer) -> None:
        assert may_answer.wait(30)
        peer.handshake()
        for request in peer.take(3):
            peer.answer(request, request.offset.to_bytes(4, "big"))
        wait_for_goodbye(peer)

    async def main(uri: str, other: str) -> None:
        async with memcluster.aconnect(uri) as memory, memcluster.aconnect(other) as witness:
            first = asyncio.create_task(memory.pread(4, 1))
            while "lost" not in repr(memory):
                await witness.pread(4, 0)
            second = asyncio.create_task(memory.pread(4, 2))
            for _ in range(50):
                await witness.pread(4, 0)
            third = asyncio.create_task(memory.pread(4, 3))
            may_answer.set()
            assert [await first, await second, await third] == [bytes([0, 0, 0, number]) for number in (1, 2, 3)]
            assert memory.reconnections == 1

    refusal = refusing(Rep.ERR_SHUTDOWN, "not now")
    with scripted(lost, refusal, refusal, back) as uri, scripted(opened(serving(bytearray(64)))) as other:
        asyncio.run(main(uri, other))


def test_a_connection_that_is_not_made_again():
    """After the timeout all that waits fails, with the reason. With `reconnect` false it fails at once."""

    @opened
    def lost(peer: Peer) -> None:
        peer.take(2)

    async def main(uri: str, words: str, **options) -> None:
        async with memcluster.aconnect(uri, **options) as memory:
            found = await asyncio.gather(memory.pread(4, 0), memory.pread(4, 4), return_exceptions=True)
            assert [type(each) for each in found] == [memcluster.Disconnected] * 2
            assert words in str(found[0])
            with pytest.raises(memcluster.Disconnected):
                await memory.flush()

    with scripted(lost) as uri:
        asyncio.run(main(uri, "could not be made again: cannot connect: Connection refused", timeout=0.2))
    with scripted(lost) as uri:
        asyncio.run(main(uri, "the connection is lost: the server closed the connection", reconnect=False))


def test_a_refusal_and_an_error_are_exceptions_of_their_own():
    """As for threads: who is not let in, and what the server answers with an error."""

    @opened
    def failing(peer: Peer) -> None:
        for error in (Error.ENOSPC, Error.EIO):
            peer.answer(*peer.take(1), error=error, message="so it is")
        wait_for_goodbye(peer)

    async def main(uri: str) -> None:
        with pytest.raises(memcluster.Refused, match="full"):
            await memcluster.aconnect(uri)
        memory = await memcluster.aconnect(uri)
        async with memory:
            with pytest.raises(memcluster.NoSpace, match="so it is"):
                await memory.pwrite(b"x", 0)
            with pytest.raises(memcluster.ServerError, match="so it is"):
                await memory.trim(10, 0)

    with scripted(refusing(Rep.ERR_POLICY, "full"), failing) as uri:
        asyncio.run(main(uri))
    with pytest.raises(ValueError, match="ftp"):
        asyncio.run(main("ftp://there"))


@pytest.mark.parametrize("lost", [False, True])
def test_closing_ends_what_is_under_way(lost):
    """At once, and while a lost connection is being made again; afterwards nothing can be begun."""
    arrived = threading.Event()

    @opened
    def script(peer: Peer) -> None:
        peer.take(1)
        arrived.set()
        if not lost:
            assert len(list(peer.serve())) == 1

    async def main(uri: str) -> None:
        memory = await memcluster.aconnect(uri)
        task = asyncio.create_task(memory.pread(4, 0))
        await asyncio.to_thread(arrived.wait, 30)
        while lost and "lost" not in repr(memory):
            await asyncio.sleep(0)
        also = asyncio.create_task(memory.pread(4, 0))
        await asyncio.sleep(0)
        await asyncio.gather(memory.close(), memory.close())
        for each in (task, also, memory.pread(4, 0)):
            with pytest.raises(memcluster.Disconnected, match="closed by this program"):
                await each
        await memory.close()

    with scripted(script) as uri:
        asyncio.run(main(uri))


def test_more_than_there_is_room_for_waits_without_stopping_the_loop(monkeypatch):
    """Requests beyond what may be in flight are sent when there is room; what is cancelled before is never sent."""
    room = 10
    monkeypatch.setattr("memcluster.client.connection.MAX_IN_FLIGHT", room * (REQUEST_COST + 4096) - 1)
    offsets: list[int] = []
    full, go_on = threading.Event(), threading.Event()

    @opened
    def script(peer: Peer) -> None:
        first = peer.take(room)
        full.set()
        assert go_on.wait(30)
        for request in first:
            peer.answer(request, bytes(4096))
        for request in peer.serve():
            offsets.append(request.offset)
            peer.answer(request, bytes(4096))

    async def main(uri: str) -> None:
        async with memcluster.aconnect(uri) as memory:
            tasks = [asyncio.create_task(memory.pread(4096, 4096 * number)) for number in range(100)]
            await asyncio.to_thread(full.wait, 30)
            for task in tasks[50:]:
                task.cancel()
            await asyncio.wait(tasks[50:])
            go_on.set()
            assert await asyncio.gather(*tasks[:50]) == [bytes(4096)] * 50

    with scripted(script) as uri:
        asyncio.run(main(uri))
    assert offsets == [4096 * number for number in range(room, 50)]


def test_a_request_longer_than_all_that_may_be_in_flight(make_cluster):
    """It is cut up, and the loop does not stop for it."""
    cluster = make_cluster(memory="100MiB", servers=2)
    size = 100 << 20
    assert size > MAX_IN_FLIGHT

    async def main() -> None:
        async with memcluster.aconnect(cluster.uri) as memory, memcluster.aconnect(cluster.uri) as other:
            await memory.pwrite(b"\x07" * size, 0)
            whole = asyncio.create_task(memory.pread(size, 0))
            await other.pread(1, 0)
            assert not whole.done()
            assert await whole == b"\x07" * size

    asyncio.run(main())


def test_identifiers_are_lent_anew_when_a_block_is_used_up(make_cluster, monkeypatch):
    """Where clients route a server is asked for more of them by a thread; what waits for that is begun then."""
    monkeypatch.setattr("memcluster.client.identifiers.BLOCK", 3)
    cluster = make_cluster(topology="client-routed")

    async def main() -> None:
        async with memcluster.aconnect(cluster.uri) as memory:
            await asyncio.gather(*(memory.pwrite(bytes([number]), number) for number in range(20)))
            assert await memory.pread(20, 0) == bytes(range(20))

    asyncio.run(main())


def test_each_event_loop_needs_a_memory_of_its_own():
    """In another loop it is Misused at once, and nothing is sent."""

    async def open_it(uri: str) -> memcluster.AsyncMemory:
        return await memcluster.aconnect(uri)

    with scripted(opened(wait_for_goodbye)) as uri, asyncio.Runner() as first:
        memory = first.run(open_it(uri))
        with asyncio.Runner() as second, pytest.raises(memcluster.Misused, match="another event loop"):
            second.run(memory.pread(1, 0))
        first.run(memory.close())


def test_a_connection_that_nobody_wants_any_more_is_closed():
    """Cancelled while it connects: the server sees it come and go."""
    came, go_on = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        came.set()
        assert go_on.wait(30)
        peer.handshake()
        wait_for_goodbye(peer)

    async def main(uri: str) -> None:
        async def connecting() -> None:
            async with memcluster.aconnect(uri):
                pytest.fail("it was let in")

        task = asyncio.create_task(connecting())
        await asyncio.to_thread(came.wait, 30)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        go_on.set()

    with scripted(script) as uri:
        asyncio.run(main(uri))


def test_who_does_not_use_it_does_not_load_it():
    """asyncio takes as long to load as all of the client."""
    script = "import memcluster, sys; memcluster.connect, memcluster.Extent; print('asyncio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_command_is_repeated_after_a_loss_and_the_order_kept():
    """What was in flight is sent again in its order on the next connection."""
    seen: list[list[int]] = []

    @opened
    def first(peer: Peer) -> None:
        seen.append([request.offset for request in peer.take(3)])

    @opened
    def second(peer: Peer) -> None:
        requests = peer.take(3)
        seen.append([request.offset for request in requests])
        for request in requests:
            assert request.command == Command.WRITE
            peer.answer(request)
        wait_for_goodbye(peer)

    async def main(uri: str) -> None:
        async with memcluster.aconnect(uri) as memory:
            await asyncio.gather(*(memory.pwrite(bytes([number]), number) for number in range(3)))

    with scripted(first, second) as uri:
        asyncio.run(main(uri))
    assert seen == [[0, 1, 2], [0, 1, 2]]
