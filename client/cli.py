"""The command `memclient`: bytes of a cluster's memory, in and out."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import click

from memcluster.client.console import (
    EXIT_ERROR,
    EXIT_NOT_RUNNING,
    EXIT_TIMEOUT,
    EXIT_USAGE,
    PATH,
    Commands,
    Failure,
    run,
    wait_seconds,
)
from memcluster.client.console import size as size_type
from memcluster.client.copy import CHUNK, FileSink, FileSource, MemorySink, MemorySource, Sink, Source, copy
from memcluster.client.errors import ClusterError, Disconnected, Timeout
from memcluster.client.memory import Memory, connect, default_uri
from memcluster.client.stdio import system_words
from memcluster.client.units import format_size, parse_size
from memcluster.client.uri import SCHEMES
from memcluster.node.native import form
from memcluster.node.nbd.printable import printable_all

if TYPE_CHECKING:
    from pathlib import Path

T = TypeVar("T")
MEMORY = "memory:"


FILE = "memcluster.client.cli.file"
"""Where the context keeps what -f said."""


def _take_file(context: click.Context, file: Path) -> None:
    context.meta[FILE] = file


class _Commands(Commands):
    """`bench` is loaded by who asks for it: multiprocessing takes a fifth of the time of a read."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), "bench"})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "bench" and "bench" not in self.commands:
            from memcluster.client.benchcommand import command

            self.add_command(command)
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Commands, file_given=_take_file, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--uri", help="The memory, such as nbd://127.0.0.1:10809 (also MEMCLUSTER_URI). "
              "[default: the cluster of cluster.yaml, here or above]")  # fmt: skip
@click.option("-f", "--file", type=PATH, metavar="FILE", help="The description of the cluster meant (also "
              "MEMCLUSTER_FILE).")  # fmt: skip
@click.option("--timeout", type=wait_seconds, default="30s", show_default=True, help="Longest wait for one answer.")
@click.version_option(package_name="memcluster", message=f"%(prog)s %(version)s ({form()})")
@click.pass_context
def cli(context: click.Context, uri: str | None, file: Path | None, timeout: float) -> None:
    """Read and write the memory of a cluster. Offsets and lengths: 4096, 0x1000, 64KiB."""
    if file is not None:
        _take_file(context, file)
    context.obj = lambda other=None: _open(other or uri, context.meta.get(FILE), timeout)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def info(opened: Callable[..., Memory], as_json: bool) -> None:
    """Show the memory, and the cluster that serves it."""
    with opened() as memory:
        cluster, exports = _ask(memory.cluster_map), _ask(memory.exports) or []
        minimum, preferred, maximum = memory.block_sizes
        found = {
            "uri": str(memory.target),
            "size": memory.size,
            "read_only": memory.read_only,
            "flags": [flag.name for flag in type(memory.flags) if flag in memory.flags],
            "block_sizes": {"minimum": minimum, "preferred": preferred, "maximum": maximum},
            "description": memory.description,
            "exports": [{"name": name, "description": text} for name, text in exports],
            "cluster": cluster,
        }
    if as_json:
        import json

        click.echo(json.dumps(found, indent=2))
        return
    cluster = printable_all(cluster)
    click.echo(f"{found['uri']}  {format_size(memory.size)} ({memory.size} bytes){'  read-only' * memory.read_only}")
    if memory.description:
        click.echo(f"  {memory.description}")
    click.echo(f"  exports {', '.join(repr(name) for name, _ in exports) or 'not listed'}")
    click.echo(f"  requests of {minimum} to {maximum} bytes, {preferred} preferred")
    if cluster is not None:
        for line in _cluster_lines(cluster):
            click.echo(line)


def _cluster_lines(cluster: dict[str, Any]) -> Iterator[str]:
    """A map, of which something may be missing: other makes and versions have theirs."""

    def said(found: dict[str, Any], key: str) -> str:
        return found.get(key) or "?"

    layout = cluster.get("layout", {})
    words = f"stripes of {format_size(layout['stripe'])}" if "stripe" in layout else said(layout, "kind")
    shape = f"{said(cluster, 'topology')}, fan-out {said(cluster, 'fan_out')}, {words}"
    yield f"  cluster {said(cluster, 'cluster')}: {shape}"
    rows = []
    for server in cluster["servers"]:
        holds = server.get("memory", 0)
        where = "{:#x}-{:#x}".format(*server["range"]) if server.get("range") else "striped"
        names = (said(server, "name"), said(server, "role"), said(server, "address"))
        rows.append((*names, format_size(holds) if holds else "-", where if holds else "-"))
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, role, address, memory, where in rows:
        yield (
            f"    {name:<{sizes[0]}}  {role:<{sizes[1]}}  {address:<{sizes[2]}}  {memory:>{sizes[3]}}  {where}"
        )


@cli.command()
@click.argument("offset", type=size_type)
@click.argument("length", type=size_type)
@click.option("-o", "--output", default="-", metavar="FILE", help="Write to a file instead of stdout.")
@click.pass_obj
def read(opened: Callable[..., Memory], offset: int, length: int, output: str) -> None:
    """Write LENGTH bytes from OFFSET on to stdout, as they are."""
    with contextlib.ExitStack() as stack:
        memory = stack.enter_context(opened())
        _within(memory, offset, length)
        sparse = length > CHUNK  # what is one request is not worth a question before it
        copy(MemorySource(memory, offset, length, sparse=sparse), _file_sink(output, stack))


@cli.command()
@click.argument("offset", type=size_type)
@click.argument("data", required=False)
@click.option("--fua", is_flag=True, help="Return when the bytes are durable. Those of stdin always are.")
@click.pass_obj
def write(opened: Callable[..., Memory], offset: int, data: str | None, fua: bool) -> None:
    """Write DATA (text), or stdin, at OFFSET."""
    with opened() as memory:
        if data in (None, "-"):
            source = FileSource(sys.stdin.buffer)
            _within(memory, offset, source.length or 0)
            copy(source, MemorySink(memory, offset))
        else:
            content = os.fsencode(data or "")
            _within(memory, offset, len(content))
            memory.pwrite(content, offset, fua=fua)


@cli.command("copy")
@click.argument("source")
@click.argument("destination")
@click.option("--length", type=size_type, help="Bytes to copy. [default: all there is]")
@click.option("--progress/--no-progress", default=None, help="A progress bar. [default: on a terminal]")
@click.pass_obj
def copy_command(
    opened: Callable[..., Memory], source: str, destination: str, length: int | None, progress: bool | None
) -> None:
    """Copy SOURCE to DESTINATION: a file, - (stdin or stdout), an nbd:// URI, or memory:[OFFSET], the cluster's memory.

    \b
    memclient copy disk.img memory:          a file into the memory
    memclient copy memory:64KiB - | xxd      from an offset on, to a pipe
    memclient copy memory: nbd://host:10809  one memory into another
    """
    with contextlib.ExitStack() as stack:
        reader = _source(source, length, opened, stack)
        if isinstance(reader, FileSource) and _is_same_file(reader.file, destination):
            raise Failure(f"{source} and {destination} are the same file")
        writer = _sink(destination, reader.length, opened, stack)
        if isinstance(reader, MemorySource) and isinstance(writer, MemorySink) and _overlap(reader, writer):
            raise Failure(f"{source} and {destination} overlap: bytes would be overwritten before they are read")
        shown = sys.stderr.isatty() if progress is None else progress
        with _bar(shown, reader.length) as advance:
            copy(reader, writer, advance)


def _source(name: str, length: int | None, opened: Callable[..., Memory], stack: contextlib.ExitStack) -> Source:
    place = _memory(name, opened, stack)
    if place is not None:
        memory, offset = place
        _within(memory, offset, length or 0)
        return MemorySource(memory, offset, memory.size - offset if length is None else length)
    return FileSource(sys.stdin.buffer if name == "-" else stack.enter_context(_file(name, "rb")), length)


def _sink(name: str, length: int | None, opened: Callable[..., Memory], stack: contextlib.ExitStack) -> Sink:
    place = _memory(name, opened, stack)
    if place is None:
        return _file_sink(name, stack)
    memory, offset = place
    _within(memory, offset, length or 0)
    return MemorySink(memory, offset)


def _file_sink(name: str, stack: contextlib.ExitStack) -> FileSink:
    """Into a stdout that is a file we may not write holes: it need not be empty, nor be written from its start."""
    if name == "-":
        return FileSink(sys.stdout.buffer)
    return FileSink(stack.enter_context(_file(name, "wb")), fresh=True)


def _memory(name: str, opened: Callable[..., Memory], stack: contextlib.ExitStack) -> tuple[Memory, int] | None:
    """(memory, offset) if the name is a memory's."""
    if name.startswith(tuple(f"{scheme}://" for scheme in SCHEMES)):
        return stack.enter_context(opened(name)), 0
    if name.startswith(MEMORY):
        offset = name.removeprefix(MEMORY)
        try:
            return stack.enter_context(opened()), parse_size(offset) if offset else 0
        except ValueError as error:
            raise Failure(f"{name}: {error}", EXIT_USAGE) from error
    return None


def _is_same_file(file: BinaryIO, name: str) -> bool:
    """Whether `name` is the regular file that is read: opening it for writing would empty it."""
    try:
        found, status = os.stat(name), os.fstat(file.fileno())
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and os.path.samestat(found, status)


def _overlap(source: MemorySource, sink: MemorySink) -> bool:
    """Whether some byte of one memory is in both, at another place of the copy."""
    distance = abs(source.offset - sink.offset)
    return source.memory.target == sink.memory.target and 0 < distance < (source.length or 0)


def _file(name: str, mode: str) -> BinaryIO:
    try:
        return open(name, mode)  # type: ignore[return-value]
    except OSError as error:
        raise Failure(f"{name}: {error.strerror}") from error


@contextlib.contextmanager
def _bar(shown: bool, total: int | None) -> Iterator[Callable[[int], Any]]:
    if not shown:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("copy", total=total)
        yield lambda done: progress.update(task, completed=done)


def _ask(question: Callable[[], T]) -> T | None:
    """The answer, if this server gives one; servers of another make need not."""
    try:
        return question()
    except (Timeout, Disconnected):
        raise
    except ClusterError:
        return None


def _within(memory: Memory, offset: int, length: int) -> None:
    if offset + length > memory.size:
        raise Failure(f"length {length} at offset {offset} goes beyond the memory of {memory.size} bytes")


def _open(uri: str | None, file: Path | None, timeout: float) -> Memory:
    """The memory meant. Nobody at the address of a cluster means that it does not run."""
    try:
        return connect(uri or _find(file), timeout=timeout)
    except ValueError as error:
        raise Failure(str(error), EXIT_USAGE) from error
    except Disconnected as error:
        refused = isinstance(error.__cause__, ConnectionRefusedError | FileNotFoundError)
        raise Failure(str(error), EXIT_NOT_RUNNING if refused else EXIT_ERROR) from error


def _find(file: Path | None) -> str:
    """Where the file's cluster is, else what the environment names, or the cluster here."""
    from memcluster.client.discover import DiscoverError, NotOurs, NotRunning, running_uri  # late: a --uri needs none

    try:
        return default_uri() if file is None else running_uri(file)
    except NotRunning as error:
        raise Failure(str(error), EXIT_NOT_RUNNING) from error
    except NotOurs as error:
        raise Failure(str(error)) from error
    except DiscoverError as error:
        raise Failure(str(error), EXIT_USAGE) from error


def _explain(error: Exception) -> Failure | None:
    if isinstance(error, Timeout):
        return Failure(str(error), EXIT_TIMEOUT)
    if isinstance(error, OSError):
        return Failure(system_words(error))
    return Failure(str(error)) if isinstance(error, ClusterError | IndexError) else None


def main() -> None:
    """The entry point."""
    run(cli, "memclient", _explain)


if __name__ == "__main__":
    main()
