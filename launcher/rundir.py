"""The run directory of a cluster: its lock, what is running, the control socket, and the memory itself.

It lies on tmpfs, one for each name and user, and is gone after `down`. The supervisor holds the lock as long as it
lives, so a free lock beside a record means that a supervisor died; what it left is found in the record.

    lock          held by the supervisor
    state.json    who runs: pid and start time of every process (RunRecord)
    uri           where clients connect; there when the cluster is ready
    control       the supervisor's socket for the command line
    listener-…    the fork server's own
    server1.sock, gates, bell1 …  of the topologies that hand clients' sockets over
    memory.json   what the shards belong to; a shard of another shape is refused, not overwritten
    shard0 …      the memory, unless `storage` is a directory
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from client.discover import run_directory
from launcher.identity import Identity


class NameInUse(Exception):
    """Another supervisor holds the lock."""


class MemoryMismatch(Exception):
    """The shards that lie there belong to a memory of another shape."""


@dataclass(frozen=True)
class NodeRecord:
    """A process as it was last started."""

    name: str
    role: str
    pid: int
    start: int
    address: str
    range: tuple[int, int] | None

    @property
    def identity(self) -> Identity:
        return Identity(self.pid, self.start)


@dataclass(frozen=True)
class RunRecord:
    """What the supervisor writes down, so that others can find and end what it started."""

    cluster: str
    file: str
    topology: str
    memory: int
    uri: str
    stop_timeout: float
    supervisor: Identity
    helpers: tuple[Identity, ...]
    """The fork server and its resource tracker."""
    nodes: tuple[NodeRecord, ...]

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
        return cls(**fields)


class RunDirectory:
    """The paths and the lock; see the top of this file."""

    def __init__(self, name: str) -> None:
        self.path = run_directory(name)
        self.state = self.path / "state.json"
        self.uri = self.path / "uri"
        self.control = self.path / "control"
        self._lock = self.path / "lock"
        self._lock_fd: int | None = None

    def acquire(self) -> None:
        """Take the lock for as long as this process lives. Raises NameInUse."""
        while self._lock_fd is None:
            self.path.mkdir(mode=0o700, exist_ok=True)
            try:
                fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:  # its owner has just removed the directory
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                raise NameInUse from None
            if self._is_still_there(fd):
                self._lock_fd = fd
            else:
                os.close(fd)

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
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def write_record(self, record: RunRecord) -> None:
        _write(self.state, record.to_json())

    def write_uri(self, uri: str) -> None:
        """From now on clients find the cluster."""
        _write(self.uri, uri + "\n")

    def forget(self) -> None:
        """Remove everything but the memory and the lock."""
        for path in (self.uri, self.control, self.state, *self.path.glob("listener-*")):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove everything, the memory too."""
        shutil.rmtree(self.path, ignore_errors=True)


def claim_memory(directory: Path, cluster: str, sizes: list[int], stripe: int) -> None:
    """Make sure that the shards in `directory` are this cluster's, or that there are none. Raises MemoryMismatch."""
    path = directory / "memory.json"
    wanted = {"cluster": cluster, "shards": sizes, "stripe": stripe}
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        strangers = sorted(entry.name for entry in directory.glob("shard*"))
        if strangers:
            raise MemoryMismatch(f"{directory} holds {', '.join(strangers)} but no memory.json") from None
        _write(path, json.dumps(wanted, indent=2))
        return
    except ValueError as error:
        raise MemoryMismatch(f"{path} cannot be read: {error}") from error
    if found != wanted:
        raise MemoryMismatch(f"{directory} holds another memory: {_describe(found)}; this one is {_describe(wanted)}")


def _describe(memory: object) -> str:
    if not isinstance(memory, dict):
        return repr(memory)
    shards = ", ".join(str(size) for size in memory.get("shards", ()))
    return f"cluster {memory.get('cluster')}, shards of {shards} bytes, stripe {memory.get('stripe')}"


def _write(path: Path, text: str) -> None:
    """All or nothing, whenever this process is killed."""
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
