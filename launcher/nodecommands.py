"""`memcluster stop`, `start` and `restart`: nodes that are down because somebody wants it so."""

from __future__ import annotations

import time
from pathlib import Path

import click

from memcluster.client.console import EXIT_ERROR, EXIT_TIMEOUT, Failure, wait_seconds
from memcluster.launcher import completing

DONE = {"stop": "stopped", "start": "ready", "restart": "ready"}
"""What happens to a node at the end of it."""
AS_A_WHOLE = {
    "stop": "`memcluster down` stops the cluster",
    "start": "`memcluster up` starts the cluster",
    "restart": "`memcluster down`, then `up`, has it begin anew",
}


def planned(file: Path, what: str, nodes: tuple[str, ...], seconds: float) -> list[str]:
    """Do it, and wait until it is done; returns the names of the nodes. Raises Failure, NotRunning."""
    from memcluster.launcher.checked import ask_supervisor, name_of
    from memcluster.launcher.run.control import NoAnswer, connect
    from memcluster.launcher.run.directory import RunDirectory

    if not nodes:
        raise click.UsageError(f"{what} which nodes? Say server1, logger0, a role, or all; {AS_A_WHOLE[what]}")
    cluster = name_of(file)
    ask_supervisor(cluster, file, {"do": "status"})  # and so say it well if there is none
    stream = connect(RunDirectory(cluster).control)
    try:
        stream.send({"do": "watch"})
        happenings = stream.frames(time.monotonic() + seconds)
        next(happenings)  # from here on all is told
        answer = ask_supervisor(cluster, file, {"do": "plan", "what": what, "nodes": list(nodes)})
        waiting = dict.fromkeys(answer["waiting"])
        while waiting:
            happening = next(happenings, {"event": "gone"})
            event, name = happening["event"], happening.get("name", "")
            if event == DONE[what]:
                waiting.pop(name, None)
            elif event == "failed" and name in waiting:
                raise Failure(f"{name} failed: {happening['text']}", EXIT_ERROR)
            elif event in ("draining", "gone"):
                raise Failure("the cluster is being stopped", EXIT_ERROR)
    except NoAnswer as problem:
        late = ", ".join(waiting)
        raise Failure(f"{late} not {DONE[what]} within {seconds:g} s ({problem})", EXIT_TIMEOUT) from None
    finally:
        stream.close()
    done: list[str] = answer["done"]
    return done


def _command(what: str, text: str) -> click.Command:
    @click.command(what, help=text)
    @click.argument("nodes", nargs=-1, metavar="NODE...", shell_complete=completing.targets)
    @click.option("-t", "--timeout", type=wait_seconds, default="60s", show_default=True, help="Longest wait.")
    @click.pass_obj
    def command(file: Path, nodes: tuple[str, ...], timeout: float) -> None:
        done = planned(file, what, nodes, timeout)
        click.echo(f"{DONE[what]}: {', '.join(done)}")

    return command


MEANT = "NODE is a node (server1, logger0), a role as `status` shows it, server or logger for all of these, or all."
COMMANDS = (
    _command(
        "stop",
        "Stop nodes, until `start`.\n\nNothing is lost, no restart is counted, and clients wait as they do for a "
        f"server that restarts. {MEANT}",
    ),
    _command("start", f"Start nodes that are down.\n\nThey are stopped, failed, or killed and kept down. {MEANT}"),
    _command("restart", f"Stop nodes and start them again at once.\n\nNo restart is counted. {MEANT}"),
)
