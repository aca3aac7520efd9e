"""Adding a topology means adding one file: nothing else knows the name of one, and a new one works everywhere."""

from __future__ import annotations

import ast
import json
import shutil

from harness import ROOT, memcluster_command, run

from memcluster.node.topology import load, names

PACKAGES = ("node", "launcher", "client")
NEW = '''"""A topology of the test: like primary-secondary, with other names for the roles."""
from memcluster.node.topologies.primary_secondary import Primary, Secondary
from memcluster.node.topology import Topology

TOPOLOGY = Topology(
    roles={"first": Primary, "rest": Secondary}, links=lambda count: [(0, server) for server in range(1, count)]
)
'''


def test_nothing_else_knows_the_name_of_a_topology_or_of_a_role():
    """Outside of their own files one of them stands in one place: the default of cluster.yaml. (What is no logger is a
    server everywhere, whatever its role.)"""
    known = {word for name in names() for word in (name, name.replace("-", "_"), *load(name).roles)} - {"server"}
    found = []
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if path.parent.name != "topologies":
                constants = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
                found += [(path.name, node.value) for node in constants if node.value in known]
    assert found == [("topology.py", "primary-secondary")]


def test_one_file_is_a_topology(tmp_path, new_cluster):
    """A cluster of it starts, is written and read, broken, mended, measured and stopped, and its log is read."""
    code = tmp_path / "code"
    shutil.copytree(ROOT / "memcluster", code / "memcluster", ignore=shutil.ignore_patterns("__pycache__"))
    (code / "memcluster" / "node" / "topologies" / "brand_new.py").write_text(NEW)
    folder = tmp_path / "cluster"
    folder.mkdir()
    cluster = new_cluster(folder, topology="brand-new")

    def command(*words: str) -> bytes:
        return cluster.command(*words, PYTHONPATH=str(code)).stdout

    command("up", "-d")
    cluster.remember()
    with cluster.connect() as memory:
        memory.pwrite(b"new" * 1000, (1 << 20) // 3 - 1500)
        command("fault", "kill", "rest")
        assert memory.pread(3000, (1 << 20) // 3 - 1500) == b"new" * 1000
    status = json.loads(command("status", "--json"))
    assert status["topology"] == "brand-new"
    assert [node["role"] for node in status["nodes"][:3]] == ["first", "rest", "rest"]
    assert b"WRITE" in command("logs", "--op", "write")
    assert b"write" in command("stats", "--over", "10m").lower()
    command("down")
    assert cluster.left_behind() == []
    words = ["--topology", "brand-new", "--for", "100ms", "--servers", "2", "--json", "--plot", "plot.svg"]
    found = json.loads(run(*memcluster_command("compare", *words), cwd=folder, PYTHONPATH=str(code)).stdout)
    assert [case["fan_out"] for case in found["cases"]] == ["parallel", "serial"]
    refused = run(*memcluster_command("compare", "--topology", "x"), cwd=folder, check=False, PYTHONPATH=str(code))
    assert b"there are brand-new, chain" in refused.stderr
