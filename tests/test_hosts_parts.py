"""The parts of several hosts, each by itself: cluster.yaml, a conversation, a host's part of the memory, the way in."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import SECRET, memcluster_command, run
from hypothesis import given
from hypothesis import strategies as st

from memcluster.launcher.certificates import between_hosts, for_clients
from memcluster.launcher.clusterfile.config import ConfigError, load
from memcluster.launcher.clusterfile.settings import EngineConfig, HostConfig
from memcluster.launcher.clusterfile.written import dump
from memcluster.launcher.hosts.conversation import Conversation
from memcluster.launcher.hosts.host import FarHost
from memcluster.launcher.hosts.letter import Letter, write_certificates
from memcluster.launcher.hosts.shards import NotThere, Part, belongs_elsewhere, find_or_make
from memcluster.node.cluster_map import ClusterMap, ServerEntry
from memcluster.node.spec import Bounds, NodeSpec, opener_tls, server_tls
from memcluster.node.tls.credentials import Credentials
from memcluster.node.transport.address import Address
from memcluster.node.transport.channel import Channel
from memcluster.node.transport.frames import Frame
from memcluster.node.transport.introduction import Doorkeeper, introduce
from memcluster.node.transport.loop import Loop
from memcluster.node.transport.proof import Pass, Who
from memcluster.node.transport.stream import Line

# -- cluster.yaml --------------------------------------------------------------------------------------------------


def described(folder: Path, text: str):
    (folder / "cluster.yaml").write_text(text)
    return load(folder / "cluster.yaml", available=1 << 30)


def test_servers_are_dealt_to_the_hosts_in_turn_the_first_to_the_supervisors(tmp_path: Path) -> None:
    """And what was said comes back when the description is written out."""
    config = described(tmp_path, "memory: 5MiB\nservers: 5\nhosts: [b, {name: c, address: 192.0.2.7}]\n")
    assert [server.host for server in config.servers] == ["", "b", "c", "", "b"]
    assert [str(server.listen) for server in config.servers[1:4]] == ["b:0", "192.0.2.7:0", "127.0.0.1:0"]
    assert config.hosts == (HostConfig("b"), HostConfig("c", "192.0.2.7"))
    assert described(tmp_path, dump(config)) == config


@pytest.mark.parametrize(
    ("text", "engine"),
    [
        ("ssh", EngineConfig("ssh")),
        ("slurm", EngineConfig("slurm")),
        ("{slurm: }", EngineConfig("slurm")),
        ("ray", EngineConfig("ray")),
        ("{ray: {address: '10.0.0.1:6379'}}", EngineConfig("ray", at="10.0.0.1:6379")),
        ("{slurm: {partition: long, command: ~/bin/memcluster}}", EngineConfig("slurm", "~/bin/memcluster", "long")),
    ],
)
def test_an_engine_is_a_word_or_has_options(tmp_path: Path, text: str, engine: EngineConfig) -> None:
    """Which come back when the description is written out."""
    config = described(tmp_path, f"{TWO}engine: {text}\n")
    assert config.engine == engine
    assert described(tmp_path, dump(config)) == config


def test_a_server_runs_where_its_entry_says(tmp_path: Path) -> None:
    """Those without a word are dealt."""
    text = "memory: 3MiB\nhosts: [b, c]\nservers: [{memory: 1MiB}, {memory: 1MiB, host: c}, {memory: 1MiB, host: b}]\n"
    assert [server.host for server in described(tmp_path, text).servers] == ["", "c", "b"]


TWO = "memory: 2MiB\nservers: 2\nhosts: [b]\n"
ROUTED = TWO + "topology: client-routed\n"
LISTED = "memory: 2MiB\nhosts: [b]\nservers:\n- {memory: 1MiB}\n"


def test_where_clients_come_to_several_hosts_they_have_tls_by_default(tmp_path: Path) -> None:
    """Of certificates that are made for the run, if the file names none; `insecure_network` does without."""
    at = ROUTED + "listen: 192.0.2.1:0\n"
    for text in (at, at + "tls: {}\n"):
        config = described(tmp_path, text)
        assert config.tls.mode == "require"
        assert config.tls.of_the_run
        assert described(tmp_path, dump(config)) == config
    config = described(tmp_path, at + "insecure_network: true\n")
    assert config.tls.mode == "off"
    assert described(tmp_path, dump(config)) == config
    assert not described(tmp_path, TWO).tls.credentials


def test_what_clients_have_for_a_run_stays_as_long_as_it_is_good_for_its_hosts(tmp_path: Path) -> None:
    """Those of a run whose supervisor died come back."""
    folder = tmp_path / "clients"
    for_clients(folder, ["192.0.2.1", "b"])
    first = {file.name: file.read_bytes() for file in folder.iterdir()}
    for_clients(folder, ["b"])
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == first
    for_clients(folder, ["c"])
    assert not {file.read_bytes() for file in folder.iterdir()} & set(first.values())
    (folder / "client-key.pem").unlink()
    for_clients(folder, ["c"])
    assert {file.name for file in folder.iterdir()} == set(first)


@pytest.mark.parametrize(
    ("text", "place", "sentence"),
    [
        (TWO + "topology: dispatcher\n", "4:11", "dispatcher hands over sockets and needs one host; with hosts use"),
        (TWO + "topology: chain\n", "4:11", "chain hands over sockets and needs one host; with hosts use"),
        (ROUTED + "listen: 127.0.0.1:9\n", "5:9", "127.0.0.1:9 cannot be reached from another host: leave listen out"),
        (ROUTED + "listen: 'unix:s'\n", "5:9", "a unix socket cannot be reached from another host"),
        (ROUTED + "listen: 192.0.2.1:0\ntls: {mode: 'off'}\n", "5:9", "192.0.2.1:0 can be reached from other machines"),
        (ROUTED + "listen: 0.0.0.0:0\n", "5:9", "with topology client-routed clients are told where every server is"),
        (LISTED + "- {memory: 1MiB, host: z}\n", "5:24", "'z' is none of hosts; there are b"),
        (LISTED + "- {memory: 1MiB, listen: 'unix:s'}\n", "5:26", "a unix socket cannot be reached from another host"),
        (LISTED + "- {memory: 1MiB, listen: '127.0.0.1:9'}\n", "5:26", "127.0.0.1:9 cannot be reached from another"),
        ("memory: 1MiB\nhosts: [b]\n", "2:9", "host 'b' has no server"),
        ("memory: 2MiB\nservers: 2\nhosts: [b, b]\n", "3:12", "host 'b' is there already"),
        (TWO + "engine: rsh\n", "4:9", "engine must be"),
        (TWO + "engine: {ssh: {}, slurm: {}}\n", "4:9", "engine must name one of ssh, slurm, ray"),
        (TWO + "engine: {slurm: {partition: 'a b'}}\n", "4:29", "engine.slurm.partition must be the name of"),
        (TWO + "engine: {ray: {address: head}}\n", "4:25", "engine.ray.address must be HOST:PORT"),
        (TWO + "engine: {slurm: {partion: x}}\n", "4:18", "unknown key 'partion'; did you mean 'partition'?"),
        (TWO + "engine: {ssh: {comand: x}}\n", "4:16", "unknown key 'comand'; did you mean 'command'?"),
        (TWO.replace("[b]", "[{name: b, adress: c}]"), "3:19", "unknown key 'adress'; did you mean 'address'?"),
        (TWO + "links: shared\n", "4:8", "servers of several hosts share no memory"),
        (TWO + "user: nobody\n", "4:7", "who runs on other hosts is for the engine to say"),
    ],
)
def test_what_hosts_cannot_be_is_told_with_its_place(tmp_path: Path, text: str, place: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        described(tmp_path, text)
    assert f"cluster.yaml:{place}: {sentence}" in str(caught.value)


# -- what a guardian and its supervisor say ----------------------------------------------------------------------------


class Wire:
    """Both ends of connections that break when they are told to, with frames on their way."""

    def __init__(self) -> None:
        self.heard: tuple[list[int], list[int]] = ([], [])
        self.ends = tuple(
            Conversation(lambda head, side=side: self.heard[side].append(head["n"]), lambda _: None) for side in (0, 1)
        )
        self.way: tuple[list[Frame], list[Frame]] = ([], [])
        self.connect()

    def connect(self) -> None:
        self.way = [], []
        taken = [end.taken for end in self.ends]
        for end in self.ends:
            end.interrupt()
        for side, end in enumerate(self.ends):
            end.go_on(Pen(self.way[1 - side]), taken[1 - side])  # type: ignore[arg-type]

    def deliver(self, side: int, count: int) -> None:
        for _ in range(min(count, len(self.way[side]))):
            self.ends[side].received(self.way[side].pop(0))


class Pen:
    """As much of a channel as a conversation needs."""

    open = True

    def __init__(self, way: list[Frame]) -> None:
        self._way = way

    def send(self, head: dict) -> None:
        self._way.append(Frame(json.loads(json.dumps(head))))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.integers(0, 1), st.just(0)),
        st.tuples(st.just("deliver"), st.integers(0, 1), st.integers(1, 3)),
        st.tuples(st.just("beat"), st.integers(0, 1), st.just(0)),
        st.tuples(st.just("break"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@given(steps=STEPS)
def test_every_word_is_heard_once_and_in_order_however_often_the_link_breaks(steps: list) -> None:
    wire = Wire()
    said = [0, 0]
    for step, side, count in steps:
        if step == "say":
            said[side] += 1
            wire.ends[side].say({"n": said[side]})
        elif step == "beat":
            wire.ends[side].beat({})
        elif step == "break":
            wire.connect()
        else:
            wire.deliver(side, count)
    wire.connect()
    for side in (0, 1):
        wire.deliver(side, 1000)
        assert wire.heard[side] == list(range(1, said[1 - side] + 1))
    for side in (0, 1):
        wire.ends[side].beat({})
    for side in (0, 1):
        wire.deliver(side, 1000)
        assert wire.ends[side].done


def test_what_a_node_is_told_reads_the_same_after_its_way_as_json() -> None:
    primary = ServerEntry("10.0.0.1:1", "10.0.0.1:2", 4096, "primary")
    secondary = ServerEntry("b:1", "b:2", 4096, "secondary", "b")
    cluster = ClusterMap("c", "primary-secondary", "parallel", 0, (primary, secondary))
    spec = NodeSpec(
        name="server1", role="secondary", index=1, cluster=cluster, shard="/s", durable=False, log_directory="/l",
        log_retain=1, merged_log="/m", secret=SECRET, bounds=Bounds(clients=None), tls=Credentials("/t"),
    )  # fmt: skip
    assert NodeSpec.from_head(json.loads(json.dumps(spec.to_head()))) == spec
    assert spec.host == "b"
    assert spec.pass_to("server0").far
    assert not spec.pass_to("logger1").far


def test_a_guardian_that_nobody_told_anything_says_what_it_is_for() -> None:
    done = run(*memcluster_command("guardian"), stdin=b"", check=False)
    assert done.returncode == 1
    assert b"a guardian is started by `memcluster up`" in done.stderr
    assert b"secret" not in repr(Letter("c", "h", "a:1", "aa", 1.0, "t", {})).encode()


# -- a part of the memory --------------------------------------------------------------------------------------------

PART = Part("m1", "c", "b", {"1": 8192})


def test_a_part_is_made_once_and_found_again(tmp_path: Path) -> None:
    find_or_make(PART, tmp_path, made=False)
    assert (tmp_path / "shard1").stat().st_size == 8192
    (tmp_path / "shard1").write_bytes(b"x" * 8192)
    find_or_make(PART, tmp_path, made=True)
    find_or_make(PART, tmp_path, made=False)  # the supervisor died before it knew
    assert (tmp_path / "shard1").read_bytes() == b"x" * 8192


def test_a_part_that_is_not_there_or_not_whole_is_not_made_anew(tmp_path: Path) -> None:
    with pytest.raises(NotThere, match="b does not hold the shard of server1"):
        find_or_make(PART, tmp_path, made=True)
    find_or_make(PART, tmp_path, made=False)
    os.truncate(tmp_path / "shard1", 4096)
    with pytest.raises(NotThere, match=r"b does not hold the shard of server1: .* 4096 bytes instead of 8192"):
        find_or_make(PART, tmp_path, made=True)
    (tmp_path / "shard1").unlink()
    with pytest.raises(NotThere, match="shard1 is missing"):
        find_or_make(PART, tmp_path, made=False)


def test_another_memorys_part_is_left_alone(tmp_path: Path) -> None:
    find_or_make(PART, tmp_path, made=False)
    with pytest.raises(NotThere, match=r"b holds another memory in .*: `memcluster down` discards"):
        find_or_make(Part("m2", "c", "b", {"1": 8192}), tmp_path, made=False)
    assert not belongs_elsewhere(tmp_path, "m1")
    assert belongs_elsewhere(tmp_path, "m2")
    assert not belongs_elsewhere(tmp_path / "nothing", "m2")


def test_two_hosts_that_share_a_folder_are_refused(tmp_path: Path) -> None:
    find_or_make(PART, tmp_path, made=False)
    with pytest.raises(NotThere, match="z and b share the storage folder"):
        find_or_make(Part("m1", "c", "z", {"2": 8192}), tmp_path, made=False)


def test_a_shard_larger_than_its_hosts_file_system_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotThere, match=r"b has room for \d+ MiB in .*, and the shard of server1 would take 1048576TiB"):
        find_or_make(Part("m1", "c", "b", {"1": 1 << 60}), tmp_path, made=False)
    assert not list(tmp_path.iterdir())


# -- the way in --------------------------------------------------------------------------------------------------------


class Scene:
    """A door to another host, and who has come in or was turned away."""

    def __init__(self, folder: str) -> None:
        self.loop = Loop()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address(*self.listener.getsockname())
        self.inside: list[Line] = []
        self.reasons: list[str] = []
        self.door = Doorkeeper(
            self.loop, SECRET, "server1", [Who.SERVER], lambda line, _: self.inside.append(line), self.reasons.append,
            tls=server_tls(folder), far=True,
        )  # fmt: skip
        self.loop.watch(self.listener, 1, lambda _: self.door.take(self.listener.accept()[0]))

    def turn_until(self, fact) -> None:
        for _ in range(10_000):
            if fact():
                return
            self.loop.turn(0.01)
        raise AssertionError("it does not become true")


@pytest.fixture
def certificates(tmp_path: Path) -> str:
    return write_certificates(tmp_path / "ours", between_hosts())


@pytest.fixture
def scene(certificates: str) -> Iterator[Scene]:
    scene = Scene(certificates)
    yield scene
    scene.door.close()
    scene.listener.close()
    for line in scene.inside:
        line.close()
    scene.loop.close()


def test_behind_the_proof_a_connection_goes_on_in_tls(scene: Scene, certificates: str) -> None:
    """Frames of any size come through, both ways."""
    met: list[Line] = []
    key = Pass(SECRET, Who.SERVER, "server1", opener_tls(certificates), far=True)
    introduce(scene.loop, scene.address, key, met.append, pytest.fail)
    scene.turn_until(lambda: met and scene.inside)
    assert not isinstance(met[0], socket.socket)
    assert met[0].layer.cipher.startswith("TLSv1.3")
    heard: list[bytes] = []
    ours = Channel(scene.loop, met[0], lambda _, frame: heard.append(frame.body))
    theirs = Channel(scene.loop, scene.inside[0], lambda channel, frame: channel.send({}, frame.body))
    ours.send({}, b"x" * 1_000_000)
    ours.send({}, b"the last word")
    scene.turn_until(lambda: len(heard) == 2)
    assert [len(heard[0]), heard[1]] == [1_000_000, b"the last word"]
    ours.close()
    theirs.close()


@pytest.mark.parametrize("kind", ["none", "another's"])
def test_who_has_the_secret_but_no_certificate_of_the_run_gets_no_further(
    scene: Scene, tmp_path: Path, kind: str
) -> None:
    """Nor does a server without one get anything from who opens."""
    other = write_certificates(tmp_path / "other", between_hosts()) if kind == "another's" else ""
    met: list[Line] = []
    failed: list[str] = []
    key = Pass(SECRET, Who.SERVER, "server1", opener_tls(other), far=True)
    introduce(scene.loop, scene.address, key, met.append, failed.append)
    if kind == "none":
        scene.turn_until(lambda: met)
        met[0].sendall(bytes(64))
    scene.turn_until(lambda: scene.reasons)
    assert scene.reasons[0].startswith("TLS: ") or "hung up" in scene.reasons[0]
    assert not scene.inside
    assert kind == "none" or failed
    for line in met:
        line.close()


# -- a host as the supervisor has it -----------------------------------------------------------------------------------


def test_a_guardian_that_cannot_be_run_again_counts_as_one_that_ended() -> None:
    """There is no process to be had: the stop of the others goes on, and that host is not waited for."""
    runs = []

    def again() -> None:
        runs.append(1)
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    loop = Loop()
    try:
        host = FarHost(loop, "b", 1.0, again)
        host._told({"prepared": {}, "run": (1, 1, 1)})
        host.engine_says("ssh ended with status 255")
        host.end(keep=False, again=True)
        while not host.over(engine_tells=True):
            loop.turn(1.0)
    finally:
        loop.close()
    assert host.ended == "it cannot be run again: Resource temporarily unavailable"
    assert 0 < len(runs) < 10
