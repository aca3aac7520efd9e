"""Clusters at whose doors clients come with TLS, and what those say and count of who is refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import certificates
import pytest
from harness import TIMEOUT, Cluster, clusters

from memcluster.client.uri import Security, parse_uri
from memcluster.launcher.run.control import ask


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return certificates.folders(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def door(tmp_path_factory, folders) -> Iterator[Cluster]:
    """One that wants certificates of its authority."""
    with clusters() as new:
        tls = {"certificates": str(folders["right"])}
        cluster = new(tmp_path_factory.mktemp("door"), memory="4MiB", tls=tls)
        cluster.up()
        yield cluster


def server0(cluster: Cluster) -> dict:
    return ask(cluster.directory / "control", {"do": "status"}, TIMEOUT)["nodes"][0]


def refused(cluster: Cluster, before: int) -> int:
    """How many server 0 has refused, as soon as that is more than it was: a client may say no first."""
    deadline = time.monotonic() + TIMEOUT
    while (count := server0(cluster)["refused"]) <= before:
        assert time.monotonic() < deadline, "nobody was refused"
    return count


def said(cluster: Cluster) -> str:
    """What server 0 has said for people."""
    return (cluster.folder / "logs" / cluster.name / "server0.out").read_text()


def coming_with(cluster: Cluster, folder: Path | None) -> str:
    """The URI of a client with the certificates of a folder; without TLS if there is none."""
    return str(replace(parse_uri(cluster.uri), tls=Security(str(folder)) if folder else None))
