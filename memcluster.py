"""The public face of memcluster for Python programs: `memory = memcluster.connect()`. See docs/client.md."""

from client.discover import DiscoverError, NotRunning
from client.errors import (
    ClusterError,
    ConnectionProblem,
    Disconnected,
    InvalidRequest,
    NoSpace,
    ReadOnly,
    Refused,
    RequestError,
    ServerError,
    ShuttingDown,
    Timeout,
)
from client.memory import Extent, Future, Memory, connect

__all__ = [
    "ClusterError",
    "ConnectionProblem",
    "Disconnected",
    "DiscoverError",
    "Extent",
    "Future",
    "InvalidRequest",
    "Memory",
    "NoSpace",
    "NotRunning",
    "ReadOnly",
    "Refused",
    "RequestError",
    "ServerError",
    "ShuttingDown",
    "Timeout",
    "connect",
]
