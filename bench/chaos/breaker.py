"""Carries the schedule out: kills and stops processes by their identity, asks the cluster for the other faults."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from threading import Event
from typing import Any

from bench.chaos.far import FarProcess
from bench.chaos.schedule import Fault
from bench.chaos.subject import Subject
from memcluster.client.console import EXIT_DEGRADED
from memcluster.launcher.run.directory import NodeRecord
from memcluster.launcher.run.identity import Identity
from memcluster.launcher.run.leftovers import wait_gone

DELAY = "20ms"
SERVED_WITHIN = 10.0
"""Seconds in which whatever does not need a failed server must be answered."""
FAILS_WITHIN = 10.0
ANSWERS_WITHIN = 3.0
"""Seconds for the rude client to come to what it is asked for."""
COMES_WITHIN = 5.0
STEPS, STEP, REST = 30, 0.01, 0.06
"""How a server goes on that was stopped in the middle of a zeroing: seconds that it runs, and does not."""
COMMAND_PATIENCE = 15.0
OF_HOSTS = ("kill guardian", "kill host", "lose host", "cut", "cut for long", "mend")
RATES = ("", "24MiB", "48MiB")
UP_AGAIN = "up again"


class Breaker:
    """`done` has a line for each fault: when it was, and what became of it."""

    def __init__(self, subject: Subject, asked: Pipe, seed: int) -> None:
        self.kills: Counter[str] = Counter()
        self.others: Counter[str] = Counter()
        self.done: list[dict[str, Any]] = []
        self.failed_ups = 0
        self.deaths_unasked: list[str] = []
        """Times at which the supervisor was dead although nobody had killed it."""
        self.reshapes = False
        """The memory gets other shapes meanwhile."""
        self.unserved: list[str] = []
        """What was not served while a server that it does not need had failed."""
        self._subject = subject
        self._asked = asked
        self._rng = random.Random(f"breaker {seed}")
        self._paused: dict[str, Identity | FarProcess] = {}
        self._cut: set[str] = set()
        self._commands: list[tuple[Fault, subprocess.Popen[bytes]]] = []

    def run(self, schedule: Iterable[Fault], seconds: float, end: Event) -> None:
        """Do each at its time, and come back after `seconds` or when `end` is set. Raises NotUp.

        When the cluster has to be started again, all that follows is so much later, and the last of it is left out.
        """
        began = time.monotonic()
        later = 0.0
        for fault in schedule:
            if fault.at + later > seconds:
                break
            if end.wait(max(0.0, began + fault.at + later - time.monotonic())):
                return
            self._see_that_it_lives(time.monotonic() - began)
            started = time.monotonic()
            outcome = self._do(fault)
            self.done.append(fault._asdict() | {"done_at": round(started - began, 3), "outcome": outcome})
            if outcome.startswith(UP_AGAIN):
                later += time.monotonic() - started
        end.wait(max(0.0, began + seconds - time.monotonic()))
        self._see_that_it_lives(time.monotonic() - began)

    def heal(self) -> None:
        """Let everything go on that is paused, and wait for the commands. Spans end by themselves."""
        for identity in self._paused.values():
            identity.signal(signal.SIGCONT)
        self._paused.clear()
        self._mend_all()
        self._reap(COMMAND_PATIENCE)

    def _do(self, fault: Fault) -> str:
        self._reap(0.0)
        if fault.kind == "kill":
            return self._kill(fault.target)
        if fault.kind == "pause":
            identity = self._find(fault.target)
            if identity is None or not identity.signal(signal.SIGSTOP):
                return "not alive"
            self._paused[fault.target] = identity
            self.others[f"pause {fault.target.rstrip('0123456789')}"] += 1
            return f"pid {identity.pid}"
        if fault.kind == "resume":
            paused = self._paused.pop(fault.target, None)
            return "resumed" if paused and paused.signal(signal.SIGCONT) else "not alive"
        if fault.kind == "crowd":
            return self._crowd(fault.target)
        if fault.kind == "zeroes":
            return self._zeroes(fault.target)
        if fault.kind == "reshape":
            return self._reshape(fault)
        if fault.kind == "fail":
            return self._fail(fault.target)
        if fault.kind in OF_HOSTS:
            return self._of_host(fault)
        words = ["fault", fault.kind, fault.target, "--for", f"{fault.span:g}s"]
        if fault.kind == "partition":
            words.append(self._subject.peer(fault.target))
        elif fault.kind == "slow":
            words += ["--delay", DELAY]
        self._commands.append((fault, self._subject.begin(*words)))
        self.others[fault.kind] += 1
        return "asked"

    def _of_host(self, fault: Fault) -> str:
        """What becomes of another host: its guardian dies, or the way there is cut."""
        far, host = self._subject.far, fault.target
        assert far is not None
        if fault.kind == "mend":
            return self._mend(host)
        if fault.kind == "kill guardian":
            pid = far.guardian(host, self._subject.name)
            if not pid or far.run(host, "kill", "-KILL", str(pid))[0]:
                return "not alive"
            self.kills["guardian"] += 1
            return f"pid {pid}"
        self.others[fault.kind] += 1
        if fault.kind.startswith("cut"):
            self._cut.add(host)
            far.cut(host, True)
            return "cut"
        words = ["kill"] if fault.kind == "kill host" else ["partition", "--for", f"{fault.span:g}s"]
        self._commands.append((fault, self._subject.begin("fault", *words, f"host:{host}")))
        return "asked"

    def _mend_all(self) -> None:
        for host in tuple(self._cut):
            self._mend(host)

    def _mend(self, host: str) -> str:
        assert self._subject.far is not None
        self._cut.discard(host)
        self._subject.far.cut(host, False)
        return "mended"

    def _kill(self, target: str) -> str:
        record = self._subject.record()
        if record is None:
            return "no record"
        if target == "all":
            victims: list[Identity | FarProcess] = [record.supervisor, *record.helpers]
            victims += [self._identity(node) for node in record.nodes]
        elif target == "fork server":
            victims = [*record.helpers]
        else:
            victims = [identity for identity in [self._find(target)] if identity]
        killed = [identity for identity in victims if identity.signal(signal.SIGKILL)]
        if not killed:
            return "not alive"
        self.kills[target.rstrip("0123456789")] += 1
        pids = f"pids {' '.join(str(identity.pid) for identity in killed)}"
        if target not in ("all", "supervisor"):
            return pids
        self._up(record.supervisor)
        return f"{UP_AGAIN}: {pids}"

    def _ask(self, word: str) -> str:
        """Have the rude client do it; what comes back when it has begun."""
        while self._asked.poll():
            self._asked.recv()  # it had begun too late
        self._asked.send(word)
        return str(self._asked.recv()) if self._asked.poll(ANSWERS_WITHIN) else "not begun"

    def _crowd(self, target: str) -> str:
        """Very many reads wait for the target, until it is resumed."""
        begun, identity = self._ask("crowd"), self._find(target)
        if begun != "begun" or identity is None or not identity.signal(signal.SIGSTOP):
            return begun
        self._paused[target] = identity
        self._asked.send("stopped")
        self.others["crowd"] += 1
        return f"pid {identity.pid} stopped"

    def _zeroes(self, target: str) -> str:
        """The first server dies, and another begins, while the target stands in the middle of a long zeroing."""
        begun = self._ask("zeroes")
        first, stopped = self._find("server0"), self._find(target)
        if begun != "begun" or first is None or stopped is None or not stopped.signal(signal.SIGSTOP):
            return begun
        self.others["zeroes"] += 1
        try:
            first.signal(signal.SIGKILL)
            if self._asked.poll(COMES_WITHIN):  # who is to be served by the next one has come
                self._asked.recv()
                for _ in range(STEPS):  # in small steps, so that all others are quicker
                    stopped.signal(signal.SIGCONT)
                    time.sleep(STEP)
                    stopped.signal(signal.SIGSTOP)
                    time.sleep(REST)
        finally:
            stopped.signal(signal.SIGCONT)
        return f"pid {first.pid} killed, pid {stopped.pid} stopped"

    def _fail(self, target: str) -> str:
        """The target does not come back, as its shard is not where it was; then the first server restarts, and must
        serve what is not the target's."""
        failed, first = self._find(target), None
        if failed is None or not self._move_shard(target, away=True):
            return "not alive"
        try:
            failed.signal(signal.SIGKILL)
            if not self._wait_for(lambda: self._subject.states().get(target) == "failed", FAILS_WITHIN):
                return "did not fail"
            first = self._find("server0")
            if first is not None:
                first.signal(signal.SIGKILL)
            self.others["fail"] += 1
            trouble = self._subject.serves_without(target, SERVED_WITHIN)
            if trouble:
                self.unserved.append(f"{target} had failed, server0 had been killed: {trouble}")
            return trouble or "served"
        finally:
            self._move_shard(target, away=False)
            self._subject.command("fault", "resume", target)

    def _move_shard(self, target: str, *, away: bool) -> bool:
        """Out of the way, or back; false if it is not there."""
        server, far = int(target.removeprefix("server")), self._subject.far
        host = self._subject.home(server)
        shard = Path(self._subject.shard_there(server, host)) if far and host else self._subject.shard(server)
        aside = shard.with_name(f"aside.{shard.name}")
        old, new = (shard, aside) if away else (aside, shard)
        if far and host:
            return far.run(host, "mv", str(old), str(new))[0] == 0
        if not old.exists():
            return False
        old.rename(new)
        return True

    def _reshape(self, fault: Fault) -> str:
        """Have the memory get another shape, while all else goes on; or have it go back on the way."""
        if any(other.kind == "reshape" for other, _ in self._commands):
            if fault.target == "forward":
                return "one is under way"
            self._commands.append((fault._replace(kind="abort"), self._subject.begin("apply", "--abort")))
            return "asked to go back"
        self._subject.write_shape(self._rng)
        self._subject.write_other_shape()
        rate = RATES[int(fault.span * 1000) % len(RATES)]
        words = ["apply", "--yes", "--timeout", "120s", *(["--rate", rate] if rate else [])]
        self._commands.append((fault, self._subject.begin(*words)))
        return f"asked, rate {rate}"

    @staticmethod
    def _wait_for(fact: Callable[[], bool], seconds: float) -> bool:
        """Nobody tells of these: they are looked for."""
        deadline = time.monotonic() + seconds
        while not fact():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def _up(self, dead: Identity) -> None:
        self._paused.pop("supervisor", None)
        wait_gone([dead], COMMAND_PATIENCE)
        self._mend_all()  # `up` wants all hosts, and no fault comes before it is done
        self._begin_anew()
        self.failed_ups += self._subject.up()

    def _begin_anew(self) -> None:
        """A file that fits the memory, whatever a change of its shape has come to."""
        if self.reshapes:
            self._reap(COMMAND_PATIENCE)
            self._subject.write_shape(self._rng)

    def _see_that_it_lives(self, at: float) -> None:
        """Start the cluster again if its supervisor has died by itself: the load is to go on."""
        record = self._subject.record()
        if record is None or not record.supervisor.alive:
            self.deaths_unasked.append(f"{at:.3f} s")
            self._mend_all()
            self._begin_anew()
            self.failed_ups += self._subject.up()

    def _identity(self, node: NodeRecord) -> Identity | FarProcess:
        far = self._subject.far
        return FarProcess(far, node.host, node.pid, node.start) if far and node.host else node.identity

    def _find(self, target: str) -> Identity | FarProcess | None:
        record = self._subject.record()
        if record is None:
            return None
        if target == "supervisor":
            return record.supervisor
        return next((self._identity(node) for node in record.nodes if node.name == target), None)

    def _reap(self, seconds: float) -> None:
        """Take note of the commands that have ended; those that are late are ended."""
        left = []
        again: Fault | None = None
        for fault, process in self._commands:
            try:
                _, said = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                if not seconds:
                    left.append((fault, process))
                    continue
                process.kill()
                _, said = process.communicate()
            if fault.kind in ("reshape", "abort"):
                self.others[fault.kind if not process.returncode else f"{fault.kind}, refused or cut short"] += 1
            if fault.kind == "reshape" and process.returncode == EXIT_DEGRADED:
                again = fault
            if process.returncode:
                self.done.append(fault._asdict() | {"failed": said.decode(errors="replace").strip()})
        self._commands = left
        if again is not None and not seconds:  # something was broken at that moment
            self._reshape(again)
