"""What people bring along from docker compose: where the file lies, how it is named on the command line, and words that
memcluster has others for."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import datetime

import click
import pytest
from harness import memclient_command, memcluster_command, run

from memcluster.client.cli import cli as memclient
from memcluster.client.discover import cluster_file, command
from memcluster.launcher.cli import cli as memcluster
from memcluster.launcher.habits import HINTS

FILE = "name: habits\nmemory: 1MiB\n"


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster.yml"])
def test_the_file_is_found_from_folders_below(tmp_path, monkeypatch, name):
    """The nearest one above, by either name; what is here comes first, and MEMCLUSTER_FILE before all."""
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    (tmp_path / name).write_text(FILE)
    monkeypatch.delenv("MEMCLUSTER_FILE", raising=False)
    monkeypatch.chdir(below)
    assert cluster_file().samefile(tmp_path / name)
    assert command(cluster_file(), "down") == "memcluster down"
    (below / "cluster.yml").write_text(FILE)
    assert str(cluster_file()) == "cluster.yml"
    monkeypatch.setenv("MEMCLUSTER_FILE", "other.yaml")
    assert str(cluster_file()) == "other.yaml"
    monkeypatch.setenv("MEMCLUSTER_FILE", "")
    assert str(cluster_file()) == "cluster.yml"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_file_above_that_another_user_has_put_there_is_passed_by(tmp_path, monkeypatch):
    """Everybody may write into /tmp, and a file says where logs and shards are written."""
    below = tmp_path / "mine"
    below.mkdir()
    (tmp_path / "cluster.yaml").write_text(FILE)
    os.chown(tmp_path / "cluster.yaml", 12345, -1)
    monkeypatch.delenv("MEMCLUSTER_FILE", raising=False)
    monkeypatch.chdir(below)
    assert str(cluster_file()) == "cluster.yaml"
    assert not cluster_file().exists()


def test_commands_work_from_a_folder_below_and_with_f_behind_the_verb(new_cluster, tmp_path, tmp_path_factory):
    """`up` says which file it has taken; status, memclient and ls find the same cluster."""
    cluster = new_cluster(tmp_path)
    below = cluster.folder / "below"
    below.mkdir()
    said = run(*memcluster_command("up", "-d"), cwd=below).stdout.decode()
    cluster.remember()
    assert str(cluster.file) in said.splitlines()[0]
    assert run(*memcluster_command("status", "--json"), cwd=below).returncode == 0
    run(*memclient_command("write", "0", "here"), cwd=below)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for words in (("read", "-f", cluster.file, "0", "4"), ("-f", cluster.file, "read", "0", "4")):
        assert run(*memclient_command(*map(str, words)), cwd=elsewhere).stdout == b"here"
    status = run(*memcluster_command("status", "-f", str(cluster.file), "--json"), cwd=elsewhere)
    assert json.loads(status.stdout)["cluster"] == cluster.name
    [listed] = [each for each in json.loads(cluster.command("ls", "--json").stdout) if each["cluster"] == cluster.name]
    assert (listed["state"], listed["file"], listed["uri"]) == ("running", str(cluster.file), cluster.uri)
    assert listed["uptime_s"] > 0
    assert cluster.name in cluster.command("ls").stdout.decode()
    cluster.command("stop", "server1")
    [listed] = [each for each in json.loads(cluster.command("ls", "--json").stdout) if each["cluster"] == cluster.name]
    assert listed["state"] == "degraded"


def test_f_before_logs_is_the_file_and_behind_it_follows():
    """As with docker compose."""
    logs = memcluster.commands["logs"]
    follow = next(each for each in logs.params if "-f" in each.opts)
    assert "--follow" in follow.opts
    assert any("--file" in each.opts for each in logs.params)


def test_config_quiet_prints_only_what_is_wrong(tmp_path):
    (tmp_path / "cluster.yaml").write_text(FILE)
    assert run(*memcluster_command("config", "-q"), cwd=tmp_path).stdout == b""
    (tmp_path / "cluster.yaml").write_text("memory: 0\n")
    wrong = run(*memcluster_command("config", "-q"), cwd=tmp_path, check=False)
    assert (wrong.returncode, wrong.stdout) == (2, b"")
    assert b"cluster.yaml:1:9: memory must be more than 0 bytes" in wrong.stderr


@pytest.mark.parametrize("words", HINTS)
def test_words_of_compose_get_a_hint(words):
    """A hint a verb and a flag, in place of `No such command`; and no hint stands in the way of what there is."""
    verb, _, flag = words.partition(" ")
    if verb.startswith("-"):
        verb, flag = "up", verb
    arguments = [word for word in (verb, flag) if word not in ("", "memcluster")]
    with pytest.raises(click.UsageError) as told:
        memcluster.main(arguments, prog_name="memcluster", standalone_mode=False)
    assert HINTS[words] in told.value.message
    assert told.value.exit_code == 2


def test_a_verb_that_is_nearly_right_gets_a_guess():
    with pytest.raises(click.UsageError, match="there is no command 'confg'; did you mean 'config'"):
        memcluster.main(["confg"], standalone_mode=False)
    with pytest.raises(click.UsageError, match=r"did you mean .*'status'"):
        memcluster.main(["stauts"], standalone_mode=False)


def test_a_time_to_stop_in_may_be_as_short_as_with_compose():
    """`-t 5`, in seconds."""
    for verb in ("down", "stop", "restart"):
        given = next(each for each in memcluster.commands[verb].params if "-t" in each.opts)
        assert given.type_cast_value(click.Context(memcluster.commands[verb]), "5") == 5.0


@pytest.mark.parametrize("program", [memcluster, memclient])
def test_help_is_not_cut(program):
    """Every command's first sentence is there as a whole."""
    context = click.Context(program, info_name="program")
    shown = " ".join(program.get_help(context).split())
    for each in program.commands.values():
        assert each.help is not None
        assert " ".join(each.help.split("\n\n")[0].split()).replace("\b", "") in shown
    assert "..." not in shown.replace("[ARGS]...", "")


@pytest.mark.parametrize("words", [memcluster_command(), memclient_command()], ids=["memcluster", "memclient"])
def test_without_a_verb_the_help_is_an_error(words):
    """A script that has lost its verb fails, and nobody takes the help for output."""
    done = run(*words, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"Usage: mem" in done.stderr


@pytest.mark.parametrize("program", [memcluster, memclient])
def test_help_fits_80_columns(program):
    """Examples, too, which are not folded."""
    context = click.Context(program, info_name="program", terminal_width=80)
    for name in program.list_commands(context):
        command = program.get_command(context, name)
        shown = command.get_help(click.Context(command, context, name, terminal_width=80)).splitlines()
        assert [line for line in shown if len(line) > 80] == [], name


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_of_both_programs(shell, tmp_path):
    script = run(*memcluster_command("completion", shell), cwd=tmp_path).stdout.decode()
    assert "_MEMCLUSTER_COMPLETE" in script
    assert "_MEMCLIENT_COMPLETE" in script


def test_nodes_topologies_and_operations_are_completed(make_cluster):
    """What a shell asks for, and is answered."""
    cluster = make_cluster()

    def completed(*words: str) -> list[str]:
        done = cluster.command(
            _MEMCLUSTER_COMPLETE="bash_complete",
            COMP_WORDS=" ".join(("memcluster", *words)),
            COMP_CWORD=str(len(words)),
        )
        return [line.partition(",")[2] for line in done.stdout.decode().splitlines()]

    assert completed("fault", "pause", "server") == ["server0", "server1", "server2", "server"]
    assert completed("fault", "pause", "a") == ["all"]
    assert completed("logs", "--node", "logger") == ["logger0", "logger1", "logger2"]
    assert "write" in completed("logs", "--op", "w")
    assert completed("compare", "--topology", "c") == ["chain", "client-routed"]


def test_a_run_may_differ_from_the_file(new_cluster, tmp_path):
    """--scale and --set hold for one run: what is asked for runs, is found by name, and the file is as it was."""
    cluster = new_cluster(tmp_path)
    before = cluster.file.read_bytes()
    cluster.command("up", "-d", "--scale", "servers=2", "--set", "topology=chain", "--set", "memory=2MiB")
    cluster.remember()
    status = cluster.status()
    assert (status["topology"], status["memory"], status["state"]) == ("chain", 2 << 20, "running")
    assert [node["role"] for node in status["nodes"]] == ["head", "tail", "logger", "logger"]
    cluster.command("down")
    assert cluster.file.read_bytes() == before
    refused = cluster.command("up", "-d", "--scale", "loggers=2", check=False)
    assert refused.returncode == 2
    assert b"only servers can be scaled" in refused.stderr
    refused = cluster.command("up", "-d", "--scale", "servers=0", check=False)
    assert refused.returncode == 2
    assert b"'--scale': 0 is not in the range 1<=x<=64" in refused.stderr
    assert b"memory: 3MiB" in cluster.command("config", "--set", "memory=3MiB").stdout


def test_events_tell_what_happens_until_the_stop(make_cluster, start):
    """A line each, in order: that it has begun, a fault, a death, a restart, the stop; then the command ends."""
    cluster = make_cluster()
    watching = start(*memcluster_command("events", "--json"), cwd=cluster.folder, stdout=subprocess.PIPE)
    assert watching.stdout is not None
    assert json.loads(watching.stdout.readline())["event"] == "watched"
    cluster.command("fault", "slow", "server1", "--delay", "1ms")
    cluster.command("fault", "kill", "server2")
    told = []
    while not told or (told[-1]["event"], told[-1].get("name")) != ("ready", "server2"):
        told.append(json.loads(watching.stdout.readline()))
    cluster.command("down")
    told += map(json.loads, watching.stdout.read().splitlines())
    assert watching.wait(60) == 0
    events = [each["event"] for each in told if each.get("name") in ("server1", "server2", None, "")]
    wanted = iter(events)
    for each in ("slowed", "killed", "died", "restarting", "ready", "draining", "gone"):
        assert each in wanted, (each, events)
    assert all(datetime.fromisoformat(each["time"]) for each in told)
    assert cluster.command("events", check=False).returncode == 3


def test_the_file_may_come_from_standard_input(new_cluster, tmp_path):
    """For `up`, in the background too, and for whoever asks later; what is wrong with it is told with its line."""
    cluster = new_cluster(tmp_path)
    text = (tmp_path / "cluster.yaml").read_bytes()
    (tmp_path / "cluster.yaml").unlink()

    def given(command: list[str], *words: str, text: bytes = text, check: bool = True):
        return run(*command, "-f", "-", *words, cwd=tmp_path, stdin=text, check=check)

    given(memcluster_command(), "up", "-d")
    try:
        cluster.remember()
        given(memclient_command(), "write", "0", "from stdin")
        assert given(memclient_command(), "read", "0", "10").stdout == b"from stdin"
        assert json.loads(given(memcluster_command(), "status", "--json").stdout)["state"] == "running"
    finally:
        given(memcluster_command(), "down")
    wrong = given(memcluster_command(), "config", text=b"memory: 1MiB\nserver: 2\n", check=False)
    assert wrong.returncode == 2
    assert b"-:2:1: unknown key 'server'" in wrong.stderr
    assert given(memcluster_command(), "init", check=False).returncode == 2
