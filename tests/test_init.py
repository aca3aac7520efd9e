"""`memcluster init`: a cluster.yaml by flags, checked, and never over another one."""

from __future__ import annotations

import pytest
import yaml
from harness import memcluster_command, run


def test_init_writes_a_file_that_up_takes(tmp_path):
    said = run(*memcluster_command("init"), cwd=tmp_path).stdout.decode()
    assert said == "cluster.yaml is written; `memcluster up -d` starts the cluster\n"
    written = yaml.safe_load((tmp_path / "cluster.yaml").read_text())
    assert (written["memory"], written["servers"], written["topology"]) == ("64MiB", 3, "primary-secondary")
    flags = ["--servers", "5", "--topology", "chain", "--memory", "1MiB"]
    flags += ["--listen", "unix:a.sock", "--storage", "kept"]
    run(*memcluster_command("-f", "other.yaml", "init", *flags), cwd=tmp_path)
    config = yaml.safe_load(run(*memcluster_command("-f", "other.yaml", "config"), cwd=tmp_path).stdout)
    assert (len(config["servers"]), config["topology"], config["memory"]) == (5, "chain", "1MiB")
    assert config["listen"] == f"unix:{tmp_path}/a.sock"
    assert config["storage"] == str(tmp_path / "kept")


def test_init_overwrites_nothing(tmp_path):
    (tmp_path / "cluster.yaml").write_text("mine")
    done = run(*memcluster_command("init"), cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        b"memcluster: cluster.yaml is there already: change it, or remove it first\n",
    )
    assert (tmp_path / "cluster.yaml").read_text() == "mine"


def test_init_writes_here_and_not_into_a_folder_above(tmp_path):
    """Where the other commands would find that one's; -f names it all the same."""
    below = tmp_path / "below"
    below.mkdir()
    (tmp_path / "cluster.yaml").write_text("name: above\nmemory: 1MiB\n")
    for words in (["-f", "../cluster.yaml", "init"], ["init", "-f", "../cluster.yaml"]):
        assert b"../cluster.yaml is there already" in run(*memcluster_command(*words), cwd=below, check=False).stderr
    said = run(*memcluster_command("init"), cwd=below).stdout.decode()
    assert said == "cluster.yaml is written; `memcluster up -d` starts the cluster\n"
    assert yaml.safe_load((below / "cluster.yaml").read_text())["memory"] == "64MiB"


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--memory", "much", b"memory"),
        ("--memory", "1MiB: {", b"memory"),
        ("--listen", "nowhere", b"listen"),
        ("--topology", "ring", b"primary-secondary"),
        ("--servers", "0", b"1<=x<=64"),
    ],
)
def test_a_wrong_choice_is_told_and_no_file_is_left(tmp_path, flag, value, words):
    done = run(*memcluster_command("init", flag, value), cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert words in done.stderr
    assert b"Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
