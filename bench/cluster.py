"""The cluster that is measured: made from a cluster.yaml in a folder of its own, with the defaults but for its keys."""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from bench.peers import MEMORY
from bench.processes import ROOT, Failed, Service, fill, run

_numbers = itertools.count()


class Cluster:
    """A cluster.yaml and the commands on it, those of the checkout at `root`; before each goes the `prefix`, as in
    `ip netns exec …`."""

    def __init__(self, folder: str | Path, prefix: Sequence[str] = (), root: Path = ROOT, **keys: Any) -> None:
        self.folder = Path(folder)
        self.prefix = prefix
        self.root = root
        self._python = sys.executable if root == ROOT else str(root / ".venv" / "bin" / "python")
        # A checkout of before everything was imported as memcluster.… can still be measured beside this one.
        self._module = "memcluster" if (root / "memcluster").is_dir() else "launcher.cli"
        name = f"bench-{os.getpid()}-{next(_numbers)}"
        defaults = {"name": name, "memory": MEMORY, "servers": 1, "listen": "127.0.0.1:0"}
        (self.folder / "cluster.yaml").write_text(yaml.safe_dump(defaults | keys))

    def command(self, *words: str) -> str:
        return run(*self.prefix, self._python, "-m", self._module, *words, cwd=self.folder, root=self.root)

    def up(self) -> None:
        self.command("up", "-d")

    def down(self) -> None:
        self.command("down")

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.command("status", "--json"))
        return status


@contextmanager
def cluster(*, filled: bool = True, prefix: Sequence[str] = (), root: Path = ROOT, **keys: Any) -> Iterator[Service]:
    """A running cluster, as a service whose process is server 0."""
    with tempfile.TemporaryDirectory(prefix="memcluster-bench-") as folder:
        subject = Cluster(folder, prefix, root, **keys)
        try:
            subject.up()
        except BaseException:
            with suppress(Failed):
                subject.down()
            raise
        try:
            status = subject.status()
            service = Service(status["uri"], status["nodes"][0]["pid"])
            if filled:
                fill(service, status["memory"])
            yield service
        finally:
            subject.down()
