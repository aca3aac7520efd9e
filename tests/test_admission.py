"""node/serving/admission.py and node/serving/budget.py: who is let in, and how much all of them may take up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.serving.admission import CPU_SAMPLES, MARKS, Admission, Shortage, Usage

CALM = Usage(0.1, 0.1, 0.1)


def test_a_fixed_limit_refuses_with_its_number_and_counts():
    """The sentence names the limit; a place given back is taken again."""
    admission = Admission(1)
    slot = admission.take()
    assert isinstance(slot, int)
    assert "clients.limit: 1" in str(admission.take())
    assert admission.refusals == {"slots": 1}
    admission.give_back(slot)
    assert isinstance(admission.take(), int)


def test_auto_lets_in_until_a_resource_runs_short_and_names_it():
    """Memory short: refused with that reason; again after it has recovered below the low mark, not before."""
    usage = CALM
    admission = Admission(None, lambda: usage)
    for memory, admitted in [(0.5, True), (0.91, True), (0.93, False), (0.90, False), (0.87, True), (0.91, True)]:
        usage = CALM._replace(memory=memory)
        admission.sample()
        answer = admission.take()
        assert isinstance(answer, int) is admitted, (memory, answer)
        if not admitted:
            assert str(answer).startswith("memory of this machine ran short")
    assert admission.refusals == {"memory": 2}


def test_a_short_burst_of_work_is_no_shortage_of_processors():
    """Only samples in a row count."""
    shortage = Shortage()
    for _ in range(CPU_SAMPLES - 1):
        shortage.sample(CALM._replace(cpu=1.0))
    assert not shortage.short
    shortage.sample(CALM)
    for _ in range(CPU_SAMPLES):
        shortage.sample(CALM._replace(cpu=1.0))
    assert "cpu" in shortage.short
    shortage.sample(CALM._replace(cpu=0.9))
    assert "cpu" in shortage.short
    shortage.sample(CALM)
    assert not shortage.short


@given(st.lists(st.builds(Usage, st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)), max_size=50))
def test_it_does_not_flap(samples):
    """Between two changes of the answer for a resource its use has crossed the whole margin between the marks."""
    shortage = Shortage()
    for usage in samples:
        before = set(shortage.short)
        shortage.sample(usage)
        for name in before ^ set(shortage.short):
            value = getattr(usage, name)
            assert value >= MARKS[name].high if name in shortage.short else value <= MARKS[name].low
