"""A connected socket with TLS on it, in the place of the socket: it receives and sends plain bytes.

For whoever waits for the socket: when `more` is true there are bytes to be received although the socket has none.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

from memcluster.node.nbd.wire import Buffer
from memcluster.node.tls.layer import PIECE, Layer, TLSError, pieces

MOST = 1 << 18
"""Bytes of one `recv_into`, at most."""


class Secured:
    """The socket must not block."""

    def __init__(self, sock: socket.socket, layer: Layer) -> None:
        self.sock = sock
        self.layer = layer
        self._unsent: Buffer = b""  # sealed
        self._held = 0  # bytes that are in it, and that their sender was not told of

    @property
    def more(self) -> bool:
        return self.layer.more

    def receive(self) -> bool:
        """Take what has come, PIECE bytes at most; false if that is the end. Raises BlockingIOError, OSError."""
        data = self.sock.recv(PIECE)
        if data:
            self.layer.received(data)
        return bool(data)

    def shake_hands(self) -> bool:
        """Go on with the handshake, and send what it has to say; whether it is done. Raises TLSError."""
        try:
            done = self.layer.shake_hands()
        finally:
            self._say()
        return done

    def recv_into(self, buffer: memoryview) -> int:
        """As a socket's. A record is opened when all of it has come. Raises TLSError."""
        layer = self.layer
        end = min(len(buffer), MOST)
        done = 0
        try:
            if layer.more:
                done = layer.open_into(buffer[:end])
            while done < end and not layer.ended:
                try:
                    data = self.sock.recv(PIECE)
                except BlockingIOError:
                    break
                if not data:
                    return done  # the end is still there for the next call
                layer.received(data)
                done += layer.open_into(buffer[done:end])
                if len(data) < PIECE:
                    break
        except TLSError:
            self._say()
            raise
        if done or layer.ended:
            return done
        raise BlockingIOError

    def sendmsg(self, buffers: Sequence[Buffer]) -> int:
        """As a socket's. While something of what was sealed is not sent its last plain byte counts as not sent, so
        that its sender comes again: with that byte first. Raises BlockingIOError, TLSError."""
        if self._unsent and not self._push():
            raise BlockingIOError
        taken = held = self._held
        self._held = 0
        for piece in pieces(buffers, held):
            self._unsent = self.layer.seal(piece)
            taken += len(piece)
            if not self._push():
                self._held = 1
                return taken - 1
        return taken

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        """Without a word to the other side."""
        self.sock.close()

    def end(self) -> None:
        """Say that nothing more will be sent; all that was to be has been. Raises OSError."""
        self.layer.end()
        self._say()

    def _push(self) -> bool:
        """Send what is sealed; whether all of it is gone. Raises OSError."""
        try:
            sent = self.sock.send(self._unsent)
        except BlockingIOError:
            return False
        if sent < len(self._unsent):
            self._unsent = memoryview(self._unsent)[sent:]
            return False
        self._unsent = b""
        return True

    def _say(self) -> None:
        """A few hundred bytes of TLS's own, a few thousand in the handshake: a socket takes them, or its other side has
        not read for long and is not waiting for them."""
        said = self.layer.unsent()
        if said:
            self._unsent = bytes(self._unsent) + said
            try:
                self._push()
            except OSError:
                pass  # that it is gone shows when it is read from
