"""What people install: the sdist and the wheel, in a clean environment, beside code that has names like ours."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
from harness import ROOT

LEFT_OUT = shutil.ignore_patterns(".*", "*.egg-info", "build", "__pycache__", "bench", "logs", "*.so")
TRAPS = ("client.py", "launcher.py", "json.py", "socket.py", "psutil.py", "node/__init__.py", "click.py", "yaml.py")
TRAP = "open({path!r}, 'a').write(__file__ + '\\n')\n"
TIMEOUT = 300.0


def clean() -> dict[str, str]:
    """The environment of a user who knows nothing of this checkout."""
    ours = ("PYTHON", "MEMCLUSTER", "PYTEST")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


class Installed(NamedTuple):
    """An environment with the wheel; `said` is what the build said."""

    bin: Path
    sdist: Path
    wheel: Path
    said: str

    def run(self, *words: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """As a user would."""
        known = clean()
        known["PATH"] = f"{self.bin}:{known['PATH']}"
        done = subprocess.run(
            [str(word) for word in words],
            cwd=cwd,
            env=known,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert not check or done.returncode == 0, (words, done.stdout, done.stderr)
        return done


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Installed:
    """The sdist is built from a copy of the checkout, the wheel from the sdist; there is no C compiler."""
    source = tmp_path_factory.mktemp("source") / "memcluster"
    shutil.copytree(ROOT, source, symlinks=True, ignore=LEFT_OUT)
    built = subprocess.run(
        [sys.executable, "-m", "build"],
        cwd=source,
        env=clean() | {"CC": "false"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    [wheel], [sdist] = source.glob("dist/*.whl"), source.glob("dist/*.tar.gz")
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    pip = subprocess.run(
        [folder / "bin" / "pip", "install", "--quiet", wheel, "pytest", "numpy"], capture_output=True, text=True,
        timeout=TIMEOUT, check=False,
    )  # fmt: skip
    assert pip.returncode == 0, pip.stderr
    return Installed(folder / "bin", sdist, wheel, built.stdout + built.stderr)


@pytest.mark.timeout(600)
def test_the_wheel_holds_the_package_and_nothing_else(installed):
    """And the build has nothing to warn of."""
    assert not re.findall(r"^.*(?:\w+Warning\b|^warning: ).*$", installed.said, re.MULTILINE)
    assert installed.wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(installed.wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"memcluster"}
    pages = {name.rpartition("/")[2] for name in names if "/data/share/man/man1/" in name}
    assert pages == {"memcluster.1", "memclient.1"}
    assert {"memcluster/py.typed", "memcluster/pytest_plugin.py"} <= set(names)
    tops = [ROOT / top for top in ("node", "client", "launcher")]
    ours = {path for top in tops for kind in ("py", "html", "css", "js") for path in top.rglob(f"*.{kind}")}
    assert {f"memcluster/{path.relative_to(ROOT).as_posix()}" for path in ours} <= set(names)
    metadata = (
        zipfile.ZipFile(installed.wheel).read(next(name for name in names if name.endswith("/METADATA"))).decode()
    )
    assert "License-Expression: MIT" in metadata
    assert not any(re.match(r"Requires-Dist: (pytest|numpy)[^;]*$", line) for line in metadata.splitlines())
    with tarfile.open(installed.sdist) as archive:
        assert {"LICENSE", "setup.py"} <= {name.partition("/")[2] for name in archive.getnames()}


@pytest.mark.timeout(600)
def test_a_cluster_runs_beside_files_named_like_ours_and_executes_none(installed, tmp_path):
    """All that a learner's folder may hold. (Python itself executes a json.py in the working directory for `python -m`
    only when something imports it; memcluster sees to it that nothing does.)"""
    marks = tmp_path / "executed"
    folder = tmp_path / "project"
    for name in TRAPS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(TRAP.format(path=str(marks)))
    installed.run("memcluster", "init", "--servers", "2", "--memory", "1MiB", "--listen", "127.0.0.1:0", cwd=folder)
    text = (folder / "cluster.yaml").read_text()
    (folder / "cluster.yaml").write_text(f"name: wheel{os.getpid()}\n{text}")
    try:
        installed.run("memcluster", "up", "-d", cwd=folder)
        installed.run("memclient", "write", "0x7fffc", "hello, two", cwd=folder)
        assert installed.run("memclient", "read", "0x7fffc", "10", cwd=folder).stdout == "hello, two"
        assert installed.run(installed.bin / "python", "-m", "memcluster", "status", cwd=folder).returncode == 0
        assert "WRITE" in installed.run("memcluster", "logs", cwd=folder).stdout
        installed.run("memcluster", "fault", "kill", "server1", cwd=folder)
        installed.run("memcluster", "timeline", cwd=folder)
    finally:
        installed.run("memcluster", "down", cwd=folder)
    words = ["--topology", "chain", "--servers", "2", "--for", "100ms"]
    installed.run("memcluster", "compare", *words, cwd=folder)
    assert not marks.exists(), marks.read_text()


PROJECT = {
    "client/__init__.py": "MINE = True\n",
    "node.py": "MINE = True\n",
    "tests/test_mine.py": """
import client, node, pytest

@pytest.mark.memcluster(servers=2, memory="1MiB")
def test_both(memcluster):
    assert client.MINE and node.MINE
    with memcluster.connect() as memory:
        memory[0:2] = b"ok"
        memcluster.fault("kill", "server0")
        assert memory[0:2] == b"ok"
""",
    "pytest.ini": "[pytest]\npythonpath = .\n",
}


@pytest.mark.timeout(600)
def test_pytest_in_a_project_with_a_folder_client(installed, tmp_path):
    """Its own client/ and node.py are its own, and the plugin's fixtures are there."""
    for name, text in PROJECT.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert "1 passed" in installed.run("pytest", "-q", "-W", "error", cwd=tmp_path).stdout


SCRIPT = """
import asyncio
import memcluster

async def inquire(uri: str) -> None:
    async with memcluster.aconnect(uri, timeout=5.0) as memory:
        count: int = await memory.pwrite(bytearray(b"x"), 0, fua=True)
        data: bytes = await memory.pread(count, 0)
        places: list[bytes] = await asyncio.gather(*(memory.pread(1, place) for place in range(9)))
        await memory.flush()
        print(data, places, memory.size, [extent.hole for extent in await memory.extents(memory.size, 0)])
    other: memcluster.AsyncMemory = await memcluster.aconnect(uri)
    await other.close()

def main() -> None:
    with memcluster.Cluster(servers=3, topology="chain", memory="64MiB", layout={"stripe": "64KiB"}) as cluster:
        uri: str = cluster.uri
        names: list[str] = cluster.fault("kill", "server1", seconds=2)
        cluster.wait_ready(timeout=30)
        state = cluster.status()["state"]
        lines: list[str] = cluster.log_lines(last=3)
        records = cluster.logs(op=["write"], since=0.0)
        print(uri, names, state, lines, records[0]["offset"], cluster.timeline("page.html").name)
        with cluster.connect(timeout=5.0) as memory:
            count: int = memory.pwrite(b"x", 0)
            future: memcluster.Future[bytes] = memory.start_pread(count, 0)
            with memory.open(0, 10) as file:
                print(file.read(), future.result(), b"x" in memory)
            table = memory.array((2, 3), "f8", offset=512)
            table[0, :] = 1
        asyncio.run(inquire(uri))
    try:
        memcluster.Cluster(sevrers=3)  # type: ignore[call-arg]
    except (memcluster.LaunchError, memcluster.Misused) as error:
        print(error)

def test_it(memcluster: memcluster.Cluster) -> None:
    memcluster.wait_ready()
"""


@pytest.mark.timeout(600)
def test_a_script_that_uses_all_of_it_is_clean_for_mypy(installed, tmp_path):
    """Strictly, from the installed wheel alone; a wrong keyword is found."""
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [
        "--strict",
        "--python-executable",
        installed.bin / "python",
        "--cache-dir",
        tmp_path / "cache",
        "script.py",
    ]
    done = installed.run(sys.executable, "-m", "mypy", *words, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout
