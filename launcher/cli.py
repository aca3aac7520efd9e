"""The command `memcluster`: words to functions, errors to sentences and exit codes."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memcluster.client.console import (
    EXIT_DEGRADED,
    EXIT_DIFFERS,
    EXIT_ERROR,
    EXIT_IN_USE,
    EXIT_NOT_RUNNING,
    EXIT_USAGE,
    PATH,
    Commands,
    Failure,
    run,
    unwind,
    wait_seconds,
)
from memcluster.client.discover import STDIN, cluster_file, command, contents, located, new_file
from memcluster.client.stdio import silence
from memcluster.launcher import nodecommands, seecommands
from memcluster.launcher.applycommand import apply_file
from memcluster.launcher.checked import load, name_of
from memcluster.launcher.comparecommand import compare
from memcluster.launcher.diffcommand import diff
from memcluster.launcher.faultcommand import fault
from memcluster.launcher.habits import HINTS
from memcluster.launcher.live.watchcommand import watch
from memcluster.launcher.log import commands as logcommands
from memcluster.launcher.output import happening_line, show_again
from memcluster.launcher.run.identity import Identity
from memcluster.launcher.simulatecommand import simulate
from memcluster.launcher.speech import SPEECH
from memcluster.launcher.statusview import status_table, verdict
from memcluster.launcher.table import width_of
from memcluster.node.native import form
from memcluster.node.tls.credentials import CA
from memcluster.node.topology import DEFAULT, names

if TYPE_CHECKING:
    from memcluster.launcher.clusterfile.settings import ClusterConfig


Setting = tuple[str, str]
"""A key of cluster.yaml and its value, as they are written on the command line."""
SERVERS = click.IntRange(1, 64)
"""So many a cluster may have."""
TROUBLE = ("gave-up", "died", "failed", "late", "lost", "unresponsive", "uncollected")
"""Happenings that are told on stderr."""


NAMED = "memcluster.launcher.cli.named"
"""In a context's meta: whether somebody has said which file is meant."""


def _take_file(context: click.Context, file: Path) -> None:
    context.obj = file
    context.meta[NAMED] = True


@click.group(cls=Commands, file_given=_take_file, hints=HINTS, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-f", "--file", metavar="FILE", type=PATH,
              help="The cluster's description, - for standard input (also MEMCLUSTER_FILE). [default: cluster.yaml or "
              "cluster.yml, here or in a folder above]")  # fmt: skip
@click.version_option(package_name="memcluster", message=f"%(prog)s %(version)s ({form()})")
@click.pass_context
def cli(context: click.Context, file: Path | None) -> None:
    """Start, watch and stop a cluster of processes that serves one flat memory over NBD."""
    context.obj = cluster_file() if file is None else file
    context.meta[NAMED] = file is not None


def _setting(text: str) -> Setting:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise click.BadParameter(f"{text!r}: write KEY=VALUE, such as memory=128MiB or layout.stripe=64KiB")
    return key, value


def _scale(text: str) -> Setting:
    key, value = _setting(text)
    if key != "servers":
        raise click.BadParameter(f"only servers can be scaled: write servers=5 (got {text!r})")
    SERVERS(value)
    return key, value


_settings = click.option("--set", "settings", metavar="KEY=VALUE", type=_setting, multiple=True,
                         help="As if cluster.yaml said so, such as layout.stripe=64KiB; may be repeated.")  # fmt: skip


@cli.command()
@click.option("--memory", default="64MiB", show_default=True, metavar="SIZE", help="Bytes in all.")
@click.option("--servers", type=SERVERS, default=3, show_default=True, help="That share them.")
@click.option("--topology", type=click.Choice(names()), default=DEFAULT, show_default=True, help="Who answers clients.")
@click.option("--listen", default="127.0.0.1:10809", show_default=True, metavar="ADDRESS", help="Or unix:PATH.")
@click.option("--storage", default="memory", show_default=True, metavar="DIRECTORY", help="Where the bytes are kept.")
@click.pass_context
def init(context: click.Context, /, **choices: Any) -> None:
    """Write a cluster.yaml to begin with; one that is there is not overwritten."""
    from memcluster.launcher.init import write

    file: Path = context.obj if context.meta[NAMED] else new_file()
    if file == STDIN:
        raise click.UsageError("init writes a file: name it with -f")
    write(file, **choices)
    click.echo(f"{file} is written; `{command(file, 'up -d')}` starts the cluster")


@cli.command()
@click.argument("folder", metavar="[DIR]", default="certificates", type=PATH)
@click.option("--host", "hosts", multiple=True, help="Another name or address of the server's; "
              "may be repeated.")  # fmt: skip
@click.option("--days", type=click.IntRange(1, 3650), default=30, show_default=True, help="For which they are valid.")
def certificates(folder: Path, hosts: tuple[str, ...], days: int) -> None:
    """Make certificates to try TLS with, in DIR: an authority's, the server's and a client's, with their keys."""
    from memcluster.launcher.certificates import make

    for path in make(folder, hosts, days):
        click.echo(path)
    click.echo(f"for cluster.yaml: `tls: {{certificates: {folder}}}`; clients on other machines need {CA} and theirs")


@cli.command("up")
@click.option("-d", "--detach", is_flag=True, help="Return when the cluster is ready; it goes on in the background.")
@click.option("--wait-timeout", type=wait_seconds, default="60s", show_default=True, help="Longest wait until ready.")
@click.option("--pid", type=click.IntRange(min=1), help="Stop when the process PID is gone, as `tail --pid` does.")
@click.option("--scale", metavar="servers=N", type=_scale, help="So many servers, for this run.")
@_settings
@click.pass_obj
def start(
    file: Path, detach: bool, wait_timeout: float, pid: int | None, scale: Setting | None, settings: tuple[Setting, ...]
) -> int:
    """Start the cluster."""
    if os.pardir in file.parts:
        click.echo(f"the cluster of {located(file)}")
    tell = _printer(file, detach)
    owner = None if pid is None else _process(pid)
    settings += (scale,) if scale else ()
    if file == STDIN or (file.exists() and not file.is_file()):
        with suppress(OSError):  # said when it is read
            contents(file)
    if not detach:
        unwind(signal.SIGTERM, signal.SIGHUP)  # until the supervisor has its own way of taking them
        return _supervise(file, lambda: load(file, settings), wait_timeout, owner, tell, None)
    from memcluster.launcher.background import in_background

    return in_background(
        lambda: load(file, settings),
        lambda load, told, leave: _supervise(file, load, wait_timeout, owner, told, leave),
        tell,
    )


def _process(pid: int) -> Identity:
    """The process that has this pid now. Raises Failure."""
    found = Identity.of(pid)
    if found is None or not found.alive:
        raise Failure(f"there is no process {pid}\nnothing was started")
    return found


def _supervise(
    file: Path,
    load: Callable[[], ClusterConfig],
    wait_timeout: float,
    owner: Identity | None,
    tell: Callable[[dict[str, Any]], None],
    leave: Callable[[Path], None] | None,
) -> int:
    """Start the cluster and be its supervisor, until it is stopped; `leave` sends what it says then to a file."""
    from memcluster.launcher.supervision import sockets
    from memcluster.launcher.up import AlreadyRunning, CannotStart, up

    def go_away(cluster: ClusterConfig) -> None:
        if leave is not None:
            leave(cluster.logs.directory / cluster.name / "supervisor.out")

    try:
        return up(file, load, wait_timeout=wait_timeout, owner=owner, tell=tell, leave=go_away)
    except AlreadyRunning as running:
        cluster, record = running.config, running.record
        if record is not None and record.file != str(cluster.file):
            state = "" if record.supervisor.alive else ", whose supervisor is dead"
            raise Failure(
                f"the name {cluster.name!r} is in use by the cluster of {record.file} (supervisor pid "
                f"{record.supervisor.pid}){state}: stop that one, or give this one another name",
                EXIT_IN_USE,
            ) from None
        from memcluster.launcher.status import read_status

        found = read_status(file)
        if found["supervisor"] is None or found["state"] not in ("running", "degraded"):
            raise Failure(f"cluster {cluster.name} is being started or stopped right now", EXIT_IN_USE) from None
        if found["state"] == "degraded":
            raise Failure(f"already running, but {verdict(found)}", EXIT_DEGRADED) from None
        if owner is not None:
            raise Failure(
                f"cluster {cluster.name} is already running, and would not stop with process {owner.pid}: stop it "
                f"first with `{command(file, 'down')}`",
                EXIT_IN_USE,
            ) from None
        click.echo(f"cluster {cluster.name} is already running: {found['uri']} (to stop it: {command(file, 'down')})")
        return _told_changes(cluster)
    except sockets.CannotListen as error:
        code = EXIT_IN_USE if isinstance(error, sockets.AddressTaken) else EXIT_ERROR
        raise Failure(f"{error}\nnothing was started", code) from error
    except CannotStart as error:
        raise Failure(str(error)) from error


def _told_changes(cluster: ClusterConfig) -> int:
    """Say what of the description does not hold for the cluster that runs; the exit code."""
    from memcluster.launcher.changed import changes, explained

    try:
        found = changes(cluster)
    except Failure:
        return 0  # it is being stopped: nothing to hold against anything
    if found:
        click.echo("\n".join(["but not as it is written now:", *explained(found, cluster)]), err=True)
    return EXIT_DIFFERS if found else 0


@cli.command()
@click.option("-t", "--timeout", type=wait_seconds, help="Longest time for the stop; then SIGKILL. "
              "[default: stop_timeout]")  # fmt: skip
@click.option("--drain", is_flag=True, help="Let present clients go on until they leave; let no new ones in.")
@click.pass_obj
def down(file: Path, timeout: float | None, drain: bool) -> int:
    """Stop the cluster gracefully and collect its log."""
    from memcluster.launcher.down import Busy, Hosts, NotRunning
    from memcluster.launcher.down import down as stop

    def paths() -> list[str]:
        return [server.listen.path for server in load(file, room=False).servers if server.listen.path]

    def hosts() -> Hosts:
        config = load(file, room=False)
        return Hosts(config.hosts, config.engine, config.host_lease, config.host_encryption)

    name = name_of(file)
    try:
        return stop(name, timeout=timeout, drain=drain, tell=_printer(file, detach=True), paths=paths, hosts=hosts)
    except NotRunning:
        raise Failure(f"cluster {load(file, room=False).name} is not running", EXIT_NOT_RUNNING) from None
    except Busy:
        raise Failure(f"cluster {name} is being started or stopped right now", EXIT_IN_USE) from None


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--watch", is_flag=True, help="Again every second, until Ctrl-C.")
@click.option("--wide", is_flag=True, help="Every column, however narrow the terminal is.")
@click.pass_obj
def status(file: Path, as_json: bool, watch: bool, wide: bool) -> int:
    """Show every process of the cluster; works when the supervisor is dead, too."""
    from memcluster.launcher.status import exit_code, read_status

    def show() -> str:
        found = read_status(file)
        return json.dumps(found) if as_json else status_table(found, width_of(wide))

    if watch:
        show_again(show, live=sys.stdout.isatty() and not as_json)
        return 0
    found = read_status(file)
    click.echo(json.dumps(found, indent=2) if as_json else status_table(found, width_of(wide)))
    return exit_code(found)


for seencommand in seecommands.COMMANDS:
    cli.add_command(seencommand)
for nodecommand in nodecommands.COMMANDS:
    cli.add_command(nodecommand)
cli.add_command(fault)
cli.add_command(compare)
cli.add_command(watch)
cli.add_command(diff)
cli.add_command(simulate)
cli.add_command(apply_file)
for logcommand in logcommands.COMMANDS:
    cli.add_command(logcommand)


@cli.command("config")
@click.option("--json-schema", is_flag=True, help="The schema of cluster.yaml, for editors.")
@click.option("--kubernetes", is_flag=True, help="What `kubectl apply -f -` takes, where hosts are pods.")
@click.option("-q", "--quiet", is_flag=True, help="Only check: print what is wrong, and nothing else.")
@_settings
@click.pass_obj
def show_config(
    file: Path, json_schema: bool, kubernetes: bool, quiet: bool, settings: tuple[Setting, ...]
) -> None:
    """Check the file and print it with every default filled in."""
    from memcluster.launcher.clusterfile import config as configuration
    from memcluster.launcher.clusterfile.written import dump

    if json_schema:
        click.echo(json.dumps(configuration.json_schema(), indent=2))
    else:
        config = load(file, settings, room=not kubernetes)
        if kubernetes:
            _show_manifests(config, quiet)
        elif not quiet:
            click.echo(dump(config), nl=False)
        for notice in config.notices:
            click.echo(f"note: {notice}", err=True)


def _show_manifests(config: ClusterConfig, quiet: bool) -> None:
    from memcluster.launcher.hosts.manifests import secret_of, text

    if not config.hosts or config.engine.name != "kubernetes":
        example = f"hosts: [{config.name}-0, {config.name}-1] and engine: kubernetes"
        raise Failure(f"{config.file} is for no pods: write {example}", EXIT_USAGE)
    manifests = text(config)
    if quiet:
        return
    click.echo(manifests, nl=False)
    if secret := secret_of(config):
        source = config.tls.certificates or config.tls.psk
        made = f"`kubectl create secret generic {secret} --from-file={source}`"
        click.echo(f"note: the files of tls are to be in a Secret: {made}", err=True)


@cli.command()
def guardian() -> int:
    """Start the nodes of a cluster on this host; `up` has it run there."""
    from memcluster.launcher.hosts import guard

    return guard.main()


def main() -> None:
    """The entry point."""
    run(cli, "memcluster", _explain)


def _explain(error: Exception) -> Failure | None:
    from memcluster.client.discover import NotOurs, NotRunning

    if isinstance(error, NotRunning):
        return Failure(str(error), EXIT_NOT_RUNNING)
    return Failure(str(error)) if isinstance(error, NotOurs) else None


def _printer(file: Path, detach: bool) -> Callable[[dict[str, Any]], None]:
    stop_command = command(file, "down") + ("" if detach else "   (or Ctrl-C here)")

    def tell(happening: dict[str, Any]) -> None:
        if line := happening_line(happening, stop_command):
            stream = sys.stderr if happening["event"] in TROUBLE or "error" in happening else sys.stdout
            if detach:
                try:
                    click.echo(line, file=stream)
                except OSError:  # a cluster does not depend on who reads about it, or on room for that
                    silence(stream)
            else:  # by the supervisor itself, whose loop goes on when the terminal takes nothing
                SPEECH.say(line, stream)

    return tell


if __name__ == "__main__":
    main()
