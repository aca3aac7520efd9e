"""Clients that come with TLS, and what server 0 says and counts of those that it refuses."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from harness import TIMEOUT, Cluster

from memcluster.client.uri import Security, parse_uri
from memcluster.launcher.run.control import ask


def server0(cluster: Cluster) -> dict:
    return ask(cluster.directory / "control", {"do": "status"}, TIMEOUT)["nodes"][0]


def refused(cluster: Cluster, before: int) -> int:
    """How many server 0 has refused, as soon as that is more than it was: a client may say no first."""
    deadline = time.monotonic() + TIMEOUT
    while (count := server0(cluster)["refused"]) <= before:
        assert time.monotonic() < deadline, "nobody was refused"
    return count


def said(cluster: Cluster) -> str:
    """What server 0 has said for people, of all that it did before it was asked."""
    server0(cluster)
    return (cluster.folder / "logs" / cluster.name / "server0.out").read_text()


def coming_with(cluster: Cluster, folder: Path | None) -> str:
    """The URI of a client with the certificates of a folder; without TLS if there is none."""
    return str(replace(parse_uri(cluster.uri), tls=Security(str(folder)) if folder else None))
