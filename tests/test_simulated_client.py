"""The client's library in the simulated world: it finds another map, sits out a partition, and what is wrong with it is
found."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from memcluster.client import connection
from memcluster.client.connection import REPEATED, Connection
from memcluster.client.handshake import Opened
from memcluster.client.pending import Pending
from memcluster.client.routed import Routed
from memcluster.client.router import Router
from memcluster.node.layout import Piece
from memcluster.node.nbd.client import Reply
from memcluster.node.nbd.wire import Command
from memcluster.simulator.faults import Fault
from memcluster.simulator.many import run_seeds
from memcluster.simulator.plan import Plan, Wish, make_plan
from memcluster.simulator.process import Process
from memcluster.simulator.run import simulate
from memcluster.simulator.world import BEGINNING, MS, S, World

FOUND_WITHIN = 60
"""Seeds in which what is planted here is found."""


def plan(seed: int, *faults: Fault, **wish: Any) -> Plan:
    """Of clients that route and repeat."""
    made = make_plan(seed, Wish("client-routed", faults=(), **wish))
    clients = tuple(replace(client, repeats=True) for client in made.clients)
    return replace(made, clients=clients, faults=faults)


def test_another_map_is_found_while_requests_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster is started again, and one of its servers has another address."""
    under_way = []
    adopt = Router._adopt

    def adopted(self: Router, *arguments: Any) -> None:
        if self._parts:
            under_way.append(len(self._under_way))
        adopt(self, *arguments)

    monkeypatch.setattr(Router, "_adopt", adopted)
    for seed in range(40):  # it has another address in every second of them
        outcome = simulate(plan(seed, Fault(2 * MS, "kill", "supervisor"), requests=150))
        assert outcome.broken == []
        if sum(under_way) > 3:
            break
    assert sum(under_way) > 3


@pytest.mark.parametrize("moment", [1, 2 * MS], ids=["opening", "asking"])
def test_a_client_that_is_cut_off_from_a_server_waits(moment: int) -> None:
    """For connections that are to be made, and for those that stand; the server dies meanwhile, too."""
    waited = 0
    for seed in range(4):
        cut = Fault(moment, "partition", "client0", 3 * S, 0, "server1")
        outcome = simulate(plan(seed, cut, Fault(3 * MS, "kill", "server1", 0, 1), requests=150))
        assert outcome.broken == []
        assert all(one.acknowledged for one in outcome.history)
        waited += any(one.returned - BEGINNING > S for one in outcome.history if one.client == "client0")
        assert all(one.returned - BEGINNING < S for one in outcome.history if one.client == "client1")
    assert waited


def test_who_was_cut_off_while_it_sent_is_told_of_room() -> None:
    """What it had sent waits where it is, and goes on when the link is there again."""
    process = Process(World(1), "client0", lambda _: None)
    listener = process.listen(("127.0.0.1", 0))
    client = process.system.make_socket(socket.AF_INET, socket.SOCK_STREAM)
    with suppress(BlockingIOError):
        client.connect(listener.getsockname())
    server, _ = listener.accept()
    held = process.hold(listener.getsockname())
    sent = 0
    with suppress(BlockingIOError):
        while True:
            sent += client.send(bytes(1 << 20))
    poller = process.system.poller()
    poller.register(client.fileno(), select.EPOLLOUT)
    with pytest.raises(BlockingIOError):
        server.recv(1)
    assert poller.poll(0, 8) == []
    for stream in held:
        stream.let_go()
    while sent:
        sent -= len(server.recv(sent))
    assert poller.poll(0, 8) == [(client.fileno(), select.EPOLLOUT)]


def test_what_may_have_been_done_is_marked_when_the_map_has_changed() -> None:
    """So that it stands in the log once."""
    sent: list[Pending] = []

    class Fake:
        def connection(self, _server: int) -> Fake:
            return self

        def submit(self, part: Pending, _identifier: int) -> None:
            sent.append(part)

    routed = Routed(Fake(), 7, Pending(Command.WRITE, 0, 8, 1, (b"8 bytes.",)))  # type: ignore[arg-type]
    routed.begin([Piece(0, 0, 8, ((0, 8),))], serial=False)
    routed.begin([Piece(0, 4, 4, ((0, 4),)), Piece(1, 0, 4, ((4, 8),))], serial=True)
    assert [(part.offset, part.length, part.flags) for part in sent] == [(0, 8, 1), (4, 4, 1 | REPEATED)]


def test_what_is_sent_again_and_not_marked_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands in the log twice if a server has died between its record and its answer."""
    monkeypatch.setattr(connection, "REPEATED", 0)
    kills = [Fault(at * MS, "kill", f"server{index}", 0, 9 + at) for at in (1, 2, 3) for index in range(3)]
    outcomes = (simulate(plan(seed, *kills, requests=150)) for seed in range(60))
    assert next(outcome for outcome in outcomes if outcome.broken).rule == "once"


# -- planted faults --------------------------------------------------------------------------------------------------


def joined_in_wrong_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a READ come into the places of others."""
    join = Routed._join

    def joined(self: Routed) -> Any:
        self._begun = [
            (Piece(piece.server, piece.offset, piece.length, piece.spans[::-1]), part) for piece, part in self._begun
        ]
        return join(self)

    monkeypatch.setattr(Routed, "_join", joined)


def sent_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was in flight at a loss is sent again, and again."""
    come_back = Connection.come_back

    def came_back(self: Connection, opened: Opened) -> None:
        come_back(self, opened)
        for number, pending in list(self._in_flight.items()):
            self._say(number + (1 << 40), pending)

    monkeypatch.setattr(Connection, "come_back", came_back)


def lost_at_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of what was in flight is not sent again."""

    def came_back(self: Connection, opened: Opened) -> None:
        self._sock, self.session = opened
        self._watch()
        for number, pending in list(self._in_flight.items())[1:]:
            self._say(number, pending, REPEATED)

    monkeypatch.setattr(Connection, "come_back", came_back)


def errors_that_are_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece has failed, and the request has not."""
    join = Routed._joined

    def joined(self: Routed) -> Any:
        outcome = join(self)
        return Reply(self._identifier) if not isinstance(outcome, Reply) or outcome.error else outcome

    monkeypatch.setattr(Routed, "_joined", joined)


def done_when_one_piece_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A WRITE is answered before all of it is."""
    look = Routed.look

    def looked(self: Routed) -> bool:
        if self.pending.command == Command.WRITE and any(part.outcome is not None for _, part in self._begun):
            self._finish()
            return True
        return look(self)

    monkeypatch.setattr(Routed, "look", looked)
    monkeypatch.setattr(Routed, "_joined", lambda self: Reply(self._identifier))


@pytest.mark.parametrize(
    ("plant", "rules"),
    [
        (joined_in_wrong_order, {"wrong", "mixed", "shards", "lost"}),
        (sent_twice, {"kept"}),
        (lost_at_a_loss, {"progress"}),
        (errors_that_are_swallowed, {"lost", "shards", "progress", "once"}),
        (done_when_one_piece_is, {"lost", "once"}),
    ],
)
def test_what_is_planted_in_the_library_is_found(
    monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], None], rules: set[str]
) -> None:
    plant(monkeypatch)
    found = next(result for result in run_seeds(range(FOUND_WITHIN), Wish("client-routed")) if result.broken)
    assert {sentence.partition(":")[0] for sentence in found.broken} & rules
