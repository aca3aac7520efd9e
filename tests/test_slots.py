"""node/serving/slots.py: no slot twice, none lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcluster.node.serving.slots import SlotTable


@given(st.integers(1, 8), st.lists(st.booleans(), max_size=60))
def test_slots_are_a_set(limit, steps):
    """Whatever is taken and given back: no slot is given twice, none beyond the limit, all can be taken."""
    table = SlotTable(limit)
    taken: list[int] = []
    for take in steps:
        if take:
            slot = table.take()
            assert (slot is None) == (len(taken) == limit)
            if slot is not None:
                assert slot not in taken
                assert 0 <= slot < limit
                taken.append(slot)
        elif taken:
            table.give_back(taken.pop(0))


def test_a_slot_cannot_be_given_back_twice():
    """That would hand it out twice."""
    table = SlotTable(2)
    slot = table.take()
    table.give_back(slot)
    with pytest.raises(KeyError):
        table.give_back(slot)


def test_with_another_limit_who_is_in_stays_in():
    """And nobody comes in until there are fewer than that."""
    table = SlotTable(3)
    slots = [table.take() for _ in range(3)]
    table.resize(2)
    table.give_back(slots.pop())
    assert table.take() is None
    table.give_back(slots.pop())
    again = table.take()
    assert again is not None
    assert again not in slots
    table.resize(None)
    assert all(table.take() is not None for _ in range(9))
