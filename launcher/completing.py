"""For shells that complete words: the nodes, roles, topologies and operations that may stand in a place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from memcluster.client.discover import DiscoverError, cluster_name

if TYPE_CHECKING:  # it need not be loaded for each word
    from memcluster.launcher.run.directory import NodeRecord


def targets(context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    """Nodes of the cluster that runs, their roles, and words for more of them."""
    found = _nodes(context)
    hosts = [f"host:{node.host}" for node in found if node.host]
    words = [*(node.name for node in found), *(node.role for node in found), "server", "all", "owner:", *hosts]
    return _fitting(words, begun)


def nodes(context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    return _fitting([node.name for node in _nodes(context)], begun)


def topologies(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    from memcluster.node.topology import names

    return _fitting(names(), begun)


def operations(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    from memcluster.node.log.filter import known_operations

    return _fitting([name.lower() for name in known_operations()], begun)


def _nodes(context: click.Context) -> Sequence[NodeRecord]:
    """As they were last started; none where nothing runs."""
    from memcluster.client.discover import cluster_file
    from memcluster.launcher.run.directory import RunDirectory

    file = context.obj if isinstance(context.obj, Path) else cluster_file()
    try:
        record = RunDirectory(cluster_name(file)).record()
    except DiscoverError:
        return ()
    return record.nodes if record else ()


def _fitting(words: list[str] | tuple[str, ...], begun: str) -> list[str]:
    return [word for word in dict.fromkeys(words) if word.startswith(begun)]
