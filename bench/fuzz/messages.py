"""What memcluster's own processes say to one another. By whoever can connect, before he is known: the proof, TLS. By
who is known, or has the user's rights: frames, and the questions, orders and answers in them; clients passed on.
"""

from __future__ import annotations

import hmac
import tempfile
from pathlib import Path
from typing import Any

from bench.fuzz.target import CUT, LONG, Target, joined, parts
from memcluster.launcher.certificates import make
from memcluster.launcher.clusterfile.config import load
from memcluster.launcher.clusterfile.plain import to_plain
from memcluster.launcher.log.reader import _entries, _sentences, check_answer
from memcluster.launcher.log.stats import figures, stats_table
from memcluster.launcher.supervision.orders import OrderError, parse
from memcluster.node.handover import messages as handover
from memcluster.node.handover.messages import HEADER, LONGEST, HandoverError, Message, Order, OrderReader
from memcluster.node.log.filter import Filter
from memcluster.node.log.record import RECORD_SIZE
from memcluster.node.log.tally import Tally
from memcluster.node.nbd.replies import Terms
from memcluster.node.nbd.wire import Command
from memcluster.node.tls.context import client_context, server_context
from memcluster.node.tls.credentials import Credentials
from memcluster.node.tls.layer import Layer, TLSError
from memcluster.node.transport.frames import MAX_QUESTION, PREFIX, Frame, FrameError, FrameReader
from memcluster.node.transport.proof import (
    ANSWER,
    CHALLENGE,
    HMAC_SIZE,
    MAGIC,
    NONCE_SIZE,
    Opener,
    Pass,
    ProofError,
    Server,
    Side,
    Who,
)

# -- frames --------------------------------------------------------------------------------------------------------

LONGEST_WORDS = 1000
"""Characters of a sentence about a frame, at most."""


def read_frames(data: bytes) -> None:
    """However they are cut they are the same frames; and each is taken for all that a frame may be."""
    received = [bytes(part) for part in parts(data)]
    cut, error = _frames(received)
    whole, same = _frames([b"".join(received)])
    assert error == same
    if not error:  # else those that came with what is none are lost with it
        assert [(frame.body, repr(frame.head)) for frame in cut] == [(frame.body, repr(frame.head)) for frame in whole]
    for frame in cut:
        assert PREFIX.size + len(frame.body) <= MAX_QUESTION
        take_question(frame.head)
        take_order(frame.head)
        take_answer(frame)
        take_figures(frame.head)


def _frames(received: list[bytes]) -> tuple[list[Frame], str]:
    """As many as come before something that is none, and what that is."""
    reader, found = FrameReader(MAX_QUESTION), list[Frame]()
    try:
        for part in received:
            for at in range(0, len(part), 1 << 15):
                found += reader.receive(part[at : at + (1 << 15)])
            assert len(reader._received) <= MAX_QUESTION + (1 << 15), "more is kept than a frame may have"
    except FrameError as error:
        assert len(str(error)) <= LONGEST_WORDS
        return found, str(error)
    return found, ""


def take_question(head: dict[str, Any]) -> None:
    """What a logger makes of it."""
    try:
        wanted = Filter.from_head(head)
    except ValueError as error:
        assert len(str(error)) <= LONGEST_WORDS
        assert str(error).isprintable()
        return
    assert Filter.from_head(wanted.to_head()) == wanted
    wanted.at(1 << 60, 3)


def take_order(head: dict[str, Any]) -> None:
    """What a supervisor makes of it."""
    try:
        order = parse(head)
    except OrderError as error:
        assert len(str(error)) <= 10 * LONGEST_WORDS
        assert str(error).isprintable()
        return
    for name in ("timeout", "seconds", "delay"):
        assert float(getattr(order, name, 0.0) or 0.0) + 1e9 > 0, "no time that a clock could add up"


def take_answer(frame: Frame) -> None:
    """What `memcluster logs` makes of it."""
    try:
        check_answer(frame)
        found = _entries(frame)
    except FrameError:
        return
    assert len(found) <= len(frame.body) // RECORD_SIZE
    for sentence in _sentences(frame.head):
        assert isinstance(sentence, str)


def take_figures(head: dict[str, Any]) -> None:
    """What `memcluster stats` and logger 0 make of it."""
    try:
        tally = Tally.from_head(head)
    except (ValueError, KeyError, TypeError):
        return
    tally.join(Tally.from_head(tally.to_head()))
    stats_table(figures({"server0": tally}, 10.0, 10.0))


# -- those who pass clients on -------------------------------------------------------------------------------------

_room = memoryview(bytearray(1 << 14))


_payload = memoryview(bytearray(LONGEST))


def _fresh(length: int) -> memoryview:
    return _payload[:length]


def read_orders(data: bytes) -> None:
    reader = OrderReader(_room, _fresh)
    sent = 0
    try:
        for found in parts(data):
            part = found
            while part:
                room = reader.receive_buffer()
                count = min(len(room), len(part))
                assert count, "no room to receive"
                room[:count] = part[:count]
                part = part[count:]
                sent += count
                orders = reader.received(count, 1 << 16)
                for order in orders:
                    _take_order(order, sent)
                while reader.waiting:
                    reader.receive_buffer()
                    for order in reader.received(0, 1 << 16):
                        _take_order(order, sent)
    except HandoverError as error:
        assert str(error).isprintable()


def _take_order(order: Order, sent: int) -> None:
    assert order.kind in Message.__members__.values()
    assert len(order.payload) <= sent
    if not order.payload:
        words = order.encode()
        again = OrderReader(memoryview(bytearray(words)), _fresh)
        again.receive_buffer()
        (twin,) = again.received(len(words))
        assert twin.encode() == words
    if order.kind == handover.ADOPT:
        Terms.decode(order.flags)
    elif order.kind == handover.DONE:
        try:
            assert len(handover.decode_done(order)) == len(order.payload) // 8
        except HandoverError:
            assert len(order.payload) % 8
    elif order.error:
        order.read_message()
        order.message.encode()


# -- who is known --------------------------------------------------------------------------------------------------

SECRET, OURS, THEIRS = b"a secret, of which nobody is told"[:32], b"o" * NONCE_SIZE, b"t" * NONCE_SIZE
NODE = "logger1"


def _mac(word: bytes, who: int, server: bytes, opener: bytes) -> bytes:
    """As docs/protocol.md has it."""
    return hmac.digest(SECRET, word + b"\0" + bytes([who]) + server + opener + b"\0" + NODE.encode(), "sha256")


def prove(data: bytes) -> None:
    """The first byte says to which side the others are said."""
    received = b"".join(parts(data[1:]))
    if data[:1] < b"\x80":
        server = Server(SECRET, NODE, OURS)
        said, done = _hear(server, received)
        answer = received[: ANSWER.size]
        right = len(answer) == ANSWER.size and _is_right(*ANSWER.unpack(answer))
        assert (done, server.who is not None) == (right, right), "who is known and who has proved himself are two"
        assert len(said) == CHALLENGE.size + (HMAC_SIZE if right else 0), "a stranger learns more than a nonce"
    else:
        said, done = _hear(Opener(Pass(SECRET, Who.LOGGER, NODE), OURS), received)
        challenge, proof = received[: CHALLENGE.size], received[CHALLENGE.size :][:HMAC_SIZE]
        is_server = len(challenge) == CHALLENGE.size and challenge.startswith(MAGIC)
        right = is_server and proof == _mac(b"memcluster server", Who.LOGGER, challenge[len(MAGIC) :], OURS)
        assert done == right, "who is believed and who has proved himself are two"
        assert len(said) == (ANSWER.size if is_server else 0), "a stranger learns more than an HMAC of his nonce"


def _hear(side: Side, received: bytes) -> tuple[bytes, bool]:
    """What a side says to these words, and whether it is content in the end."""
    said, side.outgoing = side.outgoing, b""
    at = 0
    try:
        while side.needs and at < len(received):
            step = min(side.needs, 13)  # whole and in parts
            side.received(received[at : at + step])
            at += step
            said, side.outgoing = said + side.outgoing, b""
    except ProofError:
        return said + side.outgoing, False
    return said, not side.needs


def _is_right(who: int, nonce: bytes, proof: bytes) -> bool:
    return who in Who.__members__.values() and proof == _mac(b"memcluster opener", who, OURS, nonce)


# -- TLS -----------------------------------------------------------------------------------------------------------

with tempfile.TemporaryDirectory() as _folder:
    make(Path(_folder))
    _contexts = server_context(Credentials(_folder)), client_context(_folder, hostname=False)
_plain = memoryview(bytearray(1 << 12))
LONGEST_FLIGHT = 1 << 15


def shake_hands(data: bytes) -> None:
    """The first byte says to which side the others are said: it is never let in by them, and says little."""
    is_server = data[:1] < b"\x80"
    layer = Layer(_contexts[not is_server], server=is_server)
    said = 0
    try:
        for part in parts(data[1:]):
            layer.received(bytes(part))
            assert not layer.shake_hands(), "hands are shaken with whoever has no key"
            said += len(layer.unsent())
        layer.open_into(_plain)
    except TLSError as error:
        assert error.message.isprintable()
        said += len(layer.unsent())
    assert said <= LONGEST_FLIGHT
    assert not any(_plain), "plain bytes come out of what nobody has sealed"


# -- seeds ---------------------------------------------------------------------------------------------------------


def a_config() -> dict[str, Any]:
    """A cluster.yaml as a command sends it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cluster.yaml"
        path.write_text("memory: 1MiB\nname: x\n")
        return to_plain(load(path))


HEADS: list[dict[str, Any]] = [
    {"ask": "merged", "follow": True, "since": -5, "until": 1 << 60, "last": 10, "run": -1, "news": False},
    {"ask": "share", "window": 3, "operations": ["READ", "DIED"], "subjects": [0, 65536], "client": 1, "request": 9},
    {"ask": "tally", "offset": 4096, "length": 10, "slower": 5, "errors": True, "after": 77},
    {"do": "down", "drain": True, "timeout": 1.5},
    {"do": "fault", "kind": "pause", "targets": ["server0"], "seconds": 2, "delay": 0.5},
    {"do": "plan", "what": "restart", "nodes": ["server1"]},
    {"do": "apply", "config": {"name": "x", "servers": 3}, "stamp": "", "dry": True},
    {"do": "apply", "config": a_config(), "stamp": "1 2", "dry": False},
    {
        "records": 1,
        "after": {"server0": 3},
        "back": ["logger1"],
        "missing": ["logger2"],
        "trouble": {"logger2": "no"},
        "gaps": [{"node": "server0", "after": 1, "records": 2}],
        "end": True,
    },
    {"error": "it is not so"},
    {
        "cell": 4096,
        "missing": 1,
        "age": 5,
        "figures": [[1, 0, 2, 100, 0, 3000, 2000, [[5, 1], [7, 1]]]],
        "events": [[4, 1]],
        "cells": [[0, 2, 100]],
    },
]


def _tls_flights() -> list[bytes]:
    """What the two sides of a handshake say, for the other one."""
    server, client = Layer(_contexts[0], server=True), Layer(_contexts[1], server=False)
    flights = {server: b"", client: b""}
    for _ in range(3):
        for one, other in ((client, server), (server, client)):
            one.shake_hands()
            said = one.unsent()
            flights[one] += said
            other.received(said)
    hello, answer = flights[client], flights[server]
    return [b"\0" + hello[:600], b"\xff" + answer[:3000], b"\0" + joined(hello[:100], hello[100:400])]


def _proofs() -> list[bytes]:
    answer = ANSWER.pack(Who.OWNER, THEIRS, _mac(b"memcluster opener", Who.OWNER, OURS, THEIRS))
    challenge = CHALLENGE.pack(MAGIC, THEIRS) + _mac(b"memcluster server", Who.LOGGER, THEIRS, OURS)
    nobody = ANSWER.pack(9, THEIRS, _mac(b"memcluster opener", 9, OURS, THEIRS))
    return [b"\0" + answer, b"\xff" + challenge, b"\0" + nobody, b"\xff" + challenge[:-1] + b"x"]


def _orders() -> list[bytes]:
    order = Order(handover.ORDER, Command.WRITE, 0, 0, 1, 2, 3, 4, 0, 5, 100, 6)
    failed = Order(handover.ORDER, Command.READ, 0, 5, 1, 0, 3, 4, 0, 5, 100, 6)
    long = Order(handover.DATA, identifier=9)
    return [
        Order(handover.HELLO, client=1).encode() + Order(handover.ADOPT, flags=7, client=1).encode(),
        joined(order.encode(100) + bytes(50), bytes(50) + handover.encode_done([1, 2, 3])),
        failed.encode(6) + b"it was",
        joined(long.encode(9000), LONG + (9000).to_bytes(2, "big")),
        b"".join(Order(kind, client=3).encode() for kind in Message),
    ]


_frames_of_heads = [Frame(head, bytes(RECORD_SIZE + 2) if head.get("records") else b"").encode() for head in HEADS]
_heads_words = [f'"{name}":'.encode() for head in HEADS for name in head] + [
    b"[" * 500,
    b'{"a":' * 500,
    b"1e999",
    b"NaN",
]
TARGETS = (
    Target(
        "frames",
        "frames, and the questions, orders, answers and figures in them",
        read_frames,
        [*_frames_of_heads, joined(*_frames_of_heads[:3]), _frames_of_heads[4][:9] + CUT + _frames_of_heads[4][9:]],
        [CUT, *_heads_words],
        share=30,
    ),
    Target(
        "handover",
        "the messages by which clients and their requests are passed on",
        read_orders,
        _orders(),
        [CUT, LONG, *(bytes([kind, 0]) for kind in Message), HEADER.pack(*[0] * 13)],
        share=24,
    ),
    Target(
        "proof",
        "what strangers say at the doors of the cluster's own, and those that nodes come to",
        prove,
        _proofs(),
        [CUT, MAGIC],
        share=24,
    ),
    Target(
        "tls",
        "what strangers say in the handshake of TLS",
        shake_hands,
        _tls_flights(),
        [CUT, b"\x16\x03\x01", b"\x16\x03\x03", b"\x17\x03\x03", b"\x15\x03\x03", b"\x14\x03\x03\0\1\1"],
        share=1,
    ),
)
