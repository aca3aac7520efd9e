"""Makes the plan of a run that broke a rule smaller: what can be left out, and the same rule is broken still, is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from memcluster.simulator.plan import Ask, Client, Plan

TRIES = 250
"""Runs, at most."""


def shrink(plan: Plan, breaks: Callable[[Plan], bool], tries: int = TRIES) -> Plan:
    """The smallest plan that was found; `breaks` runs one and says whether it breaks the rule."""
    smaller = True
    while smaller:
        smaller = False
        for candidate in _smaller(plan):
            if not tries:
                return plan
            tries -= 1
            if breaks(candidate):
                plan, smaller = candidate, True
                break
    return plan


def _smaller(plan: Plan) -> Iterator[Plan]:
    """Plans with something left out, the most first."""
    for index, client in enumerate(plan.clients):
        if client.asks:
            yield _with_asks(plan, index, ())
    for index in range(len(plan.faults)):
        yield replace(plan, faults=plan.faults[:index] + plan.faults[index + 1 :])
    for index, client in enumerate(plan.clients):
        size = len(client.asks)
        part = size // 2
        while part:
            for start in range(0, size, part):
                yield _with_asks(plan, index, client.asks[:start] + client.asks[start + part :])
            part //= 2
    for index, client in enumerate(plan.clients):
        if client.depth > 1 and client.asks:
            yield _with_client(plan, index, replace(client, depth=client.depth // 2))


def _with_asks(plan: Plan, index: int, asks: tuple[Ask, ...]) -> Plan:
    return _with_client(plan, index, replace(plan.clients[index], asks=asks))


def _with_client(plan: Plan, index: int, client: Client) -> Plan:
    return replace(plan, clients=(*plan.clients[:index], client, *plan.clients[index + 1 :]))
