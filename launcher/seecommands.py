"""`memcluster ls`, `events` and `completion`: what runs, what happens there, and words for the shell."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import get_completion_class

from memcluster.client.console import EXIT_NOT_RUNNING, Failure
from memcluster.client.discover import NotOurs, command, run_names
from memcluster.launcher.checked import name_of
from memcluster.node.nbd.printable import printable_all

if TYPE_CHECKING:
    from memcluster.launcher.run.directory import RunDirectory

PROGRAMS = ("memcluster", "memclient")
ANSWER_WITHIN = 2.0
"""Seconds a supervisor has to say how its cluster is."""


@click.command("ls")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@click.option("--wide", is_flag=True, help="Every column, however narrow the terminal is.")
def list_clusters(as_json: bool, wide: bool) -> None:
    """Show which clusters of this user run, where, and since when."""
    from memcluster.launcher.output import format_uptime
    from memcluster.launcher.table import table, width_of

    found = [each for name in run_names() if (each := _cluster(name)) is not None]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    rows = [["NAME", "STATE", "UPTIME", "URI", "FILE"]]
    rows += [
        [each["cluster"], each["state"], format_uptime(each["uptime_s"]), each["uri"] or "-", each["file"] or "-"]
        for each in found
    ]
    if found:
        lines = table(rows, right=("UPTIME",), importance=("URI", "FILE", "UPTIME"), width=width_of(wide))
        click.echo("\n".join(lines))
    else:
        click.echo("no cluster runs")


def _cluster(name: str) -> dict[str, Any] | None:
    """What its record says; nothing if somebody else's folder is in the place, or if it has gone meanwhile."""
    from memcluster.launcher.run.directory import RunDirectory

    try:
        run = RunDirectory(name)
    except NotOurs:
        return None
    record, locked = run.record(), run.locked
    if not run.path.exists():
        return None
    state = _state(run) if locked else "supervisor dead"
    return {
        "cluster": name,
        "state": state,
        "uri": record.uri if record else None,
        "file": record.file if record else None,
        "uptime_s": round(record.supervisor.age, 3) if record and locked else 0.0,
    }


def _state(run: RunDirectory) -> str:
    """As its supervisor tells it; without the word of one that does not answer, what its folder shows."""
    from memcluster.launcher.run.control import NoAnswer, ask

    try:
        return str(ask(run.control, {"do": "status"}, ANSWER_WITHIN)["state"])
    except (NoAnswer, KeyError):
        return "no answer" if run.uri.exists() else "starting"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="JSON lines.")
@click.pass_obj
def events(file: Path, as_json: bool) -> None:
    """Show what happens to the nodes from now on: deaths, restarts, faults, the stop.

    The first line (watched) says that it has begun. It ends with the cluster, or by Ctrl-C.
    """
    from memcluster.launcher.run.control import NoAnswer, connect
    from memcluster.launcher.run.directory import RunDirectory

    name = name_of(file)
    try:
        stream = connect(RunDirectory(name).control)
    except NoAnswer:
        hint = f"`{command(file, 'up -d')}` starts it"
        raise Failure(f"cluster {name} is not running; {hint}", EXIT_NOT_RUNNING) from None
    stream.send({"do": "watch"})
    for told in stream.frames(None):
        now = datetime.now().astimezone().isoformat(timespec="milliseconds")
        if as_json:
            click.echo(json.dumps({"time": now, **told}))
        else:
            happening = printable_all(told)
            words = happening.get("text") or happening.get("uri") or happening.get("path") or ""
            click.echo(f"{now}  {happening['event']:<11}  {happening.get('name', ''):<9}  {words}".rstrip())


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what completes words in a shell: `eval "$(memcluster completion bash)"`."""
    complete = get_completion_class(shell)
    assert complete is not None
    for program in PROGRAMS:
        click.echo(complete(context.command, {}, program, f"_{program.upper()}_COMPLETE").source())


COMMANDS = (list_clusters, events, completion)
