"""How the two ends of a connection within the cluster show each other that they know the run's secret. No I/O.

Whoever was connected to speaks first, and the other answers before anything else is said:

    server   magic (8), nonce (32)
    opener   who it is (1), nonce (32), HMAC (32)
    server   HMAC (32)

Both HMACs (SHA-256) cover both nonces, who the opener says it is and the name of the node that it means, with a word
before them for the side that speaks: what was once said proves nothing later, at another node's door, or for the other
side. The opener says nothing else until the server has shown that it knows the secret, too, so a stranger at an address
that is free again learns nothing and gives no false bytes. (multiprocessing's own challenge blocks, and is MD5 up to
Python 3.11.)
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from enum import IntEnum
from struct import Struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl

MAGIC = b"MEMCLUST"
SECRET_SIZE = NONCE_SIZE = HMAC_SIZE = 32
CHALLENGE = Struct(f">8s{NONCE_SIZE}s")
ANSWER = Struct(f">B{NONCE_SIZE}s{HMAC_SIZE}s")
_OPENER, _SERVER = b"memcluster opener", b"memcluster server"


class ProofError(Exception):
    """The other side does not know the secret; says why that is thought."""


class Who(IntEnum):
    """Who opens a connection: for whom there are which places is for the node that is asked to say."""

    SERVER = 1
    LOGGER = 2
    OWNER = 3  # somebody who can read the secret in the run directory: the command line
    GUARDIAN = 4  # of another host


@dataclass(frozen=True)
class Pass:
    """What an opener needs at the door of `node`."""

    secret: bytes = field(repr=False)
    who: Who
    node: str
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    """With which the connection goes on behind the proof, where it leaves this host."""
    far: bool = field(default=False, repr=False)
    """The node is on another host: one that vanished is to be noticed soon."""


class Side:
    """One end: `outgoing` is to be sent, and then `needs` bytes, and no more, are to be received; none when all is
    said, and the other side has proved what it must."""

    def __init__(self, secret: bytes, node: str, nonce: bytes) -> None:
        self.outgoing = b""
        self._secret = secret
        self._node = node
        self._nonce = nonce
        self._received = b""
        self._steps = self._talk()
        self._size = next(self._steps)

    @property
    def needs(self) -> int:
        return self._size - len(self._received)

    def received(self, data: bytes) -> None:
        """At most `needs` bytes have come. Raises ProofError."""
        self._received += data
        if not self.needs:
            whole, self._received = self._received, b""
            try:
                self._size = self._steps.send(whole)
            except StopIteration:
                self._size = 0

    def _talk(self) -> Generator[int, bytes, None]:
        raise NotImplementedError

    def _hmac(self, word: bytes, who: int, server_nonce: bytes, opener_nonce: bytes) -> bytes:
        import hmac  # late: 3 ms, and only those who meet need it

        said = b"\0".join((word, bytes([who]) + server_nonce + opener_nonce, self._node.encode()))
        return hmac.digest(self._secret, said, "sha256")

    def _is(self, proof: bytes, word: bytes, who: int, server_nonce: bytes, opener_nonce: bytes) -> bool:
        import hmac

        return hmac.compare_digest(proof, self._hmac(word, who, server_nonce, opener_nonce))


class Server(Side):
    """The end that was connected to, the node of this name; `who` is there when the other end has proved itself."""

    who: Who | None = None

    def _talk(self) -> Generator[int, bytes, None]:
        self.outgoing = CHALLENGE.pack(MAGIC, self._nonce)
        who, nonce, proof = ANSWER.unpack((yield ANSWER.size))
        if not self._is(proof, _OPENER, who, self._nonce, nonce):
            raise ProofError("it does not know this run's secret")
        if who not in Who.__members__.values():
            raise ProofError(f"it says that it is a {who}, whatever that is")
        self.outgoing = self._hmac(_SERVER, who, self._nonce, nonce)
        self.who = Who(who)


class Opener(Side):
    """The end that has connected, and means the node of its pass."""

    def __init__(self, key: Pass, nonce: bytes) -> None:
        self._who = key.who
        super().__init__(key.secret, key.node, nonce)

    def _talk(self) -> Generator[int, bytes, None]:
        magic, nonce = CHALLENGE.unpack((yield CHALLENGE.size))
        if magic != MAGIC:
            raise ProofError("what listens there is not of a cluster")
        proof = self._hmac(_OPENER, self._who, nonce, self._nonce)
        self.outgoing = ANSWER.pack(self._who, self._nonce, proof)
        if not self._is((yield HMAC_SIZE), _SERVER, self._who, nonce, self._nonce):
            raise ProofError("what listens there does not know this run's secret")
