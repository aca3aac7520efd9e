"""Two clients write the same place at the same time: how often the result is neither's, of each server of the field.

`python -m bench.overlaps` prints, for requests of several sizes, the share of rounds that ended as a mixture of both
writes, with data in a hole, or with a read that was torn. It measures no speed.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import click

import memcluster
from bench.cluster import cluster
from bench.peers import nbdkit_memory
from bench.processes import Service, activated
from bench.report import Rows, markdown

SIZES = {"4 KiB": 4 << 10, "128 KiB": 128 << 10, "1 MiB": 1 << 20, "8 MiB": 8 << 20}
MEMORY = 16 << 20


@contextmanager
def qemu_nbd() -> Iterator[Service]:
    """A raw file on tmpfs behind qemu-nbd, for several clients at once."""
    with tempfile.TemporaryDirectory(prefix="memcluster-bench-", dir="/dev/shm") as folder:
        image = Path(folder, "image")
        image.write_bytes(b"")
        with image.open("r+b") as file:
            file.truncate(MEMORY)
        options = "--format=raw", "--persistent", "--shared=0", "--discard=unmap", str(image)
        with activated("qemu-nbd", *options) as service:
            yield service


SERVERS: dict[str, Callable[[], AbstractContextManager[Service]]] = {
    "memcluster, 1 server": lambda: cluster(filled=False, memory=MEMORY),
    "memcluster, 4 servers": lambda: cluster(filled=False, memory=4 * MEMORY, servers=4),
    "nbdkit memory": lambda: nbdkit_memory(MEMORY, filled=False),
    "qemu-nbd": qemu_nbd,
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(1), default=200, show_default=True)
def main(rounds: int) -> None:
    """Measure who mixes writes that overlap."""
    table: Rows = [("server", "request", "two writes mixed:", "data in a hole:", "reads torn:")]
    for name, serve in SERVERS.items():
        with serve() as service:
            for title, size in SIZES.items():
                found = _overlap(service.uri, size, rounds)
                table.append((name, title, *(f"{count} of {rounds}" for count in found)))
    click.echo(markdown(table), nl=False)


def _overlap(uri: str, size: int, rounds: int) -> tuple[int, int, int]:
    """Rounds with a mixture, with data in a hole, with a torn read."""
    with memcluster.connect(uri) as one, memcluster.connect(uri) as other, memcluster.connect(uri) as reader:
        mixed = torn = holes = 0
        other.pwrite(b"B" * size, 0)
        for _ in range(rounds):
            seen = _together(
                lambda: one.pwrite(b"A" * size, 0), lambda: other.pwrite(b"B" * size, 0), lambda: reader.pread(size, 0)
            )
            torn += len(set(seen)) > 1
            mixed += len(set(reader.pread(size, 0))) > 1
            _together(lambda: one.pwrite(b"A" * size, 0), lambda: other.trim(size, 0), lambda: b"")
            zero = all(extent.zero for extent in reader.extents(size, 0))
            holes += zero and any(reader.pread(size, 0))
            other.pwrite(b"B" * size, 0)
        return mixed, holes, torn


def _together(first: Callable[[], object], second: Callable[[], object], third: Callable[[], bytes]) -> bytes:
    """All three at once; what the third has found."""
    threads = [threading.Thread(target=act) for act in (first, second)]
    for thread in threads:
        thread.start()
    found = third()
    for thread in threads:
        thread.join()
    return found


if __name__ == "__main__":
    main(prog_name="python -m bench.overlaps")
