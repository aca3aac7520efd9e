"""`memcluster fault`: what is to be broken on purpose, in the words of the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import click

from memcluster.client.console import wait_seconds
from memcluster.launcher import completing
from memcluster.launcher.supervision.faultkind import FaultKind
from memcluster.node.nbd.printable import printable


@click.command()
@click.argument("kind", type=click.Choice([*get_args(FaultKind), "list"]))
@click.argument("targets", nargs=-1, metavar="TARGET [PEER]", shell_complete=completing.targets)
@click.option("--for", "span", type=wait_seconds, help="Heal by itself after this time.")
@click.option("--delay", type=wait_seconds, help="With slow: how long each reply waits. [default: 50ms]")
@click.option("--json", "as_json", is_flag=True, help="With list: one JSON array.")
@click.pass_obj
def fault(
    file: Path, kind: str, targets: tuple[str, ...], span: float | None, delay: float | None, as_json: bool
) -> None:
    """Break something on purpose, to see what the cluster makes of it.

    TARGET is a node (server1, logger0), a role as `status` shows it, server or logger for all of
    these, all for every node, owner:OFFSET, the server that holds a byte, or host:NAME,
    another host: kill ends its guardian, partition the way there, the rest is done to its nodes.

    \b
    memcluster fault pause server1 --for 5s     stop a process for 5 s
    memcluster fault kill owner:0x100000        kill -9; with --for, down so long
    memcluster fault slow server --delay 20ms   let each reply wait
    memcluster fault partition server0 server2  cut the link between two
    memcluster fault hang server1               its loop stops turning
    memcluster fault resume server1             end every fault of a node
    memcluster fault resume all                 end every fault
    memcluster fault list                       what is in force, how long
    """
    if kind == "list":
        _list(file, targets, as_json)
        return
    if as_json:
        raise click.UsageError("--json goes with list")
    if delay is not None and kind != "slow":  # said with the words of the command line
        raise click.UsageError(f"--delay goes with slow, not with {kind}")
    if span is not None and kind == "resume":
        raise click.UsageError("--for goes with every fault, but not with resume")
    from memcluster.launcher.fault import fault as break_

    try:
        done = break_(file, kind, targets, span, delay)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(f"{kind}: {', '.join(done)}{f' for {span:g} s' if span else ''}")


def _list(file: Path, targets: tuple[str, ...], as_json: bool) -> None:
    from memcluster.launcher.fault import faults
    from memcluster.launcher.statusview import fault_sentences
    from memcluster.launcher.table import folded, width_of

    if targets:
        raise click.UsageError("list takes no target")
    found = faults(file)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for sentence in fault_sentences(found) or ["no fault is in force"]:
        click.echo(folded(printable(sentence), width_of()))
