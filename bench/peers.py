"""The servers that memcluster is held against, each as people run it: nbdkit's memory, its proxy before that, qemu-nbd.

Before the command of each may go a `prefix`, as in `ip netns exec …`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.processes import Service, activated, fill
from memcluster.client.uri import parse_uri

MEMORY = 64 << 20
SHARED = "/dev/shm"
_ENTER = f'mount --bind {SHARED} "$0{SHARED}" && exec chroot "$0" "$@"'


def entered(root: Path | None) -> tuple[str, ...]:
    """The prefix for a command that is to run in another root, with this machine's /dev/shm; takes root."""
    return () if root is None else ("unshare", "--mount", "sh", "-c", _ENTER, str(root))


@contextmanager
def nbdkit_memory(
    size: int = MEMORY, *, prefix: Sequence[str] = (), unix: bool = False, filled: bool = True
) -> Iterator[Service]:
    """A C server with threads that keeps its bytes in memory: what one of our servers alone does."""
    command = *prefix, "nbdkit", "--foreground", "--exit-with-parent", "memory", str(size)
    with activated(*command, unix=unix) as service:
        if filled:
            fill(service, size)
        yield service


@contextmanager
def nbdkit_proxy(size: int = MEMORY, *, prefix: Sequence[str] = ()) -> Iterator[Service]:
    """A C server that passes requests on to nbdkit's memory: two hops, as from our primary to a secondary."""
    with nbdkit_memory(size, prefix=prefix) as memory:
        target = parse_uri(memory.uri)
        behind = f"hostname={target.host}", f"port={target.port}"
        with activated(*prefix, "nbdkit", "--foreground", "--exit-with-parent", "nbd", *behind) as proxy:
            yield proxy


@contextmanager
def qemu_nbd(size: int = MEMORY, *, prefix: Sequence[str] = ()) -> Iterator[Service]:
    """A C server with coroutines and one thread, on a file in memory."""
    with tempfile.NamedTemporaryFile(dir=SHARED) as file:
        file.truncate(size)
        with activated(*prefix, "qemu-nbd", "--persistent", "--shared=0", "--format=raw", file.name) as service:
            fill(service, size)
            yield service
