"""Fixtures that start real clusters in temporary directories and prove that nothing of them is left."""

from __future__ import annotations

import os

import pytest
from harness import Cluster
from hypothesis import settings

from node.topology import names

# No deadline: a shared machine may be slow at any moment. In CI the same examples each time.
settings.register_profile("memcluster", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("memcluster")


@pytest.fixture(params=names())
def topology(request) -> str:
    """For what must hold in all of them."""
    return request.param


@pytest.fixture
def make_cluster(tmp_path, request):
    """A function that starts a cluster with the given keys of cluster.yaml; each is stopped and checked at the end."""
    clusters: list[Cluster] = []

    def make(**keys) -> Cluster:
        folder = tmp_path / f"cluster{len(clusters)}"
        folder.mkdir()
        cluster = Cluster(folder, **keys)
        clusters.append(cluster)
        cluster.up()
        return cluster

    yield make
    problems = [problem for cluster in clusters for problem in cluster.end()]
    assert not problems, problems
