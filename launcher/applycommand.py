"""`memcluster apply`: what runs becomes what is written."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memcluster.client.console import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_TIMEOUT, Failure, size, wait_seconds
from memcluster.client.discover import command, outline, stamp, varies
from memcluster.launcher.checked import load, name_of
from memcluster.launcher.output import moving

if TYPE_CHECKING:
    from memcluster.launcher.clusterfile.difference import Change
    from memcluster.launcher.clusterfile.settings import ClusterConfig


@click.command("apply")
@click.option("--abort", is_flag=True, help="Go back to what there was before the apply that is under way.")
@click.option("--dry-run", is_flag=True, help="Only show what would be done, and whether it can be.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--discard", is_flag=True, help="Where memory becomes smaller, give up what lies in the part that goes.")
@click.option("--rate", type=size, help="Bytes a second that are moved while the cluster serves, at most (100MiB).")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--timeout", type=wait_seconds, default="60s", show_default=True, help="Longest wait.")
@click.option("--wide", is_flag=True, help="Every column, however narrow the terminal is.")
@click.pass_obj
def apply_file(
    file: Path,
    abort: bool,
    dry_run: bool,
    yes: bool,
    discard: bool,
    rate: int | None,
    as_json: bool,
    timeout: float,
    wide: bool,
) -> None:
    """Have the cluster that runs be as cluster.yaml says now.

    All that is written, or nothing: what cannot be changed while the cluster runs is refused. `memcluster diff` shows
    what would change, too.
    """
    from memcluster.launcher.changed import changes, listed
    from memcluster.launcher.table import width_of

    if abort:
        _abort(file, timeout)
        return
    as_read = stamp(file)
    config = load(file)
    if varies(outline(file)):
        as_read = ""
    name_of(file)  # from here on this is the user that the cluster runs as
    found = changes(config)
    _refuse(file, found, several=bool(config.hosts))
    if not as_json and found:
        click.echo("\n".join(listed(found, width_of(wide))))
    if not dry_run and found and not yes:
        _confirm(config.name)
    if rate == 0:
        raise click.BadParameter("0 bytes a second would move nothing", param_hint="--rate")
    words = {"stamp": as_read, "dry": dry_run, "discard": discard, "rate": rate}
    answer = _order(config, words, timeout) if found else {"applied": []}
    if as_json:
        told = {"cluster": config.name, "changes": [asdict(change) for change in found], "applied": not dry_run}
        click.echo(json.dumps(told | {"note": answer.get("note", "")}, indent=2))
    elif not found:
        click.echo(f"cluster {config.name} runs as {file.name} says")
    elif dry_run:
        click.echo(f"nothing was changed; `{command(file, 'apply')}` changes that")
    else:
        click.echo(f"applied: {', '.join(answer['applied'])}")
    if answer.get("note") and not as_json:
        click.echo(f"note: {answer['note']}")


def _refuse(file: Path, found: Sequence[Change], *, several: bool) -> None:
    """Raises Failure, with a line for each key that cannot be changed while the cluster runs."""
    from memcluster.client.discover import contents
    from memcluster.launcher.clusterfile.difference import OVER_HOSTS, REASONS, How
    from memcluster.launcher.clusterfile.positions import Problem, parse

    places = parse(contents(file)).values
    problems = []
    for change in found:
        if change.how is How.NEXT_START:
            where = tuple(change.key.split("."))
            line, column = places.get(where) or places.get(where[:1]) or (0, 0)
            reason = REASONS.get(where[0], OVER_HOSTS if several else "it cannot be changed while the cluster runs")
            problems.append(Problem(str(file), line, column, f"{change.key}: {reason}"))
    if problems:
        down, up = command(file, "down"), command(file, "up -d")
        lines = [*map(str, sorted(problems)), f"nothing was changed; `{down}`, then `{up}`, starts it as it is written"]
        raise Failure("\n".join(lines), EXIT_ERROR, prefix="")


def _confirm(name: str) -> None:
    """Raises Failure, and UsageError where nobody can be asked."""
    if not sys.stdin.isatty():
        raise click.UsageError("nobody can be asked here whether it shall be done: say --yes")
    if not click.confirm(f"apply this to {name}, which runs?"):
        raise Failure("nothing was changed")


def _order(config: ClusterConfig, words: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Have the supervisor do it, and wait until it is done. Raises Failure."""
    from memcluster.launcher.clusterfile.plain import to_plain
    from memcluster.launcher.run.control import NoAnswer, connect
    from memcluster.launcher.run.directory import RunDirectory

    left = f"it goes on; `{command(config.file, 'status')}` shows how far it is"
    try:
        with closing(connect(RunDirectory(config.name).control)) as stream, moving() as show:
            stream.send({"do": "apply", "config": to_plain(config), **words})
            for answer in stream.frames(time.monotonic() + seconds):
                if "progress" in answer:
                    show(answer["progress"])
                elif "error" in answer:
                    raise Failure(answer["error"], answer.get("code", EXIT_ERROR))
                else:
                    return answer
    except NoAnswer as problem:
        raise Failure(f"not applied within {seconds:g} s ({problem}): {left}", EXIT_TIMEOUT) from None
    except KeyboardInterrupt:
        back = f"`{command(config.file, 'apply --abort')}` goes back as long as bytes are moved"
        raise Failure(f"{left}, {back}", EXIT_INTERRUPTED) from None
    raise Failure(f"the supervisor ended before it was done; `{command(config.file, 'up -d')}` goes on with it")


def _abort(file: Path, seconds: float) -> None:
    """Have it go back, and wait until the cluster runs again. Raises Failure."""
    from memcluster.launcher.checked import ask_supervisor
    from memcluster.launcher.run.control import NoAnswer, connect
    from memcluster.launcher.run.directory import RunDirectory

    name = name_of(file)
    ask_supervisor(name, file, {"do": "status"})  # and so say it well if there is none
    try:
        with closing(connect(RunDirectory(name).control)) as stream:
            stream.send({"do": "watch"})
            happenings = stream.frames(time.monotonic() + seconds)
            next(happenings)  # from here on all is told
            ask_supervisor(name, file, {"do": "abort"})
            if not any(happening["event"] in ("running", "abandoned") for happening in happenings):
                raise Failure("the supervisor ended before it was done")
    except NoAnswer as problem:
        raise Failure(f"it is not back within {seconds:g} s ({problem})", EXIT_TIMEOUT) from None
    click.echo(f"cluster {name} is what it was before")
