"""`memcluster diff`: what runs held against what is written."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from memcluster.launcher.checked import load, name_of


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@click.option("--wide", is_flag=True, help="Every column, however narrow the terminal is.")
@click.pass_obj
def diff(file: Path, as_json: bool, wide: bool) -> int:
    """Show what runs otherwise than cluster.yaml says now, and what it takes to have that.

    The exit code is 0 if nothing does and 1 if something does, as that of diff(1).
    """
    from memcluster.launcher.changed import changes, explained
    from memcluster.launcher.table import width_of

    config = load(file)
    name_of(file)  # from here on this is the user that the cluster runs as
    found = changes(config)
    if as_json:
        click.echo(json.dumps([asdict(change) for change in found], indent=2))
    elif found:
        click.echo("\n".join(explained(found, config, width_of(wide))))
    else:
        click.echo(f"cluster {config.name} runs as {file.name} says")
    return int(bool(found))
