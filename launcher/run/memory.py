"""The memory of a cluster as files: the shards, and memory.json, which says whose they are and what they make up.

memory.json is there when all of the shards are; one that is missing or of another shape is refused, not made anew. It
is replaced as a whole, and on the disk before anything depends on it, so it is the journal of a change of the shape,
too (launcher/run/reshape.py): then it has both shapes, and how many bytes of the memory, from its beginning on, are
where the new one has them.

    memory.json.new   while the shards are being made for the first time, or thrown away
    shard0 …          the shards; shard0.1 … those of the first memory that had to be moved, shard0.2 … and so on
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from memcluster.launcher.run.steps import step
from memcluster.node.files import open_file, rename
from memcluster.node.layout import Layout, make_layout, same_places
from memcluster.node.nbd.printable import printable

MOST_SHOWN = 64
"""Shards that an error names."""


class MemoryMismatch(Exception):
    """The shards that lie there belong to a memory of another shape."""


@dataclass(frozen=True)
class Shape:
    """`shards` are the bytes of each server's, 0 where one owns none; `stripe` is 0 for the linear layout."""

    shards: tuple[int, ...]
    stripe: int
    generation: int = 0

    def __str__(self) -> str:
        more = ", …" if len(self.shards) > MOST_SHOWN else ""
        return f"shards of {', '.join(map(str, self.shards[:MOST_SHOWN]))}{more} bytes, stripe {self.stripe}"

    @cached_property
    def layout(self) -> Layout:
        return make_layout(self.shards, self.stripe)

    @property
    def size(self) -> int:
        """Bytes of the memory."""
        return sum(self.shards)

    @property
    def files(self) -> list[str]:
        """The names of the shards."""
        suffix = f".{self.generation}" if self.generation else ""
        return [f"shard{server}{suffix}" for server in range(len(self.shards))]

    @property
    def owners(self) -> list[int]:
        """The servers that own memory."""
        return [server for server, size in enumerate(self.shards) if size]

    def is_like(self, other: Shape) -> bool:
        """Whether the bytes lie in the same places, by whatever names of files."""
        return (self.shards, self.stripe) == (other.shards, other.stripe)

    def kept_in(self, new: Shape) -> dict[int, int] | None:
        """Where no byte need be moved to have the `new` shape: its servers, with those of this one whose files are
        theirs. None where bytes have to be moved."""
        mine, theirs = (
            make_layout([shape.shards[server] for server in shape.owners], shape.stripe) for shape in (self, new)
        )
        return dict(zip(new.owners, self.owners, strict=False)) if same_places(mine, theirs) else None

    def becoming(self, shards: tuple[int, ...], stripe: int) -> Shape:
        """The shape that comes after this one. The files have other names if bytes move, or servers other numbers."""
        new = Shape(shards, stripe, self.generation)
        kept = self.kept_in(new)
        same_files = kept is not None and all(server == old for server, old in kept.items())
        return new if same_files else replace(new, generation=self.generation + 1)


@dataclass(frozen=True)
class Claim:
    """What memory.json says. `new` is the shape that the memory is on the way to; then the first `moved` bytes lie
    there already. `leftover` are files that are not needed any more.

    Of a memory on several hosts `hosts` names that of each server, "" for this one, where alone its shard is looked
    for; `memory` is its name, by which the other hosts know their part."""

    cluster: str
    shape: Shape
    new: Shape | None = None
    moved: int = 0
    leftover: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    memory: str = ""

    @property
    def here(self) -> dict[str, int]:
        """The files of the shards on this host, with their sizes."""
        hosts = self.hosts or ("",) * len(self.shape.shards)
        return {
            name: size
            for name, size, host in zip(self.shape.files, self.shape.shards, hosts, strict=True)
            if not host
        }

    def encode(self) -> str:
        document: dict[str, Any] = {"cluster": self.cluster} | _shape_of(self.shape)
        if self.new is not None:
            document["new"] = _shape_of(self.new) | {"moved": self.moved}
        if self.leftover:
            document["leftover"] = list(self.leftover)
        if self.hosts:
            document |= {"hosts": list(self.hosts), "memory": self.memory}
        return json.dumps(document, indent=2)

    @classmethod
    def decode(cls, text: str) -> Claim:
        """Raises ValueError: on a disk it may be damaged, or be somebody's own."""
        document = json.loads(text)
        if not isinstance(document, dict) or not isinstance(document.get("cluster"), str):
            raise ValueError(f"it says {str(document)[:60]}")
        claim = cls(document["cluster"], _shape_in(document))
        if isinstance(new := document.get("new"), dict):
            claim = replace(claim, new=_shape_in(new), moved=_number(new.get("moved")))
        leftover = document.get("leftover", [])
        if not isinstance(leftover, list) or not all(_is_shard(name) for name in leftover):
            raise ValueError(f"leftover is {str(leftover)[:60]}")
        hosts, memory = document.get("hosts", []), document.get("memory", "")
        if not isinstance(hosts, list) or len(hosts) not in (0, len(claim.shape.shards)) or not isinstance(memory, str):
            raise ValueError(f"hosts are {str(hosts)[:60]}, of {str(memory)[:60]}")
        return replace(claim, leftover=tuple(leftover), hosts=tuple(map(str, hosts)), memory=memory)


def _shape_of(shape: Shape) -> dict[str, Any]:
    document: dict[str, Any] = {"shards": list(shape.shards), "stripe": shape.stripe}
    return document | {"generation": shape.generation} if shape.generation else document


def _shape_in(document: dict[str, Any]) -> Shape:
    shards = document.get("shards")
    if not isinstance(shards, list) or not shards:
        raise ValueError(f"shards are {str(shards)[:60]}")
    stripe, generation = _number(document.get("stripe")), _number(document.get("generation", 0))
    shape = Shape(tuple(map(_number, shards)), stripe, generation)
    _ = shape.layout
    return shape


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise ValueError(f"{str(value)[:60]} is no number of bytes")
    return value


def _is_shard(name: object) -> bool:
    return isinstance(name, str) and name.startswith("shard") and name[5:].replace(".", "", 1).isdecimal()


# -- files -------------------------------------------------------------------------------------------------------------


def claim_path(directory: Path) -> Path:
    return directory / "memory.json"


def unfinished_path(directory: Path) -> Path:
    return directory / "memory.json.new"


def read_claim(directory: Path) -> Claim | None:
    """None where there is none. Raises MemoryMismatch."""
    return _read(claim_path(directory))


def name_begun(directory: Path) -> str:
    """The name of a memory of which other hosts may have their part already, while this one has none that is whole."""
    try:
        begun = _read(unfinished_path(directory))
    except (MemoryMismatch, OSError):
        return ""
    return begun.memory if begun is not None else ""


def _read(path: Path) -> Claim | None:
    try:
        with open(open_file(path, os.O_RDONLY)) as file:
            return Claim.decode(file.read())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise MemoryMismatch(printable(f"{path} cannot be read: {error}")) from error


def write_claim(directory: Path, claim: Claim) -> None:
    """On the disk before anything depends on it. Raises OSError, and then the old one is there."""
    new = unfinished_path(directory)
    try:
        with open(open_file(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w") as file:
            file.write(claim.encode())
            file.flush()
            os.fsync(file.fileno())
        rename(new, claim_path(directory))
    except OSError:
        new.unlink(missing_ok=True)
        raise
    sync(directory)
    step("reshape")


def make_memory(
    directory: Path, claim: str, shards: Mapping[str, int], also: Callable[[], None] = lambda: None
) -> None:
    """Empty shards, then memory.json, which says that all are there, when `also` has done the rest. Whoever is killed
    on the way has served nobody, so what is found beside memory.json.new may be made again. Each step is on the disk
    before the next one: else a power cut could leave an empty memory.json, or too short a shard, beside shards that
    were flushed."""
    unfinished = unfinished_path(directory)
    strangers = sorted(entry.name for entry in directory.glob("shard*"))
    if strangers and not unfinished.exists():
        raise MemoryMismatch(f"{directory} holds {', '.join(strangers)} but no memory.json")
    with open(open_file(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w") as file:
        file.write(claim)
        file.flush()
        os.fsync(file.fileno())
    sync(directory)
    for name, size in shards.items():
        make_shard(directory / name, size)
    step()
    sync(directory)
    also()
    unfinished.replace(claim_path(directory))
    sync(directory)


def make_shard(path: Path, size: int) -> None:
    """An empty one, whatever was there. Raises OSError."""
    shard = open_file(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.ftruncate(shard, size)
        os.fsync(shard)
    finally:
        os.close(shard)


def check_whole(directory: Path, claim: Claim) -> None:
    """Raises MemoryMismatch if a shard is missing or of another size. While the shape is being changed those that both
    have may have either size, and those of the new one need not be there before something was moved there; those that
    are still to be cut may have any."""
    sizes = {name: {size} for name, size in claim.here.items()}
    if claim.new is not None:
        for name, size in zip(claim.new.files, claim.new.shards, strict=True):
            if name in sizes or claim.moved:
                sizes.setdefault(name, set()).add(size)
    for name in claim.leftover:
        if name in sizes:
            sizes[name].clear()
    problems = [problem for name, size in sizes.items() if (problem := look_at(directory / name, size))]
    if problems:
        raise MemoryMismatch(f"the memory in {directory} is not whole: {', '.join(problems)}")


def look_at(path: Path, sizes: set[int]) -> str:
    """What is wrong with a shard that must be there, of one of these sizes if any are given."""
    try:
        found = path.lstat().st_size
    except FileNotFoundError:
        return f"{path.name} is missing"
    if not sizes or found in sizes:
        return ""
    return f"{path.name} has {found} bytes instead of {' or '.join(map(str, sorted(sizes)))}"


def sync(directory: Path) -> None:
    """Bring names to the disk."""
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
