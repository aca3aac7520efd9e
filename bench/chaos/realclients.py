"""Clients that nobody here wrote, in loops: fio writes and verifies, nbdcopy copies in and out and compares.

They lose their connection when the primary dies and end with an error; then the same job is run again, and counted.
nbdcopy goes through nbdkit's offset filter, as it knows whole exports only, and its retry filter, which reconnects.
What was acknowledged to a job that succeeded must be there; a checksum or a copy that differs is a wrong read.
"""

from __future__ import annotations

import os
import random
import shlex
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

from bench.chaos.places import Region

PATIENCE = 60.0
"""Seconds that a job may take."""
FIO_PATIENCE = 10.0
"""fio 3.33 does not always notice that its connection is gone; undisturbed its jobs take a second or two."""
TO_THE_END = 5.0
"""Seconds in which a job that has begun may come to its end when the run is over."""
MISMATCH = (b"verify:", b"verify failed", b"bad magic", b"bad header")
"""What fio says when what it reads is not what it wrote."""


@dataclass
class Tally:
    """What became of one real client's jobs."""

    name: str
    jobs: int = 0
    """Those that succeeded."""
    reruns: int = 0
    wrong: list[str] = field(default_factory=list)


class RealClient:
    """A loop in a thread of its own; `stop` ends it, with the job that runs. Its files are in `folder`."""

    patience = PATIENCE

    def __init__(self, name: str, uri: str, region: Region, seed: int, folder: Path, stop: Event) -> None:
        self.tally = Tally(name)
        self._uri = uri
        self._region = region
        self._rng = random.Random(f"{name} {seed}")
        self._folder = folder / name
        self._folder.mkdir()
        self._stop = stop
        self._thread = Thread(target=self._run, name=name)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def job(self) -> None:
        """One job: writes, and looks at what it wrote."""
        raise NotImplementedError

    def _run(self) -> None:
        while not self._stop.is_set():
            self.job()

    def _attempt(self, *words: str) -> tuple[bool, bytes]:
        """Run a command of the job; false if it failed, was too slow or had to stop, and what it said."""
        with (self._folder / "output").open("ab+") as output:
            begin = output.seek(0, os.SEEK_END)
            process = subprocess.Popen(
                words,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            code = self._wait(process)
            output.seek(begin)
            return code == 0, output.read()

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        deadline = time.monotonic() + self.patience
        stopped = False
        while time.monotonic() < deadline:
            try:
                return process.wait(0.2)
            except subprocess.TimeoutExpired:
                pass
            if self._stop.is_set() and not stopped:
                stopped = True
                deadline = min(deadline, time.monotonic() + TO_THE_END)
        os.killpg(process.pid, signal.SIGKILL)  # its own group, and it has not been waited for yet
        return process.wait()

    def _pause(self) -> None:
        """Before a job is run again."""
        self.tally.reruns += 1
        self._stop.wait(0.1)


class Fio(RealClient):
    patience = FIO_PATIENCE

    def job(self) -> None:
        seed = self._rng.randrange(1 << 30)
        block = self._rng.choice(("4k", "512", "64k", "20k"))
        words = [
            "fio", "--name=chaos", "--ioengine=nbd", f"--uri={self._uri}", "--rw=randwrite", f"--bs={block}",
            f"--offset={self._region.offset}", f"--size={self._region.length}", "--iodepth=8", f"--randseed={seed}",
            "--serialize_overlap=1", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--thread",
            "--rate_iops=2000", "--output-format=normal",
        ]  # fmt: skip
        while not self._stop.is_set():
            succeeded, said = self._attempt(*words)
            if succeeded:
                self.tally.jobs += 1
                return
            if any(words in said for words in MISMATCH):
                self.tally.wrong.append(said.decode(errors="replace")[:1000])
                return
            self._pause()


class Copy(RealClient):
    def job(self) -> None:
        source, target = self._folder / "source", self._folder / "target"
        source.write_bytes(self._content())
        if not (self._until_done(source, None) and self._until_done(None, target)):
            return
        wanted, found = source.read_bytes(), target.read_bytes()
        if wanted == found:
            self.tally.jobs += 1
            return
        places = [at for at in range(0, len(wanted), 4096) if wanted[at : at + 4096] != found[at : at + 4096]]
        self.tally.wrong.append(f"{len(places)} pages of a copy differ, the first at {places[0]:#x} of the region")
        for path in (source, target):
            path.rename(path.with_name(f"{path.name}{len(self.tally.wrong)}"))

    def _content(self) -> bytes:
        """Random bytes with holes between them."""
        length = self._region.length
        data = bytearray(self._rng.randbytes(length))
        for _ in range(self._rng.randrange(8)):
            start, size = self._rng.randrange(length), self._rng.randrange(200_000)
            data[start : start + size] = bytes(len(data[start : start + size]))
        return bytes(data)

    def _until_done(self, source: Path | None, target: Path | None) -> bool:
        """Copy in or out, again and again until it succeeds; false if the end of the run came first."""
        flags = f"--flush --request-size={self._rng.choice((4096, 65536, 262144, 1 << 20))}"
        ends = f"{shlex.quote(str(source)) if source else '$uri'} {shlex.quote(str(target)) if target else '$uri'}"
        words = [
            "nbdkit", "-U", "-", "--filter=offset", "--filter=retry", "nbd", f"uri={self._uri}", "retry=30",
            f"offset={self._region.offset}", f"range={self._region.length}", "retries=20", "retry-delay=1",
            "retry-exponential=no", "--run", f"nbdcopy {flags} {ends}",
        ]  # fmt: skip
        while not self._stop.is_set():
            if target:
                target.unlink(missing_ok=True)
            if self._attempt(*words)[0]:
                return True
            self._pause()
        return False
