"""Folders and files that a cluster keeps: its logs, its shards. They are reached by descriptors, through no link that
another user has made, and none that belongs to another user is taken for the cluster's own.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

FOLDER = 0o750
FILE = 0o640
MOST_LINKS = 40
"""On the way to one folder, as in Linux."""


def open_folder(path: str | Path, *, make: bool = False, owner: tuple[int, int] | None = None) -> int:
    """A descriptor (O_PATH) of a folder of this user; with `make`, what is missing of it is made. Root may do so for an
    `owner`, a user and a group. Raises OSError."""
    folder = _walk(os.fspath(path), make, owner)
    try:
        _check_own(folder, path, owner)
    except OSError:
        os.close(folder)
        raise
    return folder


def make_folder(path: str | Path, owner: tuple[int, int] | None = None) -> None:
    """Make a folder, or see that it is this user's, or the owner's. Raises OSError."""
    os.close(open_folder(path, make=True, owner=owner))


def open_file(path: str | Path, flags: int, mode: int = FILE) -> int:
    """Open a file of this user in a folder of this user; what is to be cut is looked at first. Raises OSError."""
    path = os.fspath(path)
    parent, name = os.path.split(path)
    folder = open_folder(parent or ".")
    try:
        guarded = flags & ~os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # it may be a fifo
        file = os.open(name, guarded, mode, dir_fd=folder)
    except OSError as error:
        words = "is a link, which is not followed" if error.errno == errno.ELOOP else error.strerror
        raise OSError(error.errno, words, path) from error
    finally:
        os.close(folder)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(errno.EPERM, "is no file", path)
        _check_own(file, path)
        if flags & os.O_TRUNC:
            os.ftruncate(file, 0)
    except OSError:
        os.close(file)
        raise
    return file


def replace_file(path: str | Path, content: bytes, mode: int = FILE) -> None:
    """Write a file: all of it or nothing, whenever this process is killed. Raises OSError."""
    path = Path(path)
    new = path.with_name(path.name + ".new")
    try:
        with open(open_file(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.write(content)
        rename(new, path)
    except OSError:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise


def rename(old: Path, new: Path) -> None:
    """Within a folder of this user. Raises OSError."""
    folder = open_folder(old.parent)
    try:
        os.rename(old.name, new.name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)


def _walk(path: str, make: bool, owner: tuple[int, int] | None) -> int:
    """From the root on, a part at a time; a link is looked at before it is followed."""
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    here = os.open("/", flags)
    parts = _parts(path if path.startswith("/") else os.path.join(os.getcwd(), path))
    links = 0
    try:
        while parts:
            part = parts.pop()
            try:
                found = os.open(part, flags, dir_fd=here)
            except FileNotFoundError:
                if not make:
                    raise
                with suppress(FileExistsError):  # somebody was faster
                    os.mkdir(part, FOLDER, dir_fd=here)
                    if owner is not None:
                        os.chown(part, *owner, dir_fd=here, follow_symlinks=False)
                found = os.open(part, flags, dir_fd=here)
            if not stat.S_ISLNK(os.fstat(found).st_mode):
                os.close(here)
                here = found
                continue
            try:
                links += 1
                _check_link(found, links)
                target = os.readlink("", dir_fd=found)
            finally:
                os.close(found)
            if target.startswith("/"):
                os.close(here)
                here = os.open("/", flags)
            parts += _parts(target)
        if not stat.S_ISDIR(os.fstat(here).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    except OSError as error:
        os.close(here)
        raise OSError(error.errno, error.strerror, path) from error
    return here


def _parts(path: str) -> list[str]:
    """The first one last."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def _check_link(link: int, count: int) -> None:
    if count > MOST_LINKS:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    owner = os.fstat(link).st_uid
    if owner not in (0, os.geteuid()):
        raise OSError(errno.EPERM, f"is reached through a link of another user (uid {owner})")


def _check_own(descriptor: int, path: str | Path, owner: tuple[int, int] | None = None) -> None:
    found = os.fstat(descriptor).st_uid
    if found != (os.geteuid() if owner is None else owner[0]):
        raise OSError(errno.EPERM, f"belongs to another user (uid {found})", str(path))
