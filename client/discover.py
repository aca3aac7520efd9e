"""How a program finds a running cluster without the launcher: by cluster.yaml's name and the run directory."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from memcluster.client.account import Account, parse_account
from memcluster.client.variables import substitute

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
"""What a cluster may be called."""


class DiscoverError(Exception):
    """The cluster cannot be found; says why."""


class NotRunning(DiscoverError):
    """There is such a cluster, but it does not run."""


class NotOurs(DiscoverError):
    """What lies where the cluster's run directory should be was made by somebody else, and is not to be believed."""


FILES = ("cluster.yaml", "cluster.yml")
STDIN = Path("-")
"""The description is what comes from standard input."""


def cluster_file() -> Path:
    """The description of the cluster meant: MEMCLUSTER_FILE, or cluster.yaml (or .yml) here or in the nearest folder
    above that has one. A file above that another user has put there is passed by."""
    if named := os.environ.get("MEMCLUSTER_FILE"):
        return Path(named)
    with suppress(OSError):  # the working directory has been removed, or a folder may not be looked into
        here = Path.cwd()
        for folder in (here, *here.parents):
            for name in FILES:
                found = folder / name
                if found.exists() and (folder == here or found.stat().st_uid in (0, os.getuid())):
                    return Path(os.path.relpath(found))
    return Path(FILES[0])


def new_file() -> Path:
    """Where a description is written if nobody says where: here, whatever lies in the folders above."""
    found = cluster_file()
    return Path(FILES[0]) if os.pardir in found.parts and not os.environ.get("MEMCLUSTER_FILE") else found


def located(file: Path) -> Path:
    """Where a file lies, by whatever way it is reached: through `..`, or a link to its folder. A relative path stays as
    it is if the working directory has been removed: it is nowhere then."""
    try:
        return Path(os.path.realpath(file.parent)) / file.name
    except FileNotFoundError:
        return file


def command(file: Path, words: str) -> str:
    """`memcluster WORDS` as a person must type it here to mean the cluster of `file`."""
    if not os.environ.get("MEMCLUSTER_FILE") and located(file) == located(cluster_file()):
        return f"memcluster {words}"
    return f"memcluster -f {shlex.quote(str(file))} {words}"


def default_name(file: Path) -> str:
    """The name of a cluster whose file gives none: that of the file's directory, as far as it can be one."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", located(file).parent.name).lstrip("-_")[:40]
    return name or "memcluster"


def run_directory(name: str, uid: int | None = None) -> Path:
    """Where a cluster of this user, or of the one given, keeps what is there only while it runs, on tmpfs. Raises
    NotOurs."""
    path = _path(name, uid)
    check_owner(path, uid)
    return path


def _path(name: str, uid: int | None = None) -> Path:
    return Path(f"/dev/shm/memcluster-{os.getuid() if uid is None else uid}-{name}")


def run_names() -> list[str]:
    """The clusters of this user that run, or have left something."""
    every = _path("*")
    names = (path.name.removeprefix(every.name[:-1]) for path in every.parent.glob(every.name))
    return sorted(name for name in names if NAME.fullmatch(name))  # not what guardians have here, NAME@HOST


def _record(directory: Path) -> dict[str, Any]:
    """What a supervisor wrote down in its run directory; nothing if that cannot be read. Raises NotOurs."""
    check_owner(directory)
    try:
        record = json.loads((directory / "state.json").read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def check_owner(path: Path, uid: int | None = None) -> None:
    """Everybody may make files in /dev/shm, under any name. Raises NotOurs."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found.st_mode):
        raise NotOurs(f"{path} is no directory: remove it, or give the cluster another name")
    if found.st_uid != (os.getuid() if uid is None else uid):
        raise NotOurs(
            f"{path} belongs to another user (uid {found.st_uid}): nothing in it is believed; give the cluster another "
            "name, or have that user remove it"
        )


def of_another_folder(name: str, file: Path) -> str | None:
    """One cluster of a name runs, or left its memory, for each user, and it need not be that of `file`: the other's
    file, if it lies in another folder. Raises NotOurs."""
    try:
        recorded = str(_record(_path(name))["file"])
        ours = os.path.samefile(Path(recorded).parent, file.parent)
    except (OSError, ValueError, KeyError):
        return None  # there is none; or its folder has been moved, perhaps to here
    return None if ours else recorded


def check_folder(name: str, file: Path) -> None:
    """Nothing that is meant for one cluster may reach the memory of another. Raises NotRunning, NotOurs."""
    if other := of_another_folder(name, file):
        raise NotRunning(f"the name {name!r} is in use by the cluster of {other}; that of {file} is not running")


def stamp(file: Path) -> str:
    """Another one after each change of the file; none ("") if it is not to be seen."""
    if file == STDIN:
        return ""
    try:
        found = file.stat()
    except OSError:
        return ""
    return f"{found.st_ino} {found.st_ctime_ns}"


def recorded_name(file: Path) -> str | None:
    """The name of the cluster that was started from `file` as it stands now, if one was: it need not be read again."""
    if not stamp(file):
        return None
    written = {"file": str(located(file)), "stamp": stamp(file)}
    every = _path("*")
    for directory in every.parent.glob(every.name):
        with suppress(NotOurs):
            record = _record(directory)
            if "cluster" in record and written.items() <= record.items():
                return str(record["cluster"])
    return None


def contents(file: Path) -> bytes:
    """What a description says. One that can be read only once, a pipe or standard input, is kept: by whoever reads it
    before it forks. Raises OSError."""
    if file in _read_once:
        return _read_once[file]
    data = sys.stdin.buffer.read() if file == STDIN else file.read_bytes()
    if file == STDIN or not file.is_file():
        _read_once[file] = data
    return data


_read_once: dict[Path, bytes] = {}


def outline(file: Path) -> dict[str, Any]:
    """The keys of `file` as they are written, unchecked: enough to find a cluster by. Raises DiscoverError."""
    import yaml  # late: it takes longer to load than `down` waits for eight servers

    try:
        # Scalars as they are written: by YAML 1.1 `name: off` would be False, for the launcher it is a word.
        document = yaml.load(contents(file).decode(), getattr(yaml, "CBaseLoader", yaml.BaseLoader))
    except FileNotFoundError as error:
        raise DiscoverError(f"{file}: no such file; say which cluster with --uri or MEMCLUSTER_URI") from error
    except OSError as error:
        raise DiscoverError(f"{file}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise DiscoverError(f"{file}: cannot be read: {' '.join(str(error).split())}") from error
    return document if isinstance(document, dict) else {}


def varies(document: dict[str, Any]) -> bool:
    """The environment has a say in what the cluster of this outline is called."""
    return "$" in str(document.get("name"))


def cluster_name(file: Path) -> str:
    """The name of the cluster that `file` describes; the rest of the file is not looked at. Raises DiscoverError."""
    return recorded_name(file) or name_in(outline(file), file)


def name_in(document: dict[str, Any], file: Path) -> str:
    """The name that the outline of `file` gives. Raises DiscoverError."""
    name = document.get("name")
    if isinstance(name, str):
        try:
            name = substitute(name, os.environ)
        except ValueError as error:
            raise DiscoverError(f"{file}: {error}") from error
    name = default_name(file) if name in (None, "") else str(name)
    if not NAME.fullmatch(name):
        raise DiscoverError(f"{file}: {name!r} is no name of a cluster")
    return name


def account_in(document: dict[str, Any], file: Path) -> Account | None:
    """Who the outline of `file` says that the cluster runs as, if it says so. Raises DiscoverError."""
    user = document.get("user")
    if not isinstance(user, str) or not user:
        return None
    try:
        return parse_account(substitute(user, os.environ))
    except ValueError as error:
        raise DiscoverError(f"{file}: {error}") from error


def account_of(file: Path) -> Account | None:
    """Who the cluster of `file` runs as, where root asks and it is not root. Raises DiscoverError."""
    with suppress(OSError):
        if os.getuid() == 0 and b"user" in contents(file):
            account = account_in(outline(file), file)
            return account if account is not None and account.uid else None
    return None


def running_uri(file: Path) -> str:
    """The URI of the cluster that `file` describes. Raises NotRunning, DiscoverError."""
    account = account_of(file)
    name = cluster_name(file)
    check_folder(name, file)
    try:
        return (run_directory(name, account.uid if account else None) / "uri").read_text().strip()
    except FileNotFoundError as error:
        raise NotRunning(f"cluster {name} is not running; `{command(file, 'up -d')}` starts it") from error
