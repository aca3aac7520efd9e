"""A real cluster against a bytearray while its memory gets one shape after the other: whatever is done to both, before,
while and after bytes move, they hold the same bytes. A history has one connection from its beginning to its end.

hypothesis makes up the histories. Each costs some starts of a cluster, so they are few and short;
MEMCLUSTER_HISTORIES has more of them tried.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from harness import TIMEOUT, Cluster, clusters, memcluster_command
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from memcluster.node.topology import names

HISTORIES = int(os.environ.get("MEMCLUSTER_HISTORIES", "1"))
pytestmark = pytest.mark.timeout(120 + 120 * HISTORIES)

SIZE = 6 << 20
KIB = 1024
SHAPES: list[dict[str, Any]] = [
    {"servers": 4, "layout": {"stripe": "4KiB"}},
    {"servers": 3},
    {"servers": 1},
    {"servers": 2, "layout": {"stripe": "64KiB"}},
    {"servers": [{"memory": size} for size in (100_001, 4_000_000, SIZE - 4_100_001)]},
    {"servers": [{"memory": f"{size}KiB"} for size in (512, 4096, 1536)], "layout": {"stripe": "512KiB"}},
]
SETTINGS = settings(
    max_examples=HISTORIES,
    stateful_step_count=14,
    deadline=None,
    print_blob=True,
    derandomize=HISTORIES == 1,
    suppress_health_check=list(HealthCheck),
)

offsets = st.integers(0, SIZE - 1)
lengths = st.one_of(st.integers(1, 5000), st.integers(1, 256).map(lambda pages: pages * 4096))
shapes, rates = st.sampled_from(SHAPES), st.sampled_from(["4MiB", "16MiB", ""])
ranges = st.builds(lambda offset, length: (offset, min(length, SIZE - offset)), offsets, lengths)


class Machine(RuleBasedStateMachine):
    """`model` is what the memory must hold; `applying` is the command that gives it another shape."""

    def __init__(self, cluster: Cluster, start: Callable[..., subprocess.Popen[bytes]]) -> None:
        super().__init__()
        self.cluster = cluster
        self.start = start
        # Only where clients route do they have to connect again, which is the library's to do.
        self.memory = cluster.connect(reconnect=cluster.keys["topology"] == "client-routed")
        self.memory.zero(SIZE, 0)
        self.model = bytearray(SIZE)
        self.applying: subprocess.Popen[bytes] | None = None
        self.called_off = False

    @initialize(shape=shapes, rate=rates, seed=st.integers(0, 1 << 16))
    def move_something(self, shape: dict[str, Any], rate: str, seed: int) -> None:
        """In every history, however short."""
        self.write((SIZE // 3, SIZE // 2), seed)
        self.reshape(shape, rate)
        self.write_here_and_there(seed)

    @rule(where=ranges, seed=st.integers(0, 1 << 16))
    def write(self, where: tuple[int, int], seed: int) -> None:
        offset, length = where
        data = random.Random(seed).randbytes(length)
        self.memory.pwrite(data, offset)
        self.model[offset : offset + length] = data

    @rule(seed=st.integers(0, 1 << 16))
    def write_here_and_there(self, seed: int) -> None:
        places = random.Random(seed)
        for _ in range(200):
            self.write((places.randrange(SIZE - 600), 1 + places.randrange(600)), places.randrange(1 << 16))

    @rule(where=ranges, keep=st.booleans())
    def zero(self, where: tuple[int, int], keep: bool) -> None:
        offset, length = where
        self.memory.zero(length, offset, no_hole=keep)
        self.model[offset : offset + length] = bytes(length)

    @rule(where=ranges)
    def read(self, where: tuple[int, int]) -> None:
        offset, length = where
        assert bytes(self.memory.pread(length, offset)) == self.model[offset : offset + length]

    @rule(shape=shapes, rate=rates)
    def reshape(self, shape: dict[str, Any], rate: str) -> None:
        """Begin it, and go on."""
        self.wait()
        keys = {"layout": "linear"} | shape
        self.cluster.file.write_text(yaml.safe_dump(self.cluster.keys | keys))
        words = ["--rate", rate] if rate else []
        command = memcluster_command("apply", "--yes", *words)
        self.applying = self.start(*command, cwd=self.cluster.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.called_off = False

    @precondition(lambda self: self.applying is not None)
    @rule()
    def call_off(self) -> None:
        """If it has begun, and is not over."""
        done = self.cluster.command("apply", "--abort", check=False)
        self.called_off = self.called_off or not done.returncode

    @rule()
    def wait(self) -> None:
        if self.applying is not None:
            said = self.applying.communicate(timeout=TIMEOUT)
            assert self.applying.returncode == int(self.called_off), said
            self.applying = None
            self.cluster.remember()

    def teardown(self) -> None:
        self.wait()
        assert bytes(self.memory.pread(SIZE, 0)) == self.model
        self.memory.close()


@pytest.fixture(scope="module", params=names())
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with clusters() as new:
        cluster = new(tmp_path_factory.mktemp("moving"), topology=request.param, memory=SIZE)
        cluster.up()
        yield cluster


def test_the_bytes_are_those_of_a_bytearray(cluster: Cluster, start: Callable[..., subprocess.Popen[bytes]]) -> None:
    run_state_machine_as_test(lambda: Machine(cluster, start), settings=SETTINGS)
