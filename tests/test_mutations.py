"""The faults that bench/mutations plants: each can still be planted, and one that is planted is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.mutations.faults import FAULTS, SUBTLE, Planted
from bench.mutations.plant import Unplantable, hunt, patched

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_text_of_each_fault_is_there(fault: Planted) -> None:
    """Once, and what takes its place is Python."""
    assert patched(ROOT, fault) != (ROOT / fault.file).read_text()


def test_there_are_enough_and_each_has_its_name() -> None:
    assert len(SUBTLE) > 20
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_a_fault_whose_text_is_gone_is_told() -> None:
    fault = replace(FAULTS[0], changes=(("what nobody wrote", ""),))
    with pytest.raises(Unplantable, match=f"{fault.name}: its text is 0 times in {fault.file}"):
        patched(ROOT, fault)


def test_a_fault_is_found_in_a_copy_of_the_code() -> None:
    """And the copy without it breaks no rule, so that it is the fault that was found."""
    fault = next(fault for fault in FAULTS if fault.name == "trim-keeps-ends")
    found = hunt(ROOT, fault, 20)
    assert found is not None
    assert "lost" in found[1]
    harmless = replace(fault, changes=((fault.changes[0][0], fault.changes[0][0]),))
    assert hunt(ROOT, harmless, found[0]) is None
