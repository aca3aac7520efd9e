"""Writes the man pages of both commands, from the text of their --help: `make man`, after a change of that. With a
folder as its argument it writes them there.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from memcluster.client.cli import cli as memclient
from memcluster.launcher.cli import cli as memcluster

FOLDER = Path(__file__).parent / "man"
COMMANDS = {"memcluster": memcluster, "memclient": memclient}
SIGNS = {"\\": "\\e", "-": "\\-", "`": "\\(ga", "'": "\\(aq", "~": "\\(ti", "^": "\\(ha", '"': "\\(dq"}
"""What roff would take for something else; the first first."""
VARIABLES = {
    "MEMCLUSTER_FILE": "The description of the cluster meant, where no -f names one.",
    "MEMCLUSTER_URI": "The memory that memclient and the library mean, where neither --uri nor -f names one.",
    "NO_COLOR": "If it is set, nothing is coloured.",
}


def escaped(text: str) -> str:
    """As roff shows it as it is: `-` as a hyphen that can be copied, no line taken for a request."""
    for sign, name in SIGNS.items():
        text = text.replace(sign, name)
    return "\\&" + text if text.startswith(".") else text


def paragraphs(text: str) -> Iterator[str]:
    """Those of a help text; what click leaves as it is (behind a \\b) is left here, too."""
    for number, paragraph in enumerate(inspect.cleandoc(text).split("\n\n")):
        if number:
            yield ".PP"
        if paragraph.startswith("\b"):
            yield from (".nf", *(escaped(line) for line in paragraph.splitlines()[1:]), ".fi")
        else:
            yield escaped(" ".join(paragraph.split()))


def options(context: click.Context, command: click.Command) -> Iterator[str]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            yield from (".TP", f"\\fB{escaped(record[0])}\\fR", escaped(" ".join(record[1].split())))


def usage(context: click.Context, command: click.Command) -> str:
    return escaped(" ".join(command.collect_usage_pieces(context)))


def page(name: str, command: click.Group) -> str:
    """The whole page of a command, those below it included."""
    context = click.Context(command, info_name=name, **command.context_settings)
    other = next(each for each in COMMANDS if each != name)
    lines = [f'.TH {name.upper()} 1 "" "memcluster" "User Commands"']
    lines += [".SH NAME", f"{name} \\- {escaped(command.get_short_help_str(1000).rstrip('.'))}"]
    lines += [".SH SYNOPSIS", f"\\fB{name}\\fR {usage(context, command)}"]
    lines += [".SH DESCRIPTION", *paragraphs(command.help or "")]
    lines += [".SH OPTIONS", *options(context, command), ".SH COMMANDS"]
    for word in command.list_commands(context):
        below = command.get_command(context, word)
        assert below is not None
        inner = click.Context(below, info_name=word, parent=context)
        lines += [f".SS {name} {word} {usage(inner, below)}", *paragraphs(below.help or ""), *options(inner, below)]
    lines.append(".SH ENVIRONMENT")
    for variable, words in VARIABLES.items():
        lines += [".TP", f"\\fB{variable}\\fR", escaped(words)]
    lines += [".SH SEE ALSO", f"\\fB{other}\\fR(1), \\fBnbdinfo\\fR(1), \\fBnbdcopy\\fR(1)"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(exist_ok=True)
    for name, command in COMMANDS.items():
        (folder / f"{name}.1").write_text(page(name, command))
