"""What can go wrong for a client, by whose fault. Each error carries its facts; `str` makes the sentence."""

from __future__ import annotations

import errno
import os

from memcluster.node.nbd import errors as nbd
from memcluster.node.nbd.wire import Command, Error


class ClusterError(Exception):
    """Base of everything that the client library raises on its own account."""


class Misused(ClusterError):
    """Two threads used one memory at the same time, or a fork used its parent's: nothing was sent."""


class ConnectionProblem(ClusterError):
    """Something is wrong between here and the server at `target`; `reason` says what."""

    def __init__(self, target: object, reason: str) -> None:
        self.target = str(target)
        self.reason = reason
        super().__init__(f"{target}: {reason}")


class Refused(ConnectionProblem):
    """The server does not let this client in: no such export, no free slot, a shutdown.

    `reply` is the wire.Rep, `message` the server's own words.
    """

    def __init__(self, target: object, refusal: nbd.Refused) -> None:
        self.reply = refusal.reply
        self.message = refusal.message
        super().__init__(target, str(refusal))


class Disconnected(ConnectionProblem):
    """There is no connection and none could be made, or the server broke the protocol."""


class Timeout(ConnectionProblem, TimeoutError):
    """No answer in `seconds`. A request may still be carried out, and its result be asked for again."""

    def __init__(self, target: object, waiting_for: str, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(target, f"no {waiting_for} in {seconds:.3g} s")


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
    """The request was wrong: beyond the end, too long (EINVAL), not served here (ENOTSUP)."""


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
    Error.ENOTSUP: InvalidRequest,
    Error.ENOSPC: NoSpace,
    Error.ESHUTDOWN: ShuttingDown,
}


def request_error(command: int, offset: int, length: int, error: int, message: str) -> RequestError:
    """The exception for an error reply."""
    return _BY_ERROR.get(error, ServerError)(command, offset, length, error, message)
