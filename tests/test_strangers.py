"""A second user of the machine, who tries every address, socket and file of a running cluster: what is meant for
clients he may have where it is on TCP, and nothing else; and who is there before him does not notice."""

from __future__ import annotations

import grp
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import ROOT, TIMEOUT, Cluster
from second_user import NOBODY
from strangers import FLAGS, LIST, go, option, request

from memcluster.launcher.certificates import make as make_certificates
from memcluster.node import topology as shapes
from memcluster.node.handover.messages import HELLO, Order
from memcluster.node.nbd import wire
from memcluster.node.nbd.wire import Command, Option, Rep
from memcluster.node.topologies.primary_secondary import LINK
from memcluster.node.transport.address import Address
from memcluster.node.transport.frames import Frame
from memcluster.node.transport.proof import ANSWER, CHALLENGE, MAGIC, SECRET_SIZE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a second user")

READ = request(Command.READ, 0, 512)
EXPORTS = ["", LINK, "server1", "readonly", "probe", "cluster.json", "shard"]
QUESTIONS: list[dict[str, Any]] = [
    {"ask": "merged"}, {"ask": "share"}, {"ask": "tally"}, {"ask": "stats", "since": -1}, {"do": "status"},
    {"do": "down", "drain": False, "timeout": None},
]  # fmt: skip
WORDS = [
    b"",
    FLAGS + LIST,
    *(FLAGS + go(name.encode()) + READ for name in EXPORTS),
    *(Frame(question).encode() for question in QUESTIONS),
    Order(HELLO).encode(),
    bytes(ANSWER.size),
]
"""What gets an answer from a server, a logger, the supervisor, or a server that clients are handed to."""
SECRET_IS = "the stranger got what is not his"
FILES = ("environ", "mem", "maps", "auxv", "syscall", "stack", "cwd", "root", "fd", "map_files")
"""Of /proc/PID: what of a process could be its secret, or lead to its memory."""


def second_user(**orders: Any) -> list[str]:
    return [sys.executable, "-I", str(ROOT / "tests" / "second_user.py"), json.dumps(orders)]


def tries(**orders: Any) -> dict[str, Any]:
    """What a second user gets who tries this."""
    done = subprocess.run(second_user(**orders), capture_output=True, timeout=TIMEOUT, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def pids(cluster: Cluster) -> list[int]:
    record = cluster.record
    return [one.pid for one in (record.supervisor, *record.helpers, *record.nodes)]


def listening(cluster: Cluster) -> tuple[set[tuple[str, int]], set[str]]:
    """Every address on TCP, and the path of every unix socket, on which some process of the cluster listens or that it
    has bound."""
    tcp: set[tuple[str, int]] = set()
    unix: set[str] = set()
    for pid in pids(cluster):
        for found in psutil.Process(pid).net_connections(kind="all"):
            if found.family == socket.AF_UNIX:
                unix.add(str(found.laddr))
            elif found.status in (psutil.CONN_LISTEN, psutil.CONN_NONE):
                tcp.add((found.laddr.ip, found.laddr.port))
    return tcp, unix - {""}


def doors(cluster: Cluster) -> list[str]:
    """The addresses where clients are to connect."""
    servers = [node["address"] for node in cluster.status()["nodes"] if node["role"] != "logger"]
    return servers if shapes.load(cluster.keys["topology"]).every_server_is_a_door else servers[:1]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that everybody may look into, unlike pytest's own."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name) / "cluster"
        Path(name).chmod(0o755)
        folder.mkdir(mode=0o755)
        yield folder


@pytest.fixture
def make(open_folder: Path, new_cluster: Callable[..., Cluster]) -> Callable[..., Cluster]:
    def make(**keys: Any) -> Cluster:
        cluster = new_cluster(open_folder, **keys)
        cluster.up()
        with cluster.connect() as memory:
            memory.pwrite(SECRET_IS.encode() * 1000, 0)
            memory.pwrite(SECRET_IS.encode() * 1000, memory.size - 40_000)
        return cluster

    return make


def test_a_second_user_gets_nothing_but_the_clients_door(make: Callable[..., Cluster], topology: str) -> None:
    """All addresses and sockets are those that the processes have by the kernel's word; all files those of the run, the
    log and the storage, and what /proc shows of the processes."""
    cluster = make(topology=topology, storage="memory-here")
    tcp, unix = listening(cluster)
    known = [Address.parse(node["address"]) for node in cluster.status()["nodes"]]
    assert {address.sockaddr for address in known if not address.path} == tcp
    assert {address.path for address in known if address.path} <= unix
    open_doors = {Address.parse(door).sockaddr for door in doors(cluster)}
    found = tries(
        addresses=[*sorted(tcp - open_doors), *sorted(unix)],
        words=[one.hex() for one in WORDS],
        paths=[
            *(str(cluster.directory), str(cluster.folder / "logs" / cluster.name), str(cluster.folder / "memory-here")),
            *(f"/proc/{pid}/{name}" for pid in pids(cluster) for name in FILES),
        ],
    )
    assert not found["took"], "\n".join(found["took"])
    assert len(found["heard"]) == len(tcp - open_doors) + len(unix)
    for address, answers in found["heard"]:
        if isinstance(address, str):
            assert set(answers) == {"EACCES"}, address
        else:
            for answer in map(bytes.fromhex, answers):
                assert answer.startswith(MAGIC), address
                assert len(answer) == CHALLENGE.size, address
    for node in cluster.status()["nodes"]:
        tried = Address.parse(node["address"]).sockaddr in tcp - open_doors
        assert node["strangers"] == (len(WORDS) if tried else 0), node["name"]
    door = Address.parse(doors(cluster)[0]).sockaddr
    [(_, [answer])] = tries(addresses=[door], words=[(FLAGS + go(b"") + READ).hex()])["heard"]
    assert SECRET_IS.encode() in bytes.fromhex(answer)  # as the words are right, silence elsewhere means something
    secret = (cluster.directory / "secret").read_bytes()
    assert len(secret) == SECRET_SIZE
    for pid in pids(cluster):
        for name in ("cmdline", "environ"):
            said = Path(f"/proc/{pid}/{name}").read_bytes()
            assert secret not in said
            assert secret.hex().encode() not in said
    assert cluster.down().returncode == 0
    for path in (cluster.folder / "logs").rglob("*"):
        assert path.is_dir() or secret not in path.read_bytes()


def test_behind_a_unix_socket_a_second_user_gets_nothing_at_all(
    make: Callable[..., Cluster], open_folder: Path, topology: str
) -> None:
    """In a folder of its owner's alone; the addresses on TCP, which are for the cluster's own, tell him a nonce."""
    open_folder.chmod(0o700)
    listen: dict[str, Any] = {"listen": "unix:door0.sock"}
    if shapes.load(topology).every_server_is_a_door:
        listen["servers"] = [{"memory": "512KiB", "listen": f"unix:door{index}.sock"} for index in range(2)]
    cluster = make(topology=topology, **listen)
    tcp, unix = listening(cluster)
    found = tries(addresses=[*sorted(tcp), *sorted(unix)], words=[one.hex() for one in WORDS])
    for address, answers in found["heard"]:
        if isinstance(address, str):
            assert set(answers) == {"EACCES"}, address
        else:
            assert {len(bytes.fromhex(answer)) for answer in answers} == {CHALLENGE.size}, address


@pytest.mark.parametrize("topology", ["primary-secondary", "client-routed"])
def test_a_second_user_without_a_certificate_gets_nothing_at_the_clients_door(
    make: Callable[..., Cluster], open_folder: Path, topology: str
) -> None:
    """Where TLS is required: whatever he says before it is refused for want of it; and the keys are not his to read."""
    make_certificates(open_folder / "certs")
    cluster = make(topology=topology, tls={"certificates": "certs"})
    addresses = [Address.parse(door).sockaddr for door in doors(cluster)]
    assert len(addresses) == (3 if topology == "client-routed" else 1)
    words = [FLAGS + LIST, FLAGS + option(Option.EXPORT_NAME), *(FLAGS + go(name.encode()) for name in EXPORTS)]
    found = tries(addresses=addresses, words=[one.hex() for one in words], paths=[str(open_folder / "certs")])
    assert not found["took"]
    for _, answers in found["heard"]:
        heard = [bytes.fromhex(answer) for answer in answers]
        assert {len(answer[: wire.GREETING.size]) for answer in heard} == {wire.GREETING.size}
        kinds = [kind for answer in heard for kind in replies(answer[wire.GREETING.size :])]
        assert len(kinds) == len(words) - 1  # EXPORT_NAME is the end
        assert set(kinds) == {Rep.ERR_TLS_REQD}
    for node in cluster.status()["nodes"]:
        assert node["role"] == "logger" or node["refused"] or node["address"] not in doors(cluster)


def replies(said: bytes) -> Iterator[int]:
    """The types of the option replies that this is, to the last byte."""
    at = 0
    while at < len(said):
        magic, _, kind, length = wire.OPTION_REPLY.unpack_from(said, at)
        assert magic == wire.OPTION_REPLY_MAGIC
        at += wire.OPTION_REPLY.size + length
        yield kind
    assert at == len(said)


def test_a_unix_socket_is_opened_to_a_group_and_nothing_else_is(make: Callable[..., Cluster]) -> None:
    """Whoever is of it comes in by the clients' door; the cluster's own stay shut."""
    group = grp.getgrgid(NOBODY).gr_name
    cluster = make(topology="dispatcher", listen="unix:door.sock", sockets={"mode": "0660", "group": group})
    _, unix = listening(cluster)
    heard = dict(tries(addresses=sorted(unix), words=[(FLAGS + go(b"") + READ).hex()])["heard"])
    [answer] = heard.pop(str(cluster.folder / "door.sock"))
    assert SECRET_IS.encode() in bytes.fromhex(answer)
    assert heard
    assert all(answers == ["EACCES"] for answers in heard.values())


def test_a_page_of_figures_is_for_everybody_on_this_machine_and_has_no_bytes(make: Callable[..., Cluster]) -> None:
    """As docs/security.md says: numbers, and what the cluster is called."""
    cluster = make(metrics="127.0.0.1:0")
    (page,) = [node["metrics"] for node in cluster.status()["nodes"] if "metrics" in node]
    address = Address.parse(page).sockaddr
    get = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    [(_, [figures])] = tries(addresses=[address], words=[get.hex()], stay=True)["heard"]
    assert b"memcluster_" in bytes.fromhex(figures)
    assert SECRET_IS.encode() not in bytes.fromhex(figures)
    [(_, others)] = tries(addresses=[address], words=[one.hex() for one in WORDS])["heard"]
    assert set(others) == {""}


def test_who_opens_links_in_a_loop_ends_none(make: Callable[..., Cluster], start: Callable[..., Any]) -> None:
    """A client works meanwhile, a server is killed and comes back, and the primary is connected to each life of it once
    and never again."""
    cluster = make(topology="primary-secondary")
    nodes = {node["name"]: node for node in cluster.status()["nodes"]}
    addresses = [Address.parse(nodes[name]["address"]).sockaddr for name in ("server1", "server2")]
    words = [(FLAGS + go(LINK.encode()) + request(Command.WRITE, 0, 5, payload=b"false")).hex()]
    orders = second_user(addresses=addresses, words=words, times=1000)
    with cluster.connect(reconnect=False) as memory, start(*orders, stdout=subprocess.DEVNULL) as stranger:
        turn = 0
        killed = False
        while stranger.poll() is None:
            turn += 1
            data = turn.to_bytes(4, "big") * 100_000
            memory.pwrite(data, 300_000)
            assert memory.pread(len(data), 300_000) == data
            if turn == 5:
                cluster.command("fault", "kill", "server2")
                killed = True
        assert stranger.returncode == 0
        assert killed, "the strangers were too few"
        assert memory.pread(len(data), 300_000) == data
    after = {node["name"]: node for node in cluster.status()["nodes"]}
    assert after["server1"]["strangers"] == 1000
    assert after["server1"]["pid"] == nodes["server1"]["pid"]
    events = [json.loads(line) for line in cluster.command("logs", "--json").stdout.splitlines()]
    connected = [event["node"] for event in events if event["operation"] == "connected"]
    assert (connected.count("server1"), connected.count("server2")) == (1, 2)
    assert any(event["operation"] == "refused" and event["node"] == "server1" for event in events)


def test_who_holds_places_keeps_nobody_out(make: Callable[..., Cluster], start: Callable[..., Any]) -> None:
    """Four hundred connections at each door that is not for clients, which say nothing: the log is read and followed,
    figures are asked for, a server and a logger come back, and the merged log of the stop is whole."""
    cluster = make(topology="primary-secondary")
    servers = cluster.status()["nodes"]
    private = [Address.parse(node["address"]).sockaddr for node in servers if node["address"] not in doors(cluster)]
    orders = second_user(hold=private, each=400)
    with start(*orders, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as stranger:
        assert stranger.stdout.readline() == b"held\n"
        assert b"missing" not in (logs := cluster.command("logs")).stdout + logs.stderr
        assert json.loads(cluster.command("stats", "--json").stdout)["missing"] == {}
        cluster.command("fault", "kill", "server1")
        cluster.command("fault", "kill", "logger1")
        cluster.wait_until_running()
        with cluster.connect() as memory:
            memory.pwrite(b"x" * 500_000, 300_000)
        down = cluster.down()
        assert b"missing" not in down.stdout + down.stderr
        assert b"log records merged" in down.stdout + down.stderr
        stranger.stdin.close()
        assert stranger.wait(TIMEOUT) == 0


def test_without_the_secret_the_owner_is_told_what_is_missing(make: Callable[..., Cluster]) -> None:
    """And the cluster goes on: its processes have it already."""
    cluster = make(topology="primary-secondary")
    (cluster.directory / "secret").rename(cluster.directory / "elsewhere")
    for command in ("logs", "stats"):
        told = cluster.command(command, check=False)
        assert told.returncode == 1
        assert told.stderr.decode().strip().endswith("secret: No such file or directory; without it no logger answers")
    (cluster.directory / "secret").write_bytes(bytes(SECRET_SIZE))
    told = cluster.command("logs", check=False)
    assert told.returncode == 1
    assert b"logger0" in told.stderr
    cluster.command("fault", "kill", "server1")
    with cluster.connect() as memory:
        assert memory.pread(5, memory.size // 2) == bytes(5)


def test_the_program_is_somebody_else() -> None:
    """Nothing of root's is his: what the other tests find he was not let have, and not just unable to try."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        mine, his = Path(name) / "mine", Path(name) / "his"
        for path, mode in ((mine, 0o600), (his, 0o644)):
            path.write_text("words")
            path.chmod(mode)
        os.chown(his, NOBODY, NOBODY)
        took = tries(addresses=[], words=[], paths=[str(mine), str(his)])["took"]
    assert took == [f"{his} can be read", f"{his} can be written"]
