"""What each run's cluster was like: its map, kept beside the log for those who read the log when nothing runs any more.
"""

from __future__ import annotations

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
    from memcluster.client.cluster_map import parse_document  # late: it loads what connects
    from memcluster.client.errors import ClusterError
    from memcluster.client.uri import Target

    try:
        found = parse_document(map_path(folder, run).read_bytes(), Target(path=str(folder)))
        servers = tuple(
            ServerEntry(one["address"], "", one["memory"], one["role"], str(one.get("host", "")))
            for one in found["servers"]
        )
        stripe = found["layout"].get("stripe", 0)
        cluster = ClusterMap(found["cluster"], found["topology"], found["fan_out"], stripe, servers)
        _ = cluster.layout
    except (OSError, ClusterError, ValueError, KeyError):
        return None
    return cluster if servers else None
