"""client/units.py, client/discover.py and node/transport/address.py: what people write, both ways."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from harness import run
from hypothesis import given
from hypothesis import strategies as st

from memcluster.client.discover import (
    NAME,
    DiscoverError,
    NotRunning,
    cluster_file,
    cluster_name,
    command,
    default_name,
    run_directory,
    running_uri,
)
from memcluster.client.units import format_duration, format_size, parse_duration, parse_size
from memcluster.node.transport.address import Address


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("0x1000", 4096), ("64KiB", 65536), ("64k", 65536), ("1.5G", 3 << 29), ("1 GiB", 1 << 30)],
)
def test_sizes(text, size):
    """All units are powers of 1024."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "-1", "1XB", "0xg", "1.0001", "KiB", "1e3"])
def test_what_is_no_size(text):
    """A sentence that says what is."""
    with pytest.raises(ValueError, match="is not a size; write 4096"):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "soon", "-1s", "1d", "1e3", "300000h", "9" * 400])
def test_what_is_no_time_span(text):
    """A sentence that says what is."""
    with pytest.raises(ValueError, match="; write 500ms, 10s, 2m or 1h"):
        parse_duration(text)


@pytest.mark.parametrize("number", ["9" * 400, "9" * 400 + ".5"])
def test_a_number_of_any_length_is_a_size(number):
    """Whether so much is there is for others to say."""
    assert parse_size(number + "k") > 1 << 1000


@given(st.integers(0, 1 << 60))
def test_a_size_can_be_written_and_read(size):
    """format and parse are inverse."""
    assert parse_size(format_size(size)) == size


@given(st.integers(1, 10**9).map(lambda ms: ms / 1000))
def test_a_time_span_can_be_written_and_read(seconds):
    """format and parse are inverse, to the millisecond."""
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=1e-9)


@given(st.text())
def test_any_text_is_a_value_or_a_value_error(text):
    """Nothing else is raised."""
    for parse in (parse_size, parse_duration, Address.parse):
        with suppress(ValueError):
            parse(text)


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("127.0.0.1:10809", "nbd://127.0.0.1:10809"),
        ("[::1]:0", "nbd://[::1]:0"),
        ("unix:/tmp/a b", "nbd+unix:///?socket=/tmp/a%20b"),
    ],
)
def test_addresses(text, uri):
    """Text, address, text; and the URI that clients use."""
    assert str(Address.parse(text)) == text
    assert Address.parse(text).uri() == uri


@pytest.mark.parametrize("text", ["", "host", ":1", "a:b", "a:65536", "::1:1", "unix:", "a:-1", "a:²"])
def test_what_is_no_address(text):
    """Refused with a sentence."""
    with pytest.raises(ValueError):
        Address.parse(text)


def test_a_cluster_is_found_by_its_name(tmp_path, monkeypatch):
    """The name in the file, else that of the folder; not running, not there and not YAML are told apart."""
    monkeypatch.setenv("MEMCLUSTER_FILE", str(tmp_path / "c.yaml"))
    assert cluster_file() == tmp_path / "c.yaml"
    with pytest.raises(DiscoverError, match="no such file"):
        running_uri(cluster_file())
    cluster_file().write_text("name: never-started-by-anybody\nmemory: 1\n")
    with pytest.raises(NotRunning, match="never-started-by-anybody is not running"):
        running_uri(cluster_file())
    monkeypatch.delenv("MEMCLUSTER_FILE")
    monkeypatch.chdir(tmp_path)
    assert command(tmp_path / "cluster.yaml", "up") == "memcluster up"
    assert command(Path("a b.yaml"), "down") == "memcluster -f 'a b.yaml' down"
    monkeypatch.setenv("MEMCLUSTER_FILE", str(tmp_path / "c.yaml"))
    with pytest.raises(NotRunning, match=f"`memcluster -f {tmp_path}/c.yaml up -d` starts it"):
        running_uri(cluster_file())
    cluster_file().write_text("name: [")
    with pytest.raises(DiscoverError, match="cannot be read"):
        running_uri(cluster_file())
    assert str(run_directory("demo")).startswith("/dev/shm/memcluster-")


FOUND = """
import sys
from pathlib import Path
from memcluster.client.discover import cluster_name
print(cluster_name(Path("cluster.yaml")), "yaml" in sys.modules)
"""


def test_the_file_of_a_running_cluster_is_read_only_if_it_has_changed(make_cluster):
    """Its name stands in the record, which tells which file it was, as it was then; another record is no matter."""
    cluster = make_cluster()
    text = cluster.file.read_text()
    others = [run_directory(f"{cluster.name[-30:]}-{number}") for number in range(4)]

    def found() -> list[str]:
        return run(sys.executable, "-c", FOUND, cwd=cluster.folder).stdout.decode().split()

    try:
        of_older_file = json.dumps({"file": str(cluster.file), "stamp": "0"})
        for other, record in zip(others, ("[]", "{}", "{", of_older_file), strict=True):
            other.mkdir()
            (other / "state.json").write_text(record)
        assert found() == [cluster.name, "False"]
        with cluster.file.open("a") as file:
            file.write("# changed\n")
        assert found() == [cluster.name, "True"]
        cluster.file.write_text("name: another\nmemory: 1\n")
        assert found() == ["another", "True"]
        cluster.file.unlink()
        with pytest.raises(DiscoverError, match="no such file"):
            cluster_name(cluster.file)
    finally:
        cluster.file.write_text(text)
        for other in others:
            shutil.rmtree(other, ignore_errors=True)


@given(st.text(min_size=1, max_size=60).filter(lambda text: "/" not in text and "\0" not in text))
def test_any_folder_gives_a_name(folder):
    """The default is always one that may be used."""
    assert NAME.fullmatch(default_name(Path("/x") / folder / "cluster.yaml"))
