"""What the two commands share: parameters in people's units, errors as sentences, exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from memcluster.client.stdio import FULL, explained, open_standard_streams, silence
from memcluster.client.units import LONGEST_WAIT, parse_duration, parse_size
from memcluster.node.nbd.printable import printable

if TYPE_CHECKING:
    import signal
    from pathlib import Path

T = TypeVar("T")
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_NOT_RUNNING = 3
EXIT_DEGRADED = 4
EXIT_IN_USE = 5
EXIT_DIFFERS = 6
EXIT_TIMEOUT = 124
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141


class Failure(Exception):
    """Ends a command: lines for people, each behind `prefix` (the command's name by default), and an exit code."""

    def __init__(self, message: str, code: int = EXIT_ERROR, *, prefix: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.prefix = prefix


class NobodyReads(Exception):
    """The reader of our output is gone."""


class _Path(click.Path):
    """A Path of what is given, and pathlib, which takes its time to load, only where something is."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from pathlib import Path

        return Path(os.fsdecode(super().convert(value, param, ctx)))


PATH = _Path(readable=False)


class Commands(click.Group):
    """The commands of one program. `-f FILE` may stand behind each, too: `file_given(context, file)` takes it. `hints`
    say what to use in place of a verb ("ps") or a flag ("--build") that people know from other programs."""

    def __init__(
        self,
        *args: Any,
        file_given: Callable[[click.Context, Path], None],
        hints: Mapping[str, str] | None = None,
        **keywords: Any,
    ) -> None:
        self._file_given = file_given
        self._hints = hints or {}
        super().__init__(*args, **keywords)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        def take(context: click.Context, _parameter: click.Parameter, file: Path | None) -> None:
            if file is not None:
                self._file_given(context, file)

        used = {word for parameter in cmd.params for word in parameter.opts}
        names = [word for word in ("-f", "--file") if word not in used]
        cmd.params.append(
            click.Option(names, type=PATH, metavar="FILE", callback=take, expose_value=False, is_eager=True,
                         help="The cluster's description; may stand before the command, too.")
        )  # fmt: skip
        super().add_command(cmd, name)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        with self._hinting():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with self._hinting():
                return super().invoke(ctx)
        except BrokenPipeError as error:  # with which click would exit by itself
            raise NobodyReads from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word = args[0]
        if self.get_command(ctx, word) is None and not word.startswith("-") and not ctx.resilient_parsing:
            import difflib  # late: few mistype

            near = map(repr, difflib.get_close_matches(word, self.list_commands(ctx), n=2))
            hint = self._hints.get(word) or (f"did you mean {guess}?" if (guess := " or ".join(near)) else "")
            hint = hint or f"there are {', '.join(self.list_commands(ctx))}"
            raise click.UsageError(f"there is no command {word!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click does, but no sentence is cut."""
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, command.get_short_help_str(limit=1000)) for name, command in found if command is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    @contextmanager
    def _hinting(self) -> Iterator[None]:
        try:
            yield
        except click.NoSuchOption as error:
            command = error.ctx.info_name if error.ctx else ""
            hint = self._hints.get(f"{command} {error.option_name}") or self._hints.get(error.option_name)
            if hint is None:
                raise
            raise click.UsageError(f"there is no option {error.option_name}; {hint}", error.ctx) from error


def _parameter(name: str, parse: Callable[[str], T]) -> Callable[[Any], T]:
    """A parameter's type for click, with the parser's own words as the error."""

    def convert(value: Any) -> T:
        try:
            return parse(str(value))
        except ValueError as error:
            raise click.BadParameter(str(error)) from error

    convert.__name__ = name
    return convert


def _parse_wait(text: str) -> float:
    """Seconds that the system can wait in one call. Raises ValueError."""
    if (span := parse_duration(text)) > LONGEST_WAIT:
        raise ValueError(f"{text!r} is more than {LONGEST_WAIT / 3600:g}h")
    return span


size = _parameter("size", parse_size)
seconds = _parameter("time", parse_duration)
wait_seconds = _parameter("time", _parse_wait)


def _explain_system(error: Exception) -> Failure | None:
    words = explained(error) if isinstance(error, OSError) else ""
    return Failure(words) if words else None


def unwind(*signals: signal.Signals) -> None:
    """Have these signals, if they are not ignored, end the command as Ctrl-C does: cleaned up, with a shell's code."""

    import signal  # late: `memclient read` has no use for it

    def end(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    for each in signals:
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, end)


def run(command: click.Command, name: str, explain: Callable[[Exception], Failure | None] = lambda _: None) -> None:
    """Run a command, which leaves nothing to be done at exit, and exit with its return value; `explain` makes a Failure
    of an exception it knows.

    When the reader of our output is gone (`… | head`), what follows is quiet and 141: what a shell shows of cat, grep
    and git, which SIGPIPE ends, and what scripts with `pipefail` look for. Python's documentation (signal, "Note on
    SIGPIPE") and click have 1 there, which here says that something failed and that stderr tells what. The signal
    itself stays ignored, as they advise: it would end a process for a peer that hangs up a socket, too.
    """
    open_standard_streams()
    try:
        code = command.main(prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)  # nothing is left to be done, and Python takes 6 ms to forget what it has loaded
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    except (BrokenPipeError, NobodyReads):
        silence(sys.stdout)
        sys.exit(EXIT_PIPE)
    except Exception as error:
        failure = error if isinstance(error, Failure) else explain(error) or _explain_system(error)
        if failure is None:
            raise
        if isinstance(error, OSError) and error.errno in FULL:
            silence(sys.stdout)  # it may be what cannot be written; Python would try once more at the exit
        prefix = f"{name}: " if failure.prefix is None else failure.prefix
        click.echo("\n".join(prefix + printable(line) for line in str(failure).split("\n")), err=True)
        sys.exit(failure.code)
