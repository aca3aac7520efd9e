"""The sockets of nodes that nobody will serve: who connects is refused, and does not wait in the backlog for ever."""

from __future__ import annotations

import socket

from memcluster.node.transport.listener import Listener
from memcluster.node.transport.loop import Loop


class Refusals:
    """By the nodes' names."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._listeners: dict[str, Listener] = {}

    def begin(self, name: str, sock: socket.socket) -> None:
        """This node has failed."""
        if name not in self._listeners:
            self._listeners[name] = Listener(self._loop, sock, socket.socket.close)
            self._listeners[name].start()

    def end(self, name: str) -> None:
        """It is to be waited for again."""
        if listener := self._listeners.pop(name, None):
            listener.pause()

    def end_all(self) -> None:
        for name in tuple(self._listeners):
            self.end(name)
