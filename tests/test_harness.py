"""What the tests stand on: nothing outlives a test, however it ends."""

from __future__ import annotations

import subprocess

import pytest
from harness import ROOT, Cluster, clusters, commands, memcluster_command, run, run_in_small_room


def test_a_cluster_ends_with_a_test_that_fails(tmp_path):
    """One that nobody has remembered, too, and one in the foreground."""
    (tmp_path / "other").mkdir()
    seen: list[Cluster] = []
    processes: list[subprocess.Popen] = []

    def failing() -> None:
        with clusters() as new, commands() as start:
            seen.extend([new(tmp_path), new(tmp_path / "other")])
            seen[0].command("up", "-d")
            processes.append(start(*memcluster_command("up"), cwd=seen[1].folder, stdout=subprocess.PIPE))
            while b"to stop it" not in (line := processes[0].stdout.readline()):
                assert line, "it has ended"
            assert all(cluster.processes() for cluster in seen)
            pytest.fail("in the middle of it")

    with pytest.raises(pytest.fail.Exception, match="in the middle of it"):
        failing()
    assert processes[0].poll() is not None
    assert [cluster.left_behind() for cluster in seen] == [[], []]


def test_a_cluster_that_leaves_something_fails_the_test(tmp_path):
    """It is told and removed."""
    test = clusters()
    cluster = test.__enter__()(tmp_path)
    cluster.directory.mkdir()
    (cluster.directory / "shard9").touch()
    with pytest.raises(AssertionError, match="shard9"):
        test.__exit__(None, None, None)
    assert not cluster.directory.exists()


def test_commands_run_this_checkouts_code(tmp_path, start):
    """Wherever they run, and whatever is installed."""
    code = "import launcher, os; print(os.path.dirname(launcher.__path__[0]), end='')"
    words = [memcluster_command()[0], "-c", code]
    assert run(*words, cwd=tmp_path).stdout.decode() == str(ROOT)
    told, _ = start(*words, cwd=tmp_path, stdout=subprocess.PIPE, text=True).communicate()
    assert told == str(ROOT)


@pytest.mark.parametrize("words", ["--version", "status", "config", "down --wrong", "logs --since never"])
def test_a_forked_command_is_as_one_that_was_executed(tmp_path, words):
    """Its exit code, and what it prints on either output."""
    cluster = Cluster(tmp_path)
    forked = cluster.command(*words.split(), check=False)
    executed = run(*memcluster_command(*words.split()), cwd=tmp_path, check=False)
    assert (forked.returncode, forked.stdout, forked.stderr) == (
        executed.returncode,
        executed.stdout,
        executed.stderr,
    )


def test_a_forked_command_has_a_time_and_is_killed_after_it(tmp_path):
    """It is waited for until nobody can say any more; what it has started is the cluster's, which ends it."""
    with clusters() as new:
        cluster = new(tmp_path)
        cluster.up()
        with pytest.raises(subprocess.TimeoutExpired):
            cluster.command("logs", "--follow", timeout=0.5)
        assert {identity.pid for identity in cluster.processes()} == {*cluster._seen}


def test_a_forked_command_sees_the_environment_of_its_time(tmp_path, monkeypatch):
    monkeypatch.setenv("NAME_OF_IT", "told")
    cluster = Cluster(tmp_path, name="${NAME_OF_IT}")
    assert "name: told" in cluster.command("config").stdout.decode()
    assert cluster.command("up", "-d", check=False, MEMCLUSTER_KILL_AT="1").returncode
    cluster.command("down")  # what the killed one has left
    looked_at = {"PYTHONPROFILEIMPORTTIME": "1"}  # when Python starts
    assert b"import time:" in cluster.command("config", **looked_at).stderr
    monkeypatch.setenv(*looked_at.popitem())
    assert b"import time:" in cluster.command("config").stderr


def test_what_a_script_in_a_small_room_says_is_no_reason_to_skip(tmp_path):
    """Only who may not mount skips: a script that is refused something has failed."""
    assert b"tmpfs" in run_in_small_room(tmp_path, "mount -t tmpfs tmpfs . && mount | grep $PWD").stdout
    with pytest.raises(AssertionError, match="Permission denied"):
        run_in_small_room(tmp_path, "echo Permission denied >&2; exit 1")
