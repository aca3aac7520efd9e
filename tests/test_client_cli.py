"""The command memclient: what it prints, what it returns, and that a mistake is one sentence."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading

import pytest
from harness import environment, memclient_command, run
from peers import Peer, nbdkit, opened, refusing, scripted, serving

from memcluster.node.nbd.wire import Rep

MIB = 1 << 20


@pytest.fixture
def memclient(tmp_path):
    """A function that runs memclient at a memory of 1 MiB."""
    with nbdkit("memory", "1M") as uri:

        def command(*words: object, **options) -> subprocess.CompletedProcess[bytes]:
            return run(*memclient_command("--uri", uri, *map(str, words)), cwd=tmp_path, **options)

        command.uri = uri
        yield command


def at(uri: str, *words: str, **options) -> subprocess.CompletedProcess[bytes]:
    """memclient at any server; may fail."""
    return run(*memclient_command("--uri", uri, *words), check=False, **options)


def assert_one_sentence(done: subprocess.CompletedProcess[bytes], code: int, *words: str) -> None:
    """The exit code, and one line that begins with the command's name and has the words in it."""
    text = done.stderr.decode()
    assert done.returncode == code, text
    assert text.startswith("memclient: ")
    assert text.count("\n") == 1
    for word in words:
        assert word in text


def test_what_a_command_starts_has_the_streams_that_its_caller_closed():
    """They lead nowhere in the command's own processes, too: else a socket of theirs would be what they print to."""
    child = [sys.executable, "-c", "import sys; sys.exit(None in (sys.stdin, sys.stdout, sys.stderr))"]
    body = f"run(click.Command('start', callback=lambda: subprocess.run({child}).returncode), 'start')"
    script = f"import click, subprocess; from memcluster.client.console import run; {body}"
    run("sh", "-c", f"{shlex.join([sys.executable, '-c', script])} <&- >&- 2>&-")


LATE = (
    *("asyncio", "encodings.idna", "getpass", "hashlib", "json", "multiprocessing", "pathlib", "rich", "signal", "ssl"),
    *("memcluster.client.array", "memcluster.client.bench", "memcluster.client.discover", "memcluster.client.file"),
    *("memcluster.client.router", "memcluster.client.secure", "memcluster.node.nbd.replies", "memcluster.node.tls"),
)


def test_a_read_loads_nothing_that_it_does_not_use(memclient):
    """Half of its time goes into loading: it takes what click and sockets need, and of ours what a request does."""
    script = f"""
import sys, click, socket, urllib.parse
before = set(sys.modules)
from memcluster.client.cli import cli
cli.main(["--uri", {memclient.uri!r}, "read", "0", "4"], standalone_mode=False)
print({{*{LATE}}} & (sys.modules.keys() - before))
"""
    assert run(sys.executable, "-c", script).stdout == b"\0\0\0\0set()\n"


# -- info, read, write ---------------------------------------------------------------------------------------------


def test_info_describes_any_nbd_server(memclient):
    """The size, what it can do, and no cluster."""
    found = json.loads(memclient("info", "--json").stdout)
    assert (found["size"], found["read_only"], found["cluster"]) == (MIB, False, None)
    assert "SEND_WRITE_ZEROES" in found["flags"]
    assert found["block_sizes"]["maximum"] >= 32 * MIB  # nbdkit 1.32 says nothing, which means this
    assert found["exports"] == [{"name": "", "description": ""}]
    assert b"1MiB (1048576 bytes)" in memclient("info").stdout


def test_info_describes_a_cluster(make_cluster):
    """Topology, layout and the servers with their ranges; write and read meet at a border of two servers."""
    cluster = make_cluster(servers=3, memory="3MiB")
    found = json.loads(cluster.memclient("info", "--json").stdout)["cluster"]
    assert (found["topology"], found["layout"], len(found["servers"])) == ("primary-secondary", {"kind": "linear"}, 3)
    text = cluster.memclient("info").stdout.decode()
    for server in found["servers"]:
        assert all(word in text for word in (server["name"], server["role"], server["address"]))
    border = found["servers"][1]["range"][0]
    cluster.memclient("write", str(border - 3), "border")
    assert cluster.memclient("read", str(border - 3), "6").stdout == b"border"


@pytest.mark.parametrize("topology", ["dispatcher", "client-routed"])
def test_info_stands_in_columns(make_cluster, topology):
    """However long an address is; who owns nothing has no part of the memory."""
    cluster = make_cluster(topology=topology, servers=1, layout={"stripe": "64KiB"}, memory="1MiB")
    lines = cluster.memclient("info").stdout.decode().splitlines()
    rows = [line for line in lines if line.startswith("    server")]
    assert len({len(row.removesuffix("striped").removesuffix("-")) for row in rows}) == 1
    assert lines[1].endswith(" 1048576 bytes over 1 server")
    assert [row.split()[-2:] for row in rows if "dispatcher" in row] == [["-", "-"]] * (topology == "dispatcher")


def test_what_write_writes_read_reads(memclient, tmp_path):
    """DATA is text in UTF-8; sizes may be hexadecimal or have units; -o names a file."""
    memclient("write", "0x1000", "grüße", "--fua")
    assert memclient("read", "4KiB", 7).stdout == "grüße".encode()
    memclient("read", 4095, 9, "-o", "out")
    assert (tmp_path / "out").read_bytes() == b"\0" + "grüße".encode() + b"\0"
    memclient("write", 0, "")
    assert memclient("read", 0, 0).stdout == b""


@pytest.mark.parametrize("words", [("write", "100"), ("write", "100", "-")])
def test_write_takes_stdin(memclient, words):
    """Where DATA is missing or -: bytes, as they are."""
    data = bytes(range(256)) * 2000
    memclient(*words, stdin=data)
    assert memclient("read", 99, len(data) + 2).stdout == b"\0" + data + b"\0"


# -- copy ----------------------------------------------------------------------------------------------------------


def test_copy_there_and_back(memclient, tmp_path):
    """File to memory to file, at an offset, with --length, and through pipes."""
    data = os.urandom(700_000)
    (tmp_path / "in").write_bytes(data)
    memclient("copy", "in", "memory:0x100")
    memclient("copy", "memory:0x100", "out", "--length", len(data))
    assert (tmp_path / "out").read_bytes() == data
    memclient("copy", "memory:", "all", "--progress")
    assert (tmp_path / "all").read_bytes() == bytes(256) + data + bytes(MIB - 256 - len(data))
    memclient("copy", "-", "memory:", stdin=data[::-1])
    assert memclient("copy", memclient.uri, "-", "--length", len(data)).stdout == data[::-1]


def test_copy_to_a_stdout_that_is_a_file_leaves_what_is_there(memclient, tmp_path):
    """`>>` appends, and a device is no trouble."""
    memclient("write", 0, "new")
    with open(tmp_path / "log", "wb") as log:
        log.write(b"old ")
        log.flush()
        subprocess.run([*memclient_command("--uri", memclient.uri, "copy", "memory:", "-", "--length", "3")],
                       stdout=log, env=environment(), check=True)  # fmt: skip
    assert (tmp_path / "log").read_bytes() == b"old new"
    memclient("copy", "memory:", "/dev/null")


# -- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("read", "1MiB", "1"), 1, "beyond the memory of 1048576 bytes"),
        (("write", "1048575", "ab"), 1, "beyond the memory"),
        (("copy", "memory:2MiB", "out"), 1, "beyond the memory"),
        (("copy", "memory:", "out", "--length", "2MiB"), 1, "beyond the memory"),
        (("copy", "/nonexistent", "memory:"), 1, "/nonexistent: No such file or directory"),
        (("copy", "memory:", "/nonexistent/out"), 1, "/nonexistent/out: No such file or directory"),
        (("copy", "memory:", "memory:4KiB", "--length", "8KiB"), 1, "overlap"),
        (("copy", "memory:x", "out"), 2, "'x' is not a size"),
        (("copy", "memory:", "nbd+unix:///"), 2, "names no socket"),
        (("copy", "memory:", "nbd+unix:///?socket=none"), 3, "cannot connect: No such file or directory"),
    ],
)
def test_a_mistake_is_one_sentence(memclient, words, code, text):
    """On stderr, with the exit code that the manual gives; never a traceback."""
    assert_one_sentence(memclient(*words, check=False), code, text)


@pytest.mark.parametrize(
    "words",
    [
        ("read", "x", "1"),
        ("read", "1"),
        ("read", "-1", "1"),
        ("--timeout", "soon", "info"),
        ("--timeout", "501h", "info"),
        ("sing",),
    ],
)
def test_wrong_usage_is_exit_code_2(memclient, words):
    """click explains it."""
    done = memclient(*words, check=False)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert b"Usage: memclient" in done.stderr


def test_nothing_listens_is_exit_code_3(tmp_path):
    """As for a cluster that does not run, of which only the file is there; without one, the file is asked for."""
    assert_one_sentence(at(f"nbd+unix:///?socket={tmp_path}/none", "info"), 3, "cannot connect", "No such file")
    command = memclient_command("info")
    assert_one_sentence(run(*command, cwd=tmp_path, check=False), 2, "cluster.yaml: no such file")
    (tmp_path / "cluster.yaml").write_text(f"name: nobody-{os.getpid()}\nmemory: 1MiB\n")
    assert_one_sentence(run(*command, cwd=tmp_path, check=False), 3, "is not running", "memcluster up")


def test_a_refused_client_says_why():
    """The server's own words; exit code 1."""
    with scripted(refusing(Rep.ERR_POLICY, "all 64 slots are taken")) as uri:
        assert_one_sentence(at(uri, "info"), 1, "all 64 slots are taken", "ERR_POLICY")


def test_a_server_that_says_nothing_is_exit_code_124():
    """In the time that --timeout gives."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"nbd://127.0.0.1:{silent.getsockname()[1]}"
        assert_one_sentence(at(uri, "--timeout", "50ms", "info"), 124, "in 0.05 s")


def test_a_server_that_dies_is_one_sentence():
    """In the middle of a copy."""

    @opened
    def dies(peer: Peer) -> None:
        peer.take(3)

    with scripted(dies) as uri:
        done = at(uri, "--timeout", "0.2", "copy", "-", "memory:", stdin=bytes(4 * MIB))
        assert_one_sentence(done, 1, uri, "the connection was lost")


def test_a_reader_that_goes_away_is_no_error_message():
    """`memclient read … | head`: quiet."""
    ours, theirs = os.pipe()
    os.close(ours)
    with scripted(serving(bytearray(4 * MIB))) as uri:
        done = subprocess.run(
            memclient_command("--uri", uri, "read", "0", "4MiB"),
            stdout=theirs,
            stderr=subprocess.PIPE,
            env=environment(),
            check=False,
        )
    os.close(theirs)
    assert done.returncode == 141
    assert done.stderr == b""


def test_ctrl_c_ends_a_copy_quietly(start):
    """Exit code 130, no traceback."""
    connected = threading.Event()

    @opened
    def script(peer: Peer) -> None:
        connected.set()
        list(peer.serve())

    with scripted(script) as uri:
        process = start(
            *memclient_command("--uri", uri, "copy", "-", "memory:"), stdin=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert connected.wait(30)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in errors


@pytest.mark.parametrize("name", ["disk.img", "link"])
def test_a_file_is_not_copied_onto_itself(memclient, tmp_path, name):
    """Opened for writing it would be empty before it is read, under whatever name."""
    (tmp_path / "disk.img").write_bytes(b"content")
    (tmp_path / "link").symlink_to("disk.img")
    assert_one_sentence(memclient("copy", "disk.img", name, check=False), 1, "are the same file")
    with open(tmp_path / "disk.img", "rb") as file:
        command = memclient_command("--uri", memclient.uri, "copy", "-", name)
        done = subprocess.run(
            command, cwd=tmp_path, stdin=file, stderr=subprocess.PIPE, env=environment(), check=False
        )
    assert_one_sentence(done, 1, "are the same file")
    assert (tmp_path / "disk.img").read_bytes() == b"content"


@pytest.mark.parametrize("words", [("info",), ("read", "0", "1MiB")])
def test_a_full_disk_is_one_sentence(memclient, words):
    """Where stdout leads to it."""
    with open("/dev/full", "wb") as full:
        command = memclient_command("--uri", memclient.uri, *words)
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment(), check=False)
    assert_one_sentence(done, 1, "memclient: No space left on device")


@pytest.mark.parametrize("words", ["info >&-", "read 0 10 >&-", "write 0 <&-", "info >&- 2>&-", "copy - - <&- >&-"])
def test_streams_that_are_closed_lead_nowhere(memclient, words):
    """No traceback, and no socket that gets the number of one and what is printed there."""
    command = shlex.join(memclient_command("--uri", memclient.uri))
    done = run("sh", "-c", f"{command} {words}")
    assert done.stdout == done.stderr == b""
