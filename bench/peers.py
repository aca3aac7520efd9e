"""The servers that memcluster is held against, each as people run it: nbdkit's memory, and its proxy before that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bench.processes import Service, activated, fill
from memcluster.client.uri import parse_uri

MEMORY = 64 << 20


@contextmanager
def nbdkit_memory(size: int = MEMORY, *, unix: bool = False, filled: bool = True) -> Iterator[Service]:
    """A C server with threads that keeps its bytes in memory: what one of our servers alone does."""
    with activated("nbdkit", "--foreground", "--exit-with-parent", "memory", str(size), unix=unix) as service:
        if filled:
            fill(service, size)
        yield service


@contextmanager
def nbdkit_proxy(size: int = MEMORY) -> Iterator[Service]:
    """A C server that passes requests on to nbdkit's memory: two hops, as from our primary to a secondary."""
    with nbdkit_memory(size) as memory:
        target = parse_uri(memory.uri)
        behind = f"hostname={target.host}", f"port={target.port}"
        with activated("nbdkit", "--foreground", "--exit-with-parent", "nbd", *behind) as proxy:
            yield proxy
