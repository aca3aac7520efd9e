"""Whether cluster.yaml still says what runs: an edited file changes nothing by itself, and nobody should have to find
that out by waiting."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcluster.client.console import Failure
from memcluster.client.discover import command, stamp
from memcluster.launcher.checked import ask_supervisor, load
from memcluster.launcher.run.directory import RunRecord
from memcluster.launcher.table import folded, table

if TYPE_CHECKING:
    from memcluster.launcher.clusterfile.difference import Change
    from memcluster.launcher.clusterfile.settings import ClusterConfig


def changes(config: ClusterConfig) -> list[Change]:
    """What differs between the cluster that runs under this name and this description. Raises Failure."""
    from memcluster.launcher.clusterfile.difference import differences
    from memcluster.launcher.clusterfile.written import dump

    return differences(ask_supervisor(config.name, config.file, {"do": "config"})["config"], dump(config))


def explained(found: Sequence[Change], config: ClusterConfig, width: int = 0) -> list[str]:
    """A table of what differs and what comes of it, and what has to be done for it to hold."""
    from memcluster.launcher.clusterfile.difference import How, reshapes

    lines = listed(found, width)
    ways = {change.how for change in found}
    if How.NEXT_START not in ways:
        sees = "clients notice nothing"
        if ways - {How.AT_ONCE}:
            sees = "the cluster pauses for that, and nothing that was answered is lost"
        return [*lines, folded(f"`{command(config.file, 'apply')}` applies that; {sees}", width)]
    down, up = command(config.file, "down"), command(config.file, "up -d")
    if config.storage is not None and not reshapes(found):
        last = f"`{down}`, then `{up}` applies that; the bytes stay in {config.storage}"
    else:
        place = " (with an empty folder as storage)" if config.storage is not None else ""
        last = (
            f"`memclient copy memory: FILE` keeps the bytes, `{down}`, then `{up}`{place} applies that, and `memclient "
            "copy FILE memory:` puts them back"
        )
    return [*lines, folded(last, width)]


def listed(found: Sequence[Change], width: int = 0) -> list[str]:
    """What differs, and what comes of it."""
    rows = [["KEY", "RUNS", "WRITTEN", "MEANS"]]
    rows += [[each.key, shown(each.running), shown(each.written), each.means] for each in found]
    return table(rows, importance=("MEANS",), width=width)


def shown(value: Any) -> str:
    """A value as cluster.yaml has it."""
    return "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def note(file: Path, record: RunRecord) -> str:
    """A sentence for `status` if the file has been changed in a way that matters; else nothing."""
    if not record.stamp or record.stamp == stamp(file) or not os.access(file, os.R_OK):
        return ""  # root's alone, perhaps, where the cluster is another user's: who can read it has `diff`
    try:
        config = load(file)
    except Failure:
        return f"{file.name} was changed and cannot be used: `{command(file, 'config')}` says why"
    try:
        found = changes(config)
    except Failure:
        return ""  # it is being stopped
    if not found:
        return ""
    keys = ", ".join(change.key for change in found)
    return f"{file.name} was changed, and what runs was not ({keys}): `{command(file, 'diff')}`"
