"""A cluster that a Python program starts, uses, breaks and stops: `with memcluster.Cluster(servers=3) as cluster:`.

It is started by the command `memcluster up`, and asked for its state, its faults and its log as the other commands ask.
So nothing is known here of how a cluster works; here are the temporary folder, the keywords, and errors as exceptions.
"""

from __future__ import annotations

import difflib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypedDict

from memcluster.client.console import EXIT_ERROR
from memcluster.client.discover import DiscoverError, account_of
from memcluster.client.errors import ClusterError
from memcluster.client.memory import Memory, connect

if TYPE_CHECKING:
    from typing import Unpack

    from memcluster.launcher.down import Hosts
    from memcluster.launcher.run.directory import RunRecord

EXIT_NOT_RUNNING, EXIT_IN_USE, EXIT_TIMEOUT = 3, 5, 124
"""As client/console.py has them, which loads click."""
ASK_AGAIN = 1.0
"""Seconds without news after which the state is asked for again: what was done from outside is told by nobody."""
CALL_OFF_WITHIN = 20.0
"""Seconds that `up` has to end when it has been called off."""


class LaunchError(ClusterError):
    """The cluster could not be started, asked or broken: the launcher's own sentences, and in `code` its exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[LaunchError], tuple[str, int]]:
        return type(self), (str(self), self.code)


class Keys(TypedDict, total=False):
    """The keys of cluster.yaml as keywords; docs/configuration.md says what they mean."""

    name: str
    memory: int | str
    servers: int | Sequence[Mapping[str, object]]
    hosts: Sequence[str | Mapping[str, object]]
    engine: str | Mapping[str, object]
    host_lease: float | str
    host_encryption: bool
    topology: str
    fan_out: str
    links: str
    layout: str | Mapping[str, object]
    listen: str
    advertise: str
    insecure_network: bool
    sockets: Mapping[str, object]
    tls: Mapping[str, object]
    user: str
    clients: Mapping[str, object]
    storage: str | os.PathLike[str]
    logs: Mapping[str, object]
    restart: Mapping[str, object]
    metrics: str
    stop_timeout: float | str
    retry_timeout: float | str
    hang_timeout: float | str


class Cluster:
    """Started at once, and ready when the constructor returns; it stops at the end of the `with` block, by `stop()`, or
    when this process is gone, however that ends.

    It is that of a cluster.yaml, `Cluster("cluster.yaml")`, or one of these keywords, the keys of cluster.yaml: it has
    then a temporary name and folder, a port that the system chooses, and 64 MiB by default. A `folder` keeps its
    cluster.yaml and its log. Raises TypeError for a wrong keyword, LaunchError when it does not start.
    """

    def __init__(
        self,
        file: str | os.PathLike[str] | None = None,
        *,
        folder: str | os.PathLike[str] | None = None,
        wait_timeout: float = 60.0,
        **keys: Unpack[Keys],
    ) -> None:
        if file is not None and (keys or folder is not None):
            given = ", ".join([*keys, *(["folder"] if folder is not None else [])])
            raise TypeError(f"Cluster takes a file or keywords, not both (got {os.fspath(file)} and {given})")
        check_keywords(keys, "Cluster", ["folder", "wait_timeout"])
        self._owner = os.getpid()
        self._temporary: Path | None = None
        self._stopped = False
        if file is not None:
            self.file = Path(file).absolute()
        else:
            if folder is None:
                self._temporary = Path(tempfile.mkdtemp(prefix="memcluster-"))
            self.file = Path(self._temporary or folder or ".").absolute() / "cluster.yaml"
        try:
            if file is None:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                self.file.write_text(_document(keys), encoding="utf-8")
            if account := account_of(self.file):
                raise LaunchError(
                    f"{self.file}: a program stays who it is: start the cluster of user {account.name} with "
                    "`memcluster up`, and connect to it",
                    EXIT_ERROR,
                )
            self._start(wait_timeout)
        except BaseException:
            self._remove_folder()
            raise
        record = self._record()
        self.name = record.cluster
        self.uri = record.uri
        """Where clients connect."""

    def __repr__(self) -> str:
        return f"<Cluster {self.name} at {self.uri}{', stopped' if self._stopped else ''}>"

    # -- using -------------------------------------------------------------------------------------------------------

    def connect(self, *, export: str | None = None, timeout: float = 30.0, reconnect: bool = True) -> Memory:
        """Open its memory, as `memcluster.connect` does."""
        return connect(self.uri, export=export, timeout=timeout, reconnect=reconnect)

    def status(self) -> dict[str, Any]:
        """What `memcluster status --json` prints."""
        from memcluster.launcher.status import read_status

        self._check_running()
        with _as_exceptions():
            return read_status(self.file)

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Wait until every process is there and answers, as after a fault. Raises LaunchError when time is up."""
        from memcluster.launcher.run.control import NoAnswer
        from memcluster.launcher.run.control import connect as control
        from memcluster.launcher.run.directory import RunDirectory
        from memcluster.launcher.statusview import verdict

        self._check_running()
        deadline = time.monotonic() + timeout
        try:
            with _as_exceptions():
                stream = control(RunDirectory(self.name).control)
        except NoAnswer:
            raise LaunchError(verdict(self.status()), EXIT_NOT_RUNNING) from None
        try:
            stream.send({"do": "watch"})
            while (status := self.status())["state"] != "running":
                if status["state"] == "stopped":
                    raise LaunchError(verdict(status), EXIT_NOT_RUNNING)
                if time.monotonic() > deadline:
                    raise LaunchError(f"not ready within {timeout:g} s: {verdict(status)}", EXIT_TIMEOUT)
                try:
                    next(stream.frames(min(deadline, time.monotonic() + ASK_AGAIN)), None)
                except NoAnswer:
                    continue
        finally:
            stream.close()

    # -- breaking ----------------------------------------------------------------------------------------------------

    def fault(self, kind: str, *targets: str, seconds: float | None = None, delay: float | None = None) -> list[str]:
        """Break something on purpose, as `memcluster fault` does: `fault("kill", "server1", seconds=2)`,
        `fault("slow", "secondary", delay=0.02)`, `fault("partition", "server0", "server1")`. Returns the names of the
        nodes it was done to. Raises ValueError for words that do not fit, LaunchError where the cluster refuses."""
        from memcluster.launcher.fault import fault

        self._check_running()
        with _as_exceptions():
            return fault(self.file, kind, targets, seconds, delay)

    # -- looking back ------------------------------------------------------------------------------------------------

    def logs(
        self,
        *,
        last: int | None = None,
        since: float | None = None,
        node: str | None = None,
        op: Sequence[str] = (),
        errors: bool = False,
    ) -> list[dict[str, Any]]:
        """The records of the merged log, as `memcluster logs --json` prints them. `since` is a time as time.time()
        gives it; `op` are operations and events, such as "write" and "died"."""
        from memcluster.node.log.text import format_json

        return [json.loads(format_json(entry)) for entry in self._entries(last, since, node, op, errors)]

    def log_lines(self, *, last: int | None = None, since: float | None = None) -> list[str]:
        """The same as lines for people."""
        from memcluster.node.log.text import format_text

        return [format_text(entry) for entry in self._entries(last, since)]

    def timeline(self, path: str | os.PathLike[str], *, last: int = 30_000, since: float | None = None) -> Path:
        """Draw the log as a page, as `memcluster timeline` does; returns where it lies."""
        from memcluster.launcher.log.timeline import make_page

        record = self._record()
        page = make_page(self.name, record.topology, self._entries(last, since), record.fan_out, record.homes)
        Path(path).write_text(page, encoding="utf-8")
        return Path(path)

    def _entries(
        self,
        last: int | None,
        since: float | None,
        node: str | None = None,
        op: Sequence[str] = (),
        errors: bool = False,
    ) -> list[Any]:
        from memcluster.launcher.checked import secret_of
        from memcluster.launcher.log.reader import LogsError, read_log
        from memcluster.node.log.filter import known_operations

        names = [op] if isinstance(op, str) else list(op)
        if unknown := [name for name in names if name.upper() not in known_operations()]:
            raise ValueError(f"there is no {unknown[0]!r}; there are {', '.join(map(str.lower, known_operations()))}")
        moment = None if since is None else int(since * 1e9)
        nodes = [] if node is None else [node]
        record = self._record()
        with _as_exceptions():
            secret = secret_of(record)
        try:
            wanted = {"last": last, "since": moment, "nodes": nodes, "operations": names, "errors": errors}
            return list(read_log(record.logger0.address, secret, **wanted))
        except LogsError as error:
            raise LaunchError(str(error)) from error

    def _record(self) -> RunRecord:
        from memcluster.launcher.checked import running

        self._check_running()
        with _as_exceptions():
            return running(self.file)

    def _check_running(self) -> None:
        if self._stopped:
            raise LaunchError(f"cluster {self.name} is not running: this program has stopped it", EXIT_NOT_RUNNING)

    # -- life --------------------------------------------------------------------------------------------------------

    def stop(self, *, timeout: float | None = None, drain: bool = False) -> None:
        """Stop it, as `memcluster down` does; once is enough. Raises LaunchError if somebody else is at it now."""
        if self._stopped:
            return
        self._down(timeout, drain)
        self._stopped = True
        self._remove_folder()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if os.getpid() == self._owner:  # a fork has not started it
            self.stop()

    def _start(self, wait_timeout: float) -> None:
        """By the command, which says what is wrong; its working directory stays ours, and off its path."""
        words = ["-f", str(self.file), "up", "-d", "--pid", str(os.getpid()), "--wait-timeout", f"{wait_timeout}s"]
        up = subprocess.Popen(
            [sys.executable, "-P", "-m", "memcluster", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is for this process, which then stops the cluster
        )
        try:
            _, said = up.communicate()
        except BaseException:
            up.send_signal(signal.SIGINT)
            try:
                up.communicate(timeout=CALL_OFF_WITHIN)
            except subprocess.TimeoutExpired:
                up.kill()
                up.communicate()
            if up.returncode <= 0:  # it was ready just before that, or had to be killed
                with suppress(LaunchError):
                    self._down(None, False)
            raise
        if up.returncode:
            lines = [line.removeprefix("memcluster: ") for line in said.decode(errors="replace").splitlines()]
            text = "\n".join(lines) or f"`memcluster up` ended with status {up.returncode}"
            raise LaunchError(text, up.returncode)

    def _down(self, timeout: float | None, drain: bool) -> None:
        from memcluster.launcher.checked import name_of
        from memcluster.launcher.down import Busy, NotRunning, down

        with _as_exceptions():
            name = name_of(self.file)
            try:
                down(name, timeout=timeout, drain=drain, tell=lambda _: None, paths=lambda: (), hosts=self._hosts)
            except NotRunning:
                pass
            except Busy:
                raise LaunchError(f"cluster {name} is being started or stopped right now", EXIT_IN_USE) from None

    def _hosts(self) -> Hosts:
        from memcluster.launcher.checked import load
        from memcluster.launcher.down import Hosts

        config = load(self.file, room=False)
        return Hosts(config.hosts, config.engine, config.host_lease, config.host_encryption)

    def _remove_folder(self) -> None:
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)


def check_keywords(given: Mapping[str, object], what: str, more: Sequence[str] = ()) -> None:
    """Raises TypeError, with what is allowed, for a keyword that is none."""
    known = [*Keys.__annotations__, *more]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise TypeError(f"{what} has no keyword {name!r}; {hint}there are {', '.join(known)}")


def _document(keys: Mapping[str, Any]) -> str:
    """cluster.yaml for these keys: a line a key, and JSON, which YAML knows, behind it. Relative paths are of the
    working directory, as everywhere in a program. Raises TypeError for what cannot be written."""
    chosen = {"name": f"tmp-{secrets.token_hex(6)}", "memory": "64MiB", **keys}
    servers = chosen.get("servers")
    if "listen" not in chosen and not (isinstance(servers, Sequence) and "listen" in dict(*servers[:1])):
        chosen["listen"] = "127.0.0.1:0"
    if (storage := os.fspath(chosen.get("storage", "memory"))) != "memory":
        chosen["storage"] = os.path.abspath(storage)
    logs = chosen.get("logs")
    if isinstance(logs, Mapping) and "directory" in logs:
        chosen["logs"] = {**logs, "directory": os.path.abspath(logs["directory"])}
    return "".join(f"{key}: {_written(key, value)}\n" for key, value in chosen.items())


def _written(key: str, value: object) -> str:
    def plain(part: object) -> object:
        if isinstance(part, Mapping):
            return dict(part)
        if isinstance(part, os.PathLike):
            return os.fspath(part)
        raise TypeError(f"Cluster: {key} cannot hold a {type(part).__name__}")

    return json.dumps(value, ensure_ascii=False, default=plain)


@contextmanager
def _as_exceptions() -> Iterator[None]:
    """What ends a command ends a call of ours."""
    from memcluster.client.console import Failure

    try:
        yield
    except Failure as failure:
        raise LaunchError(str(failure), failure.code) from None
    except DiscoverError as error:
        raise LaunchError(str(error), EXIT_NOT_RUNNING) from None
