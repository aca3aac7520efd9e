"""Valid sessions with something wrong with them, and a reader that knows whether what a server says to one is NBD."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from strangers import BORDER, DISC, FLAGS, GO, SESSIONS, SIZE, STRUCTURED, WORK, World, request

from memcluster.node.nbd import wire
from memcluster.node.nbd.wire import Chunk, Command, Error, Option, Rep
from memcluster.node.transport.proof import Who


@dataclass
class Grammar:
    """Reads what the server said to a stranger; whatever that was, every word of it must be NBD."""

    said: bytes
    no_zeroes: bool
    position: int = 0
    structured: bool = False
    extended: bool = False
    frames: list[tuple] = field(default_factory=list)

    def left(self) -> int:
        return len(self.said) - self.position

    def take(self, form: struct.Struct) -> tuple | None:
        """The next frame, or None where the stream ends first."""
        if self.left() < form.size:
            return None
        words = form.unpack_from(self.said, self.position)
        self.position += form.size
        return words

    def check(self) -> None:
        greeting = self.take(wire.GREETING)
        if greeting is None:
            return
        assert greeting == (wire.NBDMAGIC, wire.IHAVEOPT, 3)
        if self.handshake():
            self.transmission()

    def handshake(self) -> bool:
        """True when it came to its end."""
        while self.left() >= 8:
            (magic,) = struct.unpack_from(">Q", self.said, self.position)
            if magic != wire.OPTION_REPLY_MAGIC:
                reply = self.take(wire.EXPORT_NAME_REPLY)
                if reply is None:
                    return False
                assert reply[0] in (SIZE, BORDER) or reply[0] < 10_000, f"{magic:#x} is no reply"
                assert reply[1] & 1
                if not self.no_zeroes:
                    self.position += wire.EXPORT_NAME_PADDING
                return self.left() >= 0
            frame = self.take(wire.OPTION_REPLY)
            if frame is None:
                return False
            _, number, reply, length = frame
            assert reply in Rep.__members__.values()
            assert length <= 5000
            self.frames.append((number, reply))
            if (number, reply) == (Option.STRUCTURED_REPLY, Rep.ACK):
                self.structured = True
            if (number, reply) == (Option.EXTENDED_HEADERS, Rep.ACK):
                self.structured = self.extended = True
            self.position += length
            if (number, reply) == (Option.GO, Rep.ACK):
                return True
        return False

    def transmission(self) -> None:
        while self.left() >= 4:
            (magic,) = struct.unpack_from(">I", self.said, self.position)
            if magic == wire.SIMPLE_REPLY_MAGIC and not self.extended:
                frame = self.take(wire.SIMPLE_REPLY)
                if frame is None:
                    return
                assert frame[1] in Error.__members__.values()
                if not self.structured:
                    return  # a READ's bytes may follow, and how many only the request tells
            else:
                right = wire.EXTENDED_CHUNK_MAGIC if self.extended else wire.CHUNK_MAGIC
                assert magic == right, f"{magic:#x} is no reply"
                assert self.structured
                frame = self.take(wire.EXTENDED_CHUNK if self.extended else wire.CHUNK)
                if frame is None:
                    return
                flags, kind, length = frame[1], frame[2], frame[-1]
                assert flags in (0, 1)
                assert kind in Chunk.__members__.values()
                assert length <= SIZE + 8
                self.position += length


def understood(said: bytes, session: bytes) -> None:
    flags = struct.unpack(">I", session[:4])[0] if len(session) >= 4 else 0
    Grammar(said, no_zeroes=bool(flags & 2)).check()


def mutated(rng: random.Random, valid: dict[str, list[bytes]]) -> bytes:
    """A valid session with something wrong with it."""
    parts = list(valid[rng.choice(list(valid))])
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        match rng.randrange(6):
            case 0:  # out of order, lost, twice
                rng.shuffle(parts)
            case 1:
                del parts[rng.randrange(len(parts))]
            case 2:
                parts.insert(rng.randrange(len(parts) + 1), rng.choice(parts))
            case 3:  # from another session
                other = valid[rng.choice(list(valid))]
                parts.insert(rng.randrange(len(parts) + 1), rng.choice(other))
            case _:
                break
        if not parts:
            return b""
    data = bytearray(b"".join(parts))
    for _ in range(rng.choice([0, 1, 1, 2, 5, 30])):
        if not data:
            break
        at = rng.randrange(len(data))
        match rng.randrange(7):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.randrange(256)
            case 2:  # a length, a count, an offset
                number = rng.choice([0, 1, 27, 28, 4096, 4097, 65536, 65537, SIZE, SIZE + 1, 0x7FFFFFFF, 0xFFFFFFFF])
                data[at & ~3 : (at & ~3) + 4] = struct.pack(">I", number)
            case 3:
                del data[at : at + rng.choice([1, 4, 16, 28])]
            case 4:
                data[at:at] = rng.randbytes(rng.choice([1, 4, 28, 300]))
            case 5:
                data[at:at] = data[rng.randrange(len(data)) :][: rng.choice([1, 4, 28, 300])]
            case 6:
                del data[at:]
    return bytes(data)


def hear_out(world: World, address: str, said: Sequence[bytes], known_to: str = "") -> list[bytes]:
    """Each is said by a stranger of its own, all at a time; returns what they were answered until they were closed. To
    the logger of this name they are no strangers: they are the owner's."""
    with ExitStack() as stack:
        strangers = [stack.enter_context(world.stranger(address)) for _ in said]
        for stranger, words in zip(strangers, said, strict=True):
            if known_to:
                world.cluster.introduce(stranger.sock, known_to, Who.OWNER)
            stranger.send(words)
            try:
                stranger.sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass
        return [stranger.until_closed() for stranger in strangers]


LARGE = [FLAGS, STRUCTURED, GO, *(request(Command.WRITE, 9, 99_999, payload=bytes(99_999)), *WORK) * 2, DISC]
"""Its payloads are received in their place; too long to be cut at each byte."""
MUTABLE = SESSIONS | {"large": LARGE}
TOGETHER = 40
BLOCK, BLOCKS = 2500, 16
"""Sessions after which the servers' memory is looked at, and how often at most."""


def attack(world: World, rng: random.Random, rounds: int) -> None:
    """So many times forty mutated sessions at a time: each ends, and the server speaks NBD to the last word."""
    for _ in range(rounds):
        said = [mutated(rng, MUTABLE) for _ in range(TOGETHER)]
        for session, answer in zip(said, hear_out(world, "", said), strict=True):
            try:
                understood(answer, session)
            except AssertionError as error:
                raise AssertionError(f"after {session.hex()}") from error
        world.works()


def leaves_nothing(world: World, rng: random.Random) -> None:
    """The memory before and after thousands of sessions is the same. The allocator finds its high-water mark in the
    first ones; what leaks even 20 bytes a session grows in every block."""
    growth = []
    for _ in range(BLOCKS):
        before = world.memory()
        attack(world, rng, BLOCK // TOGETHER)
        growth.append(max(after - earlier for earlier, after in zip(before, world.memory(), strict=True)))
        if growth[-1] < 20 * BLOCK:
            return
    raise AssertionError(f"{BLOCK} sessions take up memory for ever, bytes each time: {growth}")
