"""The pytest plugin, as a project that installed memcluster sees it: fixtures, the marker, and the report of a failure.

pytester's projects run in processes of their own, as a user's do.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from memcluster.client.discover import run_directory

pytest_plugins = ["pytester"]
DOCUMENTED = Path(__file__).parent.parent / "docs" / "python.md"


@pytest.fixture
def suite(pytester, monkeypatch):
    """Runs a file of tests; of the clusters that it notes in the file `names` nothing may be left afterwards."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "")

    def run(text: str, *words: str) -> pytest.RunResult:
        pytester.makepyfile(test_suite=text)
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *words)

    yield run
    names = pytester.path / "names"
    for name in names.read_text().split() if names.exists() else ():
        assert not run_directory(name).exists()


def documented() -> str:
    """The suite that docs/python.md shows."""
    found = re.search(r"```python\n(# test_store\.py.*?)```", DOCUMENTED.read_text(), re.DOTALL)
    assert found
    return found[1]


def test_the_documented_suite_passes(suite):
    """Ten lines that test a storage client under `fault kill`."""
    text = documented()
    assert len(text.strip().splitlines()) <= 12
    suite(text).assert_outcomes(passed=2)


FAILS = """
import pytest

@pytest.fixture(scope="session")
def memcluster_keys():
    return {"servers": 2, "memory": "1MiB"}

def note(cluster):
    with open("names", "a") as names:
        print(cluster.name, file=names)

def test_fails(memcluster):
    note(memcluster)
    with memcluster.connect() as memory:
        memory.pwrite(b"found in the log", 4096)
    assert 0, "on purpose"

def test_stopped_it(memcluster):
    note(memcluster)
    memcluster.stop()
    assert 0, "on purpose"

def test_session_one(memcluster_session):
    note(memcluster_session)
    with memcluster_session.connect() as memory:
        memory.pwrite(b"seen", 0x111)

def test_session_two(memcluster_session):
    with memcluster_session.connect() as memory:
        assert memory.pread(4, 0x111) == b"seen"
        memory.pwrite(b"two", 0x222)
    assert 0, "on purpose"

@pytest.mark.memcluster(servers=3)
class TestMarks:
    @pytest.mark.memcluster(topology="chain")
    def test_marks_add_up(self, memcluster):
        note(memcluster)
        found = memcluster.status()
        assert found["topology"] == "chain" and found["memory"] == 1 << 20
        assert sum(node["role"] != "logger" for node in found["nodes"]) == 3
"""


def test_a_failure_shows_the_log_of_its_time_and_where_the_timeline_lies(suite):
    """Of the test's own cluster and of the session's, where the report has what this test did and nothing of others."""
    result = suite(FAILS)
    result.assert_outcomes(passed=2, failed=3)
    text = result.stdout.str()
    first, stopped, session = re.split(r"_{5,} test_\w+ _{5,}", text)[1:4]
    assert re.search(r"WRITE +0x00001000 \+16 .* ok", first)
    assert "cannot be shown: cluster" in stopped
    assert "this program has stopped it" in stopped
    assert "0x00000222 +3" in session
    assert "0x00000111 +4 " in session  # the READ of this test
    assert not re.search(r"WRITE +0x00000111", session)
    for part in (first, session):
        path = re.search(r"timeline: (\S+)", part)
        assert path
        assert "<html" in Path(path[1]).read_text()


WRONG = """
import pytest

@pytest.mark.memcluster(sevrers=3)
def test_keyword(memcluster):
    pass

@pytest.mark.memcluster(3)
def test_position(memcluster):
    pass

@pytest.mark.memcluster(topology="ring")
def test_value(memcluster):
    pass

@pytest.mark.memcluster(servers=3)
def test_session(memcluster_session):
    pass
"""


def test_wrong_marks_are_told_with_what_is_allowed(suite):
    result = suite(WRONG, "--strict-markers")
    result.assert_outcomes(errors=4)
    text = result.stdout.str()
    assert "test_keyword: @pytest.mark.memcluster has no keyword 'sevrers'; did you mean 'servers'? there are" in text
    assert "test_position: @pytest.mark.memcluster takes keywords only, such as servers=3" in text
    assert "topology must be one of" in text
    assert "the keys of the session's cluster come from the fixture `memcluster_keys`" in text
    assert "Traceback" not in text
    assert "not started: " in text


def test_the_plugin_costs_those_nothing_who_do_not_use_it(suite):
    """Nothing of memcluster is loaded but the plugin."""
    suite(
        """
        import sys

        def test_nothing():
            found = {name for name in sys.modules if name.split(".")[0] == "memcluster"}
            assert found <= {"memcluster", "memcluster.pytest_plugin"}
        """
    ).assert_outcomes(passed=1)
