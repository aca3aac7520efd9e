"""`memcluster up`: take the name, check everything, take the ports, become the supervisor."""

from __future__ import annotations

import errno
import gc
import os
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcluster.client.account import Account
from memcluster.client.discover import (
    DiscoverError,
    account_in,
    command,
    name_in,
    of_another_folder,
    outline,
    stamp,
    varies,
)
from memcluster.launcher.privileges import CannotBecome, as_root, become, borrow, is_another
from memcluster.launcher.run import leftovers
from memcluster.launcher.run.claiming import claim_memory
from memcluster.launcher.run.directory import NameInUse, RunDirectory, RunRecord
from memcluster.launcher.run.identity import Identity
from memcluster.launcher.run.memory import MemoryMismatch, Shape
from memcluster.launcher.run.steps import step
from memcluster.launcher.speech import SPEECH
from memcluster.launcher.supervision import sockets
from memcluster.launcher.supervision.forkserver import start_fork_server, stop_fork_server
from memcluster.node import topology
from memcluster.node.files import make_folder
from memcluster.node.tls.credentials import CA, SERVER_CERTIFICATE, SERVER_KEY
from memcluster.node.transport.loop import Loop
from memcluster.node.zygote import raise_descriptor_limit

if TYPE_CHECKING:  # they take a while to load, and the fork server need not wait for it
    from memcluster.launcher.clusterfile.settings import ClusterConfig
    from memcluster.launcher.hosts.hosts import Hosts
    from memcluster.launcher.supervision.places import Place

Tell = Callable[[dict[str, Any]], None]


class AlreadyRunning(Exception):
    """The name is taken by a living supervisor, or by the memory that a dead one in another folder has left; `record`
    is None while it has only just begun."""

    def __init__(self, config: ClusterConfig, record: RunRecord | None) -> None:
        self.config = config
        self.record = record
        super().__init__(config, record)


class CannotStart(Exception):
    """The memory that lies there is not this cluster's, or the log cannot be kept; says what to do."""


def up(
    file: Path,
    load: Callable[[], ClusterConfig],
    *,
    wait_timeout: float,
    owner: Identity | None = None,
    tell: Tell,
    leave: Callable[[ClusterConfig], None] = lambda _: None,
) -> int:
    """Start the cluster of `file`, be its supervisor, and tell what happens; returns the exit code when it has been
    stopped, which the end of `owner` does, too. `load` reads and checks the file, `leave` is called when nothing that
    is wrong with it or with the machine can keep the cluster from being started. Raises AlreadyRunning, CannotStart,
    sockets.CannotListen, and what `load` does.

    The fork server, which takes as long to load as the checks, is started first; nothing comes from it before them.
    """
    gc.disable()  # loading makes much and no garbage
    raise_descriptor_limit()
    as_read = stamp(file)
    try:
        document = outline(file)
        name = name_in(document, file)
        if varies(document):
            as_read = ""  # for another environment the file as it stands describes another cluster
        account = account_in(document, file)
    except DiscoverError:
        document, name, account = {}, load().name, None  # says what is wrong with the file
    try:
        if account is not None and not is_another(account):
            account = None
        if account is not None:
            borrow(account)
    except CannotBecome as error:
        raise CannotStart(str(error)) from error
    run = RunDirectory(name)
    # What ends this process waits while it takes the directory, and then leaves none that is empty.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    try:
        run.acquire()
        if of_another_folder(name, file):
            raise NameInUse
        found_memory = run.holds_memory
    except NameInUse:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        with as_root():  # cluster.yaml may be root's alone
            config = load()
        raise AlreadyRunning(config, run.record()) from None
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        raise
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        step()
        _end_leftovers(run, tell)
        step()
        if account is None:  # else when this process is that user, and no more
            start_fork_server(run.path, *_modules(document))
        step()
        try:
            from setproctitle import setproctitle  # while the fork server loads what the nodes need

            from memcluster.launcher.supervision.supervisor import Supervisor

            config, found, listeners, shape, hosts = _prepare(load, run, account, wait_timeout)
            leave(config)
            if account is not None:
                become(account)
                start_fork_server(run.path, *_modules(document))
        except BaseException:
            stop_fork_server()
            SPEECH.finish()
            raise
    except BaseException:  # a Ctrl-C, too
        if not found_memory:
            run.remove()
        raise
    setproctitle(f"memcluster {config.name}: supervisor")
    gc.freeze()
    gc.enable()
    try:
        supervisor = Supervisor(
            config, run, found, listeners, shape, tell, stamp=as_read, keep_memory=found_memory, hosts=hosts
        )
        return supervisor.run(wait_timeout, owner)
    finally:
        stop_fork_server()
        step()
        SPEECH.finish()


def _modules(document: dict[str, Any]) -> list[str]:
    """What the nodes need of their topology."""
    name = document.get("topology", topology.DEFAULT)
    return [topology.module(name)] if name in topology.names() else []


def _prepare(
    load: Callable[[], ClusterConfig], run: RunDirectory, account: Account | None, seconds: float
) -> tuple[ClusterConfig, Sequence[Place], sockets.Listeners, Shape, Hosts | None]:
    """Everything that can fail before the first node is started. What others may hold comes first, the claim on a
    directory last: an `up` that is refused has claimed none. Nothing is read as root but cluster.yaml and what it says
    of TLS, which servers that are started again read as the account."""
    from memcluster.launcher.supervision.places import listening, places

    with as_root():
        config = load()
        found = places(config, run)
        listeners = sockets.bind_all(listening(config, found, account.uid if account else -1))
    step()
    hosts: Hosts | None = None
    try:
        if account is not None:
            _check_keys(config, account)
        if config.hosts:
            hosts = start_hosts(config, run)
        shape = _prepare_directories(config, run, found, account, hosts, seconds)
    except BaseException:
        if hosts is not None:
            hosts.end(keep=run.holds_claim)
            hosts.close()
        with as_root():
            sockets.release_all(listeners)
        raise
    step()
    return config, found, listeners, shape, hosts


def start_hosts(config: ClusterConfig, run: RunDirectory) -> Hosts:
    """Have a guardian run on every other host. Raises CannotStart."""
    from memcluster.launcher.hosts.doors import door_files
    from memcluster.launcher.hosts.hosts import HostError, Hosts

    try:
        hosts = Hosts(
            Loop(),
            config.name,
            config.hosts,
            config.engine,
            run,
            topology=config.topology,
            lease=config.host_lease,
            encrypted=config.host_encryption,
            doors=partial(door_files, config),
        )
        try:
            hosts.start()
        except BaseException:
            hosts.close()
            raise
    except HostError as error:
        raise CannotStart(str(error)) from error
    except OSError as error:
        raise CannotStart(f"{error.filename}: {error.strerror}") from error
    return hosts


def _end_leftovers(run: RunDirectory, tell: Tell) -> None:
    record = run.record()
    if record is not None:
        for name in leftovers.end(record):
            tell({"event": "leftover", "name": name})
        run.forget()


def _prepare_directories(
    config: ClusterConfig,
    run: RunDirectory,
    found: Sequence[Place],
    account: Account | None,
    hosts: Hosts | None,
    seconds: float,
) -> Shape:
    def elsewhere(memory: str, made: bool) -> None:
        if hosts is not None:
            _prepare_hosts(config, found, hosts, memory, made, seconds)

    directory = config.storage or run.path
    folders = config.logs.directory, config.logs.directory / config.name, directory
    try:
        for folder in folders:
            _make_folder(folder, account)
        sizes = [place.memory for place in found]
        at = [place.host for place in found] if hosts else ()
        return claim_memory(directory, config.name, sizes, config.stripe, at, elsewhere)
    except MemoryMismatch as error:
        remedy = f"`{command(config.file, 'down')}` discards it"
        if config.storage:
            remedy = "put back what belongs there, or choose another directory"
        raise CannotStart(f"{error}; {remedy}") from error
    except OSError as error:
        remedy = ""
        if error.errno == errno.EPERM:
            remedy = f"; choose a folder of {account.name}'s own" if account else "; choose a folder of your own"
        raise CannotStart(f"{error.filename or directory}: {error.strerror}{remedy}") from error


def _prepare_hosts(
    config: ClusterConfig, found: Sequence[Place], hosts: Hosts, memory: str, made: bool, seconds: float
) -> None:
    """Have the other hosts find or make their part of the memory, and take the addresses. Raises CannotStart."""
    from memcluster.launcher.hosts.hosts import HostError

    storage = "" if config.storage is None else str(config.storage)
    try:
        hosts.prepare(
            found,
            memory=memory,
            made=made,
            storage=storage,
            logs=str(config.logs.directory),
            hang_timeout=config.hang_timeout,
            seconds=seconds,
        )
    except HostError as error:
        raise CannotStart(str(error)) from error


def _check_keys(config: ClusterConfig, account: Account) -> None:
    """Raises CannotStart if the account cannot read what TLS needs."""
    names = SERVER_CERTIFICATE, SERVER_KEY, *((CA,) if config.tls.verify else ())
    files = [config.tls.certificates / name for name in names] if config.tls.certificates else []
    for file in (*files, *([config.tls.psk] if config.tls.psk else [])):
        if config.tls.mode != "off" and not os.access(file, os.R_OK):
            raise CannotStart(f"{file} cannot be read by user {account.name}, who the servers run as")


def _make_folder(folder: Path, account: Account | None) -> None:
    """Where only root may make one, root makes it for the account, which must get there. Raises OSError."""
    try:
        make_folder(folder)
    except PermissionError as error:
        if account is None or error.errno != errno.EACCES:
            raise
        with as_root():
            make_folder(folder, (account.uid, account.gid))
        make_folder(folder)
