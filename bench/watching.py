"""What it costs that somebody watches: 4 KiB reads with and without a live page open, in alternating pairs.

    python -m bench.watching [--pairs 5] [--for 3s] [--chromium]

The page's messages are taken by a program that reads them and draws nothing; with --chromium by a browser, which draws
in slow motion, on the same processors. "idle" is `memcluster watch --web` with nobody watching.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from bench.chromium import Chromium
from bench.cluster import Cluster
from bench.processes import ROOT, run

READER = "import sys, urllib.request as r; [print(len(line), flush=True) for line in r.urlopen(sys.argv[1])]"


@contextmanager
def watching(cluster: Cluster, how: str, shares: list[float]) -> Iterator[None]:
    """Meanwhile somebody watches; adds the share of a processor that `watch` has taken."""
    if how == "nobody":
        yield
        return
    command = [sys.executable, "-m", "memcluster", "watch", "--web"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=cluster.folder, env=environment, stdout=subprocess.PIPE, text=True) as site:
        assert site.stdout is not None
        address = site.stdout.readline().split()[-1]

        @contextmanager
        def counted() -> Iterator[None]:
            began, before = time.monotonic(), sum(psutil.Process(site.pid).cpu_times()[:2])
            yield
            used = sum(psutil.Process(site.pid).cpu_times()[:2]) - before
            shares.append(used / (time.monotonic() - began))

        try:
            if how == "chromium":
                with Chromium() as browser:
                    page = browser.page()
                    page.open(address)
                    page.until("document.body.dataset.state === 'running'")
                    with counted():
                        yield
            elif how == "reader":
                command = [sys.executable, "-c", READER, address.replace("/?", "/events?")]
                with subprocess.Popen(command, stdout=subprocess.PIPE) as reader:
                    assert reader.stdout is not None
                    reader.stdout.readline()
                    with counted():
                        yield
                    reader.kill()
            else:
                with counted():
                    yield
        finally:
            site.terminate()


def reads(cluster: Cluster, span: str) -> float:
    """Requests a second: `memclient bench` as it is."""
    words = ("bench", "--runtime", span, "--json")
    found = json.loads(run(sys.executable, "-m", "memcluster.client.cli", *words, cwd=cluster.folder, root=ROOT))
    return float(found["read"]["iops"])


def main() -> None:
    parser = argparse.ArgumentParser(description="What it costs that somebody watches.")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--for", dest="span", default="3s")
    parser.add_argument("--chromium", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="memcluster-bench-") as folder:
        cluster = Cluster(folder, memory="64MiB", servers=3)
        cluster.up()
        try:
            reads(cluster, "1s")
            for how in ("idle", "reader", *(["chromium"] if options.chromium else [])):
                ratios: list[float] = []
                shares: list[float] = []
                for pair in range(options.pairs):
                    rates = {}
                    for who in (("nobody", how), (how, "nobody"))[pair % 2]:
                        with watching(cluster, who, shares):
                            rates[who] = reads(cluster, options.span)
                    ratios.append(rates[how] / rates["nobody"])
                print(f"{how:<9} {statistics.median(ratios):.3f} of the rate with nobody "
                      f"(from {min(ratios):.3f} to {max(ratios):.3f}, {options.pairs} pairs); `watch` took "
                      f"{statistics.median(shares):.1%} of a processor", flush=True)  # fmt: skip
        finally:
            cluster.command("down", "--timeout", "2m")  # there is much to merge


if __name__ == "__main__":
    main()
