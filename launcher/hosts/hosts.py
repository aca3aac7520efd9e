"""The other hosts of a cluster, all together: a guardian is run on each, finds its way here, and is told what to have
ready. Only when all are is there a cluster to start.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from memcluster import __version__
from memcluster.launcher.certificates import between_hosts
from memcluster.launcher.clusterfile.settings import EngineConfig, HostConfig
from memcluster.launcher.hosts.engine import Engine, EngineError, Host, make
from memcluster.launcher.hosts.guard import LEASES
from memcluster.launcher.hosts.host import FarHost
from memcluster.launcher.hosts.letter import SUPERVISOR, Letter, write_certificates
from memcluster.launcher.reach import is_wildcard, numbers, way_to
from memcluster.launcher.run import leftovers
from memcluster.launcher.run.directory import RunDirectory
from memcluster.launcher.supervision import sockets
from memcluster.launcher.supervision.patience import HOSTS_LEAVE
from memcluster.launcher.supervision.places import Place
from memcluster.launcher.supervision.process import Gone, Process, Told
from memcluster.node.nbd.printable import printable
from memcluster.node.spec import NodeSpec, server_tls
from memcluster.node.transport.address import Address
from memcluster.node.transport.channel import Channel
from memcluster.node.transport.frames import Frame
from memcluster.node.transport.introduction import Doorkeeper
from memcluster.node.transport.listener import Listener
from memcluster.node.transport.loop import Loop, Timer
from memcluster.node.transport.notices import Notices
from memcluster.node.transport.proof import SECRET_SIZE, Who
from memcluster.node.transport.stream import Line

PERIOD = 0.5
"""Seconds between two beats, at most."""
BEATS = 8
"""In the length of the lease, at least."""
ANSWER_WITHIN = 15.0
"""Seconds that a host has to come when only something is to be thrown away, once nobody has its lock any more."""


Doors = Callable[[Sequence[str]], dict[str, str]]
"""The files by which servers on hosts of these addresses let clients in over TLS, by name."""


def no_doors(_addresses: Sequence[str]) -> dict[str, str]:
    """They let in no clients, or have no TLS for them."""
    return {}


class HostError(Exception):
    """A host cannot be had; says which, and why."""


class Hosts:
    """See process.Elsewhere for the supervisor's side. Raises HostError."""

    def __init__(
        self,
        loop: Loop,
        cluster: str,
        hosts: Sequence[HostConfig],
        engine: EngineConfig,
        run: RunDirectory,
        *,
        topology: str,
        lease: float,
        encrypted: bool,
        doors: Doors = no_doors,
    ) -> None:
        self.loop = loop
        try:
            self._engine: Engine = make(loop, engine, self._ended)
        except EngineError as error:
            raise HostError(str(error)) from error
        given = self._engine.letter
        self._port = Address.parse(given.supervisor).port if given else 0
        self.secret = bytes.fromhex(given.secret) if given else os.urandom(SECRET_SIZE)
        self._run = secrets.token_hex(8)  # guardians of an earlier one may know the secret
        self.began = time.monotonic()
        self._period = min(PERIOD, lease / BEATS)
        self._lease = lease
        self._command = engine.command
        self._numeric = {host.name: resolve(host) for host in hosts}
        self._cluster, self._topology = cluster, topology
        self._directory = run
        self._encrypted = encrypted
        self._door_files = doors
        self.certificates = ""
        """The folder of what this host is known by to the others, when it has been started."""
        self._hosts = {
            host.name: FarHost(loop, host.name, lease, partial(self._again, host)) for host in hosts
        }
        self._wanted = hosts
        self._timer: Timer | None = None
        self._notices = Notices(loop.system, SUPERVISOR)
        self._door: Doorkeeper | None = None
        self._listeners: list[Listener] = []
        self._sockets: dict[str, socket.socket] = {}

    def __repr__(self) -> str:
        return f"<Hosts {', '.join(map(repr, self._hosts.values()))}>"

    def address(self, host: str) -> str:
        """Of a host, in numbers."""
        return self._numeric[host]

    # -- the start ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Have a guardian run on every host. Raises HostError, Failure, OSError."""
        self._begin({host.name: self._way_back(host.name) for host in self._wanted})

    def _begin(self, ways: Mapping[str, Address]) -> None:
        """On the hosts of which the way back is known."""
        hosts = [Host(host.name, host.address) for host in self._wanted if host.name in ways]
        self._engine.start(hosts, [self._command, "guardian"], lambda name: self._letter(name, ways[name]).to_json())
        self.certificates = write_certificates(self._directory.certificates, self._files)
        self._door = Doorkeeper(
            self.loop,
            self.secret,
            SUPERVISOR,
            [Who.GUARDIAN],
            self._admitted,
            lambda reason: self._notices.say(f"a stranger was turned away: {reason}"),
            tls=server_tls(self.certificates),
            far=True,
        )
        for sock in self._sockets.values():
            self._listeners.append(Listener(self.loop, sock, self._door.take))
            self._listeners[-1].start()
        self._beat()

    @cached_property
    def _files(self) -> dict[str, str]:
        """By what the hosts know one another, by name. They take a while to be made."""
        if given := self._engine.letter:
            return given.certificates
        return between_hosts() if self._encrypted else {}

    @cached_property
    def _doors(self) -> dict[str, str]:
        return self._door_files([*self._numeric.values()])

    def _letter(self, host: str, supervisor: Address) -> Letter:
        return Letter(
            cluster=self._cluster,
            host=host,
            supervisor=str(supervisor),
            secret=self.secret.hex(),
            lease=self._lease,
            topology=self._topology,
            certificates=self._files,
            doors=self._doors,
        )

    def prepare(
        self,
        places: Sequence[Place],
        *,
        memory: str,
        made: bool,
        storage: str,
        logs: str,
        hang_timeout: float,
        seconds: float,
    ) -> None:
        """Have every host take its addresses and find or make its part of the memory. Raises HostError."""
        for name, host in self._hosts.items():
            servers = {index: place for index, place in enumerate(places) if place.host == name}
            host.prepare = {
                "do": "prepare",
                "listen": {
                    **{f"server{index}": str(self._there(name, place.listen)) for index, place in servers.items()},
                    **{f"logger{index}": str(Address(self._numeric[name], 0)) for index in servers},
                },
                "shards": {str(index): place.memory for index, place in servers.items()},
                "memory": memory,
                "made": made,
                "storage": storage,
                "logs": logs,
                "hang_timeout": hang_timeout,
            }
            if host.present:
                host.say(host.prepare)
        if problems := self._wait(lambda host: host.ready, seconds, "is not ready"):
            raise HostError("\n".join(problems))
        for host in self._hosts.values():  # whoever comes next has what this one had
            assert host.prepare is not None
            host.prepare = {**host.prepare, "made": True, "listen": host.addresses}

    def addresses(self) -> dict[str, str]:
        """Where each node on another host listens."""
        return {
            name: str(self._reached(host.name, Address.parse(text)))
            for host in self._hosts.values()
            for name, text in host.addresses.items()
        }

    def runs(self) -> list[tuple[int, int, int]]:
        """What the hosts' logs say; see takeover.next_run."""
        return [host.runs for host in self._hosts.values()]

    def discard(self, seconds: float) -> tuple[list[str], list[str]]:
        """Have guardians come only to throw away what an earlier run has left: the hosts that had something, and
        sentences of those that could not be asked."""
        ways, problems = {}, []
        for host in self._wanted:
            try:
                ways[host.name] = self._way_back(host.name)
            except HostError as error:
                problems.append(str(error))
                del self._hosts[host.name]
        self._begin(ways)
        problems += self._wait(lambda host: host.present, seconds, "does not answer", each=True)
        problems += self.end(keep=False)
        return [name for name, host in self._hosts.items() if host.held], problems

    def _wait(
        self, fact: Callable[[FarHost], bool], seconds: float, lacking: str, *, each: bool = False
    ) -> list[str]:
        """Turn the loop until it is a fact of every host; what keeps it from that, in sentences: as soon as there is
        something, or with `each` when there is no host left to be waited for."""
        hosts = self._hosts.values()
        deadline = time.monotonic() + seconds
        while waiting := [host for host in hosts if not fact(host)]:
            over = {
                host: host.trouble or f"{host.name}: {host.ended}"
                for host in waiting
                if host.trouble or (host.ended and not host.present)
            }
            silent = [host for host in waiting if host not in over]
            if time.monotonic() >= deadline:
                return [*over.values(), *(f"{host.name} {lacking} after {seconds:g} s" for host in silent)]
            if over and (not each or not silent):
                return [*over.values()]
            self.loop.turn(deadline - time.monotonic())
        return []

    def _there(self, host: str, address: Address) -> Address:
        """In numbers, for who listens at it."""
        found = numbers(address)
        return replace(address, host=str(found[0]) if found and address.host != host else self._numeric[host])

    def _reached(self, host: str, address: Address) -> Address:
        """Where others find what listens at an address there: on all of its own perhaps."""
        return replace(address, host=self._numeric[host]) if is_wildcard(address) else address

    def _way_back(self, host: str) -> Address:
        """Where a guardian there finds this process: at the address of this host from which that one is reached."""
        try:
            here = way_to(self._numeric[host])
        except OSError as error:
            raise HostError(f"{host}: {self._numeric[host]} cannot be reached: {error.strerror}") from error
        if here not in self._sockets:
            self._sockets[here] = sockets.bind(Address(here, self._port), sockets.Access(network=True))
        return sockets.bound_address(self._sockets[here])

    # -- guardians ---------------------------------------------------------------------------------------------------

    def _admitted(self, line: Line, _who: Who) -> None:
        names: list[str] = []  # of the host that it is, once it has said so

        def received(channel: Channel, frame: Frame) -> None:
            try:
                if names:
                    self._hosts[names[0]].received(frame)
                elif self._greeted(channel, frame.head):
                    names.append(frame.head["hello"])
            except (KeyError, TypeError, ValueError) as error:
                self._notices.say(f"a guardian does not keep to the protocol: {error!r}")
                channel.close()

        def closed(channel: Channel) -> None:
            if names:
                self._hosts[names[0]].hung_up(channel)

        Channel(self.loop, line, received, closed)

    def _greeted(self, channel: Channel, head: dict[str, Any]) -> bool:
        host, theirs, ours = self._hosts[head["hello"]], str(head["version"]), __version__
        if theirs != ours:
            host.trouble = f"{host.name} has memcluster {printable(theirs)}, and this is {ours}: install the same there"
            channel.send({"refused": host.trouble})
            channel.finish()
            return False
        if head["served"] not in ("", self._run):
            channel.send({"refused": "that supervisor is gone, and this is another one: beginning anew"})
            channel.finish()
            return False
        host.came(channel, self._run, str(head["session"]), int(head["taken"]))
        return True

    def _ended(self, name: str, how: str) -> None:
        self._hosts[name].engine_says(how)

    def _again(self, host: HostConfig) -> None:
        self._engine.again(Host(host.name, host.address))

    def _beat(self) -> None:
        self._timer = self.loop.after(self._period, self._beat)
        for host in self._hosts.values():
            host.look()

    # -- the supervisor's side -----------------------------------------------------------------------------------------

    def watch(self, hung: Callable[[str, str], None], left: Callable[[str, list[str]], None]) -> None:
        for host in self._hosts.values():
            host.hung, host.left = hung, left

    def child(self, spec: NodeSpec, told: Told, gone: Gone) -> Process:
        return self._hosts[spec.host].child(spec, told, gone)

    def change(self, hang_timeout: float) -> None:
        for host in self._hosts.values():
            if host.prepare is not None:
                host.prepare["hang_timeout"] = hang_timeout
            host.say({"do": "pace", "hang_timeout": hang_timeout})

    def kill(self, host: str) -> None:
        self._hosts[host].say({"do": "die"})

    def cut(self, host: str, cut: bool) -> None:
        self._hosts[host].cut(cut)

    def refuse(self, name: str) -> None:
        for host in self._hosts.values():
            if name in host.addresses:
                host.say({"do": "refuse", "name": name})

    def end(self, keep: bool) -> list[str]:
        ours = self._engine.letter is None  # and runs what it is asked to, and tells how that has ended
        for host in self._hosts.values():
            host.end(keep, again=ours)
        deadline = time.monotonic() + HOSTS_LEAVE  # nothing is to be left there when this returns
        while not all(host.over(engine_tells=ours) for host in self._hosts.values()) and time.monotonic() < deadline:
            self.loop.turn(deadline - time.monotonic())
        lost = [host for host in self._hosts.values() if not host.gone and not host.never_came]
        return [
            f"{host.name} is away: what runs there ends by itself within {self._lease:g} s"
            + ("" if keep else "; `memcluster down` when it is back discards its part of the memory")
            for host in lost
        ]

    def close(self) -> None:
        self._engine.stop()
        if self._timer is not None:
            self._timer.cancel()
        for host in self._hosts.values():
            host.close()
        if self._door is not None:
            self._door.close()
        for listener in self._listeners:
            listener.stop()
        for sock in self._sockets.values():
            sockets.release(sock)


def discard(
    run: RunDirectory, hosts: Sequence[HostConfig], engine: EngineConfig, lease: float, *, encrypted: bool
) -> tuple[list[str], list[str]]:
    """See Hosts.discard. A guardian of the run that is over may still have the lock there, until its lease is over."""
    loop = Loop()
    try:
        found = Hosts(
            loop,
            run.name,
            hosts,
            engine,
            run,
            topology="",
            lease=lease,
            encrypted=encrypted,
        )
    except HostError as error:
        loop.close()
        return [], [str(error)]
    try:
        return found.discard(LEASES * lease + leftovers.PATIENCE + ANSWER_WITHIN)
    finally:
        found.close()
        loop.close()


def resolve(host: HostConfig) -> str:
    """Where a host is, in numbers. Raises HostError."""
    text = host.address or host.name
    found = numbers(Address(text, 0))
    if not found:
        raise HostError(f"nobody here knows where {text} is: write {{name: {host.name}, address: ADDRESS}}")
    return str(found[0])
