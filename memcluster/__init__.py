"""The public face of memcluster for Python programs: `memory = memcluster.connect()`. See docs/client.md.

Each name is loaded when it is first used: the cluster's own processes go through this file, too, and need none of them.
Nothing is imported on the way in, so that `python -m memcluster` has not yet looked into the working directory.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memcluster.client.aio import AsyncMemory, aconnect
    from memcluster.client.discover import DiscoverError, NotRunning
    from memcluster.client.errors import (
        ClusterError,
        ConnectionProblem,
        Disconnected,
        InvalidRequest,
        Misused,
        NoSpace,
        ReadOnly,
        Refused,
        RequestError,
        ServerError,
        ShuttingDown,
        Timeout,
    )
    from memcluster.client.memory import Memory, connect
    from memcluster.client.requests import Extent, Future
    from memcluster.launcher.cluster import Cluster, LaunchError

_MODULES = {
    "client.aio": ("AsyncMemory", "aconnect"),
    "client.discover": ("DiscoverError", "NotRunning"),
    "client.errors": (
        "ClusterError",
        "ConnectionProblem",
        "Disconnected",
        "InvalidRequest",
        "Misused",
        "NoSpace",
        "ReadOnly",
        "Refused",
        "RequestError",
        "ServerError",
        "ShuttingDown",
        "Timeout",
    ),
    "client.memory": ("Memory", "connect"),
    "client.requests": ("Extent", "Future"),
    "launcher.cluster": ("Cluster", "LaunchError"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__version__ = "0.1.0"
__all__ = [
    "AsyncMemory",
    "Cluster",
    "ClusterError",
    "ConnectionProblem",
    "Disconnected",
    "DiscoverError",
    "Extent",
    "Future",
    "InvalidRequest",
    "LaunchError",
    "Memory",
    "Misused",
    "NoSpace",
    "NotRunning",
    "ReadOnly",
    "Refused",
    "RequestError",
    "ServerError",
    "ShuttingDown",
    "Timeout",
    "aconnect",
    "connect",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
