"""The runs of which a log tells, and where each byte was in each: an `apply` begins another one."""

from __future__ import annotations

import json
from bisect import bisect_right
from pathlib import Path
from typing import Any

from memcluster.launcher.run.maps import read_map
from memcluster.node.layout import Layout, make_layout
from memcluster.simulator.history import Operation
from memcluster.simulator.logrules import routed

UNCERTAIN = "split by one map or by another"


class Runs:
    """`found` are runs as `known` has them, in their order; where nothing is known all had the `first` one's layout.
    Times are the log's."""

    def __init__(self, found: list[dict[str, Any]], first: Layout) -> None:
        self._begins = [run["begin_ns"] for run in found] or [0]
        self._layouts = [make_layout(run["sizes"], run["stripe"]) for run in found] or [first]

    @classmethod
    def read(cls, file: Path, first: Layout) -> Runs:
        return cls(json.loads(file.read_text()) if file.exists() else [], first)

    def at(self, time: int) -> Layout:
        """By which a request was carried out that began then."""
        return self._layouts[self._number(time)]

    def parts(self, operation: Operation, clock: int, slack: int) -> list[Operation]:
        """What a client that routes makes of an operation. One during which another run began may have been split by
        the map of either, or by one after the other: of its parts none need be there."""
        first = self._number(operation.invoked + clock - slack)
        last = self._number(operation.returned + clock + slack) if operation.acknowledged else len(self._layouts) - 1
        layouts = list(dict.fromkeys(self._layouts[first : last + 1]))
        if len(layouts) > 1:
            operation = operation._replace(outcome=UNCERTAIN)
        return [part for layout in layouts for part in routed(layout, operation)]

    def _number(self, time: int) -> int:
        return max(0, bisect_right(self._begins, time) - 1)


def known(listed: bytes, logs: Path) -> list[dict[str, Any]]:
    """Plain data, of what `memcluster logs --runs --json` lists and the maps that lie beside the log."""
    found = []
    for run in json.loads(listed):
        cluster = read_map(logs, run["run"])
        if cluster is not None:
            sizes = [server.memory for server in cluster.servers]
            found.append({"begin_ns": run["begin_ns"], "sizes": sizes, "stripe": cluster.stripe})
    return found
