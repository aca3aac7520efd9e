"""What can go wrong for a client, by whose fault. Each error carries its facts; `str` makes the sentence."""

from __future__ import annotations

import errno
import os

from node.nbd.wire import Command, Error


class ClusterError(Exception):
    """Base of everything that the client library raises on its own account."""


class Refused(ClusterError):
    """The server does not let this client in: no such export, no free slot, a shutdown. Says why."""


class Disconnected(ClusterError):
    """The connection is lost and could not be made again."""


class Timeout(ClusterError, TimeoutError):
    """No answer in time; the request may still be carried out."""


class RequestError(ClusterError):
    """The server answered a request with an error."""

    def __init__(self, command: int, offset: int, length: int, error: int, message: str = "") -> None:
        self.command = command
        self.offset = offset
        self.length = length
        self.errno = error
        self.message = message
        super().__init__(command, offset, length, error, message)

    def __str__(self) -> str:
        name = Command(self.command).name
        code = errno.errorcode.get(self.errno, str(self.errno))
        return f"{name} of {self.length} bytes at {self.offset}: {self.message or os.strerror(self.errno)} ({code})"


class InvalidRequest(RequestError):
    """The request was wrong: beyond the end, too long, not served (EINVAL)."""


class ReadOnly(RequestError):
    """The export cannot be written to (EPERM)."""


class NoSpace(RequestError):
    """There is no room for the bytes (ENOSPC)."""


class ShuttingDown(RequestError):
    """The cluster is going down (ESHUTDOWN)."""


class ServerError(RequestError):
    """The cluster could not do it (EIO and others)."""


_BY_ERROR: dict[int, type[RequestError]] = {
    Error.EPERM: ReadOnly,
    Error.EINVAL: InvalidRequest,
    Error.ENOSPC: NoSpace,
    Error.ESHUTDOWN: ShuttingDown,
}


def request_error(command: int, offset: int, length: int, error: int, message: str) -> RequestError:
    """The exception for an error reply."""
    return _BY_ERROR.get(error, ServerError)(command, offset, length, error, message)
