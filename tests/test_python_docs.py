"""The examples of docs/python.md, run as they stand there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from harness import run

PAGE = (Path(__file__).parent.parent / "docs" / "python.md").read_text()
EXAMPLES = [text for text in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "import memcluster" in text]


@pytest.mark.parametrize("text", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_runs(text, tmp_path):
    run(sys.executable, "-W", "error", "-c", text, cwd=tmp_path)


def test_all_examples_are_run():
    """Here, or with pytest by test_pytest_plugin.py and in a conftest.py there."""
    others = [text for text in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if text not in EXAMPLES]
    assert len(EXAMPLES) >= 2
    assert all("pytest" in text for text in others)
