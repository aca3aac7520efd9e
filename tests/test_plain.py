"""launcher/clusterfile/plain.py: a checked cluster.yaml on its way to the supervisor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memcluster.launcher.clusterfile.config import load
from memcluster.launcher.clusterfile.plain import from_plain, to_plain

FILES = {
    "small": "memory: 1MiB\n",
    "large": """\
name: two
memory: 2MiB
servers: [{memory: 512KiB, listen: 'unix:a'}, {memory: 1536KiB, listen: '[::1]:9'}]
layout: {stripe: 64KiB}
clients: {limit: auto}
storage: data
logs: {level: errors, retain_age: 90m}
metrics: 127.0.0.1:9100
restart: {cap: 1s}
stop_timeout: 500ms
sockets: {mode: 0660}
""",
}


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_what_is_carried_arrives(tmp_path: Path, text: str) -> None:
    """Through JSON: the same description."""
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    config = load(file)
    assert from_plain(json.loads(json.dumps(to_plain(config)))) == config


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("memory", "1MiB", "config.memory cannot be '1MiB'"),
        ("memory", True, "config.memory cannot be True"),
        ("servers", [{}], r"config.servers\[\] must have memory, listen"),
        ("servers", "x", "config.servers cannot be"),
        ("metrics", {"host": 1}, "config.metrics cannot be"),
        ("storage", 7, "config.storage cannot be 7"),
        ("stop_timeout", None, "config.stop_timeout cannot be None"),
        ("other", 1, "config must have"),
    ],
)
def test_what_is_none_is_refused_with_a_sentence(tmp_path: Path, key: str, value: Any, words: str) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(FILES["small"])
    with pytest.raises(ValueError, match=words):
        from_plain(to_plain(load(file)) | {key: value})
