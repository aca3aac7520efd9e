"""Fixtures that start real clusters in temporary directories and prove that nothing of them is left."""

from __future__ import annotations

import itertools
import os

import pytest
from harness import Cluster, clusters, commands
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
def new_cluster():
    """Makes a cluster in a folder, with the given keys of cluster.yaml, and does not start it: see harness.clusters."""
    with clusters() as new:
        yield new


@pytest.fixture
def make_cluster(tmp_path, new_cluster):
    """As `new_cluster`, in a folder of its own, and starts it."""
    numbers = itertools.count()

    def make(**keys) -> Cluster:
        folder = tmp_path / f"cluster{next(numbers)}"
        folder.mkdir()
        cluster = new_cluster(folder, **keys)
        cluster.up()
        return cluster

    return make


@pytest.fixture
def start():
    """Starts a command in the background, which does not outlive the test: see harness.commands."""
    with commands() as start:
        yield start
