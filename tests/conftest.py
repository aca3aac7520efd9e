"""Fixtures that start real clusters in temporary directories and prove that nothing of them is left."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import certificates
import pytest
from forms import NO_NODES
from harness import Cluster, clusters, commands, need
from hypothesis import settings
from loggers import Loggers, MakeLoggers
from strangers import SIZE, World, proved

from bench.chromium import Chromium
from memcluster.node.native import form
from memcluster.node.topology import names

# What pytest makes of these files is kept for the next run, and the other form, whatever Python may write elsewhere.
sys.dont_write_bytecode = False
LONG = {"test_wheel"}
# Who is started in the background, or with nohup, ignores these, and so would every command that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# No deadline: a shared machine may be slow at any moment. In CI the same examples each time.
settings.register_profile("memcluster", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("memcluster")


def pytest_report_header() -> str:
    """Which form of the data path is tested; MEMCLUSTER_FORM says which one must be."""
    wanted = os.environ.get("MEMCLUSTER_FORM", form())
    if form() != wanted:
        pytest.exit(f"the data path is {form()}, not {wanted}", returncode=1)
    return f"data path: {form()}"


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """With MEMCLUSTER_TESTS=nodes, what meets none: see forms.py."""
    nodes_alone = os.environ.get("MEMCLUSTER_TESTS") == "nodes"
    return True if nodes_alone and collection_path.stem in NO_NODES else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is begun last is waited for with nothing else to do, and the last tests are dealt out in twos: so what takes
    long, or shares what takes long to make, comes first."""
    items.sort(key=lambda item: item.path.stem not in LONG)


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


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    """One browser for all pages of a process of pytest."""
    with Chromium(need("chromium", "chromium")) as browser:
        yield browser


@pytest.fixture(scope="module")
def standing(tmp_path_factory) -> Iterator[World]:
    """One cluster for all strangers of a module."""
    with clusters() as new:
        cluster = new(tmp_path_factory.mktemp("hostile"), memory=str(SIZE))
        cluster.up()
        world = World(cluster)
        yield world
        world.witness.close()


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Of certificates: see certificates.folders."""
    return certificates.folders(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def door(tmp_path_factory, folders) -> Iterator[Cluster]:
    """A cluster whose clients must have certificates of its authority."""
    with clusters() as new:
        tls = {"certificates": str(folders["right"])}
        cluster = new(tmp_path_factory.mktemp("door"), memory="4MiB", tls=tls)
        cluster.up()
        yield cluster


@pytest.fixture
def world(standing) -> Iterator[World]:
    """Where strangers come, and hurt nobody."""
    with proved(standing):
        yield standing


@pytest.fixture
def make_loggers(tmp_path) -> Iterator[MakeLoggers]:
    """Makes the loggers of a cluster of so many servers; they are closed at the end."""
    made: list[Loggers] = []

    def make(count: int = 3, **more) -> Loggers:
        made.append(Loggers(tmp_path, count, **more))
        return made[-1]

    yield make
    for loggers in made:
        loggers.close()
