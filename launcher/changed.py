"""Whether cluster.yaml still says what runs: an edited file changes nothing by itself, and nobody should have to find
that out by waiting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcluster.client.console import Failure
from memcluster.client.discover import command, stamp
from memcluster.launcher.checked import load
from memcluster.launcher.run.control import NoAnswer, ask
from memcluster.launcher.run.directory import RunDirectory, RunRecord
from memcluster.launcher.table import folded, table

if TYPE_CHECKING:
    from memcluster.launcher.clusterfile.settings import ClusterConfig
    from memcluster.launcher.difference import Change

ANSWER_WITHIN = 5.0
"""Seconds a supervisor has to answer."""


def changes(config: ClusterConfig) -> list[Change]:
    """What differs between the cluster that runs under this name and this description. Raises NoAnswer."""
    from memcluster.launcher.clusterfile.written import dump
    from memcluster.launcher.difference import differences

    answer = ask(RunDirectory(config.name).control, {"do": "config"}, ANSWER_WITHIN)
    if "config" not in answer:
        raise NoAnswer(str(answer.get("error", "it does not say what it runs")))
    return differences(answer["config"], dump(config))


def explained(found: Sequence[Change], config: ClusterConfig, width: int = 0) -> list[str]:
    """A table of what differs and what comes of it, and what has to be done for it to hold."""
    from memcluster.launcher.difference import reshapes

    rows = [["KEY", "RUNS", "WRITTEN", "MEANS"]]
    rows += [[each.key, shown(each.running), shown(each.written), each.means] for each in found]
    lines = table(rows, importance=("MEANS",), width=width)
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


def shown(value: Any) -> str:
    """A value as cluster.yaml has it."""
    return "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def note(file: Path, record: RunRecord) -> str:
    """A sentence for `status` if the file has been changed in a way that matters; else nothing."""
    if not record.stamp or record.stamp == stamp(file):
        return ""
    try:
        found = changes(load(file))
    except NoAnswer:
        return ""
    except Failure:
        return f"{file.name} was changed and cannot be used: `{command(file, 'config')}` says why"
    if not found:
        return ""
    keys = ", ".join(change.key for change in found)
    return f"{file.name} was changed, and what runs was not ({keys}): `{command(file, 'diff')}`"
