"""node/files.py and who uses it: another user's folders, files and links are not taken for a cluster's own."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from memcluster.node.files import FILE, FOLDER, make_folder, open_file, open_folder, replace_file

ANOTHER = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
WRITE = os.O_WRONLY | os.O_CREAT


@pytest.fixture(autouse=True)
def _umask():
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def given(path: Path) -> None:
    """It is another user's now."""
    os.lchown(path, ANOTHER, ANOTHER)


def test_folders_and_files_are_for_the_owner_and_his_group(tmp_path):
    """Those above that are made on the way, too."""
    make_folder(tmp_path / "a" / "b")
    os.close(open_file(tmp_path / "a" / "b" / "c", WRITE))
    replace_file(tmp_path / "a" / "d", b"whole")
    assert [mode(tmp_path / path) for path in ("a", "a/b", "a/b/c", "a/d")] == [FOLDER, FOLDER, FILE, FILE]
    assert [entry.name for entry in sorted((tmp_path / "a").iterdir())] == ["b", "d"]


def test_own_links_to_folders_are_followed(tmp_path):
    """As they lead: up, on, and to the root; but not round and round."""
    (tmp_path / "real").mkdir()
    for name, target in (("one", "real"), ("two", str(tmp_path / "one")), ("three", "real/../two")):
        (tmp_path / name).symlink_to(target)
        folder = open_folder(tmp_path / name)
        assert os.path.samestat(os.fstat(folder), (tmp_path / "real").stat())
        os.close(folder)
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(OSError, match="Too many levels"):
        open_folder(tmp_path / "round")


def test_a_file_is_no_link_and_no_fifo(tmp_path):
    """Whoever made it: a file is made and kept by us alone."""
    (tmp_path / "real").write_bytes(b"kept")
    (tmp_path / "link").symlink_to("real")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="is a link, which is not followed"):
        open_file(tmp_path / "link", WRITE | os.O_TRUNC)
    with pytest.raises(OSError, match="is no file"):
        open_file(tmp_path / "fifo", os.O_RDWR)
    assert (tmp_path / "real").read_bytes() == b"kept"
    with pytest.raises(NotADirectoryError):
        open_folder(tmp_path / "real")


@needs_root
def test_what_belongs_to_another_user_is_not_taken(tmp_path):
    """A folder, a file in our own, and a link on the way; of none a byte is changed, and nothing is made behind it."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    given(theirs)
    (tmp_path / "file").write_bytes(b"kept")
    given(tmp_path / "file")
    (tmp_path / "ours").mkdir()
    (tmp_path / "link").symlink_to("ours")
    given(tmp_path / "link")
    for attempt in (lambda: make_folder(theirs), lambda: open_file(theirs / "new", WRITE),
                    lambda: open_file(tmp_path / "file", WRITE | os.O_TRUNC)):  # fmt: skip
        with pytest.raises(OSError, match=r"belongs to another user \(uid 65534\)"):
            attempt()
    with pytest.raises(OSError, match=r"is reached through a link of another user \(uid 65534\)"):
        make_folder(tmp_path / "link" / "new")
    assert (tmp_path / "file").read_bytes() == b"kept"
    assert not any((tmp_path / "ours").iterdir())


@needs_root
@pytest.mark.parametrize("key", ["logs", "storage"])
@pytest.mark.parametrize("how", ["folder", "link"])
def test_a_cluster_is_not_started_in_another_users_folder(new_cluster, tmp_path, key, how):
    """It says whose it is, and what to do; nothing is made, and nothing of the cluster is left."""
    place = tmp_path / "place"
    if how == "folder":
        place.mkdir()
    else:
        (tmp_path / "precious").mkdir()
        place.symlink_to("precious")
    given(place)
    cluster = new_cluster(tmp_path, **{key: {"directory": "place"} if key == "logs" else "place"})
    refused = cluster.command("up", "-d", check=False)
    assert refused.returncode == 1
    words = "belongs to" if how == "folder" else "is reached through a link of"
    assert f"{place}: {words} another user (uid 65534); choose a folder of your own" in refused.stderr.decode()
    assert not any(place.iterdir())
    assert not cluster.directory.exists()


@needs_root
def test_a_running_cluster_follows_no_link_that_is_put_in_the_way(make_cluster):
    """Of the log that a server begins anew, of its output, of the merged log: the service goes on without."""
    cluster = make_cluster(servers=1)
    logs = cluster.folder / "logs" / cluster.name
    precious = cluster.folder / "precious"
    precious.write_bytes(b"kept")
    segment = max((logs / "server0").glob("*.seg"))
    for path in (segment.with_name(f"{int(segment.stem) + 1:06d}.new"), logs / "server0.out"):
        path.unlink(missing_ok=True)
        path.symlink_to(precious)
    cluster.command("fault", "kill", "server0")
    cluster.wait_until_running()
    cluster.memclient("write", "0", "bytes")
    assert cluster.memclient("read", "0", "5").stdout == b"bytes"
    cluster.down()
    assert precious.read_bytes() == b"kept"


def test_what_a_cluster_makes_is_for_its_user_and_group(make_cluster):
    """Logs and folders by their modes, shards for the user alone."""
    cluster = make_cluster(servers=1, storage="data")
    cluster.down()
    logs = cluster.folder / "logs"
    files = [path for path in logs.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".seg", ".out", ".log", ".json"}
    assert {(path.name, mode(path)) for path in files} == {(path.name, FILE) for path in files}
    folders = [logs, *(path for path in logs.rglob("*") if path.is_dir()), cluster.folder / "data"]
    assert {mode(path) for path in folders} == {FOLDER}
    assert mode(cluster.folder / "data" / "shard0") == 0o600


def test_a_folder_is_found_from_a_working_directory_that_is_gone(tmp_path, monkeypatch):
    """As a process may have it that has run for long; what is said from the root on does not need it."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    os.close(open_folder(tmp_path))
    with pytest.raises(FileNotFoundError):
        open_folder("relative")
