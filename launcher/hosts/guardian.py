"""A guardian: `memcluster guardian`, the command that an engine runs on a host. It starts the nodes there, holds their
sockets, notices when they hang, and does what its supervisor says; it decides nothing.

It ends in four ways. Told to, or sent a SIGTERM by its engine, it says that it leaves before it does: whoever goes
without that word is started again. Without word from its supervisor for the length of the lease it ends its nodes and
itself, and leaves the shards. And when it is killed the kernel kills the fork server, and with that the nodes; a second
guardian waits for the first one's lock, and looks for what may have escaped.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from memcluster import __version__
from memcluster.launcher.hosts.conversation import Conversation, Head
from memcluster.launcher.hosts.letter import KEYS, SUPERVISOR, Letter
from memcluster.launcher.hosts.shards import NotThere, Part, belongs_elsewhere, find_or_make
from memcluster.launcher.run import leftovers
from memcluster.launcher.run.directory import NodeRecord, RunDirectory, RunRecord
from memcluster.launcher.run.identity import Identity
from memcluster.launcher.supervision import sockets
from memcluster.launcher.supervision.child import Child
from memcluster.launcher.supervision.forkserver import helpers
from memcluster.launcher.supervision.heartbeats import Heartbeats, where_it_stands
from memcluster.launcher.supervision.refusals import Refusals
from memcluster.launcher.supervision.usage import Usage
from memcluster.node.files import make_folder
from memcluster.node.log.takeover import next_run
from memcluster.node.spec import NodeSpec, opener_tls
from memcluster.node.tls.credentials import Credentials
from memcluster.node.transport.address import Address
from memcluster.node.transport.channel import Channel
from memcluster.node.transport.dialer import Dialer
from memcluster.node.transport.frames import Frame
from memcluster.node.transport.loop import Loop
from memcluster.node.transport.proof import Pass, Who
from memcluster.node.transport.stream import Line, parts
from memcluster.node.zygote import open_output, redirect_output

LOOKS = 8
"""At the lease, in its length, at least."""
LOOK_AT_LEAST = 0.5
GOODBYE = 2.0
"""Seconds that the last word has to be heard."""


class Guardian:
    """See the top of this file."""

    def __init__(self, letter: Letter, run: RunDirectory, certificates: str, *, awaited: bool) -> None:
        self.loop = Loop()
        self._letter = letter
        self._run = run
        self._certificates = certificates
        self._awaited = awaited  # until it has been heard: its name may lead elsewhere at any time
        self._session = secrets.token_hex(8)
        self._probe = f"probe-{secrets.token_hex(16)}"
        self._served = ""  # the run of the supervisor that was the first to be heard
        self._shards = run.path
        self._logs: Path | None = None
        self._sockets: dict[str, socket.socket] = {}
        self._refusals = Refusals(self.loop)
        self._lives: dict[int, Child] = {}
        self._waiting: dict[str, Head] = {}  # starts of nodes of which the life before is not over
        self._usage = Usage()
        self._ending = False
        self._keep = True
        self._goodbye = True
        self._said_goodbye = False
        self._heard = self._looked = time.monotonic()
        self._period = min(LOOK_AT_LEAST, letter.lease / LOOKS)
        self._conversation = Conversation(self._told, self._beaten)
        self._heartbeats = Heartbeats(self.loop, letter.lease, lambda: list(self._lives.values()), self._hung)
        self._channel: Channel | None = None
        tls = opener_tls(certificates)
        key = Pass(bytes.fromhex(letter.secret), Who.GUARDIAN, SUPERVISOR, tls, far=True)
        self._dialer = Dialer(self.loop, Address.parse(letter.supervisor), self._connected, key)

    def __repr__(self) -> str:
        return f"<Guardian of {self._letter.host}, {len(self._lives)} nodes, {self._conversation!r}>"

    @property
    def alone(self) -> bool:
        """No node is left."""
        return not self._lives

    def run(self) -> None:
        self.loop.on_signal(signal.SIGTERM, lambda: self._leave("was sent a SIGTERM"))
        self.loop.on_signal(signal.SIGHUP, lambda: None)  # the session of its engine is over, and its own is not
        self.loop.on_signal(signal.SIGINT, lambda: self._leave("was sent a SIGINT"))
        self._dialer.dial()
        self._look()
        self._heartbeats.start()
        self.loop.run()
        self._dialer.close()
        for sock in self._sockets.values():
            sockets.release(sock)
        self.loop.close()

    # -- the supervisor's side -------------------------------------------------------------------------------------

    def _connected(self, line: Line) -> None:
        self._channel = Channel(self.loop, line, self._received, self._hung_up)
        self._peer = Address(*parts(line)[0].getpeername()[:2])
        self._channel.send(
            {
                "hello": self._letter.host,
                "version": __version__,
                "session": self._session,
                "served": self._served,
                "taken": self._conversation.taken,
            }
        )

    def _received(self, channel: Channel, frame: Frame) -> None:
        self._heard = time.monotonic()
        if "refused" in frame.head:
            print(frame.head["refused"], file=sys.stderr, flush=True)
            self._give_up()
        elif "welcome" in frame.head:
            self._dialer.reached()
            self._dialer.address, self._awaited, self._served = self._peer, False, frame.head["run"]
            self._conversation.go_on(channel, frame.head["welcome"])
        else:
            self._conversation.received(frame)
            if self._said_goodbye and self._conversation.done:
                self.loop.stop()

    def _hung_up(self, _channel: Channel) -> None:
        self._conversation.interrupt()
        self._dialer.lost("hung up")

    def _beaten(self, head: Head) -> None:
        stopped = [life for life, child in self._lives.items() if child.stopped]
        self._conversation.beat({**head, "clock": time.monotonic_ns(), "stopped": stopped})

    def _look(self) -> None:
        """Has the supervisor been silent for too long? Not if this process did not run itself meanwhile."""
        now = time.monotonic()
        if self._awaited or now - self._looked > 2 * self._period + 1:
            self._heard = now
        self._looked = now
        if now - self._heard > self._letter.lease and not self._ending:
            print(f"no word from the supervisor for {self._letter.lease:g} s: ending", file=sys.stderr, flush=True)
            self._give_up()
        else:
            self.loop.after(self._period, self._look)

    # -- what it is told -------------------------------------------------------------------------------------------

    def _told(self, head: Head) -> None:
        match head["do"]:
            case "prepare":
                self._conversation.say(self._prepared(head))
            case "start":
                self._start(head)
            case "pace":
                self._heartbeats.change(head["hang_timeout"])
            case "end":
                of_another = head["memory"] and belongs_elsewhere(self._run.path, head["memory"])
                self._end(head["keep"] or of_another)
            case "refuse":
                self._refuse(head["name"])
            case "die":  # a fault on purpose
                os.kill(os.getpid(), signal.SIGKILL)
                os._exit(128 + signal.SIGKILL)  # the first process of a container is deaf to its own signals
            case _:
                child = self._lives.get(head["life"])
                if child is not None:
                    self._pass_on(child, head)

    def _pass_on(self, child: Child, head: Head) -> None:
        life = head["life"]
        match head["do"]:
            case "tell":
                child.tell(head["order"])
            case "ask" if head["order"]["do"] == "probe":
                self._look_for_a_byte(life, child.spec.name, head["id"])
            case "ask":
                asked = head["order"].get("do")

                def answered(answer: dict[str, Any]) -> None:
                    usage = self._usage.of(child.pid) if asked == "status" else {}
                    self._conversation.say({"life": life, "answer": head["id"], "reply": answer | usage})

                child.ask(head["order"], answered)
            case "signal":
                child.signal(*head["signums"])
                self._conversation.say({"life": life, "signalled": True})
            case "kill":
                child.kill()

    def _look_for_a_byte(self, life: int, server: str, asked: int) -> None:
        """As a client here would, but without TLS: nobody else has the name of the export, which does not travel."""
        from memcluster.launcher.supervision.probe import Probe  # late: most guardians have no clients' door

        def probed(problem: str) -> None:
            self._conversation.say({"life": life, "answer": asked, "reply": {"problem": problem}})

        Probe(self.loop, self._probe, [(server, sockets.bound_address(self._sockets[server]), 0)], probed)

    def _prepared(self, head: Head) -> Head:
        """Take the addresses and the shards: what can fail before the first node is started."""
        letter = self._letter
        self._heartbeats.change(head["hang_timeout"])
        try:
            for name, text in head["listen"].items():
                if name not in self._sockets:
                    self._sockets[name] = sockets.bind(Address.parse(text), sockets.Access(network=True))
            logs = Path(head["logs"]) / letter.cluster
            make_folder(logs.parent)
            make_folder(logs)
            if head["storage"]:
                self._shards = Path(head["storage"])
                make_folder(self._shards)
            part = Part(head["memory"], letter.cluster, letter.host, head["shards"])
            find_or_make(part, self._shards, made=head["made"])
            if self._logs is None:
                self._logs = logs
                redirect_output(open_output(str(logs / f"guardian-{letter.host}.out")))
        except (NotThere, sockets.CannotListen) as error:
            text = str(error)
            return {"refused": text if letter.host in text else f"{letter.host}: {text}"}
        except OSError as error:
            return {"refused": f"{letter.host}: {error.filename or self._shards}: {error.strerror}"}
        return {
            "prepared": {name: str(sockets.bound_address(sock)) for name, sock in self._sockets.items()},
            "run": next_run([logs / f"server{server}" for server in head["shards"]]),
        }

    def _start(self, head: Head) -> None:
        spec = NodeSpec.from_head(head["spec"])
        name, life = spec.name, head["life"]
        if living := next((child for child in self._lives.values() if child.spec.name == name), None):
            self._waiting[name] = head  # the supervisor knows nothing of this one any more
            living.kill()
            return
        self._refusals.end(name)
        shard = str(self._shards / Path(spec.shard).name)
        spec = replace(
            spec,
            shard=shard,
            secret=bytes.fromhex(self._letter.secret),
            probe=self._probe,
            between_hosts=self._certificates,
            tls=None if spec.tls is None else self._door(spec.tls),
        )
        child = Child(
            self.loop, spec, [self._sockets[name]], self._said(life), lambda child, how: self._gone(life, child, how)
        )
        self._lives[life] = child
        self._conversation.say({"life": life, "born": [child.identity.pid, child.identity.start]})
        self._write_record()

    def _door(self, tls: Credentials) -> Credentials:
        """The same, with the files as they lie here."""
        folder = str(self._run.doors)
        return replace(tls, certificates=tls.certificates and folder, psk=tls.psk and f"{folder}/{KEYS}")

    def _refuse(self, name: str) -> None:
        if name in self._sockets:
            self._refusals.begin(name, self._sockets[name])

    # -- what its nodes say ----------------------------------------------------------------------------------------

    def _said(self, life: int) -> Callable[[Child, dict[str, Any]], None]:
        def said(child: Child, head: dict[str, Any]) -> None:
            if head.get("event") == "beat":
                self._heartbeats.beat(child)
            else:
                self._conversation.say({"life": life, "said": head})

        return said

    def _hung(self, name: str, how: str) -> None:
        for life, child in self._lives.items():
            if child.spec.name == name:
                self._conversation.say({"life": life, "hung": how})

    def _gone(self, life: int, child: Child, how: str) -> None:
        self._lives.pop(life, None)
        name = child.spec.name
        place = where_it_stands(self._logs / f"{name}.out") if self._logs else ""
        self._conversation.say(
            {"life": life, "gone": how, "status": child.status, "short": child.short, "place": place}
        )
        if self._ending:
            self._ended()
        elif waiting := self._waiting.pop(name, None):
            self._start(waiting)

    # -- the end -----------------------------------------------------------------------------------------------------

    def _leave(self, why: str) -> None:
        """By its engine's will, not its supervisor's: the shards stay."""
        if not self._ending:
            self._conversation.say({"leave": why})
            self._end(keep=True)

    def _give_up(self) -> None:
        """Nobody is there to be told anything."""
        self._end(keep=True, goodbye=False)

    def _end(self, keep: bool, *, goodbye: bool = True) -> None:
        """Nodes first: whoever has the lock after this process must not meet one."""
        if not self._ending:
            self.loop.after(leftovers.PATIENCE, self.loop.stop)
        self._ending, self._keep = True, keep
        self._goodbye = self._goodbye and goodbye
        self._waiting.clear()
        for child in tuple(self._lives.values()):
            child.kill()
        self._ended()

    def _ended(self) -> None:
        """Say goodbye when the last node is gone."""
        if self._lives:
            return
        if not self._goodbye:
            self.loop.stop()
            return
        held = self._run.holds_memory
        self._run.forget()
        if not self._keep:
            self._run.remove()
        self._conversation.say({"left": held})
        self._said_goodbye = True
        self.loop.after(GOODBYE, self.loop.stop)

    def _write_record(self) -> None:
        """For the next guardian, should anything escape this one's end."""
        own = Identity.of(os.getpid())
        assert own is not None
        nodes = tuple(
            NodeRecord(child.spec.name, child.spec.role, child.identity.pid, child.identity.start, "", None)
            for child in self._lives.values()
        )
        record = RunRecord(
            cluster=self._run.name,
            file="",
            topology=self._letter.topology,
            memory=0,
            uri="",
            stop_timeout=0.0,
            sample=1,
            supervisor=own,
            helpers=helpers(),
            nodes=nodes,
        )
        with suppress(OSError):  # the memory may have filled it
            self._run.write_record(record)
