"""launcher/background.py: what `up -d` says and returns when the supervisor ends before the cluster is ready."""

from __future__ import annotations

import sys

import pytest
from harness import run

pytestmark = pytest.mark.timeout(60)
SCRIPT = """
import os, signal, sys
from pathlib import Path
from memcluster.launcher.background import in_background

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def supervise(load, tell, leave):
    {body}

def tell(happening):
    print(happening["event"], happening.get("text", ""), flush=True)

code = in_background(dict, supervise, tell)
print("code", code)
"""


LEFT = "left out"
DIED = "gave-up the supervisor died"


@pytest.mark.parametrize(
    ("body", "told", "said"),
    [
        ("print('no such thing', file=sys.stderr); return 5", ["code 5"], "no such thing\n"),
        ("die()", [DIED, "code 1"], ""),
        ("leave(Path('out')); return 0", [LEFT, f"{DIED}; what it said is in out", "code 1"], ""),
        ("leave(Path('out')); die()", [LEFT, f"{DIED}; what it said is in out", "code 1"], ""),
        (
            "leave(Path('out')); tell({'event': 'gave-up', 'text': 'late'}); return 124",
            [LEFT, "gave-up late", "code 124"],
            "",
        ),
        ("leave(Path('out')); tell({'event': 'running'}); die()", [LEFT, "running", "code 0"], ""),
    ],
    ids=["refused", "killed", "ended-later", "killed-later", "gave-up", "running"],
)
def test_the_starter_says_what_became_of_the_supervisor(tmp_path, body, told, said):
    """Before it has left the terminal it speaks for itself; later its starter says where its words are."""
    done = run(sys.executable, "-c", SCRIPT.format(body=body), cwd=tmp_path)
    assert [line.strip() for line in done.stdout.decode().splitlines()] == told
    assert done.stderr.decode() == said


def test_a_supervisor_that_breaks_before_it_leaves_is_seen(tmp_path):
    """An exception comes to the terminal, once, and is the command's exit code."""
    script = SCRIPT.format(body="raise RuntimeError('broken')") + "sys.exit(code)"
    done = run(sys.executable, "-c", script, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stdout.decode() == "code 1\n"
    assert done.stderr.decode().count("RuntimeError: broken") == 1


def test_up_that_fails_before_it_leaves_the_terminal_leaves_nothing(tmp_path, new_cluster):
    """The fork server runs already by then; it goes, too, and no file tells what the terminal has shown."""
    (tmp_path / "taken").write_text("")
    cluster = new_cluster(tmp_path, logs={"directory": "taken"})
    done = cluster.command("up", "-d", check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().startswith("memcluster: ")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert cluster.left_behind() == []


@pytest.mark.parametrize("rest", ["signal.pause()", "signal.sigtimedwait([signal.SIGTERM], 60); die()", "return 130"])
def test_a_start_that_is_called_off_is_no_death(tmp_path, rest):
    """Ctrl-C reaches the command alone, which has the supervisor end, before and after that takes signals by itself."""
    block = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); " if "sigtimedwait" in rest else ""
    body = f"load(); {block}os.kill(os.getppid(), signal.SIGINT); {rest}"
    done = run(sys.executable, "-c", SCRIPT.format(body=body), cwd=tmp_path)
    assert done.stdout.decode() == "code 130\n"
    assert done.stderr == b""


@pytest.mark.parametrize(("words", "code"), [(["up", "-d"], 1), (["up"], 143)], ids=["background", "foreground"])
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_a_start_that_is_called_off_leaves_nothing(tmp_path, new_cluster, steps, words, code):
    """As when the supervisor is told to stop after so many of its steps."""
    cluster = new_cluster(tmp_path)
    done = cluster.command(*words, check=False, MEMCLUSTER_KILL_AT=str(steps), MEMCLUSTER_KILL_WITH="SIGTERM")
    assert done.returncode == code, done.stderr
    assert cluster.left_behind() == []
