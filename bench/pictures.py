"""Takes the pictures of the timeline and of the live page in docs/, of each topology, with the same requests:

    python -m bench.pictures [FOLDER]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import memcluster
from bench.chromium import Chromium
from bench.cluster import Cluster
from bench.processes import ROOT
from memcluster.node.topology import names

SIZE = (1280, 720)


@contextmanager
def requests(cluster: Cluster) -> Iterator[None]:
    """Some that lie in one server, and some in all of them; their client stays meanwhile."""
    with memcluster.connect(cluster.status()["uri"]) as memory:
        for number in range(3):
            memory.pread(4096, number * 4096)
            memory.pwrite(bytes(12288), number * 12288)
        memory.pread(12288, 0)
        yield


def take(browser: Chromium, topology: str, folder: Path) -> None:
    """The live page after the last request's slow motion, then the timeline of all of them."""
    with tempfile.TemporaryDirectory(prefix="memcluster-pictures-") as home:
        cluster = Cluster(home, name="demo", memory="1MiB", servers=3, topology=topology, layout={"stripe": "4KiB"})
        cluster.up()
        page = browser.page(SIZE)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "memcluster", "watch", "--web"]
        try:
            with subprocess.Popen(command, cwd=home, env=environment, stdout=subprocess.PIPE, text=True) as site:
                assert site.stdout is not None
                try:
                    page.emulate(prefers_color_scheme="light")
                    page.open(site.stdout.readline().split()[-1])
                    page.until("document.body.dataset.state === 'running'")
                    with requests(cluster):
                        page.until("latest.length >= 7 && document.body.dataset.played === latest[0].name")
                        page.screenshot(folder / f"live-{topology}.png")
                finally:
                    site.terminate()
            cluster.command("timeline", "-o", f"{home}/timeline.html", "--op", "read", "--op", "write")
            page.open(Path(home, "timeline.html").as_uri())
            page.screenshot(folder / f"timeline-{topology}.png")
        finally:
            page.close()
            cluster.down()


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs"
    with Chromium() as browser:
        for topology in names():
            take(browser, topology, folder)


if __name__ == "__main__":
    main()
