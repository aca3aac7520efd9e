"""The man pages: made from the text of --help, and sound."""

from __future__ import annotations

import importlib.util
import sys

import pytest
from harness import ROOT, need, run

spec = importlib.util.spec_from_file_location("manual", ROOT / "docs" / "manual.py")
assert spec is not None
assert spec.loader is not None
manual = importlib.util.module_from_spec(spec)
spec.loader.exec_module(manual)


def test_a_page_says_what_help_says(tmp_path):
    """If this fails: `make man`. Made by a process of its own: click keeps what others have asked of a command."""
    run(sys.executable, ROOT / "docs" / "manual.py", tmp_path)
    for name in manual.COMMANDS:
        assert (manual.FOLDER / f"{name}.1").read_text() == (tmp_path / f"{name}.1").read_text()


@pytest.mark.parametrize("name", manual.COMMANDS)
def test_man_shows_every_command_and_roff_has_no_complaint(name):
    need("groff", "groff")
    path = manual.FOLDER / f"{name}.1"
    linted = run("groff", "-man", "-Tutf8", "-ww", "-z", path)
    assert linted.stderr == b""
    shown = " ".join(run("groff", "-man", "-Tascii", "-P-c", "-P-b", "-P-u", path).stdout.decode().split())
    for word in manual.COMMANDS[name].list_commands(manual.click.Context(manual.COMMANDS[name])):
        assert f"{name} {word} [OPTIONS]" in shown
