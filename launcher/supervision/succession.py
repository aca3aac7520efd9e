"""The cluster that is to come after the one that runs, under the same supervisor: what can fail of it is done before
anything is stopped, and what both have of sockets stays open, so that clients who connect meanwhile wait."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from memcluster.launcher.clusterfile.settings import ClusterConfig
from memcluster.launcher.run.directory import RunDirectory
from memcluster.launcher.run.memory import Shape
from memcluster.launcher.supervision import sockets
from memcluster.launcher.supervision.makeup import Makeup
from memcluster.launcher.supervision.places import Place, addresses, listening, places
from memcluster.launcher.supervision.sockets import Listeners
from memcluster.node import topology
from memcluster.node.transport.address import Address


@dataclass(frozen=True)
class Succession:
    """`listeners` are as the Makeup wants them. `fresh` are those of them that the one before does not have, `retired`
    those that only it has."""

    config: ClusterConfig
    places: Sequence[Place]
    listeners: Listeners
    fresh: Listeners
    retired: Listeners
    shape: Shape
    word: str
    """What doors are told that end: how present clients are to be left."""
    kept: frozenset[str]
    """The doors that do not end: their processes go on as the other cluster's, with their clients."""

    def let_in(self) -> None:
        """Who may connect is who may by this description."""
        for sock, wanted in zip(self.listeners, listening(self.config, self.places), strict=True):
            if sock and wanted:
                with suppress(sockets.CannotListen):  # its file is gone, of which `status` has a word
                    sockets.let_in(sock, wanted[1])

    def call_off(self) -> None:
        """It does not come."""
        sockets.release_all(self.fresh)


def prepare(makeup: Makeup, run: RunDirectory, config: ClusterConfig) -> Succession:
    """Raises CannotListen, and then nothing has changed."""
    found = places(config, run)
    have = _by_place(makeup.config, makeup.places)
    kept: dict[int, socket.socket | None] = {}
    for index, (place, address) in enumerate(_by_place(config, found)):
        for other, (their_place, their_address) in enumerate(have):
            bound = makeup.addresses[other]
            fixed = address is not None and bool(address.port or address.path)
            same = address in (their_address, bound) if fixed else (place, address) == (their_place, their_address)
            if same and makeup.listeners[other] not in kept.values():
                kept[index] = makeup.listeners[other]
                break
    wanted = listening(config, found)
    missing = [index for index in range(len(wanted)) if index not in kept]
    fresh = dict(zip(missing, sockets.bind_all([wanted[index] for index in missing]), strict=True))
    listeners = [kept[index] if index in kept else fresh[index] for index in range(len(wanted))]
    retired = [sock for sock in makeup.listeners if sock not in listeners]
    before, after = (topology.load(each.topology) for each in (makeup.config, config))
    # What clients find at an address is the whole memory or a part: who comes back by himself must not find the other.
    word = "again" if before.every_server_is_a_door == after.every_server_is_a_door else "now"
    shape = makeup.shape.becoming(tuple(place.memory for place in found), config.stripe)
    like = (config.topology, config.tls) == (makeup.config.topology, makeup.config.tls)
    doors = range(min(makeup.doors, len(found)) if like else 0)
    staying = frozenset(f"server{index}" for index in doors if listeners[index] is makeup.listeners[index])
    return Succession(config, found, listeners, list(fresh.values()), retired, shape, word, staying)


def _by_place(config: ClusterConfig, found: Sequence[Place]) -> list[tuple[str, Address | None]]:
    """Whose each address is, and what it is by the description."""
    names = [f"{kind}{index}" for kind in ("server", "logger") for index in range(len(found))]
    return list(zip([*names, "metrics"], addresses(config, found), strict=False))
