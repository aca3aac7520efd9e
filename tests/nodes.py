"""The servers of one cluster on one loop of the test's, which says turn by turn what happens, and clients of them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from harness import SECRET

from memcluster.node import topology
from memcluster.node.cluster_map import ClusterMap, ServerEntry
from memcluster.node.nbd.client import ClientSession, Reply
from memcluster.node.serving import keeper
from memcluster.node.spec import Bounds, NodeSpec
from memcluster.node.transport.address import Address
from memcluster.node.transport.loop import Loop
from memcluster.node.transport.system import KERNEL, System

SHARD = 1 << 20
"""Bytes of each server that owns memory."""


def cut_slices(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Zeroing takes a turn of the loop for so many bytes."""
    monkeypatch.setattr(keeper, "SLICE", size)


class Nodes:
    """Three servers that own memory, and the one before them if the topology has it. Doors are on TCP."""

    def __init__(
        self,
        folder: Path,
        kind: str,
        *,
        fan_out: str = "parallel",
        links: str = "copy",
        bounds: Bounds | None = None,
        system: System = KERNEL,
    ) -> None:
        self.links = links
        self.loop = Loop(system)
        self.folder = folder
        self.bounds = bounds or Bounds()
        self.shape = shape = topology.load(kind)
        sizes = [0] * shape.dispatches + [SHARD] * 3
        self.listeners: list[socket.socket] = []
        doors = len(sizes) if shape.every_server_is_a_door else 1
        addresses = [self._listen(f"s{index}", tcp=index < doors) for index in range(len(sizes))]
        self.cluster = ClusterMap(
            "test", kind, fan_out, 0,
            tuple(ServerEntry(address, "unix:/nowhere", size, shape.role(index, len(sizes)))
                  for index, (address, size) in enumerate(zip(addresses, sizes, strict=True))),
        )  # fmt: skip
        self.reports: list[dict[str, Any]] = []
        self.servers = [self._make(index, first=True) for index in range(len(sizes))]
        for made in self.servers:
            made.start()
        self.turn_until(lambda: self.reports.count({"event": "ready"}) == len(sizes))

    def _listen(self, name: str, *, tcp: bool) -> str:
        if tcp:
            sock = socket.create_server(("127.0.0.1", 0))
        else:
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(str(self.folder / name))
            sock.listen()
        self.listeners.append(sock)
        return f"127.0.0.1:{sock.getsockname()[1]}" if tcp else f"unix:{self.folder / name}"

    def _make(self, index: int, *, first: bool) -> Any:
        shard = self.folder / f"shard{index}"
        if not shard.exists():
            shard.write_bytes(bytes(self.cluster.servers[index].memory))
        spec = NodeSpec(
            f"server{index}", self.cluster.servers[index].role, index, self.cluster, str(shard), False,
            str(self.folder / f"log{index}"), 0, "", SECRET, self.bounds, first=first,
            staging=str(self.folder / "staging") if self.links == "shared" else "",
            shards=tuple(str(self.folder / f"shard{server}") for server in range(len(self.cluster.servers))),
        )  # fmt: skip
        return self.shape.roles[spec.role](self.loop, spec, [self.listeners[index].dup()], self.reports.append)

    def replace(self, index: int) -> None:
        """The server is killed, and another one takes its place."""
        self.kill(index)
        self.servers[index] = self._make(index, first=False)
        self.servers[index].start()

    def kill(self, index: int) -> None:
        """As its process would go: every socket is closed, and nothing is said."""
        dead = self.servers[index]
        for connection in list(dead.connections.values()):
            connection.cut_off("")
        dead.close()

    def turn(self, times: int = 1) -> None:
        """As long as there is something to do, or may be."""
        for _ in range(times):
            self.loop.turn(0)

    def turn_until(self, fact: Callable[[], object]) -> None:
        for _ in range(100_000):
            if fact():
                return
            self.loop.turn(0.001)
        raise AssertionError("it does not become true")

    def owner(self, offset: int) -> tuple[Any, int]:
        """The server that holds a byte of the memory, and where."""
        [piece] = self.cluster.layout.split(offset, 1)
        return self.servers[piece.server], piece.offset

    def bytes(self, offset: int, length: int) -> bytes:
        """What the memory holds there, in one server."""
        owner, place = self.owner(offset)
        return b"".join(owner.shard.read(place, length))

    def fill(self, byte: bytes) -> None:
        for one in self.servers:
            if one.shard.size:
                one.shard.write(0, byte * one.shard.size)

    def client(self, offset: int = 0) -> Client:
        """At the door where clients ask for this byte of the memory."""
        owner = self.owner(offset)[0].spec.index if self.shape.every_server_is_a_door else 0
        return Client(self, owner)

    def close(self) -> None:
        for index in range(len(self.servers)):
            self.kill(index)
        for listener in self.listeners:
            listener.close()
        self.loop.close()


class Client:
    """One that asks by addresses of the whole memory, of which its server may have only a part."""

    def __init__(self, nodes: Nodes, door: int) -> None:
        self.nodes = nodes
        self.sock = socket.socket(socket.AF_INET)
        self.sock.connect(Address.parse(nodes.cluster.servers[door].address).sockaddr)
        self.sock.setblocking(False)
        self.session = ClientSession("")
        self.unsent = b""
        self.begin = nodes.cluster.layout.address(door, 0) if nodes.shape.every_server_is_a_door else 0
        while not self.session.ready:
            self.turn()

    def turn(self) -> list[Reply]:
        """A turn of the servers' loop; what was answered."""
        self.send()
        self.nodes.turn()
        try:
            count = self.sock.recv_into(self.session.receive_buffer())
        except BlockingIOError:
            return []
        assert count, "the connection is lost"
        return self.session.received(count)

    def ask(self, command: int, cookie: int, offset: int, length: int, payload: bytes = b"") -> None:
        self.session.submit(command, cookie, offset - self.begin, length, 0, (payload,) if payload else ())
        self.send()

    def send(self) -> None:
        """What the socket takes."""
        self.unsent += b"".join(self.session.outgoing)
        self.session.outgoing.clear()
        with suppress(BlockingIOError):
            self.unsent = self.unsent[self.sock.send(self.unsent) :] if self.unsent else b""

    def reply(self) -> Reply:
        """The next one."""
        for _ in range(100_000):
            if replies := self.turn():
                [reply] = replies
                return reply
        raise AssertionError("no reply")

    def done(self, *request: Any) -> None:
        """Carry a request out."""
        self.ask(*request)
        assert not self.reply().error

    def leave(self) -> None:
        """Close, with everything sent and every reply read: no reset follows."""
        while self.unsent:
            self.turn()
        self.sock.close()
