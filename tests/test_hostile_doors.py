"""Whoever comes to the doors that are not meant for clients: secondaries, loggers, the supervisor."""

from __future__ import annotations

import json
import random
import socket
from contextlib import suppress

import pytest
from harness import TIMEOUT
from mutations import hear_out
from strangers import sessions

from memcluster.launcher.run.control import ask
from memcluster.node.logger.logger import ASK_TIMEOUT
from memcluster.node.topologies.primary_secondary import LINK
from memcluster.node.transport.address import Address
from memcluster.node.transport.frames import MAX_QUESTION, PREFIX, FrameReader
from memcluster.node.transport.proof import (
    ANSWER,
    CHALLENGE,
    MAGIC,
    NONCE_SIZE,
    SECRET_SIZE,
    Opener,
    Pass,
    Who,
)


@pytest.mark.parametrize("node", ["server1", "logger0", "logger1"])
def test_who_does_not_know_the_secret_gets_a_nonce_and_no_more(world, node):
    """Whatever it says: sessions and questions that are served to the cluster's own, answers of another's, those cut at
    each byte and changed. All are counted; the client that works meanwhile never notices, nor does who follows the
    log."""
    address = world.address(node)
    number = [found["name"] for found in world.status()].index(node)
    rng = random.Random(11)
    whole = b"".join(sessions(LINK.encode())["structured"])
    wrong = Opener(Pass(bytes(SECRET_SIZE), Who.SERVER, node), bytes(NONCE_SIZE))
    wrong.received(CHALLENGE.pack(MAGIC, bytes(NONCE_SIZE)))
    said = [*QUERIES, whole, wrong.outgoing, *(wrong.outgoing[:at] for at in range(ANSWER.size))]
    for _ in range(300):
        data = bytearray(rng.choice([whole, wrong.outgoing]))
        for _ in range(rng.choice([1, 2, 5])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        said.append(bytes(data))
    before = world.status()[number]
    for at in range(0, len(said), 40):
        for answer in hear_out(world, address, said[at : at + 40]):
            assert len(answer) == CHALLENGE.size
            assert answer.startswith(MAGIC)
        world.works()
    found = world.status()[number]
    assert found["strangers"] == before["strangers"] + len(said)
    assert found["requests"] >= before["requests"]


def frame(head: object, body: bytes = b"") -> bytes:
    data = head if isinstance(head, bytes) else json.dumps(head).encode()
    return PREFIX.pack(len(data), len(body)) + data + body


ODD = [None, True, -1, 0, 1, 1 << 70, 1.5, "", "x", "READ", [], [1], [[]], ["READ"], [None], {}, {"ask": "share"}]
KEYS = ["window", "follow", "since", "until", "request", "last", "after", "client", "operations", "slower", "errors",
        "offset", "length", "node"]  # fmt: skip
QUERIES = [
    b"", b"\0" * 8, b"GET / HTTP/1.1\r\n\r\n", PREFIX.pack(0xFFFFFFFF, 0), PREFIX.pack(2, 0xFFFFFFFF) + b"{}",
    frame(b""), frame(b"{"), frame(b"[" * 100_000), frame([]), frame(7), frame({}), frame({}, b"x" * 100_000),
    frame(b"\xff\xfe"), frame(b'{"ask": "share", "since": 1e999}'), frame(b'{"ask": NaN}'),
    *(frame({"ask": odd}) for odd in ODD),
    *(frame({"ask": ask_, key: odd}) for ask_ in ("share", "merged") for key in KEYS for odd in ODD),
    frame({"ask": "share", "window": 1}) + frame({"ask": "share"}),
    frame({"ask": "share", "window": 1}) + frame({"ask": "more"}) * 1000,
    frame({"ask": "merged"}) + frame({"ask": "more"}), frame({"ask": "more"}),
]  # fmt: skip


@pytest.mark.parametrize("node", ["logger0", "logger1"])
def test_odd_questions_to_a_logger_harm_nobody(world, node):
    """Whatever is asked is answered with a sentence, or with the log, or cut off; the log can be read as before."""
    address = world.address(node)
    rng = random.Random(12)
    said = list(QUERIES)
    whole = frame({"ask": "share", "last": 3})
    said += [whole[:at] for at in range(len(whole))]
    for _ in range(500):
        data = bytearray(rng.choice(QUERIES) or b"\0")
        for _ in range(rng.choice([1, 2, 5])):
            data[rng.randrange(min(len(data), 200))] = rng.randrange(256)
        said.append(bytes(data))
    for at in range(0, len(said), 8):  # a logger answers sixteen at a time
        for answer in hear_out(world, address, said[at : at + 8], node):
            reader = FrameReader()
            reader.receive(answer)  # frames all, or an error here
    world.works()
    assert world.cluster.command("logs", "-n", "1").stdout.strip()


def test_strangers_at_the_supervisor_harm_nobody(world):
    """The control socket is the user's own; still, words that it does not know are answered or cut off."""
    path = str(world.cluster.directory / "control")
    supervisor = world.cluster.record.supervisor.pid
    said = [*QUERIES[:15], *(frame({"do": odd}) for odd in ODD), *(frame({"do": "status", "x": odd}) for odd in ODD)]
    whole = frame({"do": "status"})
    said += [whole[:at] for at in range(len(whole))]
    for words in said:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(TIMEOUT)
            sock.connect(path)
            try:
                sock.sendall(words)
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(1 << 16):
                    pass
            except ConnectionError:
                pass
    assert world.cluster.record.supervisor.pid == supervisor


@pytest.mark.parametrize("whom", ["logger0", "logger1", "the supervisor"])
def test_a_question_that_is_too_long_is_not_waited_for(world, whom):
    """What has come of a frame is kept until the rest has; of strangers' frames that is little. Who announces more is
    cut off at once, and not when its time to ask is over."""
    control = str(world.cluster.directory / "control")
    address = Address(path=control) if whom == "the supervisor" else Address.parse(world.address(whom))
    with socket.socket(address.family) as sock:
        sock.settimeout(ASK_TIMEOUT / 2)
        sock.connect(address.sockaddr)
        if whom != "the supervisor":
            world.cluster.introduce(sock, whom, Who.OWNER)
        sock.sendall(PREFIX.pack(MAX_QUESTION, 0) + b" " * 1000)
        with suppress(ConnectionResetError):
            assert sock.recv(1) == b""
    world.works()


@pytest.mark.parametrize(
    "words",
    [
        {"do": "fault"},
        {"do": "fault", "kind": "kill", "targets": 5, "seconds": 1, "delay": 0},
        {"do": "down", "timeout": "x"},
    ],
    ids=["fault without fields", "fault with odd fields", "down with an odd timeout"],
)
def test_broken_orders_do_not_kill_the_supervisor(make_cluster, words):
    """An order that lacks what it needs, or has it in the wrong form, is answered with a sentence."""
    cluster = make_cluster(servers=1)
    answer = ask(cluster.directory / "control", words, TIMEOUT)
    assert "error" in answer
    assert cluster.status()["state"] == "running"
