"""The faults that bench/mutations plants: each can still be planted, and one that is planted is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.mutations.faults import FAULTS, SUBTLE, Planted
from bench.mutations.ledger import Ledger
from bench.mutations.marks import MARKS
from bench.mutations.plant import Unplantable, hunt, marked, patched, reach

ROOT = Path(__file__).parent.parent
WITH_MARKS = [fault for fault in FAULTS if fault.name in MARKS]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_text_of_each_fault_is_there(fault: Planted) -> None:
    """Once, and what takes its place is Python."""
    assert patched(ROOT, fault)[fault.file] != (ROOT / fault.file).read_text()


def test_there_are_enough_and_each_has_its_name() -> None:
    assert len(SUBTLE) > 20
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_a_fault_whose_text_is_gone_is_told() -> None:
    fault = replace(FAULTS[0], changes=(("what nobody wrote", ""),))
    with pytest.raises(Unplantable, match=f"{fault.name}: its text is 0 times in {fault.file}"):
        patched(ROOT, fault)


def test_all_marks_are_in_the_code_at_once() -> None:
    assert len(WITH_MARKS) == len(MARKS)
    texts = "".join(marked(ROOT, WITH_MARKS).values())
    assert [name for name in MARKS if texts.count(f'REACHED("{name}"') != 1] == []


def test_a_fault_is_found_in_a_copy_of_the_code() -> None:
    """And the copy without it breaks no rule, so that it is the fault that was found."""
    fault = named("trim-keeps-ends")
    found = hunt(ROOT, fault, range(1, 21))
    assert found.seed
    assert "lost" in found.rules
    harmless = replace(fault, changes=((fault.changes[0][0], fault.changes[0][0]),))
    assert not hunt(ROOT, harmless, range(1, found.seed + 1)).seed


def test_a_fault_with_a_mark_is_found_by_a_seed_that_gets_there() -> None:
    """The first such one, of those that get to where replies leave in parts; and no mark breaks anything itself."""
    fault = named("done-too-soon")
    met = reach(ROOT, WITH_MARKS, range(1, 13))
    assert met[""] == []
    assert 0 < len(met[fault.name]) < 12
    missed = [seed for seed in range(1, 13) if seed not in met[fault.name]]
    assert not hunt(ROOT, fault, missed).seed


def test_a_hunt_goes_on_where_it_was_ended(tmp_path: Path) -> None:
    """But for a fault that is another one now."""
    fault, path = FAULTS[0], tmp_path / "results"
    ledger = Ledger(ROOT, path, [])
    ledger.of(fault).looked = 50
    ledger.reach.looked = 100
    ledger.reach.add({fault.name: [3, 1]})
    ledger.keep()
    again = Ledger(ROOT, path, [])
    assert again.of(fault).looked == 50
    assert (again.reach.looked, again.reach.met) == (100, {fault.name: [1, 3]})
    assert again.of(replace(fault, changes=())).looked == 0
    assert Ledger(ROOT, path, [named("done-too-soon")]).reach.looked == 0


def named(name: str) -> Planted:
    return next(fault for fault in FAULTS if fault.name == name)
