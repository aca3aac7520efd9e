"""Clients that are used less than test_real_clients.py's: a file system, a proxy with filters, the kernel's client."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Iterator

import pytest
from harness import TIMEOUT, Cluster, clusters, need, run

SIZE = 8 << 20


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    with clusters() as new:
        cluster = new(tmp_path_factory.mktemp("cluster"), memory="8MiB", layout={"stripe": "64KiB"})
        cluster.up()
        yield cluster


def test_nbdfuse_makes_a_file_of_the_memory(cluster, tmp_path):
    """What a program writes into the file at any offset is in the memory, and the file is as long as that."""
    need("nbdfuse", "libnbd-bin")
    if os.geteuid() or not os.access("/dev/fuse", os.W_OK):
        pytest.skip("mounting needs root and /dev/fuse")
    folder = tmp_path / "mounted"
    folder.mkdir()
    changes = select.poll()  # tells of every mount and unmount
    with open("/proc/self/mountinfo") as mounts:
        changes.register(mounts, select.POLLPRI)
        server = subprocess.Popen(["nbdfuse", folder, cluster.uri])
        try:
            while not os.path.ismount(folder):
                assert changes.poll(TIMEOUT * 1000), "nbdfuse mounts nothing"
            file = folder / "nbd"
            assert file.stat().st_size == SIZE
            with file.open("r+b") as opened:
                opened.seek((64 << 10) - 3)  # over the border of two servers
                opened.write(b"border")
            with cluster.connect() as memory:
                assert memory[(64 << 10) - 3 : (64 << 10) + 3] == b"border"
                memory[SIZE - 1 :] = b"!"
            assert file.read_bytes()[-1:] == b"!"
        finally:
            run("umount", folder, check=False)
            server.terminate()
            server.wait(TIMEOUT)


def test_nbdkit_passes_the_memory_on_through_its_filters(cluster, tmp_path):
    """Through a proxy that caches and reads ahead, all that is written arrives and all that is read is right."""
    need("nbdkit", "nbdkit")
    need("nbdcopy", "libnbd-bin")
    content = os.urandom(1 << 20) + bytes(SIZE - (1 << 20))
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content)
    proxy = ["nbdkit", "-U", "-", "--filter=cache", "--filter=readahead", "nbd", f"uri={cluster.uri}"]
    run(*proxy, "--run", f'nbdcopy --flush {source} "$uri" && nbdcopy "$uri" {target}')
    assert target.read_bytes() == content
    with cluster.connect() as memory:
        assert memory[:] == content


def test_nbd_client_lists_the_exports(cluster):
    """The kernel's client needs no device to say what there is."""
    need("nbd-client", "nbd-client")
    host, port = cluster.uri.removeprefix("nbd://").rstrip("/").split(":")
    listed = run("nbd-client", "-l", host, port).stdout.decode()
    for name in ("readonly", "cluster.json"):
        assert f"\n{name}: " in listed
