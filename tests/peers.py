"""Servers for the client's tests: one that a test scripts request by request, and nbdkit."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import need

from memcluster.node.nbd.errors import ProtocolError, Refused
from memcluster.node.nbd.negotiation import Export
from memcluster.node.nbd.server import Request, ServerSession
from memcluster.node.nbd.wire import Command, Rep, Status, TransmissionFlag

SIZE = 1 << 30
FLAGS = (
    TransmissionFlag.HAS_FLAGS
    | TransmissionFlag.SEND_FLUSH
    | TransmissionFlag.SEND_FUA
    | TransmissionFlag.SEND_TRIM
    | TransmissionFlag.SEND_WRITE_ZEROES
)


class Peer:
    """One connection, seen from the server; a script takes requests and answers them as it likes."""

    refusal: Refused | None = None

    def __init__(self, sock: socket.socket, exports: dict[str, int], flags: TransmissionFlag) -> None:
        self.sock = sock
        self.session = ServerSession(self, lambda request, _first: memoryview(bytearray(request.length)))
        self._exports = exports
        self._flags = flags
        self._waiting: list[Request] = []

    # what the session asks for
    def names(self) -> list[Export]:
        return [Export(name, size, self._flags, f"{name or 'the'} memory") for name, size in self._exports.items()]

    def contexts(self, _export):
        return ()

    def find(self, name: str) -> Export:
        if self.refusal:
            raise self.refusal
        for export in self.names():
            if export.name == name:
                return export
        raise Refused(Rep.ERR_UNKNOWN, f"no export {name!r}")

    open = find

    # what a script does
    def serve(self) -> Iterator[Request]:
        """The requests one after another, until the client goes."""
        while True:
            while not self._waiting:
                if self.session.finished or not self._receive():
                    return
            request = self._waiting.pop(0)
            if request.payload is not None:
                request.payload = memoryview(bytes(request.payload))
            yield request

    def take(self, count: int) -> list[Request]:
        """The next `count` requests."""
        requests = self.serve()
        return [next(requests) for _ in range(count)]

    def answer(self, request: Request, data: bytes | None = None, *, error: int = 0, message: str = "") -> None:
        """Success, success with data, or failure."""
        if error:
            self.session.reply_error(request, error, message)
        elif data is None:
            self.session.reply(request)
        else:
            self.session.reply_data(request, [data])
        self.send()

    def send(self) -> None:
        if self.session.outgoing:
            self.sock.sendall(b"".join(self.session.outgoing))
            self.session.outgoing.clear()

    def handshake(self) -> None:
        """Until the client is in, or has gone."""
        self.send()
        while self.session.export is None and not self.session.finished and self._receive():
            pass

    def _receive(self) -> bool:
        try:
            count = self.sock.recv_into(self.session.receive_buffer())
        except ConnectionError:
            return False
        if not count:
            return False
        requests = self.session.received(count, 1 << 40)
        for request in requests:
            if request.payload is not None and not request.owned:  # it lies in the receive buffer
                request.payload = memoryview(bytes(request.payload))
        self._waiting += requests
        self.send()
        return True


Script = Callable[[Peer], object]


@contextmanager
def scripted(
    *scripts: Script, path: Path | None = None, exports: dict[str, int] | None = None, flags: TransmissionFlag = FLAGS
) -> Iterator[str]:
    """A server whose first connection is served by the first script, and so on; gives its URI.

    A script that fails fails the test. After the last one the server listens no more.
    """
    if path is not None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        uri = f"nbd+unix:///?socket={path}"
    else:
        listener = socket.create_server(("127.0.0.1", 0))
        uri = f"nbd://127.0.0.1:{listener.getsockname()[1]}"
    failures: list[BaseException] = []

    def run() -> None:
        try:
            for script in scripts:
                sock, _ = listener.accept()
                with sock:
                    script(Peer(sock, exports or {"": SIZE}, flags))
        except BaseException as failure:
            failures.append(failure)
        finally:
            listener.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield uri
    thread.join(30)
    assert not thread.is_alive(), "the scripted server waits for a client that does not come"
    if failures:
        raise failures[0]


def opened(script: Script) -> Script:
    """The script after a handshake."""

    def run(peer: Peer) -> None:
        peer.handshake()
        script(peer)

    return run


def refusing(reply: Rep, message: str) -> Script:
    """A connection that is not let in."""

    def run(peer: Peer) -> None:
        peer.refusal = Refused(reply, message)
        try:
            peer.handshake()
        except (ProtocolError, ConnectionError):
            pass

    return run


def wait_for_goodbye(peer: Peer) -> None:
    """A script that expects no request."""
    assert list(peer.serve()) == []


def serving(memory: bytearray) -> Script:
    """A script that reads and writes `memory`, one request at a time, until the client goes."""

    def run(peer: Peer) -> None:
        for request in peer.serve():
            span = slice(request.offset, request.offset + request.length)
            if request.payload is not None:
                memory[span] = request.payload
            try:
                if request.command == Command.BLOCK_STATUS:
                    peer.session.reply_extents(request, {1: [(request.length, Status.DATA)]})
                    peer.send()
                else:
                    peer.answer(request, bytes(memory[span]) if request.command == Command.READ else None)
            except ConnectionError:
                return

    return opened(run)


@contextmanager
def nbdkit(*arguments: str) -> Iterator[str]:
    """A running nbdkit; gives its URI. It is handed a listening socket, so nothing has to wait for its start."""
    command = need("nbdkit", "nbdkit")
    listener = socket.create_server(("127.0.0.1", 0))
    uri = f"nbd://127.0.0.1:{listener.getsockname()[1]}"
    pid = os.posix_spawn(
        "/bin/sh",
        ["sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh", command, "--foreground", *arguments],
        {**os.environ, "LISTEN_FDS": "1"},
        file_actions=[(os.POSIX_SPAWN_DUP2, listener.fileno(), 3)],  # the number that socket activation fixes
    )
    listener.close()
    try:
        yield uri
    finally:
        os.kill(pid, signal.SIGTERM)
        assert os.waitpid(pid, 0)[1] == 0
