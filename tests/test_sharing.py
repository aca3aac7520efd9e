"""`links: shared`: headers go over a link, and bytes where they are. What is promised about requests stays as it is."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from harness import Cluster, run_in_small_room
from nodes import SHARD, Client, Nodes, cut_slices

from memcluster import ServerError
from memcluster.node.forwarding.link import Submission
from memcluster.node.forwarding.staging import BLOCK, BLOCKS, IN_PLACE, LEAST, SPAN
from memcluster.node.forwarding.window import LEND, MANY
from memcluster.node.nbd.wire import Command, Error
from memcluster.node.transport.traffic import TRAFFIC

MIB = 1 << 20
HELD = b"0123456789abcdef" * (MIB >> 4)
WHERE = SHARD + 4096
"""In server 1."""
MakeNodes = Callable[..., Nodes]


@pytest.fixture
def make_nodes(tmp_path: Path) -> Iterator[MakeNodes]:
    made: list[Nodes] = []

    def make(links: str = "shared", **more: str) -> Nodes:
        made.append(Nodes(tmp_path, "primary-secondary", links=links, **more))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for nodes in made:
        nodes.close()


@pytest.fixture
def nodes(make_nodes: MakeNodes) -> Nodes:
    return make_nodes()


def links(nodes: Nodes) -> dict[str, str]:
    found: dict[str, str] = nodes.servers[0].status()["links"]
    return found


def stuck(nodes: Nodes, command: int, offset: int, length: int) -> Client:
    """A client that has asked, and takes no more of the reply than its socket has room for."""
    client = nodes.client()
    connections = nodes.servers[0].connections
    served = connections[max(connections)]
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    served.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
    client.ask(command, 1, offset, length)
    nodes.turn_until(lambda: served.queued)
    return client


def answers(client: Client, count: int) -> dict[int, bytes]:
    """The next so many replies, all of success, by cookie: the bytes of each."""
    found: dict[int, bytes] = {}
    for _ in range(100_000):
        for reply in client.turn():
            assert not reply.error
            found[reply.cookie] = bytes(reply.data or b"")
        if len(found) == count:
            return found
    raise AssertionError(f"{len(found)} of {count} replies")


def received(client: Client, cookie: int) -> bytes:
    """The bytes of its READ, which is answered next."""
    return answers(client, 1)[cookie]


def surely(act: Callable[[], bytes | None]) -> bytes | None:
    """However busy the machine is, and short the patience."""
    while True:
        with suppress(ServerError):
            return act()


# -- what goes over the link -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["copy", "shared"])
@pytest.mark.parametrize("size", [512, LEND - 1, LEND, LEAST - 1, LEAST, 70_000, 300_000, MIB // 2])
def test_bytes_do_not_go_over_the_link(make_nodes: MakeNodes, kind: str, size: int) -> None:
    """No read's, and no write's but a short one's: what servers receive is what the client sends, and little more."""
    nodes = make_nodes(kind)
    client = nodes.client()
    before = TRAFFIC.received
    client.done(Command.WRITE, 1, WHERE, size, HELD[:size])
    written = TRAFFIC.received - before
    client.ask(Command.READ, 2, WHERE, size)
    assert received(client, 2) == HELD[:size]
    assert nodes.bytes(WHERE, size) == HELD[:size]
    read = TRAFFIC.received - before - written
    over = kind == "copy"
    assert size * over <= read < size * over + 400
    over |= size < LEAST
    assert size + size * over < written < size + size * over + 400


@pytest.mark.parametrize("size", [BLOCK + 1, 2 * BLOCK])
def test_a_payload_longer_than_a_block_goes_over_the_link(nodes: Nodes, size: int) -> None:
    client = nodes.client()
    client.done(Command.WRITE, 1, 0, size, (2 * HELD)[:size])
    assert nodes.bytes(SHARD, size - SHARD) == (2 * HELD)[SHARD:size]


def test_payloads_go_over_the_link_when_the_staging_area_is_full(nodes: Nodes) -> None:
    staging = nodes.servers[0]._staging
    taken = [staging.take(BLOCK) for _ in range(BLOCKS)]
    assert taken[-1] is not None
    client = nodes.client()
    for length in (LEAST, 300_000):
        client.done(Command.WRITE, 1, WHERE, length, HELD[:length])
        assert nodes.bytes(WHERE, length) == HELD[:length]


def test_a_request_over_all_servers_is_in_parts_where_it_is(nodes: Nodes) -> None:
    """The pages that a staged write fills are marked: a read over two servers that follows finds no hole there."""
    client = nodes.client()
    begin, length = SHARD - 5000, SHARD + 10_000
    client.done(Command.WRITE, 1, begin, length, (2 * HELD)[:length])
    client.ask(Command.READ, 2, begin, length)
    assert received(client, 2) == (2 * HELD)[:length]
    assert nodes.servers[1].shard.used == SHARD


def test_what_lies_in_holes_comes_over_the_link_and_is_not_touched(nodes: Nodes) -> None:
    """A look at a hole through a map would need room for it."""
    client = nodes.client()
    client.done(Command.TRIM, 0, SHARD, SHARD)
    client.done(Command.WRITE, 1, WHERE, 4096, HELD[:4096])
    client.ask(Command.READ, 2, SHARD, 3 * 65536)
    assert received(client, 2) == bytes(4096) + HELD[:4096] + bytes(3 * 65536 - 8192)
    path = nodes.folder / "shard1"
    assert path.stat().st_blocks * 512 == 4096
    assert nodes.servers[1].shard.used == 4096


def test_pieces_are_logged_as_over_any_link(make_cluster: Callable[..., Cluster]) -> None:
    """Command, place and length are the request's own; one that was asked for twice stands there once."""
    told = []
    for kind in ("copy", "shared"):
        cluster = make_cluster(links=kind, memory="3MiB")
        with cluster.connect() as memory:
            memory.pwrite(HELD[:70_000], SHARD - 100)
            memory.pwrite(b"x", 2 * SHARD)
            memory.pread(70_000, SHARD - 100)
            memory.pread(1, 2 * SHARD)
            memory.zero(4096, 2 * SHARD)
        entries = map(json.loads, cluster.command("logs", "--json").stdout.splitlines())
        told.append([
            [entry.get(key) for key in ("node", "kind", "operation", "offset", "length", "flags", "error")]
            for entry in entries if entry["kind"] in ("request", "piece")
        ])  # fmt: skip
    assert sorted(map(str, told[0])) == sorted(map(str, told[1]))
    assert any("READ" in entry for entry in told[0])


# -- bytes that change ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [Command.WRITE, Command.TRIM, Command.WRITE_ZEROES])
def test_a_reply_of_which_a_part_is_sent_is_not_changed_by_what_comes_after(nodes: Nodes, command: Command) -> None:
    """The client takes a while for it; the bytes change meanwhile, and are the new ones for the next."""
    nodes.fill(b"o")
    slow, other = stuck(nodes, Command.READ, SHARD, SHARD), nodes.client()
    other.done(command, 1, SHARD, SHARD, b"n" * SHARD if command == Command.WRITE else b"")
    assert received(slow, 1) == b"o" * SHARD
    other.ask(Command.READ, 2, SHARD, SHARD)
    assert received(other, 2) == (b"n" if command == Command.WRITE else b"\0") * SHARD


def test_the_part_of_a_request_that_waits_for_another_server_is_not_changed(nodes: Nodes) -> None:
    """Server 1 has answered its piece, server 2 is away: what server 1 said then is what the client gets."""
    nodes.fill(b"o")
    nodes.servers[0].cut("server2", True)
    client, other = nodes.client(), nodes.client()
    before = nodes.servers[1].requests
    client.ask(Command.READ, 1, 0, 3 * SHARD)
    nodes.turn_until(lambda: nodes.servers[1].requests > before)
    nodes.turn(10)
    other.done(Command.WRITE, 1, SHARD, SHARD, b"n" * SHARD)
    nodes.servers[0].cut("server2", False)
    assert received(client, 1) == b"o" * 3 * SHARD


def test_what_is_lent_is_kept_when_the_link_is_lost(nodes: Nodes) -> None:
    """Its server may be writing there, as the next link asks it to."""
    nodes.fill(b"o")
    slow = stuck(nodes, Command.READ, SHARD, SHARD)
    nodes.servers[0].cut("server1", True)
    nodes.servers[1].shard.write(0, b"n" * SHARD)
    nodes.servers[0].cut("server1", False)
    assert received(slow, 1) == b"o" * SHARD


@pytest.mark.parametrize("size", [512, LEND])
def test_a_read_that_meets_a_change_on_its_way_is_asked_for_once_more(nodes: Nodes, size: int) -> None:
    """Both are on the link when the read is answered: its bytes come over the link then, behind the change."""
    nodes.fill(b"o")
    client = nodes.client()
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # both come in one turn
    holder = nodes.owner(WHERE)[0].spec.index
    before = nodes.servers[holder].requests
    client.ask(Command.READ, 1, WHERE, size)
    client.ask(Command.WRITE, 2, WHERE + size - 1, 1, b"n")
    assert answers(client, 2)[1] == b"o" * (size - 1) + b"n"
    assert nodes.servers[holder].requests == before + 3
    client.ask(Command.READ, 1, WHERE, size)
    client.ask(Command.WRITE, 2, WHERE + size, 1, b"n")  # beside it
    assert answers(client, 2)[1] == b"o" * (size - 1) + b"n"
    assert nodes.servers[holder].requests == before + 5


def test_a_read_beside_a_trim_that_takes_turns_is_asked_for_once_more(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pages lose their room meanwhile, before anybody says so."""
    cut_slices(monkeypatch, 4096)
    nodes.fill(b"o")
    client, other = nodes.client(), nodes.client()
    client.ask(Command.TRIM, 1, SHARD, SHARD)
    nodes.turn_until(lambda: nodes.bytes(SHARD, 1) == b"\0")
    used = nodes.servers[1].shard.used
    other.ask(Command.READ, 1, 2 * SHARD - 4096, 4096)
    assert received(other, 1) == b"o" * 4096
    assert 4096 < nodes.servers[1].shard.used < used
    assert not client.reply().error
    assert (nodes.folder / "shard1").stat().st_blocks == 0


def test_among_many_changes_bytes_are_asked_for_as_such(nodes: Nodes) -> None:
    """Each read would be held against all of them."""
    nodes.fill(b"o")
    client = nodes.client()
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # all come in one turn
    for cookie in range(MANY + 1):
        client.ask(Command.WRITE, cookie, WHERE + cookie, 1, b"n")
    before = TRAFFIC.received
    client.ask(Command.READ, MANY + 1, WHERE + 8192, SHARD // 4)
    assert answers(client, MANY + 2)[MANY + 1] == b"o" * (SHARD // 4)
    assert TRAFFIC.received - before > SHARD // 4


# -- links that are lost ---------------------------------------------------------------------------------------------


def test_a_server_that_is_killed_finds_the_payloads_that_are_repeated(nodes: Nodes) -> None:
    nodes.servers[0].cut("server1", True)
    client = nodes.client()
    for cookie, length in enumerate((512, 300_000)):
        client.ask(Command.WRITE, cookie, WHERE + cookie * 4096, length, HELD[:length])
    nodes.turn(20)
    nodes.replace(1)
    nodes.servers[0].cut("server1", False)
    assert answers(client, 2).keys() == {0, 1}
    assert nodes.bytes(WHERE, 512) == HELD[:512]
    assert nodes.bytes(WHERE + 4096, 300_000) == HELD[:300_000]
    assert links(nodes) == {"server1": "shared", "server2": "shared"}


def test_a_primary_that_starts_again_has_memory_of_its_own(nodes: Nodes) -> None:
    client = nodes.client()
    client.done(Command.WRITE, 1, WHERE, 512, HELD[:512])
    nodes.replace(0)
    nodes.turn_until(lambda: set(links(nodes).values()) == {"shared"})
    client = nodes.client()
    client.ask(Command.READ, 1, WHERE, 512)
    assert received(client, 1) == HELD[:512]
    client.done(Command.WRITE, 2, WHERE, 512, HELD[512:1024])
    assert nodes.bytes(WHERE, 512) == HELD[512:1024]


def test_a_write_that_was_given_up_never_lands_as_another_ones_bytes(make_cluster: Callable[..., Cluster]) -> None:
    """The server is stopped, and finds the order when it goes on, before it finds that its link is gone. The staging
    area has been through many hands by then."""
    cluster = make_cluster(links="shared", memory="24MiB", retry_timeout="200ms", hang_timeout="60s")
    shard = 8 * MIB
    with cluster.connect(reconnect=False) as memory:
        surely(lambda: memory.pwrite(b"o" * MIB, shard))
        cluster.command("fault", "pause", "server1")
        with pytest.raises(ServerError, match="retry_timeout"):
            memory.pwrite(b"A" * MIB, shard)
        for _ in range(3 * BLOCKS):
            surely(lambda: memory.pwrite(b"B" * MIB, 2 * shard))
        cluster.command("fault", "resume", "server1")
        surely(lambda: memory.pwrite(b"c", shard + MIB))
        assert surely(lambda: memory.pread(MIB, shard)) in (b"o" * MIB, b"A" * MIB)


# -- where memory is not shared ----------------------------------------------------------------------------------------


def test_another_file_in_the_place_of_a_shard_is_not_looked_at(nodes: Nodes) -> None:
    """Its server has the old one, which has the bytes."""
    client = nodes.client()
    client.done(Command.WRITE, 1, WHERE, 512, HELD[:512])
    shard = nodes.folder / "shard1"
    shard.rename(nodes.folder / "elsewhere")
    shard.write_bytes(bytes(SHARD))
    nodes.servers[0].cut("server1", True)
    nodes.servers[0].cut("server1", False)
    client.ask(Command.READ, 2, WHERE, 512)
    assert received(client, 2) == HELD[:512]
    client.done(Command.WRITE, 3, WHERE, 300_000, HELD[:300_000])
    assert nodes.bytes(WHERE, 300_000) == HELD[:300_000]
    assert links(nodes) == {"server1": "copy: the server does not have the same memory", "server2": "shared"}


@pytest.mark.parametrize("what", ["deleted", "cut short"])
def test_a_shard_that_is_not_there_is_not_looked_at(nodes: Nodes, what: str) -> None:
    client = nodes.client()
    client.done(Command.WRITE, 1, WHERE, 512, HELD[:512])
    nodes.servers[0].cut("server1", True)
    if what == "deleted":
        os.unlink(nodes.folder / "shard1")
    else:
        os.truncate(nodes.folder / "shard1", SHARD - 4096)
    nodes.servers[0].cut("server1", False)
    client.ask(Command.READ, 2, WHERE, 512)
    assert received(client, 2) == HELD[:512]
    assert links(nodes)["server1"].startswith(f"copy: {nodes.folder / 'shard1'}")


def test_who_has_another_staging_area_is_sent_bytes(nodes: Nodes) -> None:
    """As on another host, where there is one at the same path."""
    client = nodes.client()
    os.rename(nodes.folder / "staging", nodes.folder / "elsewhere")
    nodes.servers[0].cut("server1", True)
    shutil.copy(nodes.folder / "elsewhere", nodes.folder / "staging")
    with open(nodes.folder / "staging", "r+b") as file:
        file.write(b"another token...")
    nodes.servers[0].cut("server1", False)
    client.done(Command.WRITE, 1, WHERE, 300_000, HELD[:300_000])
    assert nodes.bytes(WHERE, 300_000) == HELD[:300_000]
    assert links(nodes) == {"server1": "copy: the server does not have the same memory", "server2": "shared"}


FULL_STORAGE = """
set -e
mount -t tmpfs -o size=3m tmpfs data
$memcluster up -d >/dev/null
head -c 4194304 /dev/urandom > big
$memclient copy big memory: && exit 9
$memclient read 0 100 | cmp -n 100 - big
$python -c 'import memcluster
with memcluster.connect(reconnect=False) as memory:
    assert memory.pread(2 << 20, 6 << 20) == bytes(2 << 20)
    for offset in range(6 << 20, 8 << 20, 4096):
        assert memory.pread(4096, offset) == bytes(4096)
    memory.trim(len(memory), 0)
    memory.pwrite(b"x" * 1000000, 5000000)
    assert memory.pread(1000000, 5000000) == b"x" * 1000000'
$memcluster status
$memcluster down >/dev/null
"""


def test_a_full_storage_is_enospc_and_no_end_of_a_server(tmp_path: Path, new_cluster: Callable[..., Cluster]) -> None:
    """Reads of what has no room, and writes that find none, touch nothing: every process lives."""
    cluster = new_cluster(tmp_path, memory="8MiB", storage="data", links="shared")
    (tmp_path / "data").mkdir()
    done = run_in_small_room(tmp_path, FULL_STORAGE, python=sys.executable)
    assert b"No space left on device (ENOSPC)" in done.stderr
    assert b"requests found no room" in done.stdout
    assert b"restarting" not in done.stdout
    assert cluster.left_behind() == []


NO_ROOM = """
set -e
mount -t tmpfs -o size=36m tmpfs /dev/shm
$memcluster up -d >/dev/null
dd if=/dev/zero of=/dev/shm/filler bs=4k 2>/dev/null || true
$memcluster fault kill server0 >/dev/null
until $memcluster status | tee said | grep 'is running'; do :; done
cat said
echo kept | $memclient write 6000000 2>/dev/null || true
rm /dev/shm/filler
echo kept | $memclient write 6000000
$memclient read 6000000 4
$memcluster down >/dev/null
"""


def test_without_room_for_the_staging_area_bytes_go_over_the_links(
    tmp_path: Path, new_cluster: Callable[..., Cluster]
) -> None:
    """And `status` says so."""
    cluster = new_cluster(tmp_path, memory="8MiB", links="shared", servers=2)
    done = run_in_small_room(tmp_path, NO_ROOM)
    assert done.returncode == 0, done.stderr
    assert b"kept" in done.stdout
    assert b"the link to server1 goes by copy" in done.stdout
    assert b"No space left on device" in done.stdout
    assert cluster.left_behind() == []


# -- what comes over a link ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spans", [SPAN.pack(4096, SHARD) + SPAN.pack(4096, 1), SPAN.pack(1 << 31, 10), SPAN.pack(4096, 0), b"abc"]
)
def test_a_server_refuses_spans_that_it_cannot_follow(nodes: Nodes, spans: bytes) -> None:
    """An order that is wrong is answered so, and changes nothing."""
    link = nodes.servers[0]._links[1]
    told: list[int] = []

    class Sent(Submission):
        __slots__ = ()

        def answered(self) -> None:
            told.append(self.error)

    sent = Sent(Command.WRITE, 1 << 60, 0, 512, 0, (b"x" * 512,), nodes.servers[0].now())
    sent.spans = spans
    link.submit(sent)
    nodes.turn_until(lambda: told)
    assert told == [Error.EINVAL]
    assert nodes.bytes(SHARD, 512) == bytes(512)


def test_a_link_on_which_nothing_was_agreed_refuses_it(make_nodes: MakeNodes) -> None:
    """With `links: copy` the flag is no flag."""
    nodes = make_nodes("copy")
    client = nodes.client()
    client.session.submit(Command.READ, 1, 0, 512, IN_PLACE)
    assert client.reply().error == Error.EINVAL
