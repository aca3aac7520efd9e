"""What each run's cluster was like: its map, kept beside the log for those who read the log when nothing runs any more.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from memcluster.node.cluster_map import ClusterMap, ServerEntry
from memcluster.node.files import make_folder, replace_file


def map_path(folder: Path, run: int) -> Path:
    """Where the map of a run lies, in the folder of the cluster's logs."""
    return folder / f"run-{run:06d}.json"


def keep_map(folder: Path, run: int, cluster: ClusterMap, oldest: int = 0) -> None:
    """Write down the map of a run, and forget those before the oldest that is kept; as far as that can be done."""
    with suppress(OSError):
        make_folder(folder)
        replace_file(map_path(folder, run), cluster.to_json())
        for other in folder.glob("run-*.json"):
            number = other.stem.removeprefix("run-")
            if number.isdecimal() and int(number) < oldest:
                other.unlink()


def read_map(folder: Path, run: int) -> ClusterMap | None:
    """None if there is none that makes sense."""
    try:
        found = json.loads(map_path(folder, run).read_bytes())
        servers = tuple(ServerEntry(one["address"], "", int(one["memory"]), one["role"]) for one in found["servers"])
        stripe = int(found["layout"].get("stripe", 0))
        cluster = ClusterMap(str(found["cluster"]), str(found["topology"]), str(found["fan_out"]), stripe, servers)
        _ = cluster.layout
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return None
    return cluster
