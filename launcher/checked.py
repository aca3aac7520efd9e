"""The cluster that a command is about. What runs is known from its record: cluster.yaml may have changed since, and is
checked only where nothing runs (which takes longer than all that most commands have to do)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcluster.client.console import EXIT_NOT_RUNNING, EXIT_USAGE, Failure
from memcluster.client.discover import DiscoverError, account_of, check_folder, cluster_name, command
from memcluster.launcher.privileges import become
from memcluster.launcher.run.control import NoAnswer, ask
from memcluster.launcher.run.directory import RunDirectory, RunRecord

if TYPE_CHECKING:
    from memcluster.launcher.clusterfile.settings import ClusterConfig

ANSWER_WITHIN = 10.0
"""Seconds a supervisor has to answer."""


def load(file: Path, settings: Sequence[tuple[str, str]] = (), *, room: bool = True) -> ClusterConfig:
    """All that cluster.yaml says, and `settings` in its place; what is wrong with it is told with a sentence a line.
    Whether this machine has `room` for it is for those to ask who would have it run here. Raises Failure."""
    from memcluster.launcher.clusterfile import config  # late: pydantic

    try:
        return config.load(file, settings=settings, available=None if room else 1 << 62)
    except config.ConfigError as error:
        raise Failure(str(error), EXIT_USAGE, prefix="") from error


def name_of(file: Path) -> str:
    """The cluster's name, whatever else the file says; a command of root's becomes the user that the cluster runs as.
    Raises Failure, and NotRunning if a cluster of another folder has it."""
    try:
        account = account_of(file)
        name = cluster_name(file)
    except DiscoverError:
        account, name = None, load(file).name  # says what is wrong with the file
    if account is not None:
        become(account)
    check_folder(name, file)
    return name


def running(file: Path) -> RunRecord:
    """Who runs and can be asked for the log. Raises Failure, NotRunning."""
    name = name_of(file)
    record = RunDirectory(name).record()
    starts = f"`{command(file, 'up -d')}` starts it"
    if record is not None:
        if record.supervisor.alive or record.logger0.identity.alive:
            return record
        hint = f": its supervisor is dead; {starts} again, and its log goes on"
    else:
        merged = load(file, room=False).logs.directory / f"{name}.log"
        hint = f"; {starts}" + (f"; the log of its last run is {merged}" if merged.exists() else "")
    raise Failure(f"cluster {name} is not running{hint}", EXIT_NOT_RUNNING)


def ask_supervisor(name: str, file: Path, head: dict[str, Any]) -> dict[str, Any]:
    """What the supervisor of the cluster of this name, which `file` describes, answers. Raises Failure."""
    run = RunDirectory(name)
    try:
        answer = ask(run.control, head, ANSWER_WITHIN)
    except NoAnswer as problem:
        if run.locked:
            raise Failure(f"the supervisor of {name} does not answer: {problem}") from None
        hint = f"`{command(file, 'up -d')}` starts it"
        raise Failure(f"cluster {name} is not running; {hint}", EXIT_NOT_RUNNING) from None
    if "error" in answer:
        raise Failure(answer["error"])
    return answer


def secret_of(record: RunRecord) -> bytes:
    """What its loggers ask for. Raises Failure."""
    run = RunDirectory(record.cluster)
    try:
        return run.secret()
    except OSError as error:
        raise Failure(f"{error.filename}: {error.strerror}; without it no logger answers") from error
