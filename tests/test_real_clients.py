"""Clients that nobody here wrote, against real clusters: libnbd's tools, qemu's, and fio.

Every test runs against both fan-outs with both layouts, against shards of unequal and odd sizes, and over a unix
socket. One cluster serves all tests of a combination; each test begins with a memory of nothing but holes.
"""

from __future__ import annotations

import json
import os
import random
import subprocess

import pytest
from harness import TIMEOUT, Cluster, clusters, need, run

SIZE = 8 << 20
STRIPE = 64 << 10
STRIPES = {"layout": {"stripe": "64KiB"}}
UNEQUAL = [1_000_003, 4_194_304, 3_194_301]
COMBINATIONS = {
    "parallel-linear": {"fan_out": "parallel"},
    "parallel-stripe": {"fan_out": "parallel", **STRIPES},
    "serial-linear": {"fan_out": "serial"},
    "serial-stripe": {"fan_out": "serial", **STRIPES},
    "unequal": {"servers": [{"memory": size} for size in UNEQUAL]},
    "unix": {"listen": "unix:nbd.sock", **STRIPES},
    "dispatcher": {"topology": "dispatcher", **STRIPES},
    "dispatcher-unequal": {"topology": "dispatcher", "fan_out": "serial", "servers": [{"memory": s} for s in UNEQUAL]},
    "chain": {"topology": "chain", **STRIPES},
    "chain-unequal": {"topology": "chain", "servers": [{"memory": size} for size in UNEQUAL]},
    "client-routed": {"topology": "client-routed", "servers": 1},  # such clients see one server's part: here it is all
}
DEBIAN = {"PATH": f"/usr/bin:/bin:{os.environ['PATH']}"}
"""nbdsh is a Python module of Debian's own python3, which another python3 may hide."""


@pytest.fixture(scope="module", params=COMBINATIONS)
def standing(request, tmp_path_factory) -> Cluster:
    """A cluster for all the tests of one combination; at the end nothing of it is left."""
    with clusters() as new:
        cluster = new(tmp_path_factory.mktemp(request.param), memory="8MiB", **COMBINATIONS[request.param])
        cluster.up()
        yield cluster


@pytest.fixture
def cluster(standing) -> Cluster:
    """The standing cluster with every byte a hole."""
    with standing.connect() as memory:
        memory.trim(SIZE, 0)
        assert [(extent.length, extent.hole) for extent in memory.extents(SIZE, 0)] == [(SIZE, True)]
    return standing


@pytest.fixture
def content() -> bytes:
    return random.Random(1).randbytes(SIZE)


def borders(cluster: Cluster) -> list[int]:
    """Offsets at which one server's bytes end and another's begin: all of them, or some where they are many."""
    with cluster.connect() as memory:
        servers = memory.cluster_map()["servers"]
    if "layout" in cluster.keys:
        return [STRIPE, 2 * STRIPE, 3 * STRIPE, 77 * STRIPE, SIZE - STRIPE]
    ends = [sum(server["memory"] for server in servers[: count + 1]) for count in range(len(servers))]
    assert ends.pop() == SIZE
    return [end for end in ends if end] or [SIZE // 2]  # a dispatcher has no bytes; a server alone has no border


def output(*command: str | os.PathLike[str]) -> str:
    return run(*command).stdout.decode()


def nbdsh(cluster: Cluster, script: str, *options: str, check: bool = True, **environment: str):
    """Run a script in nbdsh; `h` is a handle connected to the cluster, with structured replies and base:allocation."""
    need("nbdsh", "python3-libnbd")
    words = ["nbdsh", *options, "--base-allocation", "-u", cluster.uri, "-c", script]
    return run(*words, check=check, **DEBIAN, **environment)


# -- nbdinfo -----------------------------------------------------------------------------------------------------


def test_nbdinfo_sees_all_that_the_memory_can_do(cluster):
    """Size, flags, block sizes, base:allocation and the description are what the contract promises."""
    need("nbdinfo", "libnbd-bin")
    found = json.loads(output("nbdinfo", "--json", cluster.uri))
    assert (found["protocol"], found["TLS"], found["structured"]) == ("newstyle-fixed", False, True)
    assert found.get("extended", True)  # libnbd 1.20 and later have it
    (export,) = found["exports"]
    abilities = ("cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero")
    assert [name for name in abilities if not export[f"can_{name}"]] == []
    assert (export["is_read_only"], export["is_rotational"]) == (False, False)
    assert export["export-size"] == SIZE
    sizes = [export[f"block_size_{which}"] for which in ("minimum", "preferred", "maximum")]
    assert sizes == [1, 4096, 32 << 20]
    assert export["contexts"] == ["base:allocation", "memcluster:owner"]
    assert cluster.name in export["description"]
    assert output("nbdinfo", "--size", cluster.uri) == f"{SIZE}\n"


def test_nbdinfo_lists_the_map_of_the_cluster(cluster):
    """LIST shows the memory and cluster.json, which is read-only and can be read like a file."""
    need("nbdinfo", "libnbd-bin")
    need("nbdcopy", "libnbd-bin")
    listed = json.loads(output("nbdinfo", "--list", "--json", cluster.uri))["exports"]
    exports = {export["export-name"]: export for export in listed}
    parts = {name for name in exports if name.startswith("part-")}  # for clients that route
    topology = cluster.keys.get("topology", "primary-secondary")
    count = {"primary-secondary": 3, "client-routed": 1}.get(topology, 0)  # where a server's part can be opened
    assert set(exports) - parts == {"", "readonly", "cluster.json", *(f"server{number}" for number in range(count))}
    assert exports["readonly"]["is_read_only"]
    assert len(parts) == (cluster.keys.get("topology") == "client-routed")
    described = exports["cluster.json"]
    assert (described["is_read_only"], described["can_multi_conn"], described["can_trim"]) == (True, True, False)
    text = run("nbdcopy", described["uri"], "-").stdout
    assert len(text) == described["export-size"]
    servers = json.loads(text)["servers"]
    assert sum(server["memory"] for server in servers) == SIZE
    assert servers[0]["address"] in {node["address"] for node in cluster.status()["nodes"]}


def test_nbdinfo_maps_holes_and_data(cluster):
    """A fresh memory is one hole; written pages are data; trimmed pages are holes again."""
    need("nbdinfo", "libnbd-bin")

    def described() -> list[tuple[int, int, int]]:
        parts = json.loads(output("nbdinfo", "--map", "--json", cluster.uri))
        return [(part["offset"], part["length"], part["type"]) for part in parts]

    assert described() == [(0, SIZE, 3)]
    with cluster.connect() as memory:
        memory[1 << 20 : 2 << 20] = b"\1" * (1 << 20)
        parts = described()
        assert sum(length for _, length, _ in parts) == SIZE
        data = [(offset, offset + length) for offset, length, kind in parts if kind == 0]
        assert min(start for start, _ in data) <= 1 << 20
        assert max(end for _, end in data) >= 2 << 20
        # A page is the smallest hole, and a shard of odd size shifts pages against addresses.
        assert sum(end - start for start, end in data) <= (1 << 20) + 2 * 4096
        memory.trim(SIZE, 0)
    assert described() == [(0, SIZE, 3)]


# -- nbdcopy -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_size", [None, 65536, 1 << 20])
def test_nbdcopy_in_and_out(cluster, tmp_path, content, request_size):
    """Random bytes go in and come out the same, over several connections with many requests in flight."""
    need("nbdcopy", "libnbd-bin")
    options = [f"--request-size={request_size}"] if request_size else []
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content)
    run("nbdcopy", *options, "--flush", source, cluster.uri)
    with cluster.connect() as memory:
        assert memory[:] == content
    run("nbdcopy", *options, cluster.uri, target)
    assert target.read_bytes() == content


def test_nbdcopy_with_holes(cluster, tmp_path, content):
    """Holes of a file overwrite what was there with zeroes and take no memory; they come out as holes again."""
    need("nbdcopy", "libnbd-bin")
    with cluster.connect() as memory:
        memory[:] = b"\xff" * SIZE
        source, target = tmp_path / "source", tmp_path / "target"
        islands = [(0, 4096), (1_000_000, 70_000), (SIZE // 3 - 5000, 10_000), (SIZE - 1, 1)]
        with source.open("wb") as file:
            file.truncate(SIZE)
            for start, length in islands:
                file.seek(start)
                file.write(content[start : start + length])
        run("nbdcopy", source, cluster.uri)
        assert memory[:] == source.read_bytes()
        assert sum(extent.length for extent in memory.extents(SIZE, 0) if not extent.hole) < 400_000
    run("nbdcopy", cluster.uri, target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 < 400_000


# -- nbdsh (libnbd, call by call) --------------------------------------------------------------------------------


def test_nbdsh_reads_and_writes_at_odd_offsets_over_borders(cluster):
    """Any offset and length around any border between servers, on two connections that see each other's writes."""
    nbdsh(
        cluster,
        f"""
import random
rng = random.Random(2)
other = nbd.NBD()
other.connect_uri({cluster.uri!r})
size = h.get_size()
assert size == {SIZE}
model = bytearray(size)
for border in {borders(cluster)}:
    for length in (1, 2, 511, 4097, {STRIPE - 1}, {3 * STRIPE + 1}):
        for before in (0, 1, length // 2, length - 1, length):
            offset = max(0, min(border - before, size - length))
            data = rng.randbytes(length)
            h.pwrite(data, offset)
            model[offset : offset + length] = data
            assert other.pread(length, offset) == data, (offset, length)
            start = max(0, offset - 7)
            end = min(size, offset + length + 9)
            assert h.pread(end - start, start) == model[start:end], (offset, length)
assert h.pread(1, size - 1) == model[-1:]
assert h.pread(size, 0) == other.pread(size, 0) == model
other.shutdown()
""",
    )


def test_nbdsh_structured_reads(cluster):
    """A READ with DF comes in exactly one chunk, without it in chunks that cover it without overlap."""
    border = borders(cluster)[0]
    nbdsh(
        cluster,
        f"""
assert h.get_structured_replies_negotiated()
border = {border}
data = bytes(range(256)) * 600
h.pwrite(data, border - 70000 if border >= 70000 else 0)
start = border - 60001 if border >= 70000 else 3
base = border - 70000 if border >= 70000 else 0
def read(flags):
    chunks = []
    def chunk(buffer, offset, status, error):
        assert error.value == 0
        chunks.append((offset, bytes(buffer), status))
    whole = h.pread_structured(120003, start, chunk, flags)
    assert whole == data[start - base : start - base + 120003]
    chunks.sort()
    position = start
    for offset, buffer, status in chunks:
        assert offset == position and status == nbd.READ_DATA
        position += len(buffer)
    assert position == start + 120003
    return chunks
assert len(read(nbd.CMD_FLAG_DF)) == 1
read(0)
""",
    )


def test_nbdsh_without_structured_replies(cluster):
    """A client that asks for simple replies gets them: no DF, no contexts, the same bytes."""
    need("nbdsh", "python3-libnbd")
    border = borders(cluster)[0]
    script = f"""
h.set_request_structured_replies(False)
h.connect_uri({cluster.uri!r})
assert not h.get_structured_replies_negotiated() and not h.can_df()
h.pwrite(b"simple" * 3000, {border} - 8999)
assert h.pread(18000, {border} - 8999) == b"simple" * 3000
"""
    run("nbdsh", "-c", script, **DEBIAN)


def test_nbdsh_by_export_name_as_old_clients_do(cluster):
    """The handshake with EXPORT_NAME leads to the same memory, with and without the 124 zero bytes."""
    need("nbdsh", "python3-libnbd")
    for flags in ("0", "nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE", "nbd.HANDSHAKE_FLAG_NO_ZEROES"):
        script = f"""
h.set_handshake_flags({flags})
h.connect_uri({cluster.uri!r})
assert h.get_size() == {SIZE}
h.pwrite(b"old", 5)
assert h.pread(3, 5) == b"old"
"""
        run("nbdsh", "-c", script, **DEBIAN)


def test_nbdsh_zeroes_and_holes(cluster):
    """WRITE_ZEROES with NO_HOLE keeps the room, without it and with TRIM whole pages become holes; all read as zero."""
    nbdsh(
        cluster,
        """
def holes(length, offset):
    found = []
    def extents(context, start, entries, error):
        found.extend(zip(entries[::2], entries[1::2]))
        assert context == "base:allocation" and start == offset
    h.block_status(length, offset, extents)
    assert sum(run for run, _ in found) == length, found
    assert all(kind in (0, 3) for _, kind in found), found
    return sum(run for run, kind in found if kind == 3)
size = h.get_size()
h.pwrite(b"\\xff" * size, 0)
assert holes(size, 0) == 0
for flags, kept in (
    (nbd.CMD_FLAG_NO_HOLE, True),
    (nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO, True),
    (nbd.CMD_FLAG_FAST_ZERO, False),
    (nbd.CMD_FLAG_FUA, False),
    (0, False),
):
    h.pwrite(b"\\xff" * size, 0)
    h.zero(size - 20001, 10001, flags)
    assert h.pread(size, 0) == b"\\xff" * 10001 + bytes(size - 20001) + b"\\xff" * 10000
    there = holes(size, 0)
    assert there == 0 if kept else there >= size - 20001 - 2 * 4096 * 3, (flags, there)
h.pwrite(b"\\xff" * size, 0)
h.trim(3000000, 1000001, nbd.CMD_FLAG_FUA)
assert holes(size, 0) >= 3000000 - 2 * 4096 * 3
assert h.pread(1000001, 0) == b"\\xff" * 1000001
assert h.pread(3000000, 1000001) == bytes(3000000)
assert h.pread(size - 4000001, 4000001) == b"\\xff" * (size - 4000001)
h.trim(1, 0)
assert h.pread(2, 0) == b"\\0\\xff"
h.trim(size, 0)
h.zero(size - 20001, 10001, nbd.CMD_FLAG_NO_HOLE)  # a hole is filled
assert holes(size - 20001, 10001) == 0
""",
    )


def test_nbdsh_block_status_of_one_extent(cluster):
    """REQ_ONE brings one extent, not longer than what was asked for."""
    border = borders(cluster)[0]
    nbdsh(
        cluster,
        f"""
h.pwrite(b"x" * 20000, {border} - 10000)
for start, length in ((0, {SIZE}), ({border} - 1, {SIZE} - {border}), ({border}, 1), ({SIZE} - 1, 1)):
    found = []
    h.block_status(length, start, lambda context, offset, entries, error: found.extend(entries), nbd.CMD_FLAG_REQ_ONE)
    assert len(found) == 2 and 0 < found[0] <= length, (start, length, found)
""",
    )


def test_nbdsh_cache_flush_and_fua(cluster):
    """The commands that move no bytes, and FUA with those that do, succeed anywhere, over all servers too."""
    nbdsh(
        cluster,
        """
size = h.get_size()
h.cache(size, 0)
h.cache(1, size - 1)
h.pwrite(b"durable", size // 3 - 3, nbd.CMD_FLAG_FUA)
h.zero(size // 2, size // 4 + 1, nbd.CMD_FLAG_FUA)
h.trim(size // 2, size // 4 + 1, nbd.CMD_FLAG_FUA)
h.flush()
""",
    )


def test_nbdsh_hears_the_errors_of_the_specification(cluster):
    """Reads past the end: EINVAL; writes past the end: ENOSPC; nothing is changed and the connection goes on."""
    nbdsh(
        cluster,
        """
import errno
h.set_strict_mode(0)
size = h.get_size()
h.pwrite(b"last", size - 4)
def refused(number, call, *words):
    try:
        call(*words)
    except nbd.Error as error:
        assert error.errnum == number, (call, words, error.errnum, error.string)
    else:
        raise AssertionError((call, words))
    assert h.pread(4, size - 4) == b"last"
for offset, length in ((size, 1), (size - 3, 4), (1 << 40, 1), ((1 << 64) - 2, 4)):
    refused(errno.EINVAL, h.pread, length, offset)
    refused(errno.ENOSPC, h.pwrite, b"y" * length, offset)
    refused(errno.ENOSPC, h.zero, length, offset)
    refused(errno.EINVAL, h.trim, length, offset)
    refused(errno.EINVAL, h.cache, length, offset)
    refused(errno.EINVAL, h.block_status, length, offset, lambda *words: 0)
refused(errno.EINVAL, h.trim, 1, 0, nbd.CMD_FLAG_DF)
refused(errno.ENOSPC, h.pwrite, b"y" * (1 << 20), size - 1)
refused(errno.EINVAL, h.block_status, 0, 0, lambda *words: 0)
other = nbd.NBD()
other.set_strict_mode(0)
other.set_opt_mode(True)
other.connect_uri(h.get_uri())
other.set_export_name("cluster.json")
other.opt_go()
assert other.is_read_only()
for call, words in ((other.pwrite, (b"x", 0)), (other.zero, (1, 0)), (other.trim, (1, 0))):
    try:
        call(*words)
    except nbd.Error as error:
        assert error.errnum == errno.EPERM, error.errnum
    else:
        raise AssertionError(call)
assert other.pread(1, 0) == b"{"
""",
    )


def test_nbdsh_zero_lengths(cluster):
    """Commands of no bytes succeed and change nothing, at the end of the memory too."""
    nbdsh(
        cluster,
        """
h.set_strict_mode(0)
size = h.get_size()
for offset in (0, 1, size // 2, size):
    assert h.pread(0, offset) == b""
    h.pwrite(b"", offset)
    h.zero(0, offset)
    h.trim(0, offset)
    h.cache(0, offset)
assert h.pread(size, 0) == bytes(size)
""",
    )


def test_nbdsh_with_many_requests_in_flight(cluster):
    """200 writes, then 200 reads, all sent before the first reply is taken: each reply belongs to its request."""
    nbdsh(
        cluster,
        """
import random
rng = random.Random(3)
size = h.get_size()
step = size // 200
places = [(index * step + rng.randrange(step // 2), rng.randrange(1, step // 2)) for index in range(200)]
data = [rng.randbytes(length) for _, length in places]
buffers = [nbd.Buffer.from_bytearray(bytearray(part)) for part in data]
def finish(cookies):
    while cookies:
        cookies = [cookie for cookie in cookies if not h.aio_command_completed(cookie)]
        if cookies:
            h.poll(-1)
finish([h.aio_pwrite(buffer, offset) for buffer, (offset, _) in zip(buffers, places)])
into = [nbd.Buffer(length) for _, length in places]
finish([h.aio_pread(buffer, offset) for buffer, (offset, _) in zip(into, places)])
assert [bytes(buffer.to_bytearray()) for buffer in into] == data
""",
    )


# -- qemu --------------------------------------------------------------------------------------------------------


def test_qemu_img_converts_and_compares(cluster, tmp_path, content):
    """An image with data, zeroes and holes goes in from qcow2 and out to it again, and qemu finds both identical."""
    need("qemu-img", "qemu-utils")
    raw, image, back = tmp_path / "raw", tmp_path / "image.qcow2", tmp_path / "back.qcow2"
    raw.write_bytes(content[: SIZE // 2] + bytes(SIZE // 4) + content[3 * SIZE // 4 :])
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image)
    run("qemu-img", "convert", "-n", "-W", "-m", "16", "-f", "qcow2", "-O", "raw", image, cluster.uri)
    with cluster.connect() as memory:
        assert memory[:] == raw.read_bytes()
    assert "identical" in output("qemu-img", "compare", "-f", "qcow2", "-F", "raw", image, cluster.uri)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", cluster.uri, back)
    assert "identical" in output("qemu-img", "compare", image, back)
    with cluster.connect() as memory:
        memory[SIZE // 3] = content[SIZE // 3] ^ 1
    differs = run("qemu-img", "compare", "-f", "raw", "-F", "raw", raw, cluster.uri, check=False)
    assert differs.returncode == 1, differs


def test_qemu_img_maps_and_measures(cluster):
    """qemu sees the size, and which part is data."""
    need("qemu-img", "qemu-utils")
    info = json.loads(output("qemu-img", "info", "-f", "raw", "--output=json", cluster.uri))
    assert info["virtual-size"] == SIZE
    with cluster.connect() as memory:
        memory[5 << 20 : 6 << 20] = b"q" * (1 << 20)
    parts = json.loads(output("qemu-img", "map", "-f", "raw", "--output=json", cluster.uri))
    assert sum(part["length"] for part in parts) == SIZE
    data = sum(part["length"] for part in parts if part["data"])
    assert 1 << 20 <= data <= (1 << 20) + 2 * 4096


def test_qemu_io_patterns(cluster):
    """Patterns over borders, zeroes, discards and flushes read back as qemu expects them; it checks every byte."""
    need("qemu-io", "qemu-utils")
    commands = ["write -P 0x11 0 8M"]
    for border in borders(cluster):
        start = border - 40_001
        commands += [
            f"write -P 0xab {start} 80003",
            f"read -P 0xab {start} 80003",
            f"read -P 0x11 {start - 1} 1",
            f"write -z {border - 1} 2",
            f"read -P 0 {border - 1} 2",
            f"read -P 0xab {border + 1} 1000",
            f"write -z -u {border - 5000} 10000",
            f"read -P 0 {border - 5000} 10000",
            f"write -f -P 0xcd {border - 3} 6",
            f"read -P 0xcd {border - 3} 6",
            f"write -P 0x11 {start} 80003",
        ]
    commands += ["discard 1M 4M", "read -P 0 1M 4M", "read -P 0x11 5M 3M", "read -P 0x11 0 1M", "flush"]
    commands += ["aio_write -P 0x21 0 1M", "aio_write -P 0x22 1M 5M", "aio_flush"]
    commands += ["read -P 0x21 0 1M", "read -P 0x22 1M 5M"]
    words = [word for line in commands for word in ("-c", line)]
    shown = output("qemu-io", "-d", "unmap", "-f", "raw", *words, cluster.uri)
    assert "Pattern verification failed" not in shown
    assert "failed" not in shown
    assert shown.count("bytes at offset") == len(commands) - 2
    with cluster.connect() as memory:
        assert memory[:] == b"\x21" * (1 << 20) + b"\x22" * (5 << 20) + b"\x11" * (2 << 20)


# -- fio ---------------------------------------------------------------------------------------------------------

FIO_JOBS = {
    "mixed-sizes": ["--rw=randwrite", "--bssplit=512/30:4k/30:20k/20:64k/10:300k/10", "--io_size=24M"],
    "unaligned": ["--rw=randwrite", "--bsrange=256-200k", "--bs_unaligned", "--blockalign=1", "--io_size=6M"],
    "read-write-trim": ["--rw=randrw", "--bs=4k", "--io_size=8M"],
}


@pytest.mark.parametrize("job", FIO_JOBS)
def test_fio_verifies_what_it_wrote(cluster, tmp_path, job):
    """Sixteen writes in flight, random places and sizes: fio reads all back and every checksum is right.

    Writes that overlap are not in flight together: which of them comes last is not promised by the protocol.
    """
    need("fio", "fio")
    done = run(
        "fio", f"--name={job}", "--ioengine=nbd", f"--uri={cluster.uri}", "--size=8M", "--iodepth=16", "--randseed=7",
        "--serialize_overlap=1", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--output-format=json",
        *FIO_JOBS[job], cwd=tmp_path,
    )  # fmt: skip
    report = json.loads(done.stdout[done.stdout.index(b"{\n") :])  # warnings may come before it
    (result,) = report["jobs"]
    assert result["error"] == 0, done
    assert result["write"]["io_bytes"] >= 3 << 20
    # What a later write has overlapped is not verified.
    assert result["read"]["io_bytes"] >= 1 << 20
    assert result["read"]["short_ios"] == result["write"]["short_ios"] == 0


# -- the client limit --------------------------------------------------------------------------------------------

LIMIT_TEXT = "all 2 client slots are taken (clients.limit: 2 in cluster.yaml)"


@pytest.fixture(scope="module")
def standing_small(tmp_path_factory) -> Cluster:
    with clusters() as new:
        cluster = new(tmp_path_factory.mktemp("small"), clients={"limit": 2})
        cluster.up()
        yield cluster


@pytest.fixture
def small(standing_small) -> Cluster:
    """A cluster for two clients, with none there."""
    wait_for_clients(standing_small, 0)
    return standing_small


def wait_for_clients(cluster: Cluster, count: int) -> None:
    """Until server 0 has so many connections."""
    cluster.wait_for(lambda status: status["nodes"][0]["clients"] == count)


SAYS, ON_REQUEST = True, False
REFUSED = {
    "nbdinfo": (["nbdinfo", "URI"], "libnbd-bin", ON_REQUEST),
    "nbdcopy": (["nbdcopy", "URI", "null:"], "libnbd-bin", ON_REQUEST),
    "nbdsh": (["nbdsh", "-u", "URI", "-c", "pass"], "python3-libnbd", ON_REQUEST),
    "qemu-img": (["qemu-img", "info", "URI"], "qemu-utils", SAYS),
    "qemu-io": (["qemu-io", "-f", "raw", "-c", "read 0 1", "URI"], "qemu-utils", SAYS),
    "fio": (["fio", "--name=x", "--ioengine=nbd", "--uri=URI", "--rw=read", "--size=4k"], "fio", ON_REQUEST),
}
"""qemu prints the server's sentence, and so does libnbd 1.24. Older ones print their own, `server policy prevents
NBD_OPT_GO`, and the server's only with LIBNBD_DEBUG=1; nbdcopy overrides that variable and wants --verbose."""


@pytest.mark.parametrize("client", REFUSED)
def test_the_third_of_two_clients_is_refused_with_the_limit_s_text(small, tmp_path, client):
    """It fails, with the limit in the server's sentence; the two clients that are there work unhurt."""
    words, package, says = REFUSED[client]
    need(client, package)
    command = [word.replace("URI", small.uri) for word in words]
    with small.connect() as one, small.connect() as two:
        refused = run(*command, cwd=tmp_path, check=False, **DEBIAN)
        assert refused.returncode != 0
        if LIMIT_TEXT not in refused.stderr.decode():
            assert not says, refused
            assert "policy" in refused.stderr.decode() or client == "nbdinfo", refused
            verbose = ["--verbose"] if client == "nbdcopy" else []
            told = run(*command, *verbose, cwd=tmp_path, check=False, LIBNBD_DEBUG="1", **DEBIAN)
            assert LIMIT_TEXT in told.stderr.decode(), told
        one[0:4] = b"here"
        assert two[0:4] == b"here"
    wait_for_clients(small, 0)
    if client != "nbdcopy":  # it makes four connections at once
        run(*command, cwd=tmp_path, **DEBIAN)
    else:
        run(*command, "--connections=1", cwd=tmp_path, **DEBIAN)


LEAVING = {
    "disc": "h.shutdown()",
    "close": "import os; os._exit(0)",  # the kernel closes the socket; no DISC is sent
    "kill": None,
}


@pytest.mark.parametrize("way", LEAVING)
def test_a_slot_is_free_again_however_its_client_left(small, start, way):
    """DISC, a plain close, and kill -9 of the client's process with requests in flight."""
    need("nbdsh", "python3-libnbd")
    script = "print('here', flush=True)\n"
    if LEAVING[way] is None:
        script += "while True: h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(65536)), 0); h.poll(0)"
    else:
        script += f"input(); {LEAVING[way]}"
    with small.connect():
        for _ in range(5):
            holder = start(
                "nbdsh", "-u", small.uri, "-c", script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=DEBIAN
            )
            assert holder.stdout.readline() == b"here\n"
            assert run("nbdsh", "-u", small.uri, "-c", "pass", check=False, **DEBIAN).returncode != 0
            if LEAVING[way] is None:
                holder.kill()
            else:
                holder.stdin.write(b"\n")
                holder.stdin.flush()
            holder.wait(TIMEOUT)
            wait_for_clients(small, 1)
            run("nbdsh", "-u", small.uri, "-c", "h.pread(1, 0)", **DEBIAN)
            wait_for_clients(small, 1)
