"""`memcluster logs`, `timeline` and `stats`: which part of the log is wanted, and in what form it is shown."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from memcluster.client.console import Failure, seconds
from memcluster.launcher import completing
from memcluster.node.nbd.printable import printable

F = TypeVar("F", bound=Callable[..., Any])


def _time(value: str) -> int:
    from memcluster.launcher.log.reader import parse_since

    try:
        return parse_since(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _range(value: str) -> tuple[int, int]:
    from memcluster.client.units import parse_size

    offset, colon, length = value.partition(":")
    try:
        span = parse_size(offset), parse_size(length) if colon else 1
    except ValueError as error:
        raise click.BadParameter(f"{error}; write OFFSET:LENGTH, such as 0x1000:4KiB") from error
    if not span[1]:
        raise click.BadParameter("a range of no bytes; write OFFSET:LENGTH, such as 0x1000:4KiB")
    return span


def _operation(value: str) -> str:
    from memcluster.node.log.filter import known_operations

    if value.upper() not in known_operations():
        raise click.BadParameter(f"there is no {value!r}; there are {', '.join(map(str.lower, known_operations()))}")
    return value.upper()


def _request(value: str) -> int:
    from memcluster.node.log.record import parse_identifier

    try:
        return parse_identifier(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _count(least: int) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        from memcluster.node.log.filter import MAX_LAST

        return click.IntRange(least, MAX_LAST).convert(value, None, None)

    return convert


def _tail(value: Any) -> int | None:
    """As docker has it: a number, or `all`."""
    return None if value == "all" else _count(0)(value)


_OPTIONS = (
    click.argument("nodes", metavar="[NODE]...", nargs=-1, shell_complete=completing.nodes),
    click.option("--since", metavar="T", type=_time, help="From T on: 5m (ago), 04:32:35, or 2026-01-31T12:00:00."),
    click.option("--until", metavar="T", type=_time, help="What started at T or before."),
    click.option("--node", "more_nodes", metavar="NODE", multiple=True,
                 shell_complete=completing.nodes, help="As NODE."),
    click.option("--run", metavar="N", type=click.IntRange(min=1), help="Of run N; `logs --runs` lists them."),
    click.option("--all-runs", is_flag=True, help="Of all runs that are kept. [default: the newest]"),
    click.option("--client", metavar="N", type=click.IntRange(min=1), help="The requests and events of one client."),
    click.option("--op", "operations", metavar="NAME", type=_operation, multiple=True,
                 shell_complete=completing.operations,
                 help="One operation, such as write, or event, such as died; again for more."),
    click.option("--slower-than", "slower", type=seconds, help="What took longer, such as 1ms."),
    click.option("--errors", is_flag=True, help="What failed, and events that mean trouble."),
    click.option("--range", "span", metavar="OFFSET:LENGTH", type=_range, help="Who touched these bytes?"),
    click.option("--request", metavar="ID", type=_request, help="One request with its pieces."),
)  # fmt: skip


def _filters(command: F) -> F:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _wanted(options: dict[str, Any]) -> dict[str, Any]:
    """The options as launcher.log.reader.Wanted has them."""
    slower, nodes = options.pop("slower"), (*options.pop("nodes"), *options.pop("more_nodes"))
    return {**options, "nodes": nodes, "slower": None if slower is None else int(slower * 1e9)}


def _tell(sentence: str) -> None:
    click.echo(f"memcluster: {printable(sentence)}", err=True)


def _tell_of_stopped_logs(name: str) -> None:
    """What a server could not write is counted in its log when it can again; until then only the server knows."""
    from memcluster.launcher.output import stopped_logs
    from memcluster.launcher.run.control import NoAnswer, ask
    from memcluster.launcher.run.directory import RunDirectory

    try:
        status = ask(RunDirectory(name).control, {"do": "status"}, 1.0)
    except NoAnswer:
        return  # the supervisor is dead or busy, but the loggers may have the log
    for sentence in stopped_logs(status):
        _tell(f"{sentence}: what happens there now is not in it")


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens from now on.")
@click.option("-n", "--tail", "--last", "last", type=_tail, metavar="N", help="The last N records.")
@_filters
@click.option("--json", "as_json", is_flag=True, help="JSON lines.")
@click.option("--trace", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False),
              help="Write the records as a trace for Perfetto and chrome://tracing.")  # fmt: skip
@click.option("--runs", is_flag=True, help="List the runs of which something is kept.")
@click.pass_obj
def logs(
    file: Path,
    /,
    follow: bool,
    last: int | None,
    as_json: bool,
    trace: Path | None,
    runs: bool,
    run: int | None,
    all_runs: bool,
    request: int | None,
    **options: Any,
) -> int:
    """Show the merged log: of what runs, through logger 0; of a run that is over, from the segments that are kept.

    NODE is a node, such as server1: what it did, and what happened to it.
    """
    import shutil

    from memcluster.launcher.log.reader import LogsError, render, tree
    from memcluster.launcher.log.source import open_log, runs_table
    from memcluster.node.log.record import format_identifier

    if runs:
        click.echo(runs_table(file, as_json=as_json))
        return 0
    if trace is not None and (follow or as_json):
        raise click.UsageError("--trace goes neither with --follow nor with --json")
    if follow and (run is not None):
        raise click.UsageError("--follow goes on with the run that is going on; --run is for one that is over")
    source = open_log(file, run, all_runs=all_runs, follow=follow, told=_tell)
    wanted = source.checked(_wanted(options))
    if source.running:
        _tell_of_stopped_logs(source.cluster)
    output = sys.stdout.fileno() if follow else None
    batches = source.read_batches(follow=follow, output=output, last=last, request=request, **wanted)
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else 0
    colour = terminal and not os.environ.get("NO_COLOR")
    gc.set_threshold(100_000)  # records are many and never garbage in circles: a fifth of the time otherwise
    try:
        if trace is not None:
            from memcluster.launcher.log.trace import write_trace

            count = write_trace(trace, (entry for batch in batches for entry in batch))
            click.echo(f"{count} records in {trace}: open it in https://ui.perfetto.dev or chrome://tracing")
        elif request is not None and not (follow or as_json):
            story = [entry for batch in batches for entry in batch]
            if not story:
                raise Failure(f"the log has no request {format_identifier(request)}")
            sys.stdout.write(tree(story, colour=colour, width=width))
        else:
            for text in render(batches, as_json=as_json, colour=colour, width=width):
                sys.stdout.write(text)
                if follow:
                    sys.stdout.flush()
    except LogsError as error:
        raise Failure(str(error)) from error
    except OSError as error:
        if trace is None or isinstance(error, BrokenPipeError):
            raise
        raise Failure(f"{trace} cannot be written: {error.strerror}") from error
    return 0


@click.command()
@click.option("-o", "--output", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False),
              help="[default: CLUSTER-timeline.html]")  # fmt: skip
@click.option("-n", "--tail", "--last", "last", type=_count(1), metavar="N", default=30_000, show_default=True,
              help="The last N records.")  # fmt: skip
@_filters
@click.pass_obj
def timeline(
    file: Path, /, output: Path | None, last: int, run: int | None, all_runs: bool, **options: Any
) -> int:
    """Draw a stretch of the log as a page: who did what when, and who asked whom."""
    from memcluster.launcher.log.reader import LogsError
    from memcluster.launcher.log.source import open_log
    from memcluster.launcher.log.timeline import make_page

    source = open_log(file, run, all_runs=all_runs, told=_tell)
    wanted = source.checked(_wanted(options))
    path = output or Path(f"{source.cluster}-timeline.html")
    try:
        entries = (entry for batch in source.read_batches(last=last, **wanted) for entry in batch)
        page = make_page(source.cluster, source.topology, entries, source.fan_out, source.homes)
        path.write_text(page, encoding="utf-8")
    except LogsError as error:
        raise Failure(str(error)) from error
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror}") from error
    click.echo(f"{path}: open it in a browser")
    return 0


@click.command()
@click.option("--over", metavar="TIME", type=seconds, help="Of the last TIME. [default: 10s; of a run that is over, "
              "all of it]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--watch", is_flag=True, help="Again every second, until Ctrl-C.")
@click.option("--wide", is_flag=True, help="Every column, however narrow the terminal is.")
@click.option("--run", metavar="N", type=click.IntRange(min=1), help="Of run N; `logs --runs` lists them.")
@click.pass_obj
def stats(file: Path, /, over: float | None, as_json: bool, watch: bool, wide: bool, run: int | None) -> int:
    """Show how often, how much and how fast: by node and operation, from the log."""
    import json

    from memcluster.launcher.log.reader import LogsError
    from memcluster.launcher.log.source import open_log
    from memcluster.launcher.log.stats import stats_table
    from memcluster.launcher.output import show_again
    from memcluster.launcher.table import width_of

    if watch and run is not None:
        raise click.UsageError("--watch is for what runs; --run is for a run that is over")

    def show(indent: int | None = None) -> str:
        try:
            found = open_log(file, run, follow=watch, told=_tell).stats(over)
        except LogsError as error:
            raise Failure(str(error)) from error
        return json.dumps(found, indent=indent) if as_json else stats_table(found, width_of(wide))

    if watch:
        show_again(show, live=sys.stdout.isatty() and not as_json)
    else:
        click.echo(show(2))
    return 0


COMMANDS = (logs, timeline, stats)
