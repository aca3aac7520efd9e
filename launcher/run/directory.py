"""The run directory of a cluster: its lock, what is running, the control socket, and the memory itself.

It lies on tmpfs, one for each name and user, and is gone after `down`. The supervisor holds the lock as long as it
lives, so a free lock beside a record means that a supervisor died; what it left is found in the record.

    lock          held by the supervisor
    state.json    who runs: pid and start time of every process (RunRecord)
    uri           where clients connect; there when the cluster is ready
    control       the supervisor's socket for the command line
    secret        what the run's own processes know each other by (node/transport/proof.py); for this user's eyes alone
    between-hosts what the run's hosts know one another by, where there are several
    clients       by what clients and servers know each other, where that is made for the run; stays with the memory
    doors         the servers' share of that, on another host
    listener-…    the fork server's own
    server1.sock, gates, bell1 …  of the topologies that hand clients' sockets over
    staging       of the payloads on their way between servers, with `links: shared` (node/forwarding/staging.py)
    memory.json, shard0 …   the memory, unless `storage` is a directory (launcher/run/memory.py)
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass

from memcluster.client.discover import NotOurs, check_owner, run_directory
from memcluster.client.units import MOST_SECONDS
from memcluster.launcher.run.identity import Identity
from memcluster.launcher.run.memory import claim_path, unfinished_path
from memcluster.node.files import replace_file

MAX_PID = 1 << 22
"""More than any process has (proc_sys_kernel(5), pid_max)."""


class NameInUse(Exception):
    """Another supervisor holds the lock."""


@dataclass(frozen=True)
class NodeRecord:
    """A process as it was last started."""

    name: str
    role: str
    pid: int
    start: int
    address: str
    range: tuple[int, int] | None
    memory: int = 0
    """Bytes that it owns."""
    host: str = ""
    """Another one's name, on which its pid is."""

    @property
    def identity(self) -> Identity:
        """On this host; of one on another host nobody's."""
        return Identity(0, 0) if self.host else Identity(self.pid, self.start)


@dataclass(frozen=True)
class RunRecord:
    """What the supervisor writes down, so that others can find and end what it started."""

    cluster: str
    file: str
    topology: str
    memory: int
    uri: str
    stop_timeout: float
    sample: int
    """The log keeps one story in so many."""
    supervisor: Identity
    helpers: tuple[Identity, ...]
    """The fork server."""
    nodes: tuple[NodeRecord, ...]
    fan_out: str = ""
    stamp: str = ""
    """Of the file as it was read (client/discover.py)."""
    stripe: int = 0
    """Bytes; 0 for the linear layout."""
    hosts: tuple[tuple[str, str], ...] = ()
    """The others: (name, address)."""
    engine: tuple[str, ...] = ("", "", "")
    """What reaches them, as in EngineConfig."""
    host_lease: float = 0.0
    host_encryption: bool = True

    @property
    def logger0(self) -> NodeRecord:
        """Who has the merged log; there is no record without it."""
        return next(node for node in self.nodes if node.name == "logger0")

    @property
    def homes(self) -> dict[str, str]:
        """The nodes that run on other hosts, and on which."""
        return {node.name: node.host for node in self.nodes if node.host}

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> RunRecord:
        """Raises ValueError, KeyError or TypeError if it is not one."""
        fields = json.loads(text)
        fields["supervisor"] = Identity(**fields["supervisor"])
        fields["helpers"] = tuple(Identity(**helper) for helper in fields["helpers"])
        fields["nodes"] = tuple(
            NodeRecord(**{**node, "range": tuple(node["range"]) if node["range"] else None}) for node in fields["nodes"]
        )
        fields["hosts"] = tuple((str(name), str(address)) for name, address in fields.get("hosts", ()))
        fields["engine"] = tuple(fields.get("engine", ("", "", "")))
        record = cls(**fields)
        if not record._is_sound():
            raise ValueError("a value of it cannot be right")
        return record

    def _is_sound(self) -> bool:
        """Whether every value is what it must be: the file may be damaged, and what it says is believed."""
        nodes = self.nodes
        identities = (self.supervisor, *self.helpers, *(node.identity for node in nodes if not node.host))
        texts = [self.cluster, self.file, self.topology, self.uri, self.fan_out, self.stamp]
        texts += [text for node in nodes for text in (node.name, node.role, node.address, node.host)]
        texts += [text for pair in (*self.hosts, self.engine) for text in pair]
        numbers = [self.memory, self.sample, self.stripe, *(one.start for one in identities)]
        numbers += [number for node in nodes for number in (node.pid, node.memory, *(node.range or (0, 0)))]
        spans = self.stop_timeout, self.host_lease
        of_a_guardian = "@" in self.cluster  # which has no logger 0
        return (
            all(type(text) is str for text in texts)
            and all(type(number) is int and number >= 0 for number in numbers)
            and all(type(one.pid) is int and 0 < one.pid <= MAX_PID for one in identities)
            and all(node.range is None or len(node.range) == 2 for node in nodes)
            and all(type(span) in (int, float) and 0 <= span <= MOST_SECONDS for span in spans)
            and type(self.host_encryption) is bool
            and len(self.engine) == 3
            and (of_a_guardian or any(node.name == "logger0" for node in nodes))
        )


class RunDirectory:
    """The paths and the lock; see the top of this file. Raises NotOurs if somebody else's directory is in the place."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = run_directory(name)
        self.state = self.path / "state.json"
        self.uri = self.path / "uri"
        self.control = self.path / "control"
        self.certificates = self.path / "between-hosts"
        self.doors = self.path / "doors"
        self._secret = self.path / "secret"
        self._lock = self.path / "lock"
        self._lock_fd: int | None = None

    def acquire(self, *, wait: bool = False) -> None:
        """Take the lock for as long as this process lives, and with `wait` as soon as it is free. Raises NameInUse,
        NotOurs."""
        while self._lock_fd is None:
            self.path.mkdir(mode=0o700, exist_ok=True)
            check_owner(self.path)
            try:
                fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:  # its owner has just removed the directory
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                os.close(fd)
                raise NameInUse from None
            if self._is_still_there(fd):
                self._lock_fd = fd
            else:
                os.close(fd)

    @property
    def ours(self) -> bool:
        """What is at the path is the directory that this process has the lock of, and not removed, or another's."""
        return self._lock_fd is not None and self._is_still_there(self._lock_fd)

    def make_again(self) -> bool:
        """The directory was removed under this process, which has its lock: make it again, and lock that one; false if
        somebody else was faster."""
        lost, self._lock_fd = self._lock_fd, None
        try:
            self.acquire()
        except (NameInUse, NotOurs, OSError):
            self._lock_fd = lost
            return False
        if lost is not None:
            os.close(lost)
        return True

    def _is_still_there(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self._lock))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let go of the lock in this process; a process forked meanwhile still holds it."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    @property
    def locked(self) -> bool:
        """A supervisor lives."""
        try:
            fd = os.open(self._lock, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def record(self) -> RunRecord | None:
        """What was written down last; None if nothing was, or nothing that can be read."""
        try:
            return RunRecord.from_json(self.state.read_text())
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError, AttributeError):
            return None

    def write_record(self, record: RunRecord) -> None:
        replace_file(self.state, record.to_json().encode())

    def write_uri(self, uri: str) -> None:
        """From now on clients find the cluster."""
        replace_file(self.uri, f"{uri}\n".encode())

    def write_secret(self, secret: bytes) -> None:
        """From now on this user's commands can ask the loggers."""
        replace_file(self._secret, secret, 0o600)

    def secret(self) -> bytes:
        """Of the run that is going on, or was when its supervisor died. Raises OSError."""
        return self._secret.read_bytes()

    def forget(self) -> None:
        """Remove everything but the memory and the lock; nothing that is another's by now."""
        if self._lock_fd is not None and not self.ours:
            return
        left = (path for kind in ("listener-*", "changes*") for path in self.path.glob(kind))
        for path in (self.uri, self.control, self.state, self._secret, *left):
            path.unlink(missing_ok=True)
        for folder in (self.certificates, self.doors):
            for path in (*folder.glob("*"), folder):
                path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)

    @property
    def holds_memory(self) -> bool:
        """An earlier run's, or what is left of it."""
        return claim_path(self.path).exists() or any(self.path.glob("shard*"))

    @property
    def holds_claim(self) -> bool:
        """A whole memory of an earlier run's."""
        return claim_path(self.path).exists()

    def remove(self) -> None:
        """Remove everything, the memory too; nothing that is another's by now. What is left if this process is killed
        meanwhile is no memory any more."""
        if self._lock_fd is not None and not self.ours:
            return
        import shutil  # late: it loads all that unpacks archives

        with suppress(FileNotFoundError):
            claim_path(self.path).rename(unfinished_path(self.path))
        shutil.rmtree(self.path, ignore_errors=True)
