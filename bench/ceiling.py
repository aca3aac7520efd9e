"""The ceiling of a case: the same load at a server in C that has the same shape, and does nothing else (ceiling.c)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from bench.native import compiled
from bench.peers import MEMORY
from bench.processes import Service, activated, fill
from memcluster.client.uri import parse_uri


@contextmanager
def ceiling(servers: int) -> Iterator[Service]:
    """A server by itself, or a primary before others, as our clusters of 1 and of 4 are. Raises Missing, Failed."""
    program = compiled("ceiling.c")
    with ExitStack() as stack:

        def start(role: str, size: int, *ports: str) -> Service:
            return stack.enter_context(activated(program, role, str(size), *ports))

        if servers == 1:
            service = start("alone", MEMORY)
        else:
            behind = [start("secondary", MEMORY // servers) for _ in range(servers - 1)]
            service = start("primary", MEMORY, *(str(parse_uri(each.uri).port) for each in behind))
        fill(service, MEMORY)
        yield service
