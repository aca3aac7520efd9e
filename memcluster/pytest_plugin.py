"""The pytest plugin: a cluster for a test, or one for the session, and its log where a test fails. See docs/python.md.

pytest loads it wherever memcluster is installed, so it imports nothing of memcluster until a test asks for a cluster.
"""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from memcluster.launcher.cluster import Cluster

LINES = 20
"""Of the merged log, in the report of a failed test."""
_used = pytest.StashKey[list[tuple["Cluster", float]]]()
"""The clusters of a test, and when it got each of them."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "memcluster(**keys): what the fixture `memcluster` starts: the keys of cluster.yaml, such as servers=3, "
        "topology='chain'",
    )


@pytest.fixture(scope="session")
def memcluster_keys() -> dict[str, Any]:
    """Keys of cluster.yaml for every cluster that the fixtures start; for a conftest.py to override."""
    return {}


@pytest.fixture
def memcluster(
    request: pytest.FixtureRequest, memcluster_keys: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """A cluster of the test's own: `@pytest.mark.memcluster(servers=3)` gives its keys."""
    keys = dict(memcluster_keys)
    for mark in reversed(list(request.node.iter_markers("memcluster"))):  # the closest one has the last word
        _check_mark(request.node, mark)
        keys |= mark.kwargs
    with _cluster(keys, tmp_path_factory) as cluster:
        _note(request.node, cluster)
        yield cluster


@pytest.fixture(scope="session")
def _memcluster_of_session(
    memcluster_keys: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    with _cluster(memcluster_keys, tmp_path_factory) as cluster:
        yield cluster


@pytest.fixture
def memcluster_session(request: pytest.FixtureRequest, _memcluster_of_session: Cluster) -> Cluster:
    """One cluster for all tests of the session that ask for it; what a test leaves there the next one finds."""
    if request.node.get_closest_marker("memcluster") and "memcluster" not in request.fixturenames:
        pytest.fail(
            f"{request.node.name}: @pytest.mark.memcluster is for the fixture `memcluster`; the keys of the session's "
            "cluster come from the fixture `memcluster_keys`",
            pytrace=False,
        )
    _note(request.node, _memcluster_of_session)
    return _memcluster_of_session


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """While the cluster still runs, its log is put beside the failure."""
    report = yield
    if report.failed and report.when == "call":
        for cluster, begun in item.stash.get(_used, []):
            report.sections.append((f"the log of cluster {cluster.name}", _tell(item, cluster, begun)))
    return report


def _tell(item: pytest.Item, cluster: Cluster, begun: float) -> str:
    """The last lines of the test's time, and where more is."""
    from memcluster.launcher.cluster import LaunchError

    name = re.sub(r"\W+", "-", item.name).strip("-")[:60]
    path = cluster.file.parent / f"{name}-timeline.html"
    try:
        lines = cluster.log_lines(last=LINES, since=begun)
        cluster.timeline(path, since=begun)
    except (LaunchError, OSError) as error:  # the test has stopped or broken it: that is no second failure
        return f"cannot be shown: {error}"
    return "\n".join([*(lines or ["nothing happened"]), "", f"timeline: {path}"])


def _note(item: pytest.Item, cluster: Cluster) -> None:
    item.stash.setdefault(_used, []).append((cluster, time.time()))


def _check_mark(item: pytest.Item, mark: pytest.Mark) -> None:
    from memcluster.launcher.cluster import check_keywords

    try:
        if mark.args:
            raise TypeError("@pytest.mark.memcluster takes keywords only, such as servers=3")
        check_keywords(mark.kwargs, "@pytest.mark.memcluster")
    except TypeError as error:
        pytest.fail(f"{item.name}: {error}", pytrace=False)


@contextmanager
def _cluster(keys: dict[str, Any], folders: pytest.TempPathFactory) -> Iterator[Cluster]:
    """In a folder that pytest keeps for a while, with cluster.yaml, the merged log and the timelines."""
    from memcluster.launcher.cluster import Cluster, LaunchError

    folder: Path = folders.mktemp("memcluster")
    try:
        cluster = Cluster(folder=folder, **keys)
    except (LaunchError, TypeError) as error:
        pytest.fail(f"the cluster was not started: {error}", pytrace=False)
    with cluster:
        yield cluster
