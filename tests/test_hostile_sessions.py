"""Sessions cut at any byte, and thousands of mutated ones: each ends, and leaves nothing behind."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from mutations import MUTABLE, TOGETHER, attack, leaves_nothing, mutated, understood
from strangers import SESSIONS, SIZE, World

from memcluster.node.nbd.errors import ProtocolError, Refused
from memcluster.node.nbd.negotiation import Export
from memcluster.node.nbd.server import ServerSession
from memcluster.node.nbd.wire import Rep
from memcluster.node.serving.server import MEMORY_FLAGS
from memcluster.node.topology import names


@pytest.mark.parametrize("name", SESSIONS)
def test_a_session_that_ends_at_any_byte_ends(world, name):
    """Cut off after every single byte of it: the server closes too, and has said nothing that is not NBD."""
    session = b"".join(SESSIONS[name])
    before = world.bad_input
    for cut in range(len(session) + 1):
        with world.stranger() as stranger:
            understood(stranger.say_all(session[:cut]), session)
    assert world.bad_input == before


@pytest.mark.parametrize("name", SESSIONS)
def test_a_session_byte_by_byte_is_the_same_session(world, name):
    """However it is cut into packets, the answers are those to the session in one piece."""
    session = b"".join(SESSIONS[name])

    def answers(parts: Sequence[bytes]) -> bytes:
        world.witness.trim(SIZE, 0)
        with world.stranger() as stranger:
            for part in parts:
                stranger.send(part)
            return stranger.until_closed()

    whole = answers([session])
    assert len(whole) > 200 or name == "abort"
    in_order = answers(SESSIONS[name])
    slowly = answers([session[at : at + 1] for at in range(len(session))])
    # Replies come in any order.
    assert len(whole) == len(in_order) == len(slowly)
    assert sorted(whole) == sorted(in_order) == sorted(slowly)


def test_ten_thousand_sessions_with_something_wrong_harm_nobody(world):
    """Each ends, the server speaks NBD to the last word, and thousands more find and leave the memory as it is."""
    before = world.bad_input
    attack(world, random.Random(0), 10_000 // TOGETHER)
    assert world.bad_input > before + 1000
    leaves_nothing(world, random.Random(1))


def test_mutated_sessions_end_in_every_state_of_the_protocol():
    """They would prove little if none came beyond the greeting: the same sessions, without a socket."""
    rng = random.Random(0)
    ends = Counter(end_of_session(mutated(rng, MUTABLE)) for _ in range(2000))
    states = ["handshake", "handshake broken", "left in the handshake", "transmission", "transmission broken", "left"]
    wanted = [f"{state}, {form}" for state in states for form in ("simple", "structured")]
    assert {state: ends[state] for state in [*wanted, "in a payload, structured"] if ends[state] < 5} == {}


class AnyExport:
    """One export, for sessions without a server."""

    export = Export("", SIZE, MEMORY_FLAGS)

    def names(self) -> Sequence[Export]:
        return [self.export]

    def find(self, name: str) -> Export:
        if name:
            raise Refused(Rep.ERR_UNKNOWN, name)
        return self.export

    def contexts(self, _export: Export) -> Sequence[str]:
        return ()

    open = find


def end_of_session(words: bytes) -> str:
    """The state in which a server is when a client that said this is gone."""
    session = ServerSession(AnyExport(), lambda asked, _: memoryview(bytearray(asked.length)))
    broken = False
    try:
        while words and not session.finished:
            room = session.receive_buffer()[: len(words)]
            room[:] = words[: len(room)]
            words = words[len(room) :]
            session.received(len(room), 1 << 30)
            while session.waiting:
                session.resume(1 << 30)
    except ProtocolError:
        broken = True
    if session.missing:
        state = "in a payload"
    elif session.finished:
        state = "left in the handshake" if session.export is None else "left"
    else:
        state = "handshake" if session.export is None else "transmission"
        state += " broken" if broken else ""
    agreed = session._negotiation or session
    return f"{state}, {'structured' if agreed.structured else 'simple'}"


@pytest.mark.parametrize("topology", sorted({*names()} - {"primary-secondary"}))
def test_mutated_sessions_at_the_door_of_other_topologies(tmp_path, new_cluster, topology):
    """Where servers answer on sockets that they were handed, thousands of strangers leave no more behind."""
    cluster = new_cluster(tmp_path, memory=str(SIZE), topology=topology)
    cluster.up()
    world = World(cluster)
    world.works()
    before = world.held()
    leaves_nothing(world, random.Random(13))
    world.unhurt(before)
    world.witness.close()
