"""The cluster that is broken: its cluster.yaml, the commands on it, and every process that it was ever seen to have."""

from __future__ import annotations

import json
import os
import random
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

import memcluster
from bench.chaos.far import HERE, Far
from bench.chaos.schedule import LEASE
from memcluster.launcher.clusterfile import config
from memcluster.launcher.run.directory import RunDirectory, RunRecord
from memcluster.launcher.run.identity import Identity
from memcluster.launcher.run.leftovers import wait_gone
from memcluster.launcher.run.memory import Claim, Shape, read_claim
from memcluster.node.layout import Layout, make_layout
from memcluster.node.topology import Topology

ROOT = Path(__file__).parent.parent.parent
STRIPE = 64 << 10
PORTS = range(20_000, 32_000)
"""Not those that the system gives away: the port must be free while there is no supervisor."""
COMMAND_TIMEOUT = 60.0
UP_WITHIN = 60.0
"""Seconds in which a cluster whose supervisor was killed must be up again."""


FIRST, OTHER = "first.yaml", "other.yaml"
"""The cluster.yaml that it began with, and that of the other shape."""


class NotUp(Exception):
    """The cluster does not come up; says what it said."""


class Subject:
    """A cluster of so many servers in `folder`, with `keys` of cluster.yaml beside those that a chaos run needs."""

    def __init__(
        self, folder: Path, shape: Topology, servers: int, memory: int, far: Far | None = None, **keys: Any
    ) -> None:
        self.folder = folder
        self.far = far
        self._shape = shape
        self._links = shape.links(servers + shape.dispatches)
        self.name = f"chaos-{os.getpid()}-{folder.name[-8:]}"
        self.keys = {
            "name": self.name,
            "servers": servers,
            "memory": memory,
            "listen": f"127.0.0.1:{_free_port()}",
            "restart": {"deaths": 1000, "cap": "1s"},
            "hang_timeout": "2s",
            "stop_timeout": "60s",
            **keys,
        }
        here = "127.0.0.1"
        if far is not None:
            self.keys |= _over(far)
            if self.keys["storage"] != "memory":  # a folder of each host's own
                self.keys["storage"] = f"/run/{self.name}"
            if shape.every_server_is_a_door:  # as fio and nbdcopy have no certificate of a run
                here = HERE
                self.keys |= {"listen": f"{here}:{_free_port()}", "insecure_network": True}
        if shape.every_server_is_a_door:
            share = memory // servers // STRIPE * STRIPE
            hosts = self._homes(servers)
            at = [far.address(host) if far and host else here for host in hosts]
            others = [
                {"memory": share, "listen": f"{address}:{_free_port()}", **({"host": host} if host else {})}
                for address, host in zip(at[1:], hosts[1:], strict=True)
            ]
            self.keys |= {"memory": share * servers, "servers": [{"memory": share}, *others]}
        for name, shape_keys in (("cluster.yaml", self.keys), (FIRST, self.keys), (OTHER, self.shapes[1])):
            (folder / name).write_text(yaml.safe_dump(shape_keys))
        self.directory = RunDirectory(self.name)
        self._seen: dict[Identity, None] = {}

    def _homes(self, servers: int) -> list[str]:
        """The host of each server, as cluster.yaml deals them; "" is this one."""
        places = ["", *(self.far.hosts if self.far else ())]
        return [places[index % len(places)] for index in range(servers)]

    def home(self, server: int) -> str:
        """The host of a server; "" is this one."""
        return self._homes(server + 1)[server]

    @property
    def layout(self) -> Layout:
        """Of all its processes; a dispatcher has no bytes."""
        found = config.load(self.folder / "cluster.yaml")
        return make_layout((*[0] * self._shape.dispatches, *(server.memory for server in found.servers)), found.stripe)

    @property
    def uri(self) -> str:
        """Server 0's, where clients begin."""
        return f"nbd://{self.keys['listen']}"

    def door(self, server: int) -> str:
        """Where clients connect to a server that lets them in to its own part."""
        return f"nbd://{self.keys['servers'][server]['listen']}" if server else self.uri

    def shard_there(self, server: int, host: str) -> str:
        """The file of its part of the memory, on another host."""
        own = f"/dev/shm/{self.directory.path.name}@{host}"
        return f"{own if self.keys['storage'] == 'memory' else self._storage}/shard{server}"

    def shard(self, server: int) -> Path:
        """The file of its part of the memory; of one on another host a copy as it is now."""
        if self.far and (host := self.home(server)):
            copy = self.folder / f"shard{server}"
            self.far.run(host, "cp", self.shard_there(server, host), str(copy))
            return copy
        claim = self._claim
        return self._storage / (f"shard{server}" if claim is None else claim.shape.files[server])

    @property
    def _storage(self) -> Path:
        storage = self.keys["storage"]
        return self.directory.path if storage == "memory" else self.folder / storage

    @property
    def _claim(self) -> Claim | None:
        return read_claim(self._storage)

    def write_other_shape(self) -> None:
        """Into cluster.yaml: the first one, or the other one."""
        shapes = self.shapes
        now = yaml.safe_load((self.folder / "cluster.yaml").read_text())
        self._write(shapes[0] if now == shapes[1] else shapes[1])

    def write_shape(self, rng: random.Random) -> None:
        """Into cluster.yaml, that of the memory as it lies there, or which of both if it is on the way: `up` must find
        one that fits."""
        if (claim := self._claim) is None:
            return
        fitting = [claim.shape] if claim.new is None else [claim.shape, claim.new]
        wanted = rng.choice(fitting)
        for keys in self.shapes:
            self._write(keys)
            if wanted.is_like(Shape(tuple(self.layout.sizes), getattr(self.layout, "stripe", 0))):
                return

    @property
    def shapes(self) -> list[dict[str, Any]]:
        """The first one and the other: a server more, or other parts of the same ones, and the other layout."""
        linear = self.keys["layout"] == "linear"
        servers = self.keys["servers"]
        if isinstance(servers, int):
            servers += 1
        else:
            first, *rest = servers
            last = rest.pop() if rest else first
            rest = [{**first, "memory": first["memory"] + STRIPE}, *rest, {**last, "memory": last["memory"] - STRIPE}]
            servers = rest if len(servers) > 1 else servers
        return [self.keys, self.keys | {"layout": {"stripe": STRIPE} if linear else "linear", "servers": servers}]

    def _write(self, keys: dict[str, Any]) -> None:
        """As a whole: it may be read meanwhile."""
        new = self.folder / "cluster.yaml.new"
        new.write_text(yaml.safe_dump(keys))
        new.replace(self.folder / "cluster.yaml")

    def states(self) -> dict[str, str]:
        """Of each node, by its name; empty while nobody answers."""
        done = self.command("status", "--json")
        try:
            return {node["name"]: node["state"] for node in json.loads(done.stdout)["nodes"]}
        except (ValueError, KeyError):
            return {}

    def serves_without(self, failed: str, seconds: float) -> str:
        """What is wrong with a byte of another server's, when it is asked for by a client that has just come. Where
        every request passes all servers an error is an answer."""
        layout = self.layout
        server = next(number for number, size in enumerate(layout.sizes) if size and f"server{number}" != failed)
        try:
            with memcluster.connect(self.uri, timeout=seconds) as memory:
                memory.start_pread(1, layout.address(server, 0)).result(seconds)
        except memcluster.RequestError as error:
            return "" if self._shape.hands_over and not self._shape.fans_out else f"a byte of server{server}: {error}"
        except memcluster.ClusterError as error:
            return f"a byte of server{server}: {error}"
        return ""

    def peer(self, server: str) -> str:
        """Another server that this one has a link to."""
        number = int(server.removeprefix("server"))
        return f"server{next(one + other - number for one, other in self._links if number in (one, other))}"

    def command(self, *words: str, timeout: float = COMMAND_TIMEOUT) -> subprocess.CompletedProcess[bytes]:
        """`memcluster WORDS`, whatever its exit code."""
        return subprocess.run(
            [sys.executable, "-m", "memcluster", *words],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
            env=environment(),
        )

    def begin(self, *words: str) -> subprocess.Popen[bytes]:
        """`memcluster WORDS`, not waited for."""
        return subprocess.Popen(
            [sys.executable, "-m", "memcluster", *words],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment(),
        )

    def record(self) -> RunRecord | None:
        """Who runs now; all of them are remembered."""
        record = self.directory.record()
        if record is not None:
            nodes = (node.identity for node in record.nodes if not node.host)
            everyone = (record.supervisor, *record.helpers, *nodes)
            self._seen.update(dict.fromkeys(everyone))
        return record

    def up(self) -> int:
        """Start it, again and again until it runs; returns how many attempts failed. Raises NotUp."""
        deadline = time.monotonic() + UP_WITHIN
        failures = 0
        while True:
            done = self.command("up", "-d")
            record = self.record()
            if done.returncode == 0 and record is not None and record.supervisor.alive:
                return failures
            failures += 1
            if time.monotonic() > deadline:
                raise NotUp(f"exit {done.returncode}: {(done.stderr or done.stdout).decode(errors='replace')}")

    def wait_until_running(self, seconds: float) -> str:
        """The state in which it is when everything has healed, or time is up: each question waits for an answer."""
        deadline = time.monotonic() + seconds
        while True:
            done = self.command("status", "--json")
            try:
                status = json.loads(done.stdout)
                state = "moving" if status.get("applying") else str(status["state"])
            except (ValueError, KeyError):
                state = f"unknown: {done.stderr.decode(errors='replace').strip()}"
            if state == "running" or time.monotonic() > deadline:
                return state

    def left_behind(self, seconds: float = 10.0) -> list[str]:
        """Processes and files that are there after `down`."""
        wait_gone(list(self._seen), seconds)
        strangers = {identity for identity in self._seen if identity.alive} | set(self._search())
        wait_gone(list(strangers), seconds)
        problems = [f"process {identity.pid}" for identity in strangers if identity.alive]
        if self.directory.path.exists():
            names = ", ".join(sorted(entry.name for entry in self.directory.path.iterdir()))
            problems.append(f"{self.directory.path.name}: {names}")
        for host in self.far.hosts if self.far else ():
            problems += self.far.left(host, self.name)
        problems += [f"logs/{path.name}" for path in (self.folder / "logs").glob(".*")]
        return problems

    def end_leftovers(self) -> None:
        """Kill what should not be there any more; to be called when it has been told."""
        self.record()
        for identity in {*self._seen, *self._search()}:
            identity.signal(9)
        self.directory.remove()

    def _search(self) -> list[Identity]:
        """Every process with the cluster's name in its title, recorded or not."""
        return _identities(lambda process: f"memcluster {self.name}:" in " ".join(process.cmdline()))


def _identities(wanted: Callable[[psutil.Process], bool]) -> list[Identity]:
    found = []
    for process in psutil.process_iter():
        try:
            if wanted(process) and (identity := Identity.of(process.pid)) is not None and identity.alive:
                found.append(identity)
        except psutil.Error:
            continue
    return found


def _over(far: Far) -> dict[str, Any]:
    """What cluster.yaml says of other hosts."""
    python = f"env PYTHONPATH={shlex.quote(str(ROOT))} {shlex.quote(sys.executable)}"
    return {
        "hosts": [{"name": host, "address": far.address(host)} for host in far.hosts],
        "engine": {"ssh": {"command": f"{python} -m memcluster"}},
        "host_lease": f"{LEASE:g}s",
    }


def environment() -> dict[str, str]:
    """For a Python that has this checkout's packages."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def _free_port() -> int:
    """A port that nobody has now, and that the system gives to nobody by itself."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port found")
